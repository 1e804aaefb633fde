"""The speed probe: full precision, INT8, INT4 and ternary on a real shape, with random weights.

All models are in memory at once and take turns, one a block, in orders of a Williams square, each
after a short untimed turn of its own. A block gives one ratio, and the interval is over blocks;
the probe ends when the ratios are as precise as wanted or its time is up. INT8 and INT4 stand there
because they need no training, and are left out where they do not fit beside the others.

``auto`` takes the shape of the pilot's own checkpoint, or else the largest preset whose models fit
the free memory and whose measurement fits the time: a short trial on a small preset tells how long
a parameter takes here. A checkpoint that is too big is measured with fewer of its blocks, and
its figures are extrapolated, by bytes in decoding and by blocks in prefill, and marked as modelled.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from ternary_kernels import backend

from workbench.engine.cores import AUTO, OF_DEVICE
from workbench.engine.engine import Engine
from workbench.engine.packing import AS_STORED
from workbench.engine.random_weights import WeightKind
from workbench.engine.units import backends, uneven_units
from workbench.errors import StageError
from workbench.machine.device import Device
from workbench.measure.fewest import FEWEST_BLOCKS
from workbench.measure.memory_use import memory_growth
from workbench.measure.noise import (
    MOST_ATTEMPTS,
    NOISE_COLUMNS,
    REPEATING_SHARE,
    Counters,
    Noise,
    require_quiet,
)
from workbench.measure.orders import balanced_orders
from workbench.measure.probe_shape import OWN, Subject, own_config
from workbench.measure.session import FEWEST_TO_STOP, noise_facts
from workbench.measure.statistics import mean_ratio
from workbench.model.presets import PRESETS, Shape
from workbench.pilot.sections.readiness import Packing, Probe
from workbench.pilot.spec import Pilot
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from workbench.stages.context import StageContext

ARMS: dict[str, WeightKind] = {
    "full_precision": "half",
    "int8": "int8",
    "int4": "int4",
    "ternary": "ternary",
}
OVER = {"full_precision": "", "int8": "_over_int8", "int4": "_over_int4"}
"""What ternary is compared with -> how the names of those ratios end."""
NEEDED = ("full_precision", "ternary")
TRIAL_PARAMETERS = 150_000_000
"""The trial takes the largest preset below this: beyond most caches, and built in a second."""
TRIAL_OUTPUT_TOKENS = 4
SHORTEST_TURN_S = 0.2
"""A shorter turn is repeated within its block, or an interruption of a millisecond shows."""
MOST_REPEATS = 50
BUILD_BYTES_PER_S = 0.5e9
"""A cautious rate of filling memory with random weights, for the estimate of the time alone."""
MB, GB = 1e6, 1e9


@dataclass(frozen=True)
class TurnSeconds:
    """One turn of an arm: its prompt, then its output tokens."""

    prefill: float
    decode: float

    @property
    def total(self) -> float:
        return self.prefill + self.decode


def run_probe(context: StageContext) -> None:
    """Fill tables ``probe`` and ``noise`` and the figures with ``source=probe``.

    ``readiness.probe.budget_s`` is for everything, models included.

    Raises StageError when ``readiness.probe.shape`` names a preset that does not fit.
    """
    section, record, began = context.pilot.readiness.probe, context.record, time.monotonic()
    budget_s = section.budget_s
    readiness = context.pilot.readiness
    where = Where(context.device, readiness.threads, readiness.core, readiness.packing)
    reason = _cannot_probe(where)
    if reason:
        context.note(f"speed probe: {reason}")
        leave_out(record, reason)
        return
    context.progress.note("speed probe: choosing a shape")
    own, problem = _own_shape(context.pilot, where)
    if problem:
        context.note(f"speed probe: {problem}")
    subject, reason = (own, "") if own else _choose(section, where, budget_s)
    if subject is None:
        leave_out(record, reason)
        return
    if reason or subject.of_layers:
        context.note(reason or f"speed probe: the checkpoint's own shape is {subject.of_layers}")
    name = subject.name
    arms, left_out = _arms_that_fit(subject.shape, section, where)
    if left_out:
        context.note(left_out)
    context.progress.note(f"speed probe: building {name} for {', '.join(arms)}")
    with _side_by_side(subject, arms, section, where) as (engines, resident):
        quiet = context.pilot.readiness.quiet
        context.progress.note("speed probe: looking whether the machine is quiet")
        before = require_quiet(quiet, lambda text: context.note(f"speed probe: {text}"))
        turns, noise = _blocks(context, engines, began)
        record.save_table("probe", turns)
        record.save_table("noise", noise)
        record.facts["noise"] = noise_facts(before, noise)
        for arm, engine in engines.items():
            for note in engine.notes:
                context.note(f"speed probe, {arm}: {note}")
        if not _precise(turns, section.precision):
            done = turns["block"].nunique()
            context.note(
                f"speed probe: it ended after {number_of(done, 'block')}, of {section.repetitions} "
                f"at most and in {budget_s:g} s, before its ratios were known to "
                f"{section.precision:.1%}",
            )
        if uneven := uneven_units({arm: engine.units for arm, engine in engines.items()}):
            record.facts["uneven_units"] = uneven
            context.note(f"speed probe: {uneven}")
        _record_speed(record, turns, subject, engines)
        _record_memory(record, engines, resident, subject)
        if left_out:
            without = [arm for arm in ARMS if arm not in arms]
            leave_out(record, left_out, arms=without, shape=name)


@dataclass(frozen=True)
class Where:
    """What computes. threads: of the CPU's kernels. core: by its name. packing: of weights."""

    device: Device
    threads: int
    core: str = AUTO
    packing: Packing = AS_STORED


