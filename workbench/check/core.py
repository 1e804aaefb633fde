"""Whether a core computes what the plain reference does: ``workbench core check NAME``.

Small models of every family and precision (:mod:`.core_models`) are loaded twice, into the core and
into the reference of :mod:`ternary_kernels.llama`, and asked the same. What a core is held to is
the text of :class:`ternary_kernels.core.Core`: logits whatever the pieces, batches in which each
row sees its own slot alone, slots that are forgotten, reused and cut back, errors that say what is
allowed and damage nothing, and a memory that can be believed.

**How near.** The distance of logits is the norm of the difference over that of the reference's.
:data:`NEAR` lets pass what rounds otherwise on the way: activations in bf16 are 0.01 to 0.02 away,
a cache in float32 instead of float16, after which INT8 activations round to a neighbour here and
there, up to 0.03. A window of attention that is one position too long is 0.2 away, another
activation 0.5. A core of the reference's roundings is 1e-5 away (0.005 where a sum in another order
tips an INT8 activation to its neighbour), and held to 0.01 (``--near``) it shows smaller mistakes:
positions turned by a tenth too much (0.02), one layer's scale a tenth off (0.01 to 0.06).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from ternary_kernels.core import NotFiniteError

from workbench.check.core_models import SPECIMENS, WORDS, Specimen
from workbench.engine.cores import core_builder
from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.engine.scheduler import Scheduler
from workbench.errors import CheckError, StageError
from workbench.wording.counts import number_of

NEAR = 0.05
CONTEXT, SLOTS = 32, 3
DRAWN = np.random.default_rng(3).integers(0, WORDS, (SLOTS, 19))
TEXTS: list[list[int]] = [
    row[:length].tolist() for row, length in zip(DRAWN, (19, 7, 12), strict=True)
]
NOT_FINITE = "not finite"

CheckOutcome = Literal["passed", "failed", "not offered"]


class Failed(Exception):
    """What a core did, and what was expected of it."""


class NotOffered(Exception):
    """Why a check does not concern this core."""


@dataclass(frozen=True)
class Finding:
    """One check of one core. model: of :data:`SPECIMENS`. said: what was seen."""

    check: str
    model: str
    outcome: CheckOutcome
    said: str

    def __str__(self) -> str:
        return f"{self.outcome:11} {self.check:34} {self.model:48} {self.said}"


@dataclass
class CheckedModel:
    """A model in its folder, the core's name, and what the reference says of it."""

    core: str
    device: Literal["cpu", "cuda"]
    threads: int
    near: float
    folder: Path

    @contextmanager
    def engine(self, slots: int = SLOTS) -> Iterator[Engine]:
        """The core over the model; closed twice, as it must allow."""
        engine = Engine.load(
            self.folder, slots=slots, context=CONTEXT, threads=self.threads,
            device=self.device, core=self.core,
        )  # fmt: skip
        try:
            yield engine
        finally:
            engine.close()
            engine.close()

    @cached_property
    def reference(self) -> Engine:
        return Engine.load(self.folder, slots=1, context=CONTEXT, core="reference")

    def wanted(self, tokens: list[int]) -> np.ndarray:
        """Logits [n, V] of a text of its own, by the reference."""
        return self.reference.logits(tokens)

    def distance(self, got: np.ndarray, wanted: np.ndarray, what: str) -> float:
        """Of logits. Raises Failed beyond ``near``, and for another shape or type."""
        if got.shape != wanted.shape or got.dtype != np.float32:
            raise Failed(f"{what}: {got.dtype} {got.shape}; wanted: float32 {wanted.shape}")
        if not np.isfinite(got).all():
            raise Failed(f"{what}: not finite")
        found = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
        if found > self.near:
            raise Failed(f"{what}: {found:.2g} away from what is wanted; allowed: {self.near:g}")
        return found


