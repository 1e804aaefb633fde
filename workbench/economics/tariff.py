"""What a kWh costs in every hour of a year, by the clock of the tariff's time zone.

A tariff is bands or an hourly series; with neither it is flat. Bands are checked on every quarter
hour of every day of the year by wall clock: one that no band covers, or that two do, is refused by
name. Money is then counted on the hours that really pass: of the night in which the clocks go back
the hour from 2 to 3 is counted twice, of the one in spring not at all. In a zone whose clock goes
by whole hours a year thus has 8,760 of them, 8,784 in a leap year.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.economics.series_file import in_utc, numbers, read_series
from workbench.errors import ConfigError
from workbench.paths import shown
from workbench.pilot.sections.cost import DAYS, HOURS, SEASON, Band, Tariff
from workbench.wording.counts import number_of

QUARTERS = 96
"""Quarter hours of a day."""
SHOWN = 3
"""Holes that an error names."""


@dataclass(frozen=True)
class YearPrices:
    """Prices without VAT of every hour of a year.

    local: the hour's beginning by the clock of the zone, ``[hours]``. per_kwh: ``[hours]``; may be
    negative in a series. holiday: whether the hour is of a holiday, ``[hours]``. text: the tariff
    in words.
    """

    local: pd.DatetimeIndex
    per_kwh: np.ndarray
    holiday: np.ndarray
    text: str

    @property
    def mean(self) -> float:
        """Of all hours alike."""
        return float(self.per_kwh.mean())


def year_prices(tariff: Tariff, flat_per_kwh: float, where: str = "report.cost") -> YearPrices:
    """The price of each hour of ``tariff.year``.

    flat_per_kwh: where there are neither bands nor a series. where: the section, for errors.
    Raises ConfigError for bands with a hole or an overlap, and for a series that lacks an hour, has
    one twice, or cannot be read.
    """
    hours = _hours(tariff)
    holiday = np.isin(hours.strftime("%Y-%m-%d").to_numpy(), tariff.holidays)
    if tariff.series:
        per_kwh = _series(tariff, hours, where)
        text = f"hourly prices of {shown(Path(tariff.series))}"
    elif tariff.bands:
        grid = band_grid(tariff, where)
        prices = np.array([band.price_per_kwh for band in tariff.bands])
        # An hour's price is the mean of its quarters: a band may begin at half past.
        quarters = _hours(tariff, "15min")
        day = (quarters.day_of_year - 1).to_numpy()
        at = quarters.hour.to_numpy() * 4 + quarters.minute.to_numpy() // 15
        per_kwh = prices[grid[day, at]].reshape(-1, 4).mean(axis=1)
        text = f"{number_of(len(tariff.bands), 'band')}, {tariff.time_zone}"
    else:
        per_kwh, text = np.full(len(hours), flat_per_kwh), "flat"
    return YearPrices(hours, per_kwh, holiday, text)


def band_grid(tariff: Tariff, where: str = "report.cost") -> np.ndarray:
    """Which band holds in each quarter hour of the year by wall clock, ``[days, 96]``.

    Raises ConfigError where none does, or two do.
    """
    days = pd.date_range(f"{tariff.year}-01-01", f"{tariff.year}-12-31", freq="D")
    holiday = np.isin(days.strftime("%Y-%m-%d").to_numpy(), tariff.holidays)
    kind = np.where(holiday, DAYS.index("holiday"), days.day_of_week.to_numpy())
    month_day = days.month.to_numpy() * 100 + days.day.to_numpy()
    held = np.stack([_holds(band, kind, month_day) for band in tariff.bands])
    count = held.sum(axis=0)
    if (count == 0).any():
        raise ConfigError(
            f"{where}.tariff.bands: no band covers {_spans(count == 0, days, kind)}",
            allowed="every quarter hour of the year in one band, of holidays as well",
            next_step="add a band, or widen the days, hours or season of one",
        )
    if (count > 1).any():
        both = held[:, (count > 1)][:, 0].nonzero()[0]
        names = " and ".join(f"bands.{place}" for place in both[:2])
        raise ConfigError(
            f"{where}.tariff.bands: {names} both cover {_spans(count > 1, days, kind)}",
            allowed="every quarter hour of the year in one band",
            next_step="narrow the days, hours or season of one of them",
        )
    return held.argmax(axis=0)


def _hours(tariff: Tariff, step: str = "h") -> pd.DatetimeIndex:
    """The beginnings of the hours (or steps) that pass in the year, by the zone's clock."""
    first, end = (pd.Timestamp(f"{y}-01-01", tz=tariff.time_zone) for y in
                  (tariff.year, tariff.year + 1))  # fmt: skip
    utc = pd.date_range(first.tz_convert("UTC"), end.tz_convert("UTC"), freq=step, inclusive="left")
    return utc.tz_convert(tariff.time_zone)


