"""What a building adds to its IT load: PUE by month, and the slope that a saving takes.

PUE is E_facility / E_IT, of a whole year; of a shorter span it is called interim. Which PUE it is
depends on where the IT energy is read: category 0 to 3.

A building draws power that does not depend on its IT load (pumps that always run, transformers,
light), so the yearly PUE is right for a bill and too kind for a saving. The telemetry is fitted by

    P_facility = slope * P_IT + base + per_degree * P_IT * max(0, T_outdoor - threshold)

and a saved kW of IT saves ``slope + per_degree * max(0, T - threshold)`` kW at the meter, never the
base. For a given threshold this is a linear least squares problem; the threshold is searched for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar, nnls

from workbench.economics.series_file import in_utc, numbers, read_series
from workbench.errors import ConfigError
from workbench.paths import shown
from workbench.pilot.sections.cost import Facility
from workbench.wording.counts import number_of

ROLES = ("it", "facility", "cooling", "outdoor")
FACTOR = {"W": 1e-3, "kW": 1.0, "MW": 1e3}
YEAR_DAYS = 365
FEWEST_FIT_HOURS = 48
LEAST_IT_SPREAD = 0.02
"""Of the IT power, standard deviation over mean: below it slope and base cannot be told apart."""
MOST_GAP_S = 3 * 3600.0
"""A row stands for the time to the next one, for no longer than this."""


@dataclass(frozen=True)
class MonthPue:
    """month: ``2026-07``. hours: that were measured."""

    month: str
    pue: float
    hours: float


@dataclass(frozen=True)
class MeasuredPue:
    """pue: of the whole span. interim: of less than a year. months: whole or begun ones; best and
    worst: of those. cooling: E_cooling / E_IT, None where it was not measured."""

    pue: float
    span_days: float
    interim: bool
    months: tuple[MonthPue, ...]
    category: int | None
    cooling: float | None
    it_mean_kw: float
    gap_hours: float

    @property
    def best(self) -> MonthPue:
        return min(self.months, key=lambda month: month.pue)

    @property
    def worst(self) -> MonthPue:
        return max(self.months, key=lambda month: month.pue)


@dataclass(frozen=True)
class FacilityFit:
    """P_facility = slope * P_IT + base_kw + per_degree * P_IT * max(0, T - threshold_c).

    rms_kw: of what the fit leaves. hours: it was made from. reason: why there is no temperature
    term, or empty.
    """

    slope: float
    base_kw: float
    per_degree: float
    threshold_c: float
    rms_kw: float
    hours: int
    reason: str = ""


def read_telemetry(facility: Facility, where: str = "report.cost.facility") -> pd.DataFrame:
    """Columns it, facility and, where given, cooling (kW) and outdoor (deg C), by UTC time.

    Raises ConfigError for a file that cannot be read, lacks a quantity, has a time twice, or says
    that the facility draws less than its IT load.
    """
    path = Path(str(facility.telemetry))
    name = f"{where}.telemetry: {shown(path)}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot be read: {why}", allowed="UTF-8 text") from None
    names = {role: facility.columns.get(role, role) for role in ("time", *ROLES)}  # type: ignore[call-overload]
    table = _prometheus(text, names, name) if text.lstrip().startswith("{") else _csv(
        path, names, facility.time_zone, name)  # fmt: skip
    for role in ("it", "facility"):
        if role not in table:
            raise ConfigError(
                f"{name}: has no {names[role]!r}",
                allowed="the power of the IT load and of the whole facility",
                next_step=f"name them in {where}.columns, as {{it: ..., facility: ...}}",
            )
    powers = [role for role in ROLES[:3] if role in table]
    table[powers] = table[powers] * FACTOR[facility.unit]
    table = table.dropna(subset=["it", "facility"]).sort_index()
    table = table[table["it"] > 0]  # 0 is a dropout, not a load
    if len(table) < 2:
        raise ConfigError(
            f"{name}: {number_of(len(table), 'row has', 'rows have')} both powers above 0",
            allowed="2 or more",
        )
    if table.index.duplicated().any():
        twice = table.index[table.index.duplicated()][0]
        raise ConfigError(
            f"{name}: {twice.isoformat()} stands twice",
            allowed="each time once: one series of each quantity",
            next_step="sum the feeds of one quantity, or name one by a label's value",
        )
    below = float((table["facility"] < table["it"]).mean())
    if below > 0.01:
        raise ConfigError(
            f"{name}: the facility draws less than its IT load in {below:.0%} of the rows",
            allowed="P_facility >= P_IT: the IT load is a part of it",
            next_step=f"look whether {where}.columns are swapped, or the units differ",
        )
    return table


def measured_pue(table: pd.DataFrame, category: int | None = None) -> MeasuredPue:
    """PUE of the span and of each month: energies, not means of ratios.

    A row stands for the time until the next one; a gap over three hours is left out and counted.
    """
    step_s = np.diff(table.index.to_numpy()).astype("timedelta64[ns]").astype(float) / 1e9
    gaps = step_s > MOST_GAP_S
    usual_s = float(np.median(step_s))
    step_h = np.append(np.where(gaps, usual_s, step_s), usual_s) / 3600
    energy = table[["it", "facility"]].mul(step_h, axis=0)
    by_month = energy.assign(hours=step_h).groupby(table.index.strftime("%Y-%m")).sum()
    months = tuple(
        MonthPue(str(month), float(row["facility"] / row["it"]), float(row["hours"]))
        for month, row in by_month.iterrows()
    )
    total = energy.sum()
    cooling = None
    if "cooling" in table and table["cooling"].notna().all():
        cooling = float((table["cooling"] * step_h).sum() / total["it"])
    span_days = float((table.index[-1] - table.index[0]).total_seconds() + usual_s) / 86_400
    return MeasuredPue(
        pue=float(total["facility"] / total["it"]),
        span_days=span_days,
        interim=bool(step_h.sum() < (YEAR_DAYS - 1) * 24),
        months=months,
        category=category,
        cooling=cooling,
        it_mean_kw=float(total["it"] / step_h.sum()),
        gap_hours=float((step_s[gaps] - usual_s).sum() / 3600),
    )


def fit_facility(table: pd.DataFrame) -> FacilityFit | str:
    """The fit, or why there is none: too few hours, or an IT load that hardly varies."""
    hourly = table.resample("h").mean().dropna(subset=["it", "facility"])
    it, power = hourly["it"].to_numpy(float), hourly["facility"].to_numpy(float)
    if len(it) < FEWEST_FIT_HOURS:
        return f"{number_of(len(it), 'hour')} of telemetry; a fit takes {FEWEST_FIT_HOURS}"
    spread = float(it.std() / it.mean())
    if spread < LEAST_IT_SPREAD:
        return (
            f"the IT load varies by {spread:.1%} only (standard deviation over mean), so base and "
            "slope cannot be told apart"
        )
    reason, outdoor = "", None
    if "outdoor" not in hourly or hourly["outdoor"].isna().mean() > 0.05:
        reason = "no outdoor temperature"
    else:
        outdoor = hourly["outdoor"].interpolate(limit_direction="both").to_numpy(float)
        if np.ptp(outdoor) < 5.0:
            reason = f"the outdoor temperature varied by {np.ptp(outdoor):.1f} K only"
    if outdoor is None or reason:
        coefficients, rest = _least_squares(it, power, None)
        threshold = 0.0
    else:
        low, high = np.quantile(outdoor, [0.02, 0.98])
        # Two minima are possible: the best of a grid is where the search begins.
        grid = np.linspace(low, high, 25)
        rests = [_least_squares(it, power, np.maximum(0.0, outdoor - t))[1] for t in grid]
        best = int(np.argmin(rests))
        found = minimize_scalar(
            lambda t: _least_squares(it, power, np.maximum(0.0, outdoor - t))[1],
            bounds=(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]),
            method="bounded",
        )
        threshold = float(found.x)
        coefficients, rest = _least_squares(it, power, np.maximum(0.0, outdoor - threshold))
    slope, base, per_degree = coefficients
    rms = float(rest / np.sqrt(len(it)))
    return FacilityFit(slope, base, per_degree, threshold, rms, len(it), reason)


def saving_kw(fit: FacilityFit, it_kw: float, outdoor_c: float | np.ndarray) -> Any:
    """Power at the facility's meter that goes with ``it_kw`` of IT load: the slope's, not PUE's."""
    warm = np.maximum(0.0, np.asarray(outdoor_c, float) - fit.threshold_c)
    return it_kw * (fit.slope + fit.per_degree * warm)


