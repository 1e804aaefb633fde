"""A year of hours, summed so that its cost for any fleet is a few products.

The IT power of a fleet in hour h is ``idle + busy * s(h)`` kW, where s is the load's own shape with
a mean of 1 over the year: a day has idle hours, and the fleet draws its idle power in them. The
meter of the building sees ``(slope + per_degree * w(h)) * it + overhead * it0``: w is how many
degrees the hour is above the threshold of the cooling, ``it0`` the load of full precision. The
overhead, PUE less the slope, is what does not shrink when another arm draws less.

With prices p(h) all sums over hours are linear in idle, busy and it0, so p, ps, pw and psw are
summed once. Only the demand charge asks for a maximum, of a month: as the power grows with s and
with w, it is reached in one of the few hours that no other hour of the month exceeds in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.economics.tariff import YearPrices
from workbench.records.metric import MetricKind

WEEK_HOURS = 168


@dataclass(frozen=True)
class LoadShape:
    """week: requests of each hour of a week from Monday 0:00 on, in any unit, ``[168]``."""

    week: tuple[float, ...]
    kind: MetricKind
    text: str


@dataclass(frozen=True)
class YearSums:
    """Sums over the hours of a year: n of 1, p of the price; with s, w and sw of these products.

    The largest power of each month is at one of ``peak_s``, ``peak_w``, as many for each of the 12
    months, and ``demand_per_kw_month`` is paid for it. vat is not in the prices.
    """

    n: float
    n_s: float
    n_w: float
    n_sw: float
    p: float
    p_s: float
    p_w: float
    p_sw: float
    peak_s: tuple[float, ...]
    peak_w: tuple[float, ...]
    demand_per_kw_month: float
    vat: float

    @property
    def most_s(self) -> float:
        return max(self.peak_s)

    @property
    def mean_w(self) -> float:
        """Weighted by the load, as a PUE is."""
        return self.n_sw / self.n_s


def load_shape(hours: Sequence[float] | None, profile: dict[str, Any] | None) -> LoadShape:
    """hours: 24 that the pilot declares. profile: of ``profile_load``; its own hours are taken
    where it covers a whole week, or else a whole day.
    """
    if hours is not None:
        return LoadShape(tuple(list(hours) * 7), "assumed", "declared hours of the day")
    week = (profile or {}).get("week")
    if week:
        seconds = np.asarray(week["seconds"], float)
        requests = np.asarray(week["requests"], float)
        kind: MetricKind = "measured" if profile and profile["kind"] == "measured" else "assumed"
        if (seconds >= 1800).all():
            return LoadShape(tuple(requests / seconds), kind, "the load's own week")
        by_day = seconds.reshape(7, 24).sum(axis=0)
        if (by_day >= 1800).all():
            day = requests.reshape(7, 24).sum(axis=0) / by_day
            return LoadShape(tuple(np.tile(day, 7)), kind, "the load's own hours of the day")
    return LoadShape((1.0,) * WEEK_HOURS, "assumed", "one rate all day: the load covers no day")


def year_sums(
    prices: YearPrices,
    shape: LoadShape,
    warm: np.ndarray | None = None,
    demand_per_kw_month: float = 0.0,
    vat: float = 0.0,
) -> YearSums:
    """warm: degrees above the threshold by month and hour, ``[12, 24]``; None is 0 all year."""
    local = prices.local
    month, hour = local.month.to_numpy() - 1, local.hour.to_numpy()
    at = local.day_of_week.to_numpy() * 24 + hour
    s = np.asarray(shape.week, float)[at]
    s = s / s.mean()
    table = np.zeros((12, 24)) if warm is None else warm
    w, p = table[month, hour], prices.per_kwh
    peaks = _peaks(month, s, w)
    return YearSums(
        n=float(len(s)), n_s=float(s.sum()), n_w=float(w.sum()), n_sw=float((s * w).sum()),
        p=float(p.sum()), p_s=float((p * s).sum()), p_w=float((p * w).sum()),
        p_sw=float((p * s * w).sum()),
        peak_s=peaks[0], peak_w=peaks[1],
        demand_per_kw_month=demand_per_kw_month, vat=vat,
    )  # fmt: skip


@dataclass(frozen=True)
class YearBill:
    """kwh: at the meter of the building. energy, demand: money, with VAT."""

    kwh: Any
    energy: Any
    demand: Any


def year_bill(
    sums: YearSums, it: tuple[Any, Any], it0: tuple[Any, Any], slope: Any, overhead: Any,
    per_degree: float = 0.0, price_scale: Any = 1.0,
) -> YearBill:  # fmt: skip
    """it: (idle, busy) of the fleet in kW; it0: of the fleet in full precision, whose overhead
    stays. All may be arrays that broadcast."""
    idle, busy = (np.asarray(part, float) for part in it)
    idle0, busy0 = (np.asarray(part, float) for part in it0)

    def summed(one: float, s: float, w: float, sw: float) -> Any:
        moving = slope * (idle * one + busy * s) + per_degree * (idle * w + busy * sw)
        return moving + overhead * (idle0 * one + busy0 * s)

    demand: Any = 0.0
    if sums.demand_per_kw_month:
        s, w = np.array(sums.peak_s), np.array(sums.peak_w)
        kw = (np.asarray(slope)[..., None] + per_degree * w) * (
            idle[..., None] + busy[..., None] * s
        )
        kw = kw + np.asarray(overhead)[..., None] * (idle0[..., None] + busy0[..., None] * s)
        months = kw.reshape(*kw.shape[:-1], 12, -1).max(axis=-1).sum(axis=-1)
        demand = months * sums.demand_per_kw_month * (1 + sums.vat)
    money = summed(sums.p, sums.p_s, sums.p_w, sums.p_sw) * (1 + sums.vat) * price_scale
    return YearBill(summed(sums.n, sums.n_s, sums.n_w, sums.n_sw), money, demand)


def _peaks(
    month: np.ndarray, s: np.ndarray, w: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each month the pairs (s, w) that no other exceeds in both, as many of each month."""
    kept = []
    for each in range(12):
        pairs = sorted(set(zip(s[month == each].tolist(), w[month == each].tolist(), strict=True)))
        best: list[tuple[float, float]] = []
        for pair in reversed(pairs):
            if not best or pair[1] > best[-1][1]:
                best.append(pair)
        kept.append(best)
    longest = max(map(len, kept))
    padded = [pair for best in kept for pair in [*best, *[best[-1]] * (longest - len(best))]]
    return tuple(pair[0] for pair in padded), tuple(pair[1] for pair in padded)


def energy_price(sums: YearSums) -> float:
    """Mean price of a kWh of the load, weighted by its hours, with VAT."""
    return sums.p_s / sums.n_s * (1 + sums.vat)
