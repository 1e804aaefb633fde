"""This run's figures and the pilot's prices as one case: the fleet, a year's cost, what a change
pays.

How many machines an arm needs is simulated (:mod:`workbench.planner.rates`). Where that cannot be,
what a request takes of a machine counts, measured in the turns at the batch that the SLO allows
(:mod:`.demand`). A request's energy is that of the served load where every arm was metered there,
else of the same turns, else of watts declared for all arms alike (:mod:`.power`). What training and
rehearsal took is of this run unless the pilot declares it (:mod:`.one_off`); the rest is declared
by the pilot, and says so. Nothing is computed here: :mod:`workbench.economics` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from workbench.economics.case import Case, CaseArm, evaluate
from workbench.economics.facility import (
    FacilityFit,
    MeasuredPue,
    fit_facility,
    measured_pue,
    read_telemetry,
    warmth,
)
from workbench.economics.quantity import Quantity
from workbench.economics.tariff import YearPrices, year_prices
from workbench.economics.year import LoadShape, YearSums, load_shape, year_sums
from workbench.errors import ConfigError, StageError
from workbench.files import read_json
from workbench.measure.statistics import Estimate, mean
from workbench.pilot.sections.cost import DECLARED, Cost
from workbench.pilot.sections.profile_load import Slo
from workbench.pilot.spec import Pilot
from workbench.planner.rates import ReplicaRate, why_not_simulated
from workbench.records.metric import MetricKind
from workbench.records.stage_record import StageRecord
from workbench.report.demand import Demand, Use, demand_of, quickest, uses
from workbench.report.one_off import UNTRAINED, one_offs
from workbench.report.power import Powers, arm_powers
from workbench.report.served import accepted_numbers
from workbench.wording.counts import number_of

BASELINE = "full_precision"
AGAIN = "full_precision_again"


@dataclass(frozen=True)
class Building:
    """What the building adds. measured, fit: of its telemetry, or None. pue, slope: as numbers of
    the case. warm: ``[12, 24]`` for the year's sums. texts: for the reader."""

    pue: Quantity
    slope: Quantity
    measured: MeasuredPue | None = None
    fit: FacilityFit | None = None
    warm: np.ndarray | None = None
    texts: tuple[str, ...] = ()


def check(pilot: Pilot) -> list[str]:
    """What is wrong with the tariff and the telemetry, before anything is measured."""
    problems = []
    cost = pilot.report.cost
    for look in (lambda: year_prices(cost.tariff, cost.tariff_per_kwh), lambda: building(cost)):
        try:
            look()
        except ConfigError as error:
            problems.append("; ".join(filter(None, (error.got, error.allowed, error.next_step))))
    return problems


def building(cost: Cost) -> Building:
    """PUE and slope, from telemetry where there is some. Raises ConfigError for telemetry or
    numbers that cannot be."""
    declared = cost.facility.slope
    if cost.facility.telemetry is None:
        slope = Quantity(
            1.0 if declared is None else declared, "assumed", "",
            "that no overhead shrinks with the load" if declared is None else DECLARED,
            *((1.0, cost.pue) if declared is None else (None, None)),
        )  # fmt: skip
        if slope.value > cost.pue:
            raise ConfigError(
                f"report.cost.facility.slope: {slope.value:g} is above the PUE of {cost.pue:g}",
                allowed="a slope up to the PUE: a part of the building's power does not move",
            )
        return Building(Quantity(cost.pue, "assumed", "", cost.source_of("pue")), slope)
    table = read_telemetry(cost.facility)
    found, fit = measured_pue(table, cost.facility.category), fit_facility(table)
    span = f"{number_of(found.span_days, 'day', form='.0f')} of telemetry"
    texts = [
        f"PUE {found.pue:.3f} over {span}" + (", interim: a PUE is a year's" * found.interim)
        + (f"; category {found.category}" if found.category is not None else
           "; its boundary is not declared (report.cost.facility.category)"),
        f"best month {found.best.month}: {found.best.pue:.3f}, worst {found.worst.month}: "
        f"{found.worst.pue:.3f}",
    ]  # fmt: skip
    if found.gap_hours:
        texts.append(f"{number_of(found.gap_hours, 'hour', form='.0f')} of gaps are left out")
    pue = Quantity(found.pue, "modelled" if found.interim else "measured", "", span)
    if isinstance(fit, str):
        texts.append(f"no slope: {fit}")
        value = 1.0 if declared is None else declared
        slope = Quantity(value, "assumed", "", DECLARED if declared is not None else
                         "that no overhead shrinks with the load")  # fmt: skip
        return Building(pue, slope, found, texts=tuple(texts))
    texts.append(
        f"fit over {fit.hours} h: {fit.slope:.3f} x IT + {fit.base_kw:.4g} kW + "
        f"{fit.per_degree:.4f} x IT a degree above {fit.threshold_c:.1f} °C, residual "
        f"{fit.rms_kw:.3g} kW" + (f"; {fit.reason}" if fit.reason else "")
    )
    slope = Quantity(fit.slope, "modelled", "", f"fit of {span}")
    if declared is not None:
        slope = Quantity(declared, "assumed", "", DECLARED)
    return Building(pue, slope, found, fit, warmth(table, fit, cost.tariff.time_zone), tuple(texts))


