"""Whether simulated replicas answer as real ones: ``workbench bench replica MODEL``.

Each replica is a server of its own with one thread; with several the router stands before them, and
the load client before that. Their steps are timed alone; what serving adds is fitted to every other
block of a load, as :mod:`workbench.planner` does with a run's replay, and the blocks between are
foretold: the simulation is given when their requests were sent and how long they are, and their
times it is not.

Rows ``replica e2e p99`` and the like: simulated over measured, with both; p50, p90 and p99 of the
time to the first token and to the last. ``other_half`` is the same quantile of the blocks that were
fitted to over that of the foretold ones: what two halves of one measurement differ by, nearer than
which no simulation can come. lo, hi: 95 % of the ratio over resampled blocks.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engine.engine import Engine
from workbench.errors import ConfigError, StageError
from workbench.load.planned import PlannedRequest
from workbench.machine.provenance import provenance
from workbench.planner.costs import FEWEST, QUANTILES, ReplicaCosts, ServedReplay, fit_to
from workbench.planner.simulation import Arrivals, StepCosts
from workbench.serve.client import LoadProcesses, load_processes
from workbench.serve.endpoint import Endpoint
from workbench.serve.process import server_process
from workbench.serve.replay import Outcome
from workbench.serve.spec import ServeSpec, UpstreamSpec
from workbench.wording.counts import number_of

ARM = "replica"
SLOTS, CONTEXT, THREADS = 4, 512, 1
PROMPTS, OUTPUTS = (16, 240), (8, 96)
"""Tokens of a request, drawn evenly."""
TRIED = 40
"""Requests of the first block, from which the rate is found."""
STEPS = 24
"""Timed at each number of rows that decode."""
FEWEST_PLAYED = 4 * FEWEST
RESAMPLES = 500
SEED = 17


def timed_costs(engine: Engine) -> ReplicaCosts:
    """Of its steps alone, at each number of rows that decode and for a prompt token."""
    draw, decode_s, prompts = np.random.default_rng(SEED), [], []
    length = sum(PROMPTS) // 2
    for rows in range(1, engine.slots + 1):
        for slot in range(rows):
            began = time.perf_counter()
            engine.prefill(slot, draw.integers(6, engine.vocab_size, length).tolist())
            prompts.append((time.perf_counter() - began) / length)
        times = []
        for _ in range(STEPS):
            tokens = draw.integers(6, engine.vocab_size, rows).tolist()
            began = time.perf_counter()
            engine.decode(range(rows), tokens)
            times.append(time.perf_counter() - began)
        for slot in range(rows):
            engine.release(slot)
        decode_s.append(float(np.median(times)))
    rising = tuple(map(float, np.maximum.accumulate(decode_s)))
    points = tuple(float(rows) for rows in range(1, engine.slots + 1))
    steps = StepCosts(points, rising, float(np.median(prompts)))
    return ReplicaCosts(ARM, steps, engine.slots, engine.prefill_rows // 4)


@contextmanager
def served(model: Path, replicas: int) -> Iterator[LoadProcesses]:
    """A client of so many servers of the model; of several through the router."""
    spec = ServeSpec(
        {ARM: model}, ARM, ARM, model=ARM, slots=SLOTS, context=CONTEXT, threads=THREADS
    )
    with ExitStack() as open_things:
        folder = Path(open_things.enter_context(tempfile.TemporaryDirectory()))
        addresses = []
        for place in range(replicas):
            (own := folder / str(place)).mkdir()
            addresses.append(open_things.enter_context(server_process(spec, own)).address)
        front = addresses[0]
        if replicas > 1:
            upstream = UpstreamSpec(
                f"{front}/v1", ARM, others=tuple(f"{a}/v1" for a in addresses[1:])
            )
            router = ServeSpec(
                {}, ARM, ARM, model=ARM, slots=replicas * SLOTS, upstreams={ARM: upstream}
            )
            front = open_things.enter_context(server_process(router, folder)).address
        (own := folder / "client").mkdir()
        yield open_things.enter_context(load_processes(Endpoint(front, ARM), own))


def block_of(rate_per_s: float, count: int, seed: int) -> list[PlannedRequest]:
    """Requests that arrive at random."""
    draw = np.random.default_rng(seed)
    due_s = np.cumsum(draw.exponential(1.0 / rate_per_s, count))
    prompt, output = draw.integers(*PROMPTS, count), draw.integers(*OUTPUTS, count)
    return [
        PlannedRequest(k, float(due_s[k]), int(prompt[k]), int(output[k]), "interactive", False)
        for k in range(count)
    ]


def play(client: LoadProcesses, block: Sequence[PlannedRequest], vocabulary: int) -> ServedReplay:
    """What became of its requests. Raises StageError where one was not answered whole."""

    def prompt_of(planned: PlannedRequest) -> list[int]:
        draw = np.random.default_rng(planned.id)
        return draw.integers(6, vocabulary, planned.prompt_tokens).tolist()

    outcomes = client.replay(block, prompt_of)
    if broken := [o for o in outcomes if o.status != "ok"]:
        raise StageError(
            f"{len(broken)} of {number_of(len(outcomes), 'request')} were not answered whole, "
            f"the first: {broken[0].status}, {broken[0].error}"
        )
    return replay_of(sorted(outcomes, key=lambda outcome: outcome.sent_s))


def replay_of(outcomes: Sequence[Outcome]) -> ServedReplay:
    """Of one block, in the order of sending."""
    sent, first, last = (
        np.array([getattr(outcome, of) for outcome in outcomes], float)
        for of in ("sent_s", "first_token_s", "last_token_s")
    )
    prompt = np.array([o.counted_prompt_tokens or o.prompt_tokens for o in outcomes])
    output = np.array([outcome.output_tokens for outcome in outcomes])
    return ServedReplay([Arrivals(sent, prompt, output)], [first - sent], [last - sent])


def joined(blocks: Sequence[ServedReplay]) -> ServedReplay:
    return ServedReplay(
        [load for block in blocks for load in block.loads],
        [each for block in blocks for each in block.ttft],
        [each for block in blocks for each in block.e2e],
    )


def rate_for(costs: ReplicaCosts, replicas: int, busy: float) -> float:
    """The rate at which the simulated replicas are so busy, 1/s."""
    low, high = 0.0, replicas * costs.slots / (costs.factor * OUTPUTS[0] * costs.steps.step_s(1, 0))
    for _ in range(20):
        middle = (low + high) / 2
        found = costs.serve(arrivals_of(block_of(middle, 800, SEED)), replicas)
        over = found.busy_s / (replicas * found.span_s) > busy
        low, high = (low, middle) if over else (middle, high)
    return low


def arrivals_of(block: Sequence[PlannedRequest]) -> Arrivals:
    columns = ([getattr(one, of) for one in block] for of in (
        "intended_s", "prompt_tokens", "output_tokens"))  # fmt: skip
    return Arrivals(*(np.array(column, float) for column in columns))


@dataclass(frozen=True)
class Measured:
    """costs: of the steps alone. blocks: in the order of their time."""

    costs: ReplicaCosts
    replicas: int
    rate_per_s: float
    blocks: list[ServedReplay]

    def rows(self) -> list[dict[str, Any]]:
        """Simulated over measured, a row a latency and quantile."""
        fitted_to, foretold = joined(self.blocks[::2]), joined(self.blocks[1::2])
        costs = fit_to(self.costs, fitted_to, self.replicas)
        made = [costs.serve(load, self.replicas) for load in foretold.loads]
        rows = []
        for latency in ("ttft", "e2e"):
            real, other = getattr(foretold, latency), getattr(fitted_to, latency)
            simulated = [getattr(one, f"{latency}_s") for one in made]
            for quantile in QUANTILES:
                want, got, half = (
                    float(np.quantile(np.concatenate(of), quantile))
                    for of in (real, simulated, other)
                )
                lo, hi = _resampled(simulated, real, quantile)
                rows.append({
                    "name": f"replica {latency} p{100 * quantile:g}",
                    "value": round(got / want, 4), "unit": "x", "lo": lo, "hi": hi,
                    "other_half": round(half / want, 4),
                    "simulated_ms": round(1e3 * got, 3), "measured_ms": round(1e3 * want, 3),
                    "requests": len(foretold), "blocks": len(foretold.loads),
                    "factor": round(costs.factor, 4), "intake_ms": round(1e3 * costs.intake_s, 3),
                    "answer_ms": round(1e3 * costs.answer_s, 3),
                })  # fmt: skip
        return rows


def _resampled(
    simulated: Sequence[np.ndarray], real: Sequence[np.ndarray], quantile: float
) -> tuple[float, float]:
    """95 % of the ratio of the quantiles, blocks drawn anew."""
    draw, found = np.random.default_rng(SEED), []
    for _ in range(RESAMPLES):
        chosen = draw.integers(0, len(real), len(real))
        made, had = (np.concatenate([of[k] for k in chosen]) for of in (simulated, real))
        found.append(np.quantile(made, quantile) / np.quantile(had, quantile))
    low, high = np.quantile(found, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def measured(
    model: Path, replicas: int, *, blocks: int, requests: int, busy: float
) -> Measured:  # fmt: skip
    """Steps alone, then the load: ``blocks`` of so many requests each."""
    with Engine.load(model, slots=SLOTS, context=CONTEXT, threads=THREADS) as engine:
        timed_costs(engine)  # warm
        costs, vocabulary = timed_costs(engine), engine.vocab_size
    with served(model, replicas) as client:
        trial = block_of(rate_for(costs, replicas, busy / 2), TRIED, SEED)
        play(client, trial[: SLOTS * replicas], vocabulary)
        tried = fit_to(costs, play(client, trial, vocabulary), replicas)
        rate = rate_for(tried, replicas, busy)
        played = [
            play(client, block_of(rate, requests, SEED + 1 + block), vocabulary)
            for block in range(blocks)
        ]
    return Measured(costs, replicas, rate, played)


def bench_replica(
    model: Path, replicas: int = 1, *, blocks: int = 10, requests: int = 50, busy: float = 0.5,
    out: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows for one number of replicas; printed as JSON lines, and added to ``out``."""
    if blocks < 2 or blocks * requests < FEWEST_PLAYED or not 0 < busy < 1:
        raise ConfigError(
            f"{number_of(blocks, 'block')} of {number_of(requests, 'request')}, busy {busy:g}",
            allowed=f"2 blocks or more, in all {FEWEST_PLAYED} requests; busy within 0 and 1",
        )
    found = measured(model, replicas, blocks=blocks, requests=requests, busy=busy)
    shared = {
        "of": f"{model.name}, {number_of(replicas, 'replica')}, {SLOTS} slots, "
        f"{found.rate_per_s:.3g} requests/s",
        **provenance("cpu"), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    rows = [row | shared for row in found.rows()]
    for row in rows:
        print(json.dumps(row))
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows
