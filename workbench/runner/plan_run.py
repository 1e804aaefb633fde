"""``workbench plan``: what fleet of each arm of a run carries so many requests a day.

The replica is the run's own: its steps as ``measure_ab`` timed them, with what its replay shows
that serving adds (:mod:`workbench.planner.costs`); the requests are those of its load. Money and
energy are of the run's case, for that fleet alone and with nothing owned before. The report's own
fleet is made of the same rates (:mod:`workbench.planner.rates`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.economics.case import Case, evaluate
from workbench.errors import ConfigError
from workbench.pilot.resolve import asked_again
from workbench.planner.costs import Agreement, ReplicaCosts, agreement
from workbench.planner.fleet import Planned, planned
from workbench.planner.rates import replica_rates, request_mix
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.report.demand import DAY_S, demand_of
from workbench.report.economy import case_of
from workbench.wording.counts import number_of
from workbench.wording.numbers import number

MOST_A_DAY = 1e12
WITHIN = 0.10
"""Of a measured quantile, for a simulation to agree with it."""


@dataclass(frozen=True)
class PlanRow:
    """One arm at one number of requests a day. case: figures of its fleet by name, empty where the
    run has no power and so no cost."""

    per_day: float
    fleet: Planned
    case: dict[str, float]
    currency: str

    def fields(self) -> dict[str, Any]:
        """For a line of JSON."""
        found: dict[str, Any] = {
            "name": "planned fleet", "arm": self.fleet.arm, "requests_per_day": self.per_day,
            "peak_per_s": self.fleet.rate_per_s, "replicas": self.fleet.replicas,
            "per_replica_per_s": self.fleet.per_replica_per_s, "kind": "modelled",
        }  # fmt: skip
        if self.fleet.seen:
            for of in ("ttft_s", "tpot_s", "e2e_s"):
                found |= {f"{of}_p{100 * q:g}": v for q, v in getattr(self.fleet.seen, of).items()}
            found["busy"] = self.fleet.seen.busy
        return found | self.case | ({"currency": self.currency} if self.case else {})


@dataclass(frozen=True)
class FleetPlan:
    """rows: by arm, then by requests a day. replicas: what each arm's replica costs. checks: on
    blocks of the replay that nothing was fitted to. texts: what a reader must know."""

    rows: list[PlanRow]
    replicas: list[ReplicaCosts]
    checks: list[Agreement]
    texts: list[str]

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield from self.texts
        yield ""
        head = ("arm", "requests/day", "peak/s", "replicas", "busy", "TTFT p50/p90/p99, ms",
                "TPOT p99, ms", "E2E p99, s", "MWh/year", "cost/year", "per 1k")  # fmt: skip
        cells = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
        for row in cells:
            yield "  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)).rstrip()
        yield ""
        yield from _agreement_lines(self.checks)


def plan_run(run: Run, per_day: Sequence[float], overrides: Sequence[str] = ()) -> FleetPlan:
    """per_day: requests. overrides: of what only judges, ``report.cost.pue=1.2``.

    Raises ConfigError for a number that is no load, and where a stage that it needs is missing.
    """
    for each in per_day:
        if not 1 <= each <= MOST_A_DAY:
            raise ConfigError(
                f"--requests-per-day {each:g}", allowed=f"1 to {MOST_A_DAY:.0e} requests a day"
            )
    pilot, records = asked_again(run.resolved(), overrides).pilot, run.records()
    slo, cost = pilot.profile_load.interactive_slo, pilot.report.cost
    demand, measured = demand_of(records, slo, cost.fleet.utilisation), records.get("measure_ab")
    if demand is None or measured is None or "blocks" not in measured.tables:
        raise ConfigError(
            f"{run.name}: a plan needs the stages profile_load and measure_ab",
            next_step="workbench run PILOT.yaml",
        )
    slots = pilot.measure_ab.load.slots
    rates = replica_rates(records, slo, slots, pilot.seed, unserved=True)
    if isinstance(rates, str):
        raise ConfigError(
            f"{run.name}: {rates}",
            next_step="give measure_ab.batch_sizes, and run measure_ab again",
        )
    found = case_of(records, cost.model_copy(update={"accelerators": None}), slo, rates)
    case = None if isinstance(found, str) else found[0]
    load = request_mix(records["profile_load"])
    over_mean = demand.peak_per_s / demand.rate_per_s
    if case:  # which knows the hours of a day as well
        over_mean = float(case.numbers["peak_over_mean"].value)
    rows = []
    for rate in rates.values():
        for each in sorted(per_day):
            peak = each / DAY_S * over_mean
            fleet = planned(rate.costs, load, peak, rate.per_s, rate.cells, pilot.seed)
            rows.append(PlanRow(each, fleet, _money(case, fleet, each), cost.currency))
    replicas, checks = [rate.costs for rate in rates.values()], _checks(measured, rates, slots)
    return FleetPlan(
        rows, replicas, checks, _texts(run, measured, replicas, case, found, over_mean, slo)
    )


def _checks(measured: StageRecord, arms: Iterable[str], slots: int) -> list[Agreement]:
    if "load_requests" not in measured.tables:
        return []
    blocks, device = measured.table("blocks"), measured.facts.get("device", "cuda")
    replay = measured.table("load_requests")
    return [check for arm in arms for check in agreement(blocks, replay, arm, slots, device)]


def _money(case: Case | None, fleet: Planned, per_day: float) -> dict[str, float]:
    """Of a fleet of this arm alone: what it would cost to run, with nothing owned before."""
    own = next((arm for arm in case.arms if arm.name == fleet.arm), None) if case else None
    if case is None or own is None or fleet.replicas is None or case.no_power:
        return {}
    alone, changes = replace(case, arms=(own,), accelerators=None), {"requests_per_day": per_day}
    if not case.simulated:  # another arm has no rate; this one's fleet is the simulated one
        request_s = float(case.numbers[f"request_s.{fleet.arm}"].value)
        changes["utilisation"] = fleet.rate_per_s * request_s / fleet.replicas
    figures = evaluate(alone, changes)[fleet.arm]
    wanted = ("accelerators", "servers", "energy_kwh", "year", "per_1k_requests")
    return {name: float(figures[name]) for name in wanted}


def _cells(row: PlanRow) -> tuple[str, ...]:
    fleet, seen = row.fleet, row.fleet.seen
    begun = (fleet.arm, number(row.per_day), f"{fleet.rate_per_s:,.3g}")
    if seen is None or fleet.replicas is None:
        return (*begun, "none keeps the targets", *[""] * 7)
    ttft = "/".join(f"{1e3 * v:.3g}" for v in seen.ttft_s.values())
    money = ["", "", ""]
    if row.case:
        money = [f"{row.case['energy_kwh'] / 1e3:,.3g}", f"{row.case['year']:,.4g} {row.currency}",
                 f"{row.case['per_1k_requests']:.3g}"]  # fmt: skip
    return (*begun, f"{fleet.replicas:,}", f"{seen.busy:.0%}", ttft,
            f"{1e3 * seen.tpot_s[0.99]:.3g}", f"{seen.e2e_s[0.99]:.3g}", *money)  # fmt: skip


def _texts(
    run: Run, measured: StageRecord, replicas: Sequence[ReplicaCosts], case: Case | None,
    found: object, over_mean: float, slo: Any,
) -> list[str]:  # fmt: skip
    targets = ", ".join(f"{k} {v:g}" for k, v in slo.model_dump().items() if v is not None)
    texts = [
        f"{run.name}: a simulation of replicas as this run measured them on "
        f"{measured.facts.get('device_text', measured.facts.get('device', 'its machine'))}",
        f"targets at p99: {targets or 'none'}; busy times have {over_mean:.3g} times the mean rate",
    ]
    for one in replicas:
        if not one.fitted:
            texts.append(
                f"{one.arm}: no replay of enough requests; steps as timed alone, so server and "
                "network are left out"
            )
    if case is None:
        texts.append(f"no energy and no cost: {found}")
    elif case.no_power:
        texts.append(f"no energy and no cost: {case.no_power}")
    return texts


def _agreement_lines(checks: Sequence[Agreement]) -> Iterator[str]:
    if not checks:
        yield "not checked against this run's own replay: it has too few requests or blocks"
        return
    inside = sum(abs(check.off) <= WITHIN for check in checks)
    yield (
        "the simulation against the blocks of this run's replay that it was not fitted to: "
        f"{inside} of {number_of(len(checks), 'quantile')} within {WITHIN:.0%}"
    )
    for arm in dict.fromkeys(check.arm for check in checks):
        own = [check for check in checks if check.arm == arm]
        parts = ", ".join(
            f"{c.latency} p{100 * c.quantile:g} {1e3 * c.simulated_s:.3g} for "
            f"{1e3 * c.measured_s:.3g} ms ({c.off:+.0%})"
            for c in own
        )
        yield f"  {arm}, {number_of(own[0].requests, 'request')}: {parts}"