def case_of(
    records: Mapping[str, StageRecord], cost: Cost, slo: Slo,
    rates: Mapping[str, ReplicaRate] | str = "no simulation was asked for",
) -> tuple[Case, Building, YearPrices] | str:  # fmt: skip
    """The case of this run, or why there is none.

    rates: what a replica of each arm carries (:func:`workbench.planner.rates.replica_rates`), or
    why that is not known; fleets are then those of the machine time and say so.
    """
    measured, demand = records.get("measure_ab"), demand_of(records, slo, cost.fleet.utilisation)
    if measured is None or "blocks" not in measured.tables:
        return "no arms were measured"
    if demand is None:
        return "there is no load profile, whose mix of prompt and output decides"
    if cost.accelerators is not None and measured.facts.get("device", "cuda") == "cpu":
        return "measured on a processor, which says nothing of accelerators"
    blocks = measured.table("blocks")
    arms = [BASELINE, *(a for a in blocks["arm"].unique() if a not in (BASELINE, AGAIN))]
    found = {arm: quickest(uses(blocks, arm, demand)) for arm in arms}
    chosen = {arm: use for arm, use in found.items() if use is not None}
    if BASELINE not in chosen:
        return f"{BASELINE} keeps the SLO of interactive requests at no measured batch"
    left_out = [arm for arm in arms if arm not in chosen]
    house = building(cost)
    prices = year_prices(cost.tariff, cost.tariff_per_kwh)
    profile = read_json(records["profile_load"].artefact("profile"))
    shape = load_shape(cost.hours, profile)
    sums = year_sums(prices, shape, house.warm, cost.tariff.demand_per_kw_month, cost.tariff.vat)
    powers = arm_powers(measured, chosen, demand, cost)
    once = one_offs(records, cost)
    numbers = _declared(cost, demand, sums, shape, house) | once.numbers
    why_not = why_not_simulated(rates, list(chosen))
    simulated = {} if why_not or isinstance(rates, str) else {arm: rates[arm] for arm in chosen}
    for arm, use in chosen.items():
        numbers |= _of_arm(arm, use, simulated.get(arm), measured, powers)
    if simulated:
        del numbers["utilisation"]  # a replica is as busy as its targets allow
    texts = [
        f"{demand.text}; a request takes "
        + ", ".join(f"{u.mean_s:.3g} s of a machine in {a} (batch {u.batch})"
                    for a, u in chosen.items()),
        *fleet_texts(simulated, slo, why_not),
        f"tariff: {prices.text}; a mean kWh costs {prices.mean:.4g} {cost.currency}"
        + f" without VAT, {cost.tariff.vat:.0%} is added" * bool(cost.tariff.vat),
        f"hours: {shape.text}",
        *house.texts,
        *(once.texts if not isinstance(powers, str) else ()),
    ]  # fmt: skip
    texts += [f"{arm} keeps the SLO at no measured batch and is left out" for arm in left_out]
    no_power = powers if isinstance(powers, str) else ""
    texts += powers.texts if not isinstance(powers, str) else [f"no energy and no cost: {powers}"]
    return Case(
        tuple(_case_arm(arm, use, powers, simulated.get(arm)) for arm, use in chosen.items()),
        numbers, sums,
        cost.fleet, tuple(cost.items), once.items, cost.currency, cost.horizon_y,
        demand.prompt_tokens, demand.output_tokens, cost.accelerators,
        house.fit.per_degree if house.fit else 0.0, no_power, cost.is_sample, tuple(texts),
    ), house, prices  # fmt: skip


