"""What drafts bring: ``python -m workbench.bench.speculative pair FULL TERNARY``, ``shape PRESET``.

``pair``: two trained models of one tokenizer answer the same prompts, the model alone and drafted
in turns, so that what else the machine does falls on both; the speed-up is the ratio within those
pairs: of all tokens after the first (decode), of the whole answer, and of its processor time, which
other work disturbs least. Drafts are the model, the text itself, and both, as the arm
``speculative`` has them. ``shape``: weights drawn at random cannot be guessed, so a draft step and
a verification of 1 to 9 rows are timed in turns, and the speed-up over acceptance is computed from
them (modelled). Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.tokenizer import encode, load_tokenizer
from workbench.engine.draft import PromptLookup
from workbench.engine.draft_length import LONGEST
from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.engine.speculative import SpeculativeEngine, require_same_tokenizer
from workbench.machine.provenance import provenance
from workbench.measure.statistics import mean_ratio

DRAFTS = ("model", "text", "both")
ROWS = (1, 2, 3, 4, 5, 7, 9)
ACCEPTANCES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


def pair(
    full: Path, draft: Path, texts: list[str], prompt_tokens: int, output_tokens: int, threads: int,
    drafted_by: Sequence[str] = DRAFTS,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for each of ``drafted_by``."""
    require_same_tokenizer(full, draft)
    tokenizer = load_tokenizer(str(full))
    prompts = [tuple(ids[:prompt_tokens]) for ids in encode(tokenizer, texts) if len(ids) > 8]
    setup: Any = {"context": prompt_tokens + output_tokens, "threads": threads}
    for name in drafted_by:
        drafts: list[Engine | PromptLookup] = []
        if name != "text":
            drafts.append(Engine.load(draft, **setup))
        if name != "model":
            drafts.append(PromptLookup())
        plain = Engine.load(full, **setup)
        # One copy of the weights for both: where another lies in memory is worth per cents.
        with SpeculativeEngine(plain, *drafts) as drafted:
            head = {"kind": "measured", "draft": name, "output_tokens": output_tokens}
            yield head | _in_turns(plain, drafted, prompts, output_tokens)


def _in_turns(
    plain: Engine, drafted: SpeculativeEngine, prompts: list[tuple[int, ...]], output_tokens: int
) -> dict[str, Any]:
    decode_s: dict[str, list[float]] = {"plain": [], "drafted": []}
    answer_s: dict[str, list[float]] = {"plain": [], "drafted": []}
    cpu_s: dict[str, list[float]] = {"plain": [], "drafted": []}
    equal = 0
    for number, prompt in enumerate([prompts[0], *prompts]):
        request = GenerationRequest(prompt, output_tokens, ignore_eos=True)
        engines = {"plain": plain, "drafted": drafted}
        order = ["plain", "drafted"] if number % 2 else ["drafted", "plain"]
        done, cpu = {}, {}
        for name in order:
            began = time.process_time()
            done[name] = engines[name].generate(request)
            cpu[name] = time.process_time() - began
        if not number:  # the first pays for caches, and teaches the costs
            continue
        for name, each in done.items():
            decode_s[name].append(each.end_s - (each.first_token_s or 0.0))
            answer_s[name].append(each.end_s)
            cpu_s[name].append(cpu[name])
        equal += done["plain"].tokens == done["drafted"].tokens
    decode = mean_ratio(decode_s["plain"], decode_s["drafted"])
    answer = mean_ratio(answer_s["plain"], answer_s["drafted"])
    processor = mean_ratio(cpu_s["plain"], cpu_s["drafted"])
    counts = drafted.counts
    return {
        "prompts": len(prompts),
        "answers_equal": equal,
        "acceptance": round(counts.accepted / max(1, counts.guessed), 4),
        "tokens_per_verification": round(counts.written / counts.verifications, 3),
        "guessed_by": {name: of.guessed for name, of in counts.drafts.items()},
        "accepted_by": {name: of.accepted for name, of in counts.drafts.items()},
        "decode_speedup": decode.value,
        "lo": decode.lo,
        "hi": decode.hi,
        "answer_speedup": answer.value,
        "answer_lo": answer.lo,
        "answer_hi": answer.hi,
        "processor_speedup": processor.value,
        "processor_lo": processor.lo,
        "processor_hi": processor.hi,
        "plain_ms_per_token": 1e3 * float(np.median(decode_s["plain"])) / (output_tokens - 1),
        "memory_over_plain": drafted.weight_bytes / plain.weight_bytes,
        "computes": drafted.backend,
    }


