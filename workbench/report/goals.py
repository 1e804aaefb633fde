"""A promise taken apart: what must be measured for it to hold, and what was.

"30 % fewer accelerators" is a claim about the machine time of a request of this load at the batch
that its SLO allows. Prefill and decode have their own ratios: with prefill as measured, decode has
to be quicker by more than the promise says, and no decode is quick enough where prefill alone takes
more than what is left. What is promised as a fraction is bought in whole servers: the last rows say
what is left of it there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import pandas as pd

from workbench.economics.case import ROUNDING, Case
from workbench.economics.what_if import CaseResult
from workbench.measure.statistics import Estimate, mean_ratio
from workbench.pilot.sections.cost import Cost, FleetRules, Goal
from workbench.pilot.sections.profile_load import Slo
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.demand import Use, demand_of, quickest, uses
from workbench.report.economy import BASELINE
from workbench.wording.counts import number_of

GoalOutcome = Literal["holds", "fails", "open", "not measured"]


@dataclass(frozen=True)
class GoalRow:
    """what: key of the text. needed: the bound, at most or at least by ``side``; None: nothing is
    enough. got, lo, hi: this run's figure."""

    arm: str
    what: str
    side: Literal["at_most", "at_least"]
    needed: float | None
    got: float | None
    lo: float | None
    hi: float | None
    unit: str
    kind: str
    outcome: GoalOutcome
    how: str


def goal_rows(
    records: Mapping[str, StageRecord], cost: Cost, slo: Slo, case: Case, result: CaseResult
) -> list[GoalRow]:
    """Of every arm but full precision; nothing where the pilot has no goal."""
    goal = cost.goal
    measured = records.get("measure_ab")
    demand = demand_of(records, slo, cost.fleet.utilisation)
    if goal == Goal() or measured is None or demand is None:
        return []
    blocks = measured.table("blocks")
    full = quickest(uses(blocks, BASELINE, demand))
    rows: list[GoalRow] = []
    for arm in (each.name for each in case.arms[1:]):
        own = quickest(uses(blocks, arm, demand))
        if full and own and goal.fewer_accelerators is not None:
            rows += _fleet_rows(arm, own, full, goal.fewer_accelerators, case, result)
        if goal.latency_ratio is not None:
            rows += _latency_rows(arm, measured, goal.latency_ratio, slo)
    return rows


def goals_without_case(
    records: Mapping[str, StageRecord], cost: Cost, slo: Slo, reason: str
) -> list[GoalRow]:
    """What the promise needs where this run cannot say what it has: the fleet's rows are "not
    measured" for ``reason``, what is left of them in whole servers is arithmetic all the same. What
    was measured of the latency stands as what it is."""
    goal, measured = cost.goal, records.get("measure_ab")
    if goal == Goal() or measured is None or "blocks" not in measured.tables:
        return []
    device = measured.facts.get("device", "cuda")
    on = "a processor" if device == "cpu" else measured.facts.get("device_text") or device
    rows: list[GoalRow] = []
    for arm in measured.table("blocks")["arm"].unique():
        if arm.startswith(BASELINE):
            continue
        if goal.fewer_accelerators is not None and cost.accelerators is not None:
            left = _left(goal.fewer_accelerators, float(cost.accelerators), cost.fleet)
            today = math.ceil(cost.accelerators / cost.fleet.per_server) + cost.fleet.spare_servers
            needs = {
                "machine_time": (1 - goal.fewer_accelerators, "", reason),
                "accelerators_fluid": (left.fluid, "accelerators", f"before rounding; {reason}"),
                "accelerators": (left.whole, "accelerators", f"{left.fluid:.3g} rounded up"),
                "servers": (left.servers, "servers", left.said(today)),
            }
            rows += [
                GoalRow(arm, what, "at_most", needed, None, None, None, unit, "not measured",
                        "not measured", how)
                for what, (needed, unit, how) in needs.items()
            ]  # fmt: skip
        if goal.latency_ratio is not None:
            rows += [
                replace(row, how=f"on {on}, which says nothing of accelerators; {row.how}")
                if cost.accelerators is not None and row.got is not None else row
                for row in _latency_rows(arm, measured, goal.latency_ratio, slo)
            ]  # fmt: skip
    return rows


@dataclass(frozen=True)
class _Left:
    """What a promised fraction is worth: accelerators before rounding, whole ones, whole servers
    with their spares and the warm fallback."""

    fluid: float
    whole: float
    servers: float
    rules: str

    def said(self, today: float) -> str:
        return f"{self.rules}; today {today:g}, so {today - self.servers:g} of them would go"


def _left(fewer: float, today: float, fleet: FleetRules) -> _Left:
    fluid = (1 - fewer) * today
    whole = math.ceil(fluid - ROUNDING)
    servers = math.ceil(whole / fleet.per_server) + fleet.spare_servers
    rules = (
        f"{number_of(fleet.per_server, 'accelerator')} in a server, {fleet.spare_servers} spare, "
        f"{fleet.warm_fallback_servers} for the warm fallback"
    )
    return _Left(fluid, float(whole), float(servers + fleet.warm_fallback_servers), rules)


def goals_frame(rows: list[GoalRow]) -> pd.DataFrame:
    columns = list(GoalRow.__dataclass_fields__)
    frame = pd.DataFrame([asdict(row) for row in rows], columns=columns)
    return frame.astype({name: float for name in ("needed", "got", "lo", "hi")})