def _cannot_probe(where: Where) -> str:
    """Why random weights cannot be measured there; empty where they can."""
    on_kernels = where.core in (AUTO, "triton")
    if where.device.name == "cuda" and on_kernels and find_spec("triton") is None:
        return "a probe on the GPU needs Triton, which is not installed here"
    if where.core == "transformers":
        return "random weights are packed matrices, which the core transformers does not take"
    return ""


def _own_shape(pilot: Pilot, where: Where) -> tuple[Subject | None, str]:
    """The checkpoint's, with as many blocks as fit, or why not; nothing where none is asked for."""
    section, checkpoint = pilot.readiness.probe, pilot.model.checkpoint
    if checkpoint is None or section.shape != "auto":
        return None, ""
    config, problem = own_config(checkpoint)
    if config is None:
        return None, f"{problem}; a preset is taken"
    whole = Shape.of_config(config)
    free = int(section.memory_share * where.device.free_bytes)
    for layers in range(whole.layers, 0, -1):
        if _needed_bytes(whole.with_layers(layers), section, where) <= free:
            config = copy.deepcopy(config)
            config.num_hidden_layers = layers
            if getattr(config, "layer_types", None):  # a word for each block (Qwen)
                config.layer_types = config.layer_types[:layers]
            return Subject(OWN, whole.with_layers(layers), config, whole.layers), ""
    return None, "not one block of the checkpoint fits the free memory; a preset is taken"


def _choose(section: Probe, where: Where, budget_s: float) -> tuple[Subject | None, str]:
    """A preset and, where it is not simply the wanted one, why; None when none fits."""
    free = int(section.memory_share * where.device.free_bytes)
    if section.shape != "auto":
        if (needed := _needed_bytes(PRESETS[section.shape], section, where)) > free:
            raise StageError(
                f"readiness.probe.shape {section.shape} needs {needed / GB:.1f} GB for both arms",
                allowed=f"{free / GB:.1f} GB: {section.memory_share:.0%} of the free memory",
                next_step="set readiness.probe.shape to auto or a smaller preset",
            )
        return Subject.preset(section.shape), ""
    largest = PRESETS[section.largest].parameters
    candidates = sorted(
        (shape.parameters, name) for name, shape in PRESETS.items() if shape.parameters <= largest
    )
    fitting = [
        name for _, name in candidates if _needed_bytes(PRESETS[name], section, where) <= free
    ]
    if not fitting:
        return None, f"no preset fits {free / GB:.2f} GB, {section.memory_share:.0%} of free memory"
    small = [name for name in fitting if PRESETS[name].parameters <= TRIAL_PARAMETERS]
    if not small or small[-1] == fitting[-1]:
        chosen = fitting[-1]
    else:
        s_per_parameter = _trial(small[-1], section, where)
        in_time = [
            name
            for name in fitting
            if _expected_s(PRESETS[name], s_per_parameter, section) <= budget_s
        ]
        chosen = in_time[-1] if in_time else fitting[0]
    if chosen == section.largest:
        return Subject.preset(chosen), ""
    limit = "the free memory" if chosen == fitting[-1] else f"a measurement of {budget_s:.0f} s"
    return Subject.preset(chosen), f"speed probe: {chosen} is the largest preset that fits {limit}"