def _holds(band: Band, kind: np.ndarray, month_day: np.ndarray) -> np.ndarray:
    """``[days, 96]``: where this band holds."""
    days = np.isin(kind, [DAYS.index(day) for day in band.days])
    season = np.zeros(len(kind), bool)
    for span in band.season:
        found = SEASON.fullmatch(span)
        assert found, "checked when the pilot was read"
        m1, d1, m2, d2 = map(int, found.groups())
        first, last = m1 * 100 + d1, m2 * 100 + d2
        after, before = month_day >= first, month_day <= last
        season |= (after & before) if first <= last else (after | before)
    quarters = np.zeros(QUARTERS, bool)
    for span in band.hours:
        found = HOURS.fullmatch(span)
        assert found, "checked when the pilot was read"
        h1, q1, h2, q2 = map(int, found.groups())
        first, end = h1 * 4 + q1 // 15, h2 * 4 + q2 // 15
        at = np.arange(QUARTERS)
        after, before = at >= first, at < end
        quarters |= (after & before) if first < end else (after | before)
    return np.outer(days & season, quarters)


def _spans(wrong: np.ndarray, days: pd.DatetimeIndex, kind: np.ndarray) -> str:
    """The first quarter hours at fault in words, one span for each kind of day."""
    said = []
    for which in np.unique(kind[wrong.any(axis=1)]):
        rows = np.flatnonzero(wrong.any(axis=1) & (kind == which))
        at = np.flatnonzero(wrong[rows[0]])
        end = at[0] + int(np.argmax(np.append(np.diff(at) != 1, True))) + 1
        clock = f"{at[0] // 4:02d}:{at[0] % 4 * 15:02d}-{end // 4:02d}:{end % 4 * 15:02d}"
        said.append(
            f"{DAYS[which]} {clock} (first {days[rows[0]]:%Y-%m-%d}, {number_of(len(rows), 'day')})"
        )
    more = f" and {len(said) - SHOWN} more kinds of day" if len(said) > SHOWN else ""
    return ", ".join(said[:SHOWN]) + more


def _series(tariff: Tariff, hours: pd.DatetimeIndex, where: str) -> np.ndarray:
    """Prices per kWh of the hours, from the tariff's file."""
    path = Path(str(tariff.series))
    name = f"{where}.tariff.series: {shown(path)}"
    cure = "a CSV with a header time,price and a row for each hour of the year, or for each quarter"
    table = read_series(path, name, cure)
    if not {"time", "price"} <= set(table.columns):
        raise ConfigError(f"{name}: has the columns {', '.join(table.columns)}", allowed=cure)
    price = numbers(table["price"]).to_numpy(float)
    if not np.isfinite(price).all():
        row = int(np.flatnonzero(~np.isfinite(price))[0])
        raise ConfigError(f"{name}: row {row + 2} has the price {table['price'][row]!r}",
                          allowed="a finite number in every row")  # fmt: skip
    moments = in_utc(table["time"], tariff.time_zone, name, "")
    if moments.duplicated().any():
        twice = moments[moments.duplicated()][0]
        raise ConfigError(
            f"{name}: {twice.isoformat()} stands twice", allowed="each hour once",
            next_step="times with an offset from UTC tell the two hours of the autumn apart",
        )  # fmt: skip
    found = _by_hour(pd.Series(price, moments), name).reindex(hours.tz_convert("UTC"))
    if found.isna().any():
        missing = hours[found.isna().to_numpy()]
        raise ConfigError(
            f"{name}: {len(missing)} of {number_of(len(hours), 'hour')} of {tariff.year} are "
            f"missing, the first is {missing[0].isoformat()}",
            allowed="every hour of tariff.year; an hour without a price is not guessed",
            next_step="complete the file, or set tariff.year to the year that it covers",
        )
    return found.to_numpy() / (1000.0 if tariff.series_per == "MWh" else 1.0)


def _by_hour(price: pd.Series, name: str) -> pd.Series:
    """Prices of quarter or half hours as the mean of their hour, which must have all of them."""
    by_hour = price.groupby(price.index.floor("h"))
    rows = by_hour.size()
    most = int(rows.max())
    if (short := rows[rows < most]).any():
        raise ConfigError(
            f"{name}: the hour of {short.index[0].isoformat()} has "
            f"{number_of(short.iloc[0], 'row')}, others have {most}",
            allowed="as many rows in every hour: one, or one for each quarter",
        )
    return by_hour.mean()
