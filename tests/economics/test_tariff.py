"""Prices of a year, by hand; bands cover it exactly once or are refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from workbench.economics.tariff import QUARTERS, band_grid, year_prices
from workbench.economics.year import load_shape, year_bill, year_sums
from workbench.errors import ConfigError
from workbench.pilot.sections.cost import DAYS, Band, Tariff

WORKDAYS = ["mon", "tue", "wed", "thu", "fri"]
HIGH = Band(price_per_kwh=0.30, days=WORKDAYS, hours=["07:00-22:00"])
NIGHT = Band(price_per_kwh=0.20, days=WORKDAYS, hours=["22:00-07:00"])
REST = Band(price_per_kwh=0.20, days=["sat", "sun", "holiday"])
BERLIN = {
    "time_zone": "Europe/Berlin",
    "holidays": ["2026-01-01", "2026-05-01", "2026-12-25", "2026-12-26"],
}


def test_bands_by_hour_weekday_and_holiday_to_the_cent() -> None:
    """2026 begins on a Thursday: 261 workdays, of which 1 January, 1 May and 25 December are
    holidays: 258 x 15 h = 3,870 h at 0.30 and 8,760 - 3,870 = 4,890 h at 0.20. 10 kW all year:
    38,700 x 0.30 + 48,900 x 0.20 = 11,610 + 9,780 = 21,390.00; with 19 % VAT 25,454.10; demand of
    10 kW in each of 12 months at 8.50: 1,020.00, with VAT 1,213.80."""
    prices = year_prices(Tariff(bands=[HIGH, NIGHT, REST], **BERLIN), 0.0)
    assert len(prices.local) == 8760
    assert round(10 * prices.per_kwh.sum(), 2) == 21_390.00
    sums = year_sums(prices, load_shape(None, None), None, 8.50, 0.19)
    bill = year_bill(sums, (10.0, 0.0), (10.0, 0.0), 1.0, 0.0)
    assert (round(float(bill.energy), 2), round(float(bill.demand), 2)) == (25_454.10, 1_213.80)
    assert float(bill.kwh) == 87_600


def test_an_hour_is_counted_as_often_as_it_passes() -> None:
    """The hour from 2 to 3 of a Sunday: none on 29 March 2026, two on 25 October."""
    night = Band(price_per_kwh=1.0, days=["sun"], hours=["02:00-03:00"])
    others = [
        Band(price_per_kwh=0.0, days=["sun"], hours=["03:00-02:00"]),
        Band(price_per_kwh=0.0, days=[*WORKDAYS, "sat", "holiday"]),
    ]
    prices = year_prices(Tariff(time_zone="Europe/Berlin", bands=[night, *others]), 0.0)
    by_day = pd.Series(prices.per_kwh).groupby(prices.local.strftime("%m-%d")).sum()
    assert (by_day["03-29"], by_day["10-25"], by_day["10-18"]) == (0.0, 2.0, 1.0)
    assert prices.per_kwh.sum() == 52


def test_a_season_goes_over_the_new_year_and_a_band_begins_at_half_past() -> None:
    """From November to March 151 of 2026's 365 days; a quarter of an hour at 4.00 and three at 0
    make an hour of 1.00."""
    winter = Band(price_per_kwh=2.0, season=["11-01..03-31"])
    summer = Band(price_per_kwh=1.0, season=["04-01..10-31"])
    prices = year_prices(Tariff(bands=[winter, summer]), 0.0)
    assert prices.per_kwh.sum() == 24 * (151 * 2 + 214)
    short = Band(price_per_kwh=4.0, hours=["00:30-00:45"])
    rest = Band(price_per_kwh=0.0, hours=["00:45-00:30"])
    prices = year_prices(Tariff(bands=[short, rest], time_zone="Asia/Kathmandu"), 0.0)
    assert prices.per_kwh.sum() == 365


def test_holes_and_overlaps_are_named() -> None:
    with pytest.raises(ConfigError) as hole:
        band_grid(Tariff(bands=[HIGH, REST], **BERLIN))
    assert "no band covers mon 00:00-07:00 (first 2026-01-05, 52 days)" in str(hole.value)
    assert "next:" in str(hole.value) and "allowed:" in str(hole.value)
    with pytest.raises(ConfigError, match=r"bands\.1 and bands\.3 both cover mon 22:00-24:00"):
        late = Band(price_per_kwh=0.1, hours=["22:00-24:00"], days=["mon"])
        band_grid(Tariff(bands=[HIGH, NIGHT, REST, late], **BERLIN))
    no_holiday = REST.model_copy(update={"days": ["sat", "sun"]})
    with pytest.raises(ConfigError, match="no band covers holiday 00:00-24:00"):
        band_grid(Tariff(bands=[HIGH, NIGHT, no_holiday], **BERLIN))


CUTS = st.lists(st.integers(1, QUARTERS - 1), unique=True, max_size=4).map(sorted)


def clock(quarter: int) -> str:
    return f"{quarter // 4:02d}:{quarter % 4 * 15:02d}"


@settings(max_examples=25, deadline=None)
@given(CUTS, CUTS, st.sets(st.sampled_from(DAYS)), st.integers(2020, 2030), st.data())
def test_a_partition_covers_the_year_once_and_nothing_else_does(one, two, days, year, data):
    bands = []
    for own, cuts in ((days, one), (set(DAYS) - days, two)):
        ends = [0, *cuts, QUARTERS]
        if own:
            bands += [
                Band(price_per_kwh=len(bands), days=sorted(own), hours=[f"{clock(a)}-{clock(b)}"])
                for a, b in pairwise(ends)
            ]
    holidays = [f"{year}-05-01"]
    grid = band_grid(Tariff(bands=bands, year=year, holidays=holidays))
    counts = np.bincount(grid.ravel(), minlength=len(bands))
    assert counts.sum() == grid.size and (counts > 0).all()
    at = data.draw(st.integers(0, len(bands) - 1))
    with pytest.raises(ConfigError, match="both cover"):
        band_grid(Tariff(bands=[*bands, bands[at]], year=year, holidays=holidays))
    if len(bands) > 1:
        with pytest.raises(ConfigError, match="no band covers"):
            band_grid(Tariff(bands=bands[:at] + bands[at + 1 :], year=year, holidays=holidays))


def hourly(year: int, zone: str) -> pd.DataFrame:
    hours = pd.date_range(f"{year}-01-01", f"{year + 1}-01-01", freq="h", tz=zone, inclusive="left")
    return pd.DataFrame({"time": [h.isoformat() for h in hours], "price": np.arange(len(hours))})


def test_an_hourly_series_is_read_and_one_with_a_hole_refused(tmp_path) -> None:
    path = tmp_path / "prices.csv"
    table = hourly(2026, "Europe/Berlin")
    table.to_csv(path, index=False)
    tariff = Tariff(series=str(path), series_per="MWh", time_zone="Europe/Berlin")
    assert year_prices(tariff, 0.0).per_kwh.sum() == pytest.approx(8759 * 8760 / 2 / 1000)
    table.drop(index=100).to_csv(path, index=False)
    with pytest.raises(ConfigError, match="1 of 8760 hours of 2026 are missing, the first is 2026"):
        year_prices(tariff, 0.0)
    pd.concat([table, table[:1]]).to_csv(path, index=False)
    with pytest.raises(ConfigError, match="stands twice"):
        year_prices(tariff, 0.0)
    table.assign(price=["n/a", *table["price"][1:]]).to_csv(path, index=False)
    with pytest.raises(ConfigError, match="row 2 has the price 'n/a'"):
        year_prices(tariff, 0.0)
    table["time"] = table["time"].str[:19]
    table.to_csv(path, index=False)
    # 2026-10-25 02:00 stands there twice, and the order of the rows tells which is which.
    assert year_prices(tariff, 0.0).per_kwh.sum() == pytest.approx(8759 * 8760 / 2 / 1000)
    table[~table["time"].duplicated()].to_csv(path, index=False)
    with pytest.raises(ConfigError, match="2026-10-25 02:00:00 does not stand once") as refused:
        year_prices(tariff, 0.0)
    assert "with their offset from UTC" in refused.value.next_step


def test_a_series_as_exchanges_export_it(tmp_path) -> None:
    """Semicolons with decimal commas; quarter hours of 10, 20, 30 and 40 are hours of 25, and an
    hour that lacks a quarter is refused, not taken from the three."""
    path = tmp_path / "prices.csv"
    table = hourly(2026, "Europe/Berlin").assign(price=25.5)
    path.write_text(table.to_csv(index=False, sep=";", decimal=","))
    tariff = Tariff(series=str(path), series_per="MWh", time_zone="Europe/Berlin")
    assert set(year_prices(tariff, 0.0).per_kwh) == {0.0255}
    times = pd.date_range("2026-01-01", "2027-01-01", freq="15min", tz="Europe/Berlin",
                          inclusive="left")  # fmt: skip
    quarters = pd.DataFrame({"time": [t.isoformat() for t in times],
                             "price": np.tile([10.0, 20.0, 30.0, 40.0], 8760)})  # fmt: skip
    quarters.to_csv(path, index=False)
    assert year_prices(tariff, 0.0).per_kwh == pytest.approx(np.full(8760, 0.025))
    quarters.drop(index=6).to_csv(path, index=False)
    with pytest.raises(ConfigError, match="has 3 rows, others have 4"):
        year_prices(tariff, 0.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bands": [{"price_per_kwh": 1.0, "hours": ["7-22"]}]}, "07:00-22:00"),
        ({"bands": [{"price_per_kwh": 1.0, "hours": ["08:00-08:00"]}]}, "00:00-24:00"),
        ({"bands": [{"price_per_kwh": 1.0, "season": ["02-30..03-01"]}]}, "04-01..09-30"),
        ({"time_zone": "Berlin"}, "Europe/Berlin"),
        ({"holidays": ["2025-01-01"]}, "not in 2026"),
        ({"holidays": ["1 May"]}, "2026-05-01"),
    ],
)
def test_what_is_no_tariff_is_refused_with_a_cure(values, said) -> None:
    with pytest.raises(ValidationError, match=said):
        Tariff.model_validate(values)
