"""Money: cost = energy x PUE x tariff, from metered energy or not at all.

All arms stand on one basis (:mod:`.power`): the served load where every arm was metered there, else
the turns in fixed shapes, else the node's declared power (``report.cost.assumed_power_w``) times
measured time, labelled ``modelled``; a model never turns into a measurement on its way here.
Without any the row says "not measured". Energy of boards or processors alone is not the node's:
the row says so, or, where their share of it is declared, is extended by it and called ``assumed``.
A day is the load's own requests, on as many machines as carry their rate, and its idle hours; a
request, a token and an accepted answer are their part of it. A cost is as weak as its weakest part:
a sample tariff or a declared PUE makes it assumed, however well the energy was metered.

These rows are a bill for energy alone: PUE is the average, the price the mean over the load's
hours. That overstates a saving, because fixed losses do not shrink: savings stand in
:mod:`.economy`, and so does what a request or a token costs with all that is paid in a year.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd

from workbench.economics.quantity import Quantity, combined, weakest
from workbench.economics.tariff import year_prices
from workbench.economics.year import energy_price, load_shape, year_sums
from workbench.files import read_json
from workbench.measure.accepted_energy import widened
from workbench.measure.statistics import Estimate, mean
from workbench.pilot.sections.cost import Cost
from workbench.pilot.sections.profile_load import Slo
from workbench.records.metric import Metric, MetricKind
from workbench.records.stage_record import StageRecord
from workbench.report.demand import (
    DAY_S,
    Demand,
    Use,
    demand_of,
    for_rate,
    machines,
    quickest,
    uses,
)
from workbench.report.economy import building
from workbench.report.power import Powers, arm_powers, turn_powers
from workbench.report.served import accepted_numbers
from workbench.wording.counts import number_of
from workbench.wording.labels import ARMS, label_text

JOULES_PER_KWH = 3.6e6
METERED = ("measured", "derived")


@dataclass(frozen=True)
class CostRow:
    """Cost of one thing in one arm, in ``currency``.

    per: of the load ``day`` (``requests_per_day`` requests), ``load_1k_requests``,
    ``load_1m_input_tokens``, ``load_1m_output_tokens`` and ``load_1k_accepted``; of a fixed shape
    ``1k_requests`` and ``1m_tokens``; ``training`` (once). energy_j: the energy it is made from,
    energy_kind: how that is known.
    sample: the tariff is a sample.
    covers: what the energy is of, where that is not the node: ``gpu``, ``cpu`` or ``gpu + cpu``.
    """

    per: str
    labels: str
    currency: str
    sample: bool
    value: float | None
    lo: float | None
    hi: float | None
    energy_j: float | None
    kind: str
    how: str
    reason: str
    covers: str = ""
    energy_kind: str = ""


@dataclass(frozen=True)
class Price:
    """Of a kWh at the IT equipment: PUE times the mean price over the load's hours, with VAT.

    kind: the weaker of the two; a tariff that is a sample is assumed, one that is not is known.
    """

    per_kwh: float
    pue: float
    kind: MetricKind
    text: str


def price_of(records: Mapping[str, StageRecord], cost: Cost) -> Price:
    """Raises ConfigError for a tariff or telemetry that cannot be."""
    load = records.get("profile_load")
    profile = read_json(load.artefact("profile")) if load and "profile" in load.artefacts else None
    prices = year_prices(cost.tariff, cost.tariff_per_kwh)
    sums = year_sums(prices, load_shape(cost.hours, profile), vat=cost.tariff.vat)
    house, per_kwh = building(cost), energy_price(sums)
    kind = weakest(["assumed" if cost.is_sample else "measured", house.pue.kind])
    text = f"PUE {house.pue.value:.4g} ({house.pue.kind}) x {per_kwh:.4g} {cost.currency}/kWh"
    return Price(per_kwh * house.pue.value, house.pue.value, kind, f"{text} ({prices.text})")


def cost_rows(
    records: Mapping[str, StageRecord], cost: Cost, slo: Slo | None = None
) -> list[CostRow]:
    """Every cost that this run's figures allow, and a reason for each that they do not.

    slo: of interactive requests, which bounds the batch at which the load is carried.
    """
    price = price_of(records, cost)
    measured = records.get("measure_ab")
    rows = _load_rows(records, measured, cost, slo or Slo(), price) if measured else []
    return rows + [_row(*found, cost, price) for found in _energies(records, cost)]


def cost_frame(rows: list[CostRow]) -> pd.DataFrame:
    return pd.DataFrame([asdict(r) for r in rows], columns=list(CostRow.__dataclass_fields__))


def _energies(
    records: Mapping[str, StageRecord], cost: Cost
) -> Iterator[tuple[str, float, Metric, str]]:
    """(what it is the cost of, how many of it, energy of one of it in J, what that covers)."""
    measured, trained = records.get("measure_ab"), records.get("train_qat")
    if measured:
        requests = _all(measured, "energy_j_per_request", source="trained")
        per_token = _all(measured, "energy_j_per_token", source="trained")
        model = cost.assumed_power_w is not None and not _all_metered(requests + per_token)
        rates = [m for m in _all(measured, "decode_tokens_per_s") if m.value]
        for metric in requests:
            time = measured.metric("latency_ms", **metric.labels)
            if not model:
                yield "1k_requests", 1e3, *_extended(metric, _covers(metric, measured), cost)
            elif time is not None or (metric.value is None and not rates):
                # Of a batch there is no time of a request; its tokens say what it takes.
                yield "1k_requests", 1e3, _modelled(metric, time, 1e-3, cost), ""
        if model and cost.assumed_power_w is not None and rates:
            yield from (("1m_tokens", 1e6, _by_rate(m, cost.assumed_power_w), "") for m in rates)
        else:
            for metric in per_token:
                yield "1m_tokens", 1e6, *_extended(metric, _covers(metric, measured), cost)
    if trained:
        once = _all(trained, "training_energy_j")
        model = cost.assumed_power_w is not None and not _all_metered(once)
        for metric in once:
            time = trained.metric("training_time_s", **metric.labels)
            yield "training", 1.0, _modelled(metric, time, 1.0, cost) if model else metric, ""


def _all_metered(energies: list[Metric]) -> bool:
    return bool(energies) and all(metric.value is not None for metric in energies)


def _extended(energy: Metric, covers: str, cost: Cost) -> tuple[Metric, str]:
    """Energy of boards alone as the node's, where their share of it is declared; and what it
    covers then."""
    share = cost.board_share
    if energy.value is None or not covers or share is None:
        return energy, covers
    return replace(
        energy,
        value=energy.value / share,
        lo=None if energy.lo is None else energy.lo / share,
        hi=None if energy.hi is None else energy.hi / share,
        kind="assumed",
        how=f"metered at {covers} alone, extended to the node by the declared share {share:g}; "
        f"{energy.how}",
    ), ""


def _covers(energy: Metric, measured: StageRecord) -> str:
    """What a metered energy is of, where that is not the node."""
    basis = measured.facts.get("energy_basis", {}).get(energy.labels.get("class"), "")
    return "" if basis == "node" else basis


SAID_OF_ACCEPTED = {"accepted": "came whole", "passed": "to own prompts keep to their check"}
LOAD_ROWS = ("day", "load_1k_requests", "load_1m_input_tokens", "load_1m_output_tokens",
             "load_1k_accepted")  # fmt: skip


def _load_rows(
    records: Mapping[str, StageRecord], measured: StageRecord, cost: Cost, slo: Slo, price: Price
) -> list[CostRow]:
    """A day of the load, and what a request, a token and an answer of it take, in each arm: all of
    them on one basis."""
    demand = demand_of(records, slo, cost.fleet.utilisation)
    metered = _all(measured, "energy_j_per_request", source="trained")
    arms = sorted({m.labels["arm"] for m in metered}, key=lambda arm: (*ARMS, arm).index(arm))

    def none(arm: str, reason: str) -> list[CostRow]:
        missing = Metric.missing("energy_j_per_request", "J", reason, arm=arm)
        return [_row(per, 1.0, missing, "", cost, price) for per in LOAD_ROWS]

    def all_none(reason: str) -> list[CostRow]:
        return [row for arm in arms for row in none(arm, reason)]

    if demand is None or "blocks" not in measured.tables:
        return all_none("needs a load profile and timed batches of the arms")
    blocks, rate_per_s = measured.table("blocks"), cost.requests_per_day / DAY_S
    within = {arm: uses(blocks, arm, demand) for arm in arms}
    carried = {arm: for_rate(found, rate_per_s) for arm, found in within.items()}
    chosen = {arm: use for arm, use in carried.items() if use is not None}
    powers = arm_powers(measured, chosen, demand, cost) if chosen else "no arm keeps the SLO"
    rows = []
    for arm in arms:
        if arm not in chosen:
            rows += none(arm, f"it keeps {slo.tpot_ms:g} ms a token at no measured batch")
        elif isinstance(powers, str):
            rows += none(arm, powers)
        else:
            energy = _energy_at_mix(arm, chosen[arm], powers, measured, demand, rate_per_s)
            used = quickest(within[arm])
            rows += _rows_of_arm(arm, used, energy, powers, measured, demand, cost, price)
    return rows


def _rows_of_arm(
    arm: str, use: Use | None, energy: Metric, powers: Powers, measured: StageRecord,
    demand: Demand, cost: Cost, price: Price,
) -> list[CostRow]:  # fmt: skip
    """energy: of a request of the load. use: by whose times it is split between prompt and answer
    where the served load does not tell, as the case splits the cost of a year."""
    power = powers.arms[arm]
    if power.prefill_share is None:
        assert use is not None, "the arm is among those that keep the SLO"
        prefill, split = use.prefill_share, f"machine time at batch {use.batch}"
    else:
        prefill, split = power.prefill_share, "the served load's split"
    accepted = accepted_numbers(measured, arm)
    parts: list[tuple[str, float, float, str]] = [
        ("day", cost.requests_per_day, 1.0, ""),
        ("load_1k_requests", 1e3, 1.0, ""),
        ("load_1m_input_tokens", 1e6, prefill / demand.prompt_tokens,
         f"; {prefill:.1%} of it is the prompt's, by {split}"),
        ("load_1m_output_tokens", 1e6, (1 - prefill) / max(demand.output_tokens, 1.0),
         f"; {1 - prefill:.1%} of it is the answer's, by {split}"),
    ]  # fmt: skip
    rows = [
        _row(per, times, energy.scaled(factor, said), powers.covers, cost, price)
        for per, times, factor, said in parts
    ]
    of_accepted = _of_accepted(energy, accepted)
    covers = powers.covers if of_accepted.value is not None else ""
    return [*rows, _row("load_1k_accepted", 1e3, of_accepted, covers, cost, price)]


def _of_accepted(energy: Metric, shares: Mapping[str, Quantity]) -> Metric:
    """Energy of an accepted answer: that of a request over the shares that are accepted."""
    labels = energy.labels
    if not shares:
        return Metric.missing(energy.name, "J", "no answer of a served load came whole", **labels)
    if not all(share.value for share in shares.values()):
        return Metric.missing(energy.name, "J", "no answer keeps to its check", **labels)
    said = "".join(
        f"; {share.value:.2%} of the answers {SAID_OF_ACCEPTED[name]}"
        for name, share in shares.items()
    )
    factor = math.prod(1 / share.value for share in shares.values())
    found = energy.scaled(factor, said)
    if "passed" not in shares:  # what came whole alone is known far better than the energy
        return found
    ends = [(share.value, share.lo, share.hi) for share in shares.values()]
    return widened(found, ends)


def _energy_at_mix(
    arm: str, use: Use, powers: Powers, measured: StageRecord, demand: Demand, rate_per_s: float
) -> Metric:
    """Energy of a request of the load: its work, and its part of the idle power of the machines
    that carry the day's rate."""
    count = machines(use, rate_per_s)
    busy_h = rate_per_s * use.mean_s * 24
    numbers, power = powers.arms[arm].numbers, powers.arms[arm].how
    load = (
        f"{demand.text}; batch {use.batch}, {number_of(count, 'machine')} busy {busy_h:.3g} of "
        f"{24 * count} h, idle in the others"
    )
    if powers.basis == "served":
        work, idle_w = numbers["work_j"], numbers["idle_w"]
        idle_j = count / rate_per_s * idle_w.value
        lo, hi = (None if end is None else end + idle_j for end in (work.lo, work.hi))
        why = "too few blocks of the load" if lo is None else None
        found = Estimate(work.value + idle_j, lo, hi, 0, "", reason=why)
        how = f"{power}; {work.value:.3g} J a request above {idle_w.value:.4g} W idle; {load}"
        return found.metric("energy_j_per_request", "J", how, combined([work.kind, idle_w.kind]),
                            arm=arm)  # fmt: skip
    idle_share, idle_s = numbers["idle_share"], max(0.0, count / rate_per_s - use.mean_s)
    if powers.basis == "turns":
        turns, _ = turn_powers(measured, arm, use)
        factor = numbers["power_w"].value / turns["power_w"].mean()  # boards' share of the node
        busy_j = use.seconds * (turns["power_w"] * factor)
    else:
        busy_j = use.seconds * numbers["power_w"].value
    joules = busy_j + idle_s * idle_share.value * numbers["power_w"].value
    kind = "modelled" if powers.basis == "declared" else numbers["power_w"].kind
    how = f"gross; {power}; {load}"
    if idle_share.kind == "assumed":
        kind = kind if powers.basis == "declared" else "assumed"
        how += f" at an assumed {idle_share.value:g} of the power under load"
    return mean(joules.dropna()).metric("energy_j_per_request", "J", how, kind, arm=arm)


