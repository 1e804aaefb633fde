"""What to do after a verdict: three steps with their commands, the most urgent first.

Each comes from a record: a gate that fails, one that is open and why, noise, a load that was only
declared, energy that nobody metered. Commands can be typed as they stand; what a command changes
is a field of the pilot, never a gate.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.measure.statistics import FEWEST_DOCUMENTS
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.report.environment_view import command_of, in_checkout
from workbench.report.gates import GateResult
from workbench.wording.text import Texts

MOST = 3
LONGER: dict[str, tuple[str, int]] = {
    "readiness": ("readiness.probe.repetitions", 4),
    "measure_ab": ("measure_ab.budget_s", 4),
    "quality": ("measure_ab.quality_documents", 4),
    "under_load": ("measure_ab.load.budget_s", 4),
    "hybrid_plan": ("hybrid_plan.sequences", 4),
    "deploy_rollback": ("deploy_rollback.duration_s", 4),
}
"""Where a figure comes from -> the field that gives it more observations, and how many times."""
AT_LEAST = {"measure_ab.quality_documents": FEWEST_DOCUMENTS}
"""With fewer there is no interval, and the same step would be advised once more."""


MOST_HELD_OUT = 0.4
"""Share of a corpus: the rest is what is learned from."""


@dataclass(frozen=True)
class NextStep:
    """text: why, in words; command: what to type."""

    text: str
    command: str


def next_steps(
    run: Run,
    state: str,
    records: Mapping[str, StageRecord],
    results: Sequence[GateResult],
    texts: Texts,
) -> list[NextStep]:
    """At most three steps, no command twice."""
    chosen: dict[str, NextStep] = {}
    for code, command, values in _candidates(run, state, records, results):
        chosen.setdefault(command, NextStep(texts(f"step.{code}", **values), command))
    return list(chosen.values())[:MOST]


def _candidates(
    run: Run, state: str, records: Mapping[str, StageRecord], results: Sequence[GateResult]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Code of the text, command, what goes into the text."""
    begin, name = command_of(run), shlex.quote(run.name)
    if state == "unfinished":
        yield "go_on", begin, {}
        yield "see_so_far", f"workbench report {name}", {}
        yield "list", "workbench runs", {}
        return
    for result in results:
        if result.outcome == "fail":
            yield _after_failure(result, run, begin, records)
    doubts = [result for result in results if result.outcome == "inconclusive"]
    if any(result.effect for result in doubts) or (doubts and _is_busy(records)):
        yield "end_others", f"{begin} --force", {}
    for result in doubts:
        if not result.effect:
            yield _after_doubt(result, run, begin, records)
    if state == "go":
        yield "serve", f"workbench serve {name} --canary 0.05,0.25,1", {}
    if _load_is_assumed(records):
        yield "own_trace", f"{begin} --set profile_load.trace=YOUR_TRACE.csv", {}
    if _is_busy(records):
        yield "end_others", f"{begin} --force", {}
    if "measure_ab" in records and not _measured(records, "measure_ab", "energy_j_per_token"):
        yield "meter", f"{begin} --set measure_ab.meters.csv=POWER_LOG.csv", {}
    if _probe_is_larger(records):
        yield "real_size", "workbench run pilots/ab_3b.yaml", {}
    over_seeds = _measured(records, "train_qat", "gap_over_seeds_bits_per_byte")
    if not over_seeds and not _is_ready(records):
        yield "seeds", f"{begin} --set train.seeds=3", {}
    yield "serve", f"workbench serve {name}", {}
    yield "tune", f"workbench tune {name}", {}


def _after_failure(
    result: GateResult, run: Run, begin: str, records: Mapping[str, StageRecord]
) -> tuple[str, str, dict[str, Any]]:
    figure = {"figure": {"name": result.metric, "labels": result.labels}}
    if result.chance:
        return ("longer", _with(begin, run, *LONGER[_source(result)]), figure)
    if result.metric.startswith("quality_gap") and _is_ready(records):
        return "train_own", f"{begin} --set model.ternary=null", figure
    if result.metric.startswith("quality_gap") and _never_gets_there(records):
        return "other_recipe", _study(run), figure
    if result.metric.startswith("quality_gap"):
        return "train_longer", _with(begin, run, "train.steps", 4), figure
    if result.stage == "readiness" and "memory" not in result.metric:
        return "see_kernels", "workbench bench cpu", figure
    if result.stage == "deploy_rollback":
        return "more_slots", _with(begin, run, "deploy_rollback.slots", 2), figure
    return "see_stage", f"workbench notebook {shlex.quote(run.name)}", figure


