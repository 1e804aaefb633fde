"""What training buys: the ternary arm against the best that needs no training.

Whoever trains pays for it, so the gain over full precision is not what is bought: a checkpoint as
it came, its INT8 form or post-training ternary weights may keep the quality gate for nothing.
Of those that keep it, the smallest is what the memory is compared with, and the quickest what the
time of an answer is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.pilot.sections.report import Gate
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord

NAME, TERNARY = "training_gain", "ternary"
UNTRAINED = ("checkpoint", "int8", "int4", "post_training")
GAP = "quality_gap_bits_per_byte"


@dataclass(frozen=True)
class TrainingGain:
    """smallest, quickest: arms without training that keep the gate; None where there is none.
    kept: whether the ternary arm is shown to keep it. undecided: whether an arm without training
    may still keep it. memory, latency: ratios, in favour of it."""

    smallest: str | None
    quickest: str | None
    kept: bool
    undecided: bool
    memory: Metric
    latency: Metric


def training_gain(records: Mapping[str, StageRecord], gates: Sequence[Gate]) -> TrainingGain | None:
    """None where the arms were not compared, nothing was trained (a ready model), or no gate is
    about their quality."""
    measured, trained = records.get("measure_ab"), records.get("train_qat")
    if trained is None or "ready_ternary" in trained.facts:
        return None
    limit = quality_limit(gates)
    if measured is None or limit is None or _memory(measured, TERNARY) is None:
        return None
    kept = [arm for arm in UNTRAINED if _keeps(measured, arm, limit)]
    sizes = {arm: size for arm in kept if (size := _memory(measured, arm)) is not None}
    speeds = {arm: of for arm in kept if (of := _speed(measured, arm)) is not None}
    smallest = min(sizes, key=sizes.__getitem__, default=None)
    quickest = max(speeds, key=lambda arm: speeds[arm].value or 0.0, default=None)
    return TrainingGain(
        smallest,
        quickest,
        _keeps(measured, TERNARY, limit),
        any(_may_keep(measured, arm, limit) for arm in UNTRAINED),
        _memory_gain(measured, smallest, limit),
        _latency_gain(measured, quickest, limit),
    )


def quality_limit(gates: Sequence[Gate]) -> float | None:
    """The margin of quality: the gate's on the ternary arm."""
    limits = [
        gate.at_most
        for gate in gates
        if gate.metric == GAP
        and gate.labels.get("arm", TERNARY) == TERNARY
        and gate.at_most is not None
    ]
    return min(limits, default=None)


def _keeps(measured: StageRecord, arm: str, limit: float) -> bool:
    """Whether the whole interval of the arm's gap lies within the margin; of each of its gaps,
    where the checkpoint as it came is an arm."""
    gaps = [m for m in measured.metrics if m.matches(GAP, {"arm": arm, "source": "trained"})]
    return bool(gaps) and all(gap.hi is not None and gap.hi <= limit for gap in gaps)


def _may_keep(measured: StageRecord, arm: str, limit: float) -> bool:
    """Whether none of the arm's gaps is shown to be beyond the margin."""
    gaps = [m for m in measured.metrics if m.matches(GAP, {"arm": arm, "source": "trained"})]
    return bool(gaps) and not any(gap.lo is not None and gap.lo > limit for gap in gaps)


def _memory(measured: StageRecord, arm: str) -> float | None:
    found = measured.metric("model_memory_mb", arm=arm, source="trained")
    return found.value if found else None


def _speed(measured: StageRecord, arm: str) -> Metric | None:
    """Against full precision, of the class with the longest answer."""
    found = [
        m
        for m in measured.metrics
        if m.matches("speedup", {"arm": arm, "source": "trained"})
        and m.labels["class"].startswith("interactive_")
    ]
    if not found:
        return None
    longest = max(found, key=lambda m: int(m.labels["class"].rpartition("_")[2]))
    return longest if longest.value is not None else None


def _memory_gain(measured: StageRecord, arm: str | None, limit: float) -> Metric:
    labels = {"arm": TERNARY, "of": "memory"}
    own = _memory(measured, TERNARY)
    other = None if arm is None else _memory(measured, arm)
    if own is None or other is None:
        return Metric.missing(NAME, "x", _none_keeps(limit), **labels)
    how = f"bytes of {arm}, which needs no training and keeps the quality gate, over ternary's"
    return Metric(NAME, other / own, "x", how, "derived", labels=labels, basis="exact")


def _latency_gain(measured: StageRecord, arm: str | None, limit: float) -> Metric:
    """The quotient of two ratios to full precision; its interval joins their opposite ends, wider
    than need be and never narrower."""
    labels = {"arm": TERNARY, "of": "latency"}
    own = _speed(measured, TERNARY)
    other = None if arm is None else _speed(measured, arm)
    if own is None or other is None or own.value is None or not other.value:
        return Metric.missing(NAME, "x", _none_keeps(limit), **labels)
    ends = (own.lo, own.hi, other.lo, other.hi)
    bounded = all(end is not None and end > 0 for end in ends)
    how = (
        f"{own.labels['class']}: ternary's speedup over that of {arm}, which needs no training and "
        "keeps the quality gate"
    )
    return Metric(
        NAME, own.value / other.value, "x", how, "derived",
        n=min((m.n for m in (own, other) if m.n is not None), default=None),
        lo=own.lo / other.hi if bounded else None,  # type: ignore[operator]
        hi=own.hi / other.lo if bounded else None,  # type: ignore[operator]
        reason=None if bounded else "one of the two speedups has no interval",
        labels=labels,
    )  # fmt: skip


def _none_keeps(limit: float) -> str:
    return (
        f"no arm without training keeps the quality gate ({limit:g} bits per byte) with its whole "
        "interval, or none was timed: the gain is that over full precision"
    )