def decode_speedup_needed(fewer: float, decode_share: float, prefill_ratio: float) -> float | None:
    """How much quicker decode must be for a request to take ``1 - fewer`` of the machine time.

    decode_share: of full precision's time. prefill_ratio: prefill of the arm over full precision's.
    None where prefill alone takes all that is left.

    Of 0.5 s prefill and 0.4 s decode 30 % are to go: 0.63 s are left. Prefill at 0.9 of its time
    takes 0.45 s of them, so decode has 0.18 s instead of 0.4 s:

    >>> round(decode_speedup_needed(0.3, 0.4 / 0.9, 0.9), 3)
    2.222
    >>> decode_speedup_needed(0.3, 0.2, 1.0) is None
    True
    """
    left = (1 - fewer) - (1 - decode_share) * prefill_ratio
    return decode_share / left if left > 0 else None


def _fleet_rows(
    arm: str, own: Use, full: Use, fewer: float, case: Case, result: CaseResult
) -> list[GoalRow]:
    both = own.seconds.index.intersection(full.seconds.index)
    time = mean_ratio(own.seconds[both], full.seconds[both], stopped=True)
    prefill = mean_ratio(own.prefill[both], full.prefill[both], stopped=True)
    decode = mean_ratio(full.decode[both], own.decode[both], stopped=True)
    share = float((full.decode / full.seconds).mean())
    needed = decode_speedup_needed(fewer, share, prefill.value or 1.0)
    mix = f"decode is {share:.0%} of a request of this load in full precision"
    today = result.figure(BASELINE, "servers").value or 0.0
    left = _left(fewer, result.figure(BASELINE, "accelerators_fluid").value or 0.0, case.fleet)
    return [
        _row(arm, "machine_time", "at_most", 1 - fewer, time, "", f"batch {own.batch} over "
             f"batch {full.batch}, by the load's mix, within its SLO"),
        _row(arm, "decode_speedup", "at_least", needed, decode, "x",
             f"{mix}; prefill takes {prefill.value or 1.0:.3g} of its time"),
        _case_row(arm, "accelerators_fluid", left.fluid, result, "before rounding"),
        _case_row(arm, "accelerators", left.whole, result, f"{left.fluid:.3g} rounded up"),
        _case_row(arm, "servers", left.servers, result, left.said(today)),
    ]  # fmt: skip


def _latency_rows(arm: str, measured: StageRecord, ratio: float, slo: Slo) -> list[GoalRow]:
    rows = [_latency(arm, measured, ratio)]
    if slo.ttft_ms is not None:
        found = _first(measured, "ttft_ms", arm=arm, source="load", quantile="p95")
        rows.append(_metric_row(arm, "ttft_under_load", "at_most", slo.ttft_ms, found))
    return rows


def _latency(arm: str, measured: StageRecord, ratio: float) -> GoalRow:
    """Whole answers under the load; without a replay, the longest interactive class alone."""
    under_load = _first(measured, "e2e_speedup", arm=arm, source="load", quantile="p50")
    if under_load is not None and under_load.value is not None:
        return _metric_row(arm, "latency_under_load", "at_least", ratio, under_load)
    alone = [m for m in measured.metrics if m.matches("speedup", {"arm": arm})
             and m.labels.get("class", "").startswith("interactive_")]  # fmt: skip
    longest = max(alone, key=lambda m: int(m.labels["class"].split("_")[1]), default=None)
    return _metric_row(arm, "latency_alone", "at_least", ratio, longest)


def _first(record: StageRecord, name: str, **labels: str) -> Metric | None:
    return next((m for m in record.metrics if m.matches(name, labels)), None)


def _metric_row(
    arm: str, what: str, side: Literal["at_most", "at_least"], needed: float, found: Metric | None
) -> GoalRow:
    if found is None or found.value is None:
        why = "no such figure in this run" if found is None else found.reason or ""
        return GoalRow(arm, what, side, needed, None, None, None, "", "not measured",
                       "not measured", why)  # fmt: skip
    outcome = _outcome(side, needed, found.value, found.lo, found.hi)
    return GoalRow(arm, what, side, needed, found.value, found.lo, found.hi, found.unit,
                   found.kind, outcome, found.how)  # fmt: skip


def _case_row(arm: str, what: str, needed: float, result: CaseResult, how: str) -> GoalRow:
    found = result.figure(arm, what)
    outcome = _outcome("at_most", needed, found.value, found.lo, found.hi)
    return GoalRow(arm, what, "at_most", needed, found.value, found.lo, found.hi, found.unit,
                   found.kind, outcome, how)  # fmt: skip


def _row(
    arm: str, what: str, side: Literal["at_most", "at_least"], needed: float | None,
    found: Estimate, unit: str, how: str,
) -> GoalRow:  # fmt: skip
    outcome: GoalOutcome = "fails"
    if needed is not None:
        outcome = _outcome(side, needed, found.value, found.lo, found.hi)
    return GoalRow(arm, what, side, needed, found.value, found.lo, found.hi, unit, "measured",
                   outcome, how)  # fmt: skip


def _outcome(
    side: str, needed: float, value: float | None, lo: float | None, hi: float | None
) -> GoalOutcome:
    """By the whole interval, as a gate decides."""
    if value is None:
        return "not measured"
    if lo is None or hi is None:
        return "open"
    good, bad = (hi <= needed, lo > needed) if side == "at_most" else (lo >= needed, hi < needed)
    return "holds" if good else "fails" if bad else "open"