def warmth(table: pd.DataFrame, fit: FacilityFit, zone: str) -> np.ndarray:
    """Mean of max(0, T - threshold) by month and hour of the zone's clock, ``[12, 24]``, K; months
    that were not measured take the mean of the others."""
    if not fit.per_degree or "outdoor" not in table:
        return np.zeros((12, 24))
    local = table.index.tz_convert(zone)
    warm = (table["outdoor"] - fit.threshold_c).clip(lower=0.0).to_numpy()
    means = pd.Series(warm).groupby([local.month, local.hour]).mean().unstack()
    return means.reindex(index=range(1, 13), columns=range(24)).fillna(means.mean()).fillna(
        float(np.nanmean(warm))).to_numpy()  # fmt: skip


def _least_squares(
    it: np.ndarray, power: np.ndarray, warm: np.ndarray | None
) -> tuple[tuple[float, float, float], float]:
    """((slope, base, per degree), norm of the rest); none of them is negative."""
    columns = [it, np.ones_like(it)] + ([] if warm is None else [it * warm])
    scale = np.array([np.abs(column).max() or 1.0 for column in columns])
    found, rest = nnls(np.stack(columns, axis=1) / scale, power)
    found = found / scale
    return (float(found[0]), float(found[1]), float(found[2]) if warm is not None else 0.0), rest


