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
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from workbench.economics.case import ROUNDING, Case
from workbench.economics.what_if import CaseResult
from workbench.measure.statistics import Estimate, mean_ratio
from workbench.pilot.sections.cost import Cost, Goal
from workbench.pilot.sections.profile_load import Slo
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.demand import Use, demand_of, quickest, uses
from workbench.report.economy import BASELINE

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
    fluid = result.figure(BASELINE, "accelerators_fluid").value or 0.0
    today = result.figure(BASELINE, "servers").value or 0.0
    whole = math.ceil((1 - fewer) * fluid - ROUNDING)
    servers = math.ceil(whole / case.fleet.per_server) + case.fleet.spare_servers
    servers += case.fleet.warm_fallback_servers
    rules = (
        f"{case.fleet.per_server} accelerators in a server, {case.fleet.spare_servers} spare, "
        f"{case.fleet.warm_fallback_servers} for the warm fallback"
    )
    return [
        _row(arm, "machine_time", "at_most", 1 - fewer, time, "", f"batch {own.batch} over "
             f"batch {full.batch}, by the load's mix, within its SLO"),
        _row(arm, "decode_speedup", "at_least", needed, decode, "x",
             f"{mix}; prefill takes {prefill.value or 1.0:.3g} of its time"),
        _case_row(arm, "accelerators_fluid", (1 - fewer) * fluid, result, "before rounding"),
        _case_row(arm, "accelerators", float(whole), result,
                  f"{(1 - fewer) * fluid:.3g} rounded up"),
        _case_row(arm, "servers", float(servers), result,
                  f"{rules}; today {today:g}, so {today - servers:g} of them would go"),
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
    lo, hi = (found.value if end is None else end for end in (found.lo, found.hi))
    outcome = _outcome("at_most", needed, found.value, lo, hi)
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