def logits(case: CheckedModel) -> str:
    """A text in one step, then in pieces and token by token: the reference's logits."""
    text = TEXTS[0]
    wanted = case.wanted(text)
    with case.engine() as engine:
        whole = case.distance(engine.logits(text), wanted, "a text in one step")
        engine.prefill(1, text[:11], chunk=4)
        if engine.core.filled[1] != 11:
            raise Failed(f"filled is {engine.core.filled[1]} after 11 rows")
        steps = np.concatenate([engine.decode([1], [token]) for token in text[11:]])
        pieces = case.distance(steps, wanted[11:], "a text in pieces")
    return f"{whole:.1e} away in one step, {pieces:.1e} in pieces"


def batches(case: CheckedModel) -> str:
    """Prompts and decoding slots in one step, in any order of slots; the rows asked for alone."""
    wanted = [case.wanted(text) for text in TEXTS]
    with case.engine() as engine:
        for slot in (2, 0):
            engine.prefill(slot, TEXTS[slot][:-3])
        rows = [(2, TEXTS[2][-3]), *((1, token) for token in TEXTS[1][:-2]), (0, TEXTS[0][-3])]
        want = [slot != 1 for slot, _ in rows]
        want[3] = True
        got = engine.step([token for _, token in rows], [slot for slot, _ in rows], want)
        expected = np.stack([wanted[2][-3], wanted[1][2], wanted[0][-3]])
        far = case.distance(got, expected, "two decoding slots beside a prompt")
        nothing = engine.step([TEXTS[2][-2], TEXTS[0][-2]], [2, 0], False)
        if nothing.shape != (0, engine.vocab_size):
            raise Failed(f"a step without wanted logits gave {nothing.shape}")
        got = engine.decode([2, 0], [TEXTS[2][-1], TEXTS[0][-1]])
        expected = np.stack([wanted[2][-1], wanted[0][-1]])
        far = max(far, case.distance(got, expected, "slots in falling order"))
        got = engine.decode([1], [TEXTS[1][-2]])
        far = max(far, case.distance(got, wanted[1][-2:-1], "one of three slots"))
    return f"{far:.1e} away at most"


def slots(case: CheckedModel) -> str:
    """A slot that was released holds nothing of what it held; its neighbours keep all."""
    wanted = [case.wanted(text) for text in TEXTS]
    with case.engine() as engine:
        engine.prefill(0, TEXTS[2])
        engine.prefill(1, TEXTS[1][:-1])
        engine.release(0)
        if engine.core.filled.tolist() != [0, len(TEXTS[1]) - 1, 0]:
            raise Failed(f"filled is {engine.core.filled.tolist()} after slot 0 was released")
        far = case.distance(engine.prefill(0, TEXTS[0]), wanted[0][-1], "a slot used again")
        got = engine.decode([1], TEXTS[1][-1:])
        far = max(far, case.distance(got, wanted[1][-1:], "its neighbour"))
    return f"{far:.1e} away at most"


def rollback(case: CheckedModel) -> str:
    """A slot that is cut back goes on as if the rest had never been there."""
    text = TEXTS[0]
    with case.engine() as engine:
        if not engine.core.truncates:
            raise NotOffered("its caches cannot go back (truncates is False)")
        engine.prefill(0, [*text[:9], *TEXTS[1]])
        engine.core.truncate(0, 9)
        if engine.core.filled[0] != 9:
            raise Failed(f"filled is {engine.core.filled[0]} after a cut to 9")
        got = engine.core.forward_apart(text[9:], [0] * 10, range(9, 19))
        far = case.distance(got, case.wanted(text)[9:], "after a cut")
        if engine.core.rows_apart:
            engine.core.truncate(0, 9)
            alone = np.concatenate([engine.decode([0], [token]) for token in text[9:]])
            if not np.array_equal(got, alone):
                raise Failed("rows_apart is True, but rows differ from steps of one row")
        _refuses(lambda: engine.core.truncate(0, 20), "a cut to more than a slot holds")
    return f"{far:.1e} away"