def shape(preset: str, rounds: int, context: int, threads: int) -> Iterator[dict[str, Any]]:
    """Costs at a shape, then the curve over acceptance that follows from them."""
    from workbench.model.build import preset_config
    from workbench.pilot.sections.model import Model

    config = preset_config(Model(preset=preset), 128256, context)
    setup: Any = {"context": context, "threads": threads}
    with (
        Engine.random(config, "half", **setup) as full,
        Engine.random(config, "ternary", **setup) as draft,
    ):
        costs = measured_costs(full, draft, rounds, context // 2)
        memory = (full.weight_bytes + draft.weight_bytes) / full.weight_bytes
        yield {
            "kind": "measured", "preset": preset, "rounds": rounds, "position": context // 2,
            "draft_ms": 1e3 * costs["draft"], "memory_over_plain": memory,
            "verify_ms": {str(rows): 1e3 * costs[f"verify_{rows}"] for rows in ROWS},
            "computes": f"{full.backend}; {draft.backend}",
        }  # fmt: skip
    for acceptance in ACCEPTANCES:
        guesses, speedup = best_length(acceptance, costs)
        yield {
            "kind": "modelled", "preset": preset, "acceptance": acceptance, "guesses": guesses,
            "tokens_per_verification": written(acceptance, guesses), "decode_speedup": speedup,
        }  # fmt: skip


def measured_costs(full: Engine, draft: Engine, rounds: int, position: int) -> dict[str, float]:
    """Median seconds of a draft's step and of verifications, in turns."""
    filling = [1] * position
    for engine in (full, draft):
        engine.step(filling, [0] * position, False)

    def step(engine: Engine, rows: int) -> Callable[[], object]:
        def run() -> None:
            engine.core.truncate(0, position)
            engine.core.forward_apart([1] * rows, [0] * rows, range(position, position + rows))

        return run

    turns = {"draft": step(draft, 1)} | {f"verify_{rows}": step(full, rows) for rows in ROWS}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, run in turns.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def written(acceptance: float, guesses: int) -> float:
    """Tokens a verification, each guess right with this chance (Leviathan et al. 2023, eq. 1)."""
    return sum(acceptance**k for k in range(guesses + 1))


def best_length(acceptance: float, costs: dict[str, float]) -> tuple[int, float]:
    """The number of guesses that brings most, and the speed-up then."""
    verify = np.interp(range(1, LONGEST + 2), ROWS, [costs[f"verify_{rows}"] for rows in ROWS])
    speedups = [
        written(acceptance, k) * verify[0] / (k * costs["draft"] + verify[k])
        for k in range(LONGEST + 1)
    ]
    best = int(np.argmax(speedups))
    return best, float(speedups[best])


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    of_pair = commands.add_parser("pair")
    of_pair.add_argument("full", type=Path)
    of_pair.add_argument("draft", type=Path)
    of_pair.add_argument("--texts", type=Path, required=True, help="JSON: a list of texts")
    of_pair.add_argument("--prompt-tokens", type=int, default=64)
    of_pair.add_argument("--output-tokens", type=int, default=64)
    of_pair.add_argument("--drafts", dest="drafted_by", nargs="+", choices=DRAFTS, default=DRAFTS)
    of_shape = commands.add_parser("shape")
    of_shape.add_argument("preset")
    of_shape.add_argument("--rounds", type=int, default=5)
    of_shape.add_argument("--context", type=int, default=512)
    for each in (of_pair, of_shape):
        each.add_argument("--threads", type=int, default=0)
    given = vars(parser.parse_args())
    what = given.pop("what")
    if what == "pair":
        given["texts"] = json.loads(given["texts"].read_text(encoding="utf-8"))
    made_here = {**provenance("cpu"), "date": time.strftime("%Y-%m-%d")}
    for row in (pair if what == "pair" else shape)(**given):
        print(json.dumps(row | made_here), flush=True)


if __name__ == "__main__":
    main()
