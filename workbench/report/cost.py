"""Money: cost = energy x PUE x tariff, from metered energy or not at all.

Where no meter gave energy and the user declared the node's power under load
(``report.cost.assumed_power_w``), the figure is that power times measured time and is
labelled ``modelled``; a model never turns into a measurement on its way here. Without either
the row says "not measured". PUE is the yearly average, which suits a bill; it overstates a
saving, because fixed losses do not shrink, so no saving is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd

from workbench.pilot.sections.report import Cost
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.wording.labels import label_text

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class CostRow:
    """Cost of one thing in one arm, in ``currency``.

    per: ``1k_requests``, ``1m_tokens``, ``day`` (``requests_per_day`` requests) or
    ``training`` (once). energy_j: the energy it is made from. sample: the tariff is a sample.
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


def cost_rows(records: Mapping[str, StageRecord], cost: Cost) -> list[CostRow]:
    """Every cost that this run's figures allow, and a reason for each that they do not."""
    rows = []
    for per, times, energy in _energies(records, cost):
        rows.append(_row(per, times, energy, cost))
        if per == "1k_requests":
            rows.append(_row("day", cost.requests_per_day, energy, cost))
    return rows


def cost_frame(rows: list[CostRow]) -> pd.DataFrame:
    return pd.DataFrame([asdict(r) for r in rows], columns=list(CostRow.__dataclass_fields__))


def _energies(
    records: Mapping[str, StageRecord], cost: Cost
) -> Iterator[tuple[str, float, Metric]]:
    """(what it is the cost of, how many of it, energy of one of it in J)."""
    measured, trained = records.get("measure_ab"), records.get("train_qat")
    if measured:
        for metric in _all(measured, "energy_j_per_request"):
            time = measured.metric("latency_ms", **metric.labels)
            yield "1k_requests", 1e3, _modelled(metric, time, 1e-3, cost)
        per_token = _all(measured, "energy_j_per_token")
        rates = [m for m in _all(measured, "decode_tokens_per_s") if m.value]
        modelled = cost.assumed_power_w is not None and not any(m.value for m in per_token)
        if modelled and rates:
            yield from (("1m_tokens", 1e6, _by_rate(m, cost.assumed_power_w)) for m in rates)
        else:
            yield from (("1m_tokens", 1e6, m) for m in per_token)
    if trained:
        for metric in _all(trained, "training_energy_j"):
            time = trained.metric("training_time_s", **metric.labels)
            yield "training", 1.0, _modelled(metric, time, 1.0, cost)


def _modelled(energy: Metric, time: Metric | None, seconds: float, cost: Cost) -> Metric:
    """``energy`` itself, or assumed power x measured ``time`` (``seconds`` a unit of it)."""
    power_w = cost.assumed_power_w
    if energy.value is not None or power_w is None or time is None or time.value is None:
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


def _row(per: str, times: float, energy: Metric, cost: Cost) -> CostRow:
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
    )


def _all(record: StageRecord, name: str, **labels: str) -> list[Metric]:
    return [m for m in record.metrics if m.matches(name, labels)]