def greedy(case: CheckedModel) -> str:
    """Tokens that the core chooses are the likeliest of its own logits, in a batch as well."""
    with case.engine() as engine:
        for slot in (0, 2):
            engine.prefill(slot, TEXTS[slot][:7])
        chosen = engine.decode_greedy([2, 0], [TEXTS[2][7], TEXTS[0][7]], 6)
        if chosen.shape != (6, 2) or chosen.dtype != np.int32:
            raise Failed(f"decode_greedy gave {chosen.dtype} {chosen.shape}; wanted: int32 (6, 2)")
        for slot, tokens in ((2, chosen[:, 0].tolist()), (0, chosen[:, 1].tolist())):
            text = [*TEXTS[slot][:8], *tokens[:-1]]
            engine.release(slot)
            found = engine.logits(text, slot=slot, first=7)
            taken = found[np.arange(6), tokens]
            slack = case.near * np.abs(found).max(axis=1)
            if (taken < found.max(axis=1) - slack).any():
                raise Failed(f"slot {slot} chose {tokens}, which are not the likeliest")
    return "12 tokens"


def requests(case: CheckedModel) -> str:
    """More requests than slots through the scheduler: each as it is answered alone."""
    asked = [
        GenerationRequest(tuple(text[:length]), 8, ignore_eos=True)
        for text in TEXTS
        for length in (5, 7)
    ]
    with case.engine() as engine:
        engine.warm()
        with Scheduler(engine) as scheduler:
            submitted = [scheduler.submit(request) for request in asked]
            if not all(each.wait(120) for each in submitted):
                raise Failed("a request was not answered within two minutes")
        failed = [each.error for each in submitted if each.error]
        if failed:
            raise Failed(f"a request failed: {failed[0]}")
        for request, each in zip(asked, submitted, strict=True):
            _require_likely(case, list(request.prompt_tokens), each.tokens)
    return f"{number_of(len(asked), 'request')} in {SLOTS} slots"


def _require_likely(case: CheckedModel, prompt: list[int], tokens: list[int]) -> None:
    """Every token is the reference's choice, or one that it finds as likely, given those before."""
    wanted = case.wanted([*prompt, *tokens[:-1]])[len(prompt) - 1 :]
    taken = wanted[np.arange(len(tokens)), tokens]
    if (taken < wanted.max(axis=1) - 2 * case.near * np.abs(wanted).max(axis=1)).any():
        raise Failed(f"after {prompt} it wrote {tokens}, which the reference does not find likely")


def errors(case: CheckedModel) -> str:
    """Rows that cannot be are refused with ValueError, and the slot goes on as if not asked."""
    text = TEXTS[0]
    bad = {
        "a token beyond the vocabulary": ([WORDS], [0], [9]),
        "a negative token": ([-1], [0], [9]),
        "a slot that is not there": ([1], [SLOTS], [0]),
        "a negative slot": ([1], [-1], [0]),
        "a gap in a slot": ([1], [0], [10]),
        "a position beyond the context": ([1], [0], [CONTEXT]),
        "falling positions": ([1, 1], [0, 0], [10, 9]),
        "lists of unlike lengths": ([1, 1], [0], [9]),
    }
    with case.engine() as engine:
        engine.prefill(0, text[:9])
        for what, (tokens, of_slots, positions) in bad.items():
            _refuses(partial(engine.core.forward, tokens, of_slots, positions, True), what)
            if engine.core.filled[0] != 9:
                raise Failed(f"filled is {engine.core.filled[0]} after {what}, not 9")
        got = engine.step(text[9:], [0] * 10, True)
        case.distance(got, case.wanted(text)[9:], "what came after refused rows")
        engine.step([1] * (CONTEXT - 19), [0] * (CONTEXT - 19), False)
        _refuses(lambda: engine.step([1], [0], True), "a row after a full context")
    return f"{number_of(len(bad) + 1, 'kind')} refused"