def _modelled(energy: Metric, time: Metric | None, seconds: float, cost: Cost) -> Metric:
    """Assumed power x measured ``time`` (``seconds`` a unit of it); ``energy`` where there is no
    time, as of a batch: its tokens say it."""
    power_w = cost.assumed_power_w
    if power_w is None or time is None or time.value is None:
        return energy
    factor = power_w * seconds
    return replace(
        energy,
        value=time.value * factor,
        lo=None if time.lo is None else time.lo * factor,
        hi=None if time.hi is None else time.hi * factor,
        kind="modelled",
        how=f"assumed {power_w:g} W x measured {time.name}; one request at a time"
        if time.name == "latency_ms"
        else f"assumed {power_w:g} W x measured {time.name}",
        reason=None,
    )


def _by_rate(speed: Metric, power_w: float) -> Metric:
    """Energy of a token: assumed power over measured tokens per second."""
    return replace(
        speed,
        name="energy_j_per_token",
        unit="J",
        value=power_w / speed.value if speed.value else None,
        lo=power_w / speed.hi if speed.hi else None,
        hi=power_w / speed.lo if speed.lo and speed.lo > 0 else None,
        kind="modelled",
        how=f"assumed {power_w:g} W over measured {speed.name}",
    )


def _row(
    per: str, times: float, energy: Metric, covers: str, cost: Cost, price: Price
) -> CostRow:  # fmt: skip
    factor = times * price.per_kwh / JOULES_PER_KWH

    def priced(joules: float | None) -> float | None:
        return None if joules is None else joules * factor

    known = energy.value is not None
    metered = f"metered energy ({energy.how})" if energy.kind in METERED else energy.how
    return CostRow(
        per=per,
        labels=label_text(energy.labels),
        currency=cost.currency,
        sample=cost.is_sample,
        value=priced(energy.value),
        lo=priced(energy.lo),
        hi=priced(energy.hi),
        energy_j=None if energy.value is None else energy.value * times,
        kind=weakest([energy.kind, price.kind]) if known else energy.kind,
        how=f"{metered} x {price.text}" if known else energy.how,
        reason=energy.reason or "",
        covers=covers,
        energy_kind=energy.kind if known else "",
    )


def _all(record: StageRecord, name: str, **labels: str) -> list[Metric]:
    return [m for m in record.metrics if m.matches(name, labels)]
