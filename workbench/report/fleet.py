"""How many accelerators carry the same load: the fluid number and whole ones.

Today's accelerators are taken to carry the load, at its peak, in full precision. An arm needs as
many as carry the same by simulation, each within the targets at p99
(:mod:`workbench.planner.rates`). Where that cannot be, it needs them in the ratio of what a request
of the load takes of a machine (:mod:`.demand`): its prefill and its decode by the load's own mix,
each arm at the batch that its SLO allows. A saving is real only where a whole accelerator goes, so
both numbers are given. Of accelerators a processor says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from workbench.economics.case import ROUNDING
from workbench.economics.replicas import rate_carried, replicas_needed
from workbench.measure.statistics import mean_ratio
from workbench.pilot.sections.profile_load import Slo
from workbench.planner.rates import ReplicaRate, why_not_simulated
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.demand import Demand, Use, demand_of, quickest, uses
from workbench.wording.counts import number_of

FLUID, WHOLE = "accelerators_needed_fluid", "accelerators_needed"
BASELINE = "full_precision"


def fleet_metrics(
    records: Mapping[str, StageRecord], accelerators: int | None, slo: Slo,
    utilisation: float = 0.7,
    rates: Mapping[str, ReplicaRate] | str = "no simulation was asked for",
) -> list[Metric]:  # fmt: skip
    """For each other arm the accelerators that it would need instead of ``accelerators``.

    slo: of interactive requests. rates: what a replica of each arm carries, or why that is not
    known. Nothing when the pilot names no fleet; missing with a reason when
    there is nothing to tell it by.
    """
    if accelerators is None:
        return []
    measured, demand = records.get("measure_ab"), demand_of(records, slo, utilisation)
    if measured is None or "blocks" not in measured.tables:
        return _missing("no arms were measured")
    if measured.facts.get("device", "cuda") == "cpu":
        return _missing("measured on a processor, which says nothing of accelerators")
    if demand is None:
        return _missing("there is no load profile, whose mix of prompt and output decides")
    blocks = measured.table("blocks")
    full = quickest(uses(blocks, BASELINE, demand))
    if full is None:
        return _missing(f"{BASELINE} keeps {_target(slo)} at no measured batch, as it would today")
    own_uses = {
        arm: quickest(uses(blocks, arm, demand))
        for arm in blocks["arm"].unique() if not arm.startswith(BASELINE)
    }  # fmt: skip
    carried = [BASELINE, *(arm for arm, use in own_uses.items() if use is not None)]
    why_not = why_not_simulated(rates, carried)
    found = []
    for arm, own in own_uses.items():
        if own is not None and not why_not and not isinstance(rates, str):
            found += _simulated(rates[arm], rates[BASELINE], accelerators, slo)
        elif own is None:
            why = f"it keeps {_target(slo)} at no measured batch"
            found += _missing(why, arm=arm, source="trained")
        else:
            found += _needed(arm, own, full, accelerators, demand, why_not)
    return found or _missing("no other arm was measured")


def _simulated(
    own: ReplicaRate, full: ReplicaRate, accelerators: int, slo: Slo
) -> list[Metric]:  # fmt: skip
    """By the rates that a replica of each carries."""

    def fluid(scale: float) -> float:
        peak = rate_carried(accelerators, full.per_s, full.cells)
        return float(replicas_needed(peak * scale, own.per_s, own.cells))

    lo = hi = None
    ends = (own.lo, own.hi, full.lo, full.hi)
    if all(end is not None for end in ends):
        own_lo, own_hi, full_lo, full_hi = (math.log(end) for end in ends if end)
        own_at, full_at = math.log(own.per_s), math.log(full.per_s)
        lo = fluid(math.exp(-math.hypot(own_hi - own_at, full_at - full_lo)))
        hi = fluid(math.exp(math.hypot(own_at - own_lo, full_hi - full_at)))
    how = (
        f"what {number_of(accelerators, 'accelerator')} carry in {BASELINE}; {full.text}; "
        f"{own.text}; {_target(slo)} kept at p99"
    )
    few = "the replay has too few blocks for an interval" if lo is None else None
    return [
        Metric(
            name, at(fluid(1.0)), "accelerators", how, "modelled", own.costs.fitted,
            lo=None if lo is None else at(lo), hi=None if hi is None else at(hi), reason=few,
            labels={"arm": own.arm, "source": "trained"},
        )
        for name, at in ((FLUID, float), (WHOLE, _whole))
    ]  # fmt: skip


def _whole(fluid: float) -> float:
    """A number that lies within rounding of a whole one needs no further accelerator."""
    return float(math.ceil(fluid - ROUNDING))


def _needed(
    arm: str, own: Use, full: Use, accelerators: int, demand: Demand, why_not: str
) -> list[Metric]:
    both = own.seconds.index.intersection(full.seconds.index)
    ratio = mean_ratio(own.seconds[both], full.seconds[both], stopped=True)
    if ratio.value is None:
        return _missing("no block has both arms", arm=arm, source="trained")
    busy = demand.peak_per_s * full.mean_s
    how = (
        f"{number_of(accelerators, 'accelerator')} x the machine time of {arm} (batch {own.batch}) "
        f"over that of {BASELINE} (batch {full.batch}); {demand.text}; {_target(demand.slo)} kept; "
        f"at the load's peak of {demand.peak_per_s:.3g} requests/s {BASELINE} keeps {busy:.2g} busy"
    )
    how += f"; not by simulation: {why_not}"
    if busy > accelerators:
        how += f", more than the {accelerators} that are said to carry it"
    ends = (ratio.value, ratio.lo, ratio.hi)
    fluid = [None if end is None else accelerators * end for end in ends]
    whole = [None if end is None else _whole(end) for end in fluid]
    return [
        Metric(
            name, value, "accelerators", how, "derived", ratio.n, lo=lo, hi=hi,
            reason=ratio.reason or None,
            labels={"arm": arm, "source": "trained", "batch": str(own.batch)},
        )
        for name, (value, lo, hi) in ((FLUID, fluid), (WHOLE, whole))
    ]  # fmt: skip


def _target(slo: Slo) -> str:
    first = "" if slo.ttft_ms is None else f"{slo.ttft_ms:g} ms to the first token"
    token = "" if slo.tpot_ms is None else f"{slo.tpot_ms:g} ms a token"
    return " and ".join(filter(None, (first, token))) or "the SLO (none is set)"


def _missing(reason: str, **labels: str) -> list[Metric]:
    return [Metric.missing(name, "accelerators", reason, **labels) for name in (FLUID, WHOLE)]