def _case_arm(arm: str, use: Use, powers: Powers | str, rate: ReplicaRate | None) -> CaseArm:
    return CaseArm(
        arm, use.prefill_share,
        None if isinstance(powers, str) else powers.arms[arm].prefill_share,
        arm not in UNTRAINED, rate.cells if rate else (), rate.busy if rate else 0.0,
    )  # fmt: skip


def fleet_texts(simulated: Mapping[str, ReplicaRate], slo: Slo, why_not: str) -> list[str]:
    """Where the number of machines is from, for the reader."""
    if not simulated:
        return [f"fleets by machine time and utilisation, not by simulation: {why_not}"]
    targets = ", ".join(f"{k} {v:g}" for k, v in slo.model_dump().items() if v is not None)
    held = f"p99 within {targets}" if targets else "no target is set"
    return [f"fleets by simulation: {held}", *(rate.text for rate in simulated.values())]


CASE = TypeAdapter(Case)


def case_to_json(case: Case) -> dict[str, Any]:
    return CASE.dump_python(case, mode="json")


def case_from_json(fields: dict[str, Any]) -> Case:
    """Raises StageError for a record of another version."""
    try:
        case: Case = CASE.validate_python(fields)
        evaluate(case)
        return case
    except (ValueError, KeyError) as error:
        raise StageError(
            "the case in this record is of another version of the workbench",
            next_step="judge the run again: workbench report RUN",
        ) from error


def _declared(
    cost: Cost, demand: Demand, sums: YearSums, shape: LoadShape, house: Building
) -> dict[str, Quantity]:
    """The numbers that belong to no arm."""

    def said(name: str, unit: str = "") -> Quantity:
        return Quantity(attrgetter(name)(cost), "assumed", unit, cost.source_of(name))

    peak = demand.peak_per_s / demand.rate_per_s
    if shape.kind == "assumed":
        peak *= sums.most_s  # a short load has no busy hour of the day in it
    known: MetricKind = "measured" if demand.kind == shape.kind == "measured" else "assumed"
    default = not (cost.tariff.bands or cost.tariff.series)
    tariff = cost.source_of("tariff_per_kwh") if default else DECLARED
    tariff = "the tariff as it is declared" if tariff == DECLARED else tariff
    numbers = {
        "requests_per_day": said("requests_per_day", "requests"),
        "growth": said("growth"),
        "price_scale": Quantity(1.0, "assumed", "", cost.tariff.source or tariff),
        "pue": house.pue,
        "pue_slope": house.slope,
        "utilisation": said("fleet.utilisation"),
        "discount_rate": said("discount_rate"),
        "resale_share": said("fleet.resale_share"),
        "load_hours": Quantity(1.0, shape.kind, "", shape.text, 1.0, 1.0),
        "peak_over_mean": Quantity(peak, known, "", "busy windows of the load over its mean"),
    }
    for item in cost.items:
        for name, value in (("price", item.price), ("per_year", item.per_year)):
            numbers[f"{name}.{item.name}"] = Quantity(
                value, item.kind, cost.currency, item.source or DECLARED
            )
    return numbers


def _of_arm(
    arm: str, use: Use, rate: ReplicaRate | None, measured: StageRecord, powers: Powers | str
) -> dict[str, Quantity]:
    if rate is None:
        turns = f"turns at batch {use.batch}"
        numbers = {f"request_s.{arm}": _quantity(mean(use.seconds), "s", turns)}
    else:
        numbers = {
            f"replica_rate.{arm}": Quantity(
                rate.per_s, "modelled", "requests/s", rate.text, rate.lo, rate.hi
            )
        }
    if not isinstance(powers, str):
        numbers |= powers.arms[arm].named(arm)
    shares = accepted_numbers(measured, arm)
    return numbers | {f"{name}.{arm}": share for name, share in shares.items()}


def _quantity(found: Estimate, unit: str, source: str) -> Quantity:
    assert found.value is not None
    return Quantity(found.value, "measured", unit, source, found.lo, found.hi)
