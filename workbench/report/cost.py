"""Money: cost = energy x PUE x tariff, from metered energy or not at all.

All arms stand on one basis. Where a meter gave energy of every arm, that is the figure; where it
did not and the user declared the node's power under load (``report.cost.assumed_power_w``), all
arms are that power times measured time, labelled ``modelled``; a model never turns into a
measurement on its way here. Without either the row says "not measured". Energy of boards or
processors alone is not the node's: the row says so, or, where their share of it is declared, is
extended by it and called ``assumed``. A day is the load's own requests, at the batch that carries
their rate.

PUE is the yearly average, which suits a bill; it overstates a saving, because fixed losses do not
shrink, so no saving is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd

from workbench.measure.statistics import mean
from workbench.pilot.sections.cost import Cost
from workbench.pilot.sections.profile_load import Slo
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.demand import DAY_S, Demand, Use, demand_of, for_rate, machines, uses
from workbench.wording.labels import label_text

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class CostRow:
    """Cost of one thing in one arm, in ``currency``.

    per: ``1k_requests``, ``1m_tokens``, ``day`` (``requests_per_day`` requests) or
    ``training`` (once). energy_j: the energy it is made from. sample: the tariff is a sample.
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


def cost_rows(
    records: Mapping[str, StageRecord], cost: Cost, slo: Slo | None = None
) -> list[CostRow]:
    """Every cost that this run's figures allow, and a reason for each that they do not.

    slo: of interactive requests, which bounds the batch at which the load is carried.
    """
    rows = [_row(*found, cost) for found in _energies(records, cost)]
    measured = records.get("measure_ab")
    if measured:
        rows += _day_rows(records, measured, cost, slo or Slo())
    return rows


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
        for metric in requests:
            time = measured.metric("latency_ms", **metric.labels)
            if not model:
                yield "1k_requests", 1e3, *_extended(metric, _covers(metric, measured), cost)
            elif time is not None or metric.value is None:
                # Of a batch there is no time of a request; its tokens say what it takes.
                yield "1k_requests", 1e3, _modelled(metric, time, 1e-3, cost), ""
        rates = [m for m in _all(measured, "decode_tokens_per_s") if m.value]
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


def _day_rows(
    records: Mapping[str, StageRecord], measured: StageRecord, cost: Cost, slo: Slo
) -> list[CostRow]:
    """The cost of a day of the load in each arm, all of them metered or all modelled."""
    demand = demand_of(records, slo)
    arms = list(dict.fromkeys(m.labels["arm"] for m in _all(measured, "energy_j_per_request")))

    def none(arm: str, reason: str) -> CostRow:
        missing = Metric.missing("energy_j_per_request", "J", reason, arm=arm)
        return _row("day", cost.requests_per_day, missing, "", cost)

    if demand is None or "blocks" not in measured.tables:
        return [none(arm, "needs a load profile and timed batches of the arms") for arm in arms]
    blocks, rate_per_s = measured.table("blocks"), cost.requests_per_day / DAY_S
    carried = {arm: for_rate(uses(blocks, arm, demand), rate_per_s) for arm in arms}
    powers = {arm: _power_w(measured, arm, use) for arm, use in carried.items() if use}
    bases = {basis for _, basis in powers.values()}
    metered = len(bases) == 1 and all(len(power) for power, _ in powers.values())
    covers = next(iter(bases)) if metered else ""
    covers = "" if covers == "node" else covers
    rows = []
    for arm, use in carried.items():
        if use is None:
            rows.append(none(arm, f"it keeps {slo.tpot_ms:g} ms a token at no measured batch"))
        elif not metered and cost.assumed_power_w is None:
            rows.append(none(arm, _why_unmetered(measured, arm)))
        else:
            power = powers[arm][0] if metered else cost.assumed_power_w
            energy = _energy_at_mix(arm, use, power, demand, rate_per_s)
            rows.append(_row("day", cost.requests_per_day, *_extended(energy, covers, cost), cost))
    return rows


def _energy_at_mix(
    arm: str, use: Use, power_w: pd.Series | float | None, demand: Demand, rate_per_s: float
) -> Metric:
    """Energy of a request of the load: the machine's time for it times the power meanwhile.

    power_w: of the arm's turns by block, or the declared one.
    """
    count = machines(use, rate_per_s)
    busy_h = rate_per_s * use.mean_s * 24
    load = (
        f"{demand.text}; batch {use.batch}, {count} machine{'s' if count > 1 else ''} busy "
        f"{busy_h:.3g} of {24 * count} h, idle hours not in it"
    )
    if isinstance(power_w, pd.Series):
        joules, kind, how = (use.seconds * power_w).dropna(), "measured", f"gross; {load}"
    else:
        joules, kind = use.seconds * float(power_w or 0.0), "modelled"
        how = f"assumed {power_w:g} W x measured time; {load}"
    estimate = mean(joules)
    return estimate.metric("energy_j_per_request", "J", how, kind, arm=arm)


def _power_w(measured: StageRecord, arm: str, use: Use) -> tuple[pd.Series, str]:
    """(mean power of the arm's turns at this batch by block, the basis it is of)."""
    basis = measured.facts.get("energy_basis", {}).get(use.load_class, "")
    if not basis or "energies" not in measured.tables:
        return pd.Series(dtype=float), ""
    rows = measured.table("energies")
    own = rows[(rows["arm"] == arm) & (rows["class"] == use.load_class) & (rows["basis"] == basis)]
    own = own.dropna(subset=["energy_j"])
    own = own.assign(length_s=own["end_s"] - own["start_s"])
    sums = own.groupby("block")[["energy_j", "length_s"]].sum()
    return sums["energy_j"] / sums["length_s"], basis


def _why_unmetered(measured: StageRecord, arm: str) -> str:
    reasons = [m.reason for m in _all(measured, "energy_j_per_request", arm=arm) if m.reason]
    return reasons[0] if reasons else "no batch that carries the load was metered in every arm"


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
        value=power_w / speed.value,
        lo=power_w / speed.hi if speed.hi else None,
        hi=power_w / speed.lo if speed.lo and speed.lo > 0 else None,
        kind="modelled",
        how=f"assumed {power_w:g} W over measured {speed.name}",
    )


def _row(per: str, times: float, energy: Metric, covers: str, cost: Cost) -> CostRow:
    price = times * cost.pue * cost.tariff_per_kwh / JOULES_PER_KWH

    def priced(joules: float | None) -> float | None:
        return None if joules is None else joules * price

    measured = energy.kind in ("measured", "derived")
    return CostRow(
        per=per,
        labels=label_text(energy.labels),
        currency=cost.currency,
        sample=cost.sample,
        value=priced(energy.value),
        lo=priced(energy.lo),
        hi=priced(energy.hi),
        energy_j=None if energy.value is None else energy.value * times,
        kind="derived" if measured else energy.kind,
        how=f"metered energy ({energy.how}) x PUE x tariff" if measured else energy.how,
        reason=energy.reason or "",
        covers=covers,
    )


def _all(record: StageRecord, name: str, **labels: str) -> list[Metric]:
    return [m for m in record.metrics if m.matches(name, labels)]