def _refuses(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ValueError as error:
        if not str(error):
            raise Failed(f"{what} is refused without a word") from None
        return
    except Exception as error:
        raise Failed(f"{what} raises {type(error).__name__}; wanted: ValueError") from error
    raise Failed(f"{what} is not refused")


def damage(case: CheckedModel) -> str:
    """NaN in a weight raises NotFiniteError, not noise."""
    with case.engine() as engine:
        try:
            engine.logits(TEXTS[0])
        except NotFiniteError as error:
            return str(error).split(";")[0]
    raise Failed("weights with NaN gave an answer; wanted: NotFiniteError")


def memory(case: CheckedModel) -> str:
    """Bytes, names and notes are such that figures can be made of them."""
    with case.engine() as engine:
        core = engine.core
        engine.prefill(0, TEXTS[0])
        least = sum(file.stat().st_size for file in case.folder.glob("*.safetensors")) // 2
        if core.weight_bytes < least:
            raise Failed(f"weight_bytes is {core.weight_bytes}; the files hold over {least}")
        if core.kv_bytes < 0 or not isinstance(core.kv_bytes, int):
            raise Failed(f"kv_bytes is {core.kv_bytes!r}; wanted: a whole number of bytes")
        sizes = core.slots, core.context, core.vocab_size, core.filled.shape
        if sizes != (SLOTS, CONTEXT, WORDS, (SLOTS,)) or core.filled.dtype != np.int64:
            raise Failed(f"slots, context, vocab_size, filled: {sizes}, {core.filled.dtype}")
        words = [core.backend, *core.notes, *core.units]
        if not core.backend or not all(isinstance(word, str) for word in words):
            raise Failed(f"backend, notes and units are no text: {words}")
        if list(core.units) != sorted(set(core.units)) or core.prefill_rows < 1:
            raise Failed(f"units {core.units}, prefill_rows {core.prefill_rows}")
        weights = number_of(core.weight_bytes, "byte")
        return f"{weights} of weights, {core.kv_bytes} of cache; {core.backend}"


OF_EVERY_MODEL = {"logits": logits, "batches": batches}
OF_THE_PROTOCOL = {
    "slots": slots,
    "rollback": rollback,
    "greedy choice": greedy,
    "requests": requests,
    "errors": errors,
    "memory": memory,
}
"""What does not depend on the weights' kind: asked of the first ternary model alone."""


def check_core(
    name: str,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int = 0,
    near: float = NEAR,
) -> Iterator[Finding]:
    """Every check of the core ``name``, as soon as it is done.

    device, threads: of :meth:`Engine.load`. near: see the module's text. Raises ConfigError for
    an unknown name, and for a core that cannot be loaded here.

    >>> from workbench.api import check_core
    >>> {finding.outcome for finding in check_core("reference")}
    {'passed'}
    """
    core_builder(name)
    with tempfile.TemporaryDirectory() as folder:
        protocol = True
        for number, specimen in enumerate(SPECIMENS):
            case = CheckedModel(
                name, device, threads, near, specimen.write(Path(folder) / str(number))
            )
            yield from _checked(OF_EVERY_MODEL, specimen, case)
            if protocol and specimen.linears == "ternary":
                protocol = False
                yield from _checked(OF_THE_PROTOCOL, specimen, case)
                broken = specimen.write(Path(folder) / "damaged", damaged=True)
                damaged = CheckedModel(name, device, threads, near, broken)
                yield from _checked({NOT_FINITE: damage}, specimen, damaged)


def _checked(
    checks: Mapping[str, Callable[[CheckedModel], str]], specimen: Specimen, case: CheckedModel
) -> Iterator[Finding]:
    for check, run in checks.items():
        try:
            outcome, said = "passed", run(case)
        except NotOffered as reason:
            outcome, said = "not offered", str(reason)
        except Failed as failure:
            outcome, said = "failed", str(failure)
        except StageError as error:  # the core refuses this model
            outcome, said = "failed" if specimen.needed else "not offered", error.got
        except Exception as error:  # whatever another package raises
            outcome, said = "failed", f"{type(error).__name__}: {error}"
        yield Finding(check, specimen.name, outcome, said)  # type: ignore[arg-type]


def check_core_command(
    name: str,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int = 0,
    near: float = NEAR,
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Say every finding. Raises CheckError where one failed."""
    found = []
    for finding in check_core(name, device=device, threads=threads, near=near):
        found.append(finding)
        say(json.dumps(asdict(finding)) if as_json else str(finding))
    failed = [finding for finding in found if finding.outcome == "failed"]
    if failed:
        raise CheckError(
            f"core {name} fails {len(failed)} of {len(found)} checks: "
            f"{failed[0].check}, {failed[0].model}: {failed[0].said}",
            allowed="what ternary_kernels.core.Core says, for every row above",
            next_step="docs/cores.md says what each check asks",
        )