def _is_ready(records: Mapping[str, StageRecord]) -> bool:
    """Whether the ternary arm came as it is, so that no training changes it."""
    return "train_qat" in records and "ready_ternary" in records["train_qat"].facts


def _after_doubt(
    result: GateResult, run: Run, begin: str, records: Mapping[str, StageRecord]
) -> tuple[str, str, dict[str, Any]]:
    figure = {"figure": {"name": result.metric, "labels": result.labels}}
    if result.value is None and "energy" in result.metric:
        return "meter", f"{begin} --set measure_ab.meters.csv=POWER_LOG.csv", {}
    if result.value is None or _source(result) not in LONGER:
        return "see_reason", f"workbench report {shlex.quote(run.name)}", figure
    longer = _with(begin, run, *LONGER[_source(result)])
    if _source(result) == "quality" and (held := _held_out(records)) < FEWEST_DOCUMENTS:
        more = _more_held_out(run, held)
        return (
            "more_documents",
            f"{longer} --set {more}",
            {"held": held, "fewest": FEWEST_DOCUMENTS},
        )
    return "longer", longer, figure


def _held_out(records: Mapping[str, StageRecord]) -> int:
    """Documents that no arm learned from; of a run that does not say, enough."""
    corpus = records["train_qat"].facts.get("corpus", {}) if "train_qat" in records else {}
    return int(corpus.get("heldout_documents", FEWEST_DOCUMENTS))


def _more_held_out(run: Run, held: int) -> str:
    """A larger share of the corpus, or more of it where that would leave too little to learn from;
    a fifth more than needed, since a draw decides which documents are held out."""
    data = run.resolved().pilot.data
    times = 1.2 * FEWEST_DOCUMENTS / max(held, 1)
    if (share := times * data.holdout_share) <= MOST_HELD_OUT:
        return f"data.holdout_share={share:.2g}"
    return f"data.max_bytes={data.max_bytes * times:.0f}"


def _source(result: GateResult) -> str:
    """Whose observations a figure is made of."""
    if result.stage == "measure_ab" and result.metric.startswith(("quality", "bits_per_byte")):
        return "quality"
    if result.stage == "measure_ab" and result.labels.get("source") == "load":
        return "under_load"
    return result.stage


def _with(begin: str, run: Run, field: str, times: int) -> str:
    """The run's command with a field ``times`` as large."""
    value: Any = run.resolved().values
    for key in field.split("."):
        value = value[key]
    more = max((value or 1) * times, AT_LEAST.get(field, 0))
    return f"{begin} --set {field}={more:g}"


def _study(run: Run) -> str:
    """What compares recipes: of training from the run's checkpoint, or from nothing."""
    checkpoint = run.resolved().pilot.model.checkpoint
    if checkpoint is None:
        return "workbench study recipe"
    field = shlex.quote(f"model.checkpoint={in_checkout(checkpoint)}")
    return f"workbench study checkpoint --set {field}"


def _never_gets_there(records: Mapping[str, StageRecord]) -> bool:
    """What the forecast says of more of the same training."""
    report = records.get("report")
    return report is not None and (report.facts.get("forecast") or {}).get("outcome") == "never"


def _measured(records: Mapping[str, StageRecord], stage: str, name: str) -> bool:
    own = records[stage].metrics if stage in records else []
    return any(m.name == name and m.value is not None for m in own)


def _load_is_assumed(records: Mapping[str, StageRecord]) -> bool:
    return "profile_load" in records and records["profile_load"].facts.get("kind") == "assumed"


def _is_busy(records: Mapping[str, StageRecord]) -> bool:
    noises = (
        records[stage].facts.get(fact) or {}
        for stage, fact in (("readiness", "noise"), ("measure_ab", "noise"))
        if stage in records
    )
    return any(noise.get("disturbed") for noise in noises)


def _probe_is_larger(records: Mapping[str, StageRecord]) -> bool:
    """Speed was probed at a size whose quality this run says nothing about."""
    return _measured(records, "readiness", "decode_speedup") and "train_qat" in records
