"""PUE by month, the fit of a synthetic year, and the slope that a saving takes."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from workbench.economics.facility import (
    fit_facility,
    measured_pue,
    read_telemetry,
    saving_kw,
    warmth,
)
from workbench.errors import ConfigError
from workbench.pilot.sections.cost import Facility


def synthetic(hours: int = 8760, seed: int = 3) -> pd.DataFrame:
    """P_facility = 1.06 P_IT + 60 + 0.012 P_IT max(0, T - 16), with noise of 1 kW."""
    draw = np.random.default_rng(seed)
    time = pd.date_range("2025-01-01", periods=hours, freq="h", tz="UTC")
    at = np.arange(hours)
    it = 200 + 40 * np.sin(2 * np.pi * at / 24) + draw.normal(0, 8, hours)
    outdoor = 10 - 12 * np.cos(2 * np.pi * at / 8760) - 5 * np.cos(2 * np.pi * at / 24)
    facility = 1.06 * it + 60 + 0.012 * it * np.maximum(0, outdoor - 16) + draw.normal(0, 1, hours)
    return pd.DataFrame({"it": it, "facility": facility, "outdoor": outdoor}, time)


def written(tmp_path, table: pd.DataFrame, **settings) -> Facility:
    path = tmp_path / "facility.csv"
    table.rename_axis("time").to_csv(path)
    return Facility(telemetry=str(path), **settings)


def test_the_fit_gives_the_parameters_back() -> None:
    fit = fit_facility(synthetic())
    assert (fit.slope, fit.base_kw) == (pytest.approx(1.06, abs=0.002), pytest.approx(60, abs=0.5))
    assert fit.per_degree == pytest.approx(0.012, rel=0.02)
    assert fit.threshold_c == pytest.approx(16, abs=0.2)
    assert fit.rms_kw == pytest.approx(1.0, abs=0.05)


def test_a_saving_takes_the_slope_and_not_the_average() -> None:
    """30 % of 200 kW less: the meter sees 60 x 1.06 kW less where it is cold, and
    60 x (1.06 + 0.012 x 10) at ten degrees above the threshold. PUE x 60 would be a third more."""
    table = synthetic()
    fit = fit_facility(table)
    assert saving_kw(fit, 60.0, 0.0) == pytest.approx(63.6, abs=0.2)
    assert saving_kw(fit, 60.0, 26.0) == pytest.approx(70.8, abs=0.3)
    pue = measured_pue(table).pue
    really = saving_kw(fit, 1.0, table["outdoor"].to_numpy()) @ (0.3 * table["it"].to_numpy())
    assert pue * 0.3 * table["it"].sum() > 1.2 * really


def test_pue_is_a_ratio_of_energies_by_month_and_interim_under_a_year() -> None:
    """January: 31 x 24 h of 100 kW IT and 150 kW: 1.5. February: 28 x 24 h of 200 and 240: 1.2.
    Both: (744 x 150 + 672 x 240) / (744 x 100 + 672 x 200) = 272,880 / 208,800 = 1.306897, while
    the mean of the two months is 1.35."""
    time = pd.date_range("2026-01-01", "2026-03-01", freq="h", tz="UTC", inclusive="left")
    january = time.month == 1
    table = pd.DataFrame(
        {"it": np.where(january, 100.0, 200.0), "facility": np.where(january, 150.0, 240.0)}, time
    )
    found = measured_pue(table, category=2)
    assert found.pue == pytest.approx(272_880 / 208_800, abs=1e-9)
    assert [(m.month, m.pue, m.hours) for m in found.months] == [
        ("2026-01", pytest.approx(1.5), 744), ("2026-02", pytest.approx(1.2), 672),
    ]  # fmt: skip
    assert (found.best.month, found.worst.month) == ("2026-02", "2026-01")
    assert found.interim and found.span_days == pytest.approx(59) and found.category == 2
    assert not measured_pue(synthetic()).interim


def test_a_gap_is_left_out_and_counted() -> None:
    table = synthetic(240)
    holed = table.drop(table.index[100:150])
    assert measured_pue(holed).gap_hours == pytest.approx(50)
    assert measured_pue(holed).months[0].hours == pytest.approx(190)


def test_a_steady_load_and_a_short_log_give_no_slope() -> None:
    assert "base and slope cannot be told apart" in fit_facility(synthetic().assign(it=200.0))
    assert "24 hours of telemetry" in fit_facility(synthetic(24))
    fit = fit_facility(synthetic().drop(columns="outdoor"))
    assert fit.per_degree == 0 and fit.reason == "no outdoor temperature"


def test_warmth_by_month_and_hour_of_the_zone() -> None:
    table = synthetic()
    warm = warmth(table, fit_facility(table), "Europe/Berlin")
    assert warm.shape == (12, 24) and warm[0].max() == 0 and warm[6].max() == warm.max() > 9


def test_telemetry_as_people_have_it(tmp_path) -> None:
    table = synthetic(100)
    table.index = table.index.strftime("%Y-%m-%dT%H:%M:%S")
    watts = table.assign(it=table["it"] * 1e3, facility=table["facility"] * 1e3)
    renamed = watts.rename(columns={"it": "UPS out", "facility": "Main"})
    columns = {"it": "UPS out", "facility": "Main"}
    with pytest.raises(ConfigError, match="no offset from UTC"):
        read_telemetry(written(tmp_path, renamed, columns=columns, unit="W"))
    read = read_telemetry(written(tmp_path, renamed, columns=columns, unit="W", time_zone="UTC"))
    assert read["it"].to_numpy() == pytest.approx(table["it"].to_numpy())
    text = (tmp_path / "facility.csv").read_text().replace(",", ";").replace(".", ",")
    (tmp_path / "facility.csv").write_text("\ufeff" + text)
    facility = Facility(
        telemetry=str(tmp_path / "facility.csv"), columns=columns, unit="W", time_zone="UTC"
    )
    assert read_telemetry(facility)["facility"].sum() == pytest.approx(table["facility"].sum())


def test_a_prometheus_export(tmp_path) -> None:
    def series(name: str, watts: float, feed: str):
        values = [[1_767_225_600 + 3600 * k, str(watts)] for k in range(3)]
        return {"metric": {"__name__": name, "feed": feed}, "values": values}

    result = [series("power_watts", 100e3, "ups"), series("power_watts", 150e3, "main")]
    path = tmp_path / "range.json"
    path.write_text(json.dumps({"status": "success", "data": {"result": result}}))
    facility = Facility(telemetry=str(path), columns={"it": "ups", "facility": "main"}, unit="W")
    assert measured_pue(read_telemetry(facility)).pue == pytest.approx(1.5)
    both = facility.model_copy(update={"columns": {"it": "power_watts", "facility": "main"}})
    with pytest.raises(ConfigError, match="more than one series"):
        read_telemetry(both)
    path.write_text('{"data": 3}')
    with pytest.raises(ConfigError, match="no such export"):
        read_telemetry(facility)


def test_what_cannot_be_is_refused(tmp_path) -> None:
    table = synthetic(100)
    swapped = table.rename(columns={"it": "facility", "facility": "it"})
    with pytest.raises(ConfigError, match="draws less than its IT load"):
        read_telemetry(written(tmp_path, swapped))
    with pytest.raises(ConfigError, match="has no 'it'"):
        read_telemetry(written(tmp_path, table.drop(columns="it")))
    with pytest.raises(ConfigError, match="stands twice"):
        read_telemetry(written(tmp_path, pd.concat([table, table[:1]])))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_telemetry(Facility(telemetry=str(tmp_path / "absent.csv")))
    day_first = table.set_axis(table.index.strftime("%d.%m.%Y %H:%M"), axis=0)
    with pytest.raises(ConfigError, match="could be of two days"):
        read_telemetry(written(tmp_path, day_first, time_zone="UTC"))