def _csv(path: Path, names: dict[str, str], zone: str | None, where: str) -> pd.DataFrame:
    table = read_series(path, where, "CSV with a header")
    if names["time"] not in table:
        raise ConfigError(
            f"{where}: has the columns {', '.join(map(str, table.columns))}",
            allowed=f"a column {names['time']!r}",
            next_step="name it in report.cost.facility.columns: {time: ...}",
        )
    undeclared = "set report.cost.facility.time_zone, such as Europe/Berlin"
    index = in_utc(table[names["time"]], zone, where, undeclared)
    columns = {role: table[names[role]] for role in ROLES if names[role] in table}
    found = pd.DataFrame({role: numbers(column) for role, column in columns.items()})
    return found.set_index(index)


def _prometheus(text: str, names: dict[str, str], where: str) -> pd.DataFrame:
    """A saved answer of ``/api/v1/query_range`` or of a range selector: series by role."""
    allowed = "the JSON of /api/v1/query_range, with result type matrix"
    try:
        result = json.loads(text)["data"]["result"]
        series: dict[str, pd.Series] = {}
        for each in result:
            known = set(each["metric"].values())
            for role in ROLES:
                if names[role] in known:
                    if role in series:
                        raise ConfigError(
                            f"{where}: more than one series is {names[role]!r}",
                            allowed="one series of each quantity",
                            next_step="sum them in the query, or name one by a label's value",
                        )
                    times, values = zip(*each["values"], strict=True)
                    index = pd.to_datetime(np.array(times, float), unit="s", utc=True)
                    series[role] = pd.Series([float(v) for v in values], index)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: is no such export: {error!r}", allowed=allowed) from None
    return pd.DataFrame(series).replace([np.inf, -np.inf], np.nan)