def _needed_bytes(
    shape: Shape, section: Probe, where: Where, arms: tuple[str, ...] = NEEDED
) -> int:
    """``arms`` side by side with their caches."""
    sizes = _serving_bytes(shape)
    if where.device.name == "cpu" and backend().name == "torch":
        # PyTorch keeps a float32 copy of bf16 and an INT8 copy of codes, and makes a float64
        # copy of INT8 matrices: of the head in each step, of a layer while it multiplies.
        sizes["full_precision"] += 4 * shape.parameters
        sizes["int8"] += 9 * shape.vocabulary_parameters
        sizes["int4"] += shape.linear_parameters + 9 * shape.vocabulary_parameters
        sizes["ternary"] += shape.linear_parameters + 9 * shape.vocabulary_parameters
    elif where.core not in (AUTO, *OF_DEVICE.values()):
        # Another core packs for itself, and may hold float32 where it has no bf16.
        sizes = {arm: 2 * size for arm, size in sizes.items()}
        sizes["full_precision"] += 2 * shape.parameters
    positions = section.prompt_tokens + section.output_tokens
    caches = len(arms) * positions * shape.kv_bytes_per_token()
    return sum(sizes[arm] for arm in arms) + caches


def _serving_bytes(shape: Shape) -> dict[str, int]:
    return {
        "full_precision": shape.serving_bytes_full(),
        "int8": shape.serving_bytes_int8(),
        "int4": shape.serving_bytes_int4(),
        "ternary": shape.serving_bytes_ternary(),
    }


def _arms_that_fit(shape: Shape, section: Probe, where: Where) -> tuple[tuple[str, ...], str]:
    """The arms, and why INT8 or INT4 is not among them where it is not."""
    free = int(section.memory_share * where.device.free_bytes)
    arms, reasons = tuple(ARMS), []
    if where.device.name == "cuda":
        arms = tuple(arm for arm in arms if arm != "int4")
        reasons.append("speed probe: INT4 is left out: it has no GPU kernel yet")
    for arm in ("int8", "int4"):
        needed = _needed_bytes(shape, section, where, arms)
        if arm in arms and needed > free:
            arms = tuple(other for other in arms if other != arm)
            reasons.append(
                f"speed probe: {arm.upper()} is left out: with it {needed / GB:.1f} GB are needed, "
                f"and {section.memory_share:.0%} of the free memory is {free / GB:.1f} GB"
            )
    return arms, "; ".join(reasons)


def _trial(name: str, section: Probe, where: Where) -> float:
    """Seconds a parameter of one block with a short output, on a small preset."""
    subject = Subject.preset(name)
    arms, _ = _arms_that_fit(subject.shape, section, where)
    with _side_by_side(subject, arms, section, where) as (engines, _):
        prompt = _prompt(engines, section)
        turns = [_turn(engine, prompt, TRIAL_OUTPUT_TOKENS) for engine in engines.values()]
    per_token = sum(turn.decode for turn in turns) / TRIAL_OUTPUT_TOKENS
    block_s = sum(turn.prefill for turn in turns) + per_token * section.output_tokens
    return block_s / subject.shape.parameters


def _expected_s(shape: Shape, s_per_parameter: float, section: Probe) -> float:
    """Time of the fewest blocks with an interval and a warm-up of one, models included."""
    build_s = sum(_serving_bytes(shape).values()) / BUILD_BYTES_PER_S
    return build_s + (FEWEST_BLOCKS + 1) * s_per_parameter * shape.parameters


@contextmanager
def _side_by_side(
    subject: Subject, arms: tuple[str, ...], section: Probe, where: Where
) -> Iterator[tuple[dict[str, Engine], dict[str, int]]]:
    """The engines, warm, and the memory that each took; closed afterwards."""
    engines: dict[str, Engine] = {}
    resident: dict[str, int] = {}
    try:
        for arm in arms:
            with memory_growth(where.device.name) as growth:
                engines[arm] = Engine.random(
                    subject.config,
                    ARMS[arm],
                    context=section.prompt_tokens + section.output_tokens,
                    threads=where.threads,
                    device=where.device.name,
                    core=where.core,
                    packing=where.packing,
                )
                _turn(engines[arm], list(range(8)), 2)
            resident[arm] = growth.size_bytes
        yield engines, resident
    finally:
        for engine in engines.values():
            engine.close()


def _blocks(
    context: StageContext, engines: dict[str, Engine], began: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables ``probe`` and ``noise``: the arms in turn until precise, or the time is up.

    A disturbed block is measured again while a quarter of the time is enough for that.
    """
    readiness = context.pilot.readiness
    section, prompt = readiness.probe, _prompt(engines, readiness.probe)
    quickest_s = min(_turn(engine, prompt[:8], 2).total for engine in engines.values())
    quickest_s *= (len(prompt) + section.output_tokens) / 10
    repeats = max(1, min(MOST_REPEATS, round(SHORTEST_TURN_S / quickest_s)))
    orders = balanced_orders(list(engines), context.pilot.seed)
    rows: list[dict[str, object]] = []
    noises: list[dict[str, object]] = []
    blocks, repeated_s, longest_s = 0, 0.0, 0.0
    while blocks < section.repetitions:
        context.progress.step("speed probe", blocks, section.repetitions, "blocks")
        spent_s = time.monotonic() - began + longest_s
        if blocks >= FEWEST_BLOCKS and spent_s > section.budget_s:
            break
        if blocks >= 2 and spent_s > 2 * section.budget_s:
            break
        if blocks >= FEWEST_TO_STOP and _precise(pd.DataFrame(rows), section.precision):
            break
        before, own = Counters.read(), []
        for place, arm in enumerate(next(orders)):
            _turn(engines[arm], prompt[:8], 2)
            turns = [_turn(engines[arm], prompt, section.output_tokens) for _ in range(repeats)]
            prefill, decode = sum(t.prefill for t in turns), sum(t.decode for t in turns)
            fed, out = repeats * len(prompt), repeats * section.output_tokens
            at = {"block": blocks, "order": place, "arm": arm}
            own += [
                {**at, "phase": "prefill", "seconds": prefill, "tokens": fed},
                {**at, "phase": "decode", "seconds": decode, "tokens": out},
            ]
        noise = Noise.between(before, Counters.read())
        longest_s = max(longest_s, noise.seconds)
        disturbed = "; ".join(noise.disturbances(readiness.quiet))
        attempt = sum(one["block"] == blocks for one in noises)
        late = repeated_s + noise.seconds > REPEATING_SHARE * section.budget_s
        again = bool(disturbed) and not late and attempt + 1 < MOST_ATTEMPTS
        at_s = {"block": blocks, "attempt": attempt, **noise.to_json()}
        noises.append({**at_s, "disturbed": disturbed, "kept": not again})
        if again:
            repeated_s += noise.seconds
            continue
        rows += own
        blocks += 1
    context.progress.step("speed probe", blocks, blocks, "blocks")
    return pd.DataFrame(rows), pd.DataFrame(noises, columns=NOISE_COLUMNS)


def _precise(turns: pd.DataFrame, precision: float) -> bool:
    """Whether the ratio of ternary to every other arm is known so well, in both phases."""
    for _, of_phase in turns.groupby("phase"):
        seconds = of_phase.pivot(index="block", columns="arm", values="seconds")
        for other in [each for each in OVER if each in seconds]:
            ratio = mean_ratio(seconds[other], seconds["ternary"], stopped=True)
            if ratio.value is None or ratio.hi is None or ratio.hi > (1 + precision) * ratio.value:
                return False
    return True


def _turn(engine: Engine, prompt: list[int], output_tokens: int) -> TurnSeconds:
    """Prefill a prompt and decode greedily, choosing the tokens included."""
    began = time.perf_counter()
    token = int(engine.prefill(0, prompt).argmax())
    prefilled = time.perf_counter()
    engine.decode_greedy([0], [token], output_tokens)
    ended = time.perf_counter()
    engine.release(0)
    return TurnSeconds(prefilled - began, ended - prefilled)


def _prompt(engines: dict[str, Engine], section: Probe) -> list[int]:
    vocab_size = min(engine.vocab_size for engine in engines.values())
    return np.random.default_rng(0).integers(0, vocab_size, section.prompt_tokens).tolist()


def _record_speed(
    record: StageRecord, turns: pd.DataFrame, subject: Subject, engines: dict[str, Engine]
) -> None:
    labels = {"source": "probe", "shape": subject.name}
    whole = {arm: _of_the_whole(subject, arm, engine) for arm, engine in engines.items()}
    for phase in ("decode", "prefill"):
        of_phase = turns[turns["phase"] == phase]
        seconds = of_phase.pivot(index="block", columns="arm", values="seconds")
        tokens = int(of_phase["tokens"].iloc[0])
        for arm in seconds:
            seconds[arm] *= whole[arm][phase]
        for arm in seconds:
            computes = engines[arm].backend
            how = f"{number_of(tokens, 'token')} a block, one sequence, random weights, {computes}"
            rate = mean_ratio(np.full(len(seconds), tokens), seconds[arm])
            found = rate.metric(f"{phase}_tokens_per_s", "tokens/s", how, arm=arm, **labels)
            record.add(_as_extrapolated(found, subject))
        for other in [each for each in OVER if each in seconds]:
            ratio = mean_ratio(seconds[other], seconds["ternary"], stopped=True)
            computes = backends({arm: engines[arm] for arm in (other, "ternary")})
            how = (
                f"{other} over ternary seconds for {number_of(tokens, 'token')}, in turn, "
                f"{computes}"
            )
            name = f"{phase}_speedup{OVER[other]}"
            found = ratio.metric(name, "x", how, arm="ternary", **labels)
            record.add(_as_extrapolated(found, subject))


def _of_the_whole(subject: Subject, arm: str, engine: Engine) -> dict[str, float]:
    """What the seconds of fewer blocks are to be multiplied by: in decoding as the bytes of the
    weights are, which bound it, in prefill as the blocks."""
    return {
        "decode": _whole_bytes(subject, arm, engine) / engine.weight_bytes,
        "prefill": subject.layers / subject.shape.layers,
    }


def _whole_bytes(subject: Subject, arm: str, engine: Engine) -> int:
    """Bytes of the weights with all blocks, which are alike."""
    whole, measured = (_serving_bytes(shape)[arm] for shape in (subject.whole, subject.shape))
    return engine.weight_bytes + whole - measured


def _as_extrapolated(metric: Metric, subject: Subject) -> Metric:
    if not subject.of_layers:
        return metric
    return replace(metric, kind="modelled", how=f"{metric.how}; {subject.of_layers}")


def _record_memory(
    record: StageRecord, engines: dict[str, Engine], resident: dict[str, int], subject: Subject
) -> None:
    labels = {"source": "probe", "shape": subject.name}
    sizes = {arm: _whole_bytes(subject, arm, engine) for arm, engine in engines.items()}
    for arm in engines:
        how = (
            "bytes of all weights in memory, embedding, head and scales included, counted; with "
            f"cache and buffers memory grew by {resident[arm] / MB:.0f} MB"
        )
        of_arm = {"arm": arm, **labels}
        found = Metric("model_memory_mb", sizes[arm] / MB, "MB", how, labels=of_arm, basis="exact")
        record.add(_as_extrapolated(found, subject))
    for other in [each for each in OVER if each in engines]:
        grown = resident[other] / max(1, resident["ternary"])
        ratio = Metric(
            f"memory_ratio{OVER[other]}",
            sizes[other] / sizes["ternary"],
            "x",
            f"bytes of the weights, {other} over ternary; growth of memory: {grown:.2f} x",
            "derived",
            labels={"arm": "ternary", **labels},
            basis="exact",
        )
        record.add(_as_extrapolated(ratio, subject))


def leave_out(
    record: StageRecord, reason: str, *, arms: Collection[str] = tuple(ARMS), **labels: str
) -> None:
    """Record every figure of the probe, or those of some arms alone, as not measured."""
    of_arms = {"decode_tokens_per_s": "tokens/s", "prefill_tokens_per_s": "tokens/s"}
    for name, unit in (of_arms | {"model_memory_mb": "MB"}).items():
        for arm in arms:
            record.missing(name, unit, reason, arm=arm, source="probe", **labels)
    for name in ("decode_speedup", "prefill_speedup", "memory_ratio"):
        for ending in [OVER[arm] for arm in arms if arm in OVER]:
            record.missing(name + ending, "x", reason, arm="ternary", source="probe", **labels)
