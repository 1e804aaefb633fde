"""Exports as people have them: read right, or refused; never a wrong number."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.measure.exports.forms import FORMS, Options, read_export
from workbench.measure.exports.log import PowerLog

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
BERLIN = Options(zone="Europe/Berlin")


@pytest.fixture
def read(tmp_path):
    def read(text, form, **options) -> PowerLog:
        path = tmp_path / "export"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_export(path, form, Options(**options))

    return read


def watts(log: PowerLog) -> dict[str, float]:
    return {one.channel.place: pytest.approx(one.mean_w, rel=1e-6) for one in log.series}


def total_w(log: PowerLog) -> float:
    return sum(one.mean_w for one in log.series)


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def refused(read, text, form, *said, **options):
    with pytest.raises(ConfigError) as raised:
        read(text, form, **options)
    error = raised.value
    for part in said:
        assert part in str(error)
    assert error.allowed or error.next_step
    return str(error)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not here")
class TestSharedCases:
    def test_eight_gpus_under_one_name_are_refused(self):
        with pytest.raises(ConfigError, match=r"8 rows at one time.*summed"):
            read_export(CASES / "power_eight_gpus_one_name.csv", "csv", Options())

    def test_nvidia_smi_is_610_w_of_boards_one_reading_missing(self):
        with pytest.raises(ConfigError, match="no offset from UTC"):
            read_export(CASES / "power_nvidia_smi.csv", "nvidia-smi", Options())
        log = read_export(CASES / "power_nvidia_smi.csv", "nvidia-smi", BERLIN)
        assert total_w(log) == pytest.approx(610.0) and len(log.faults) == 1
        assert {one.channel.scope for one in log.series} == {"gpu"}
        assert log.span_s[0] == utc("2026-03-02 08:00:00")

    def test_grafana_is_2_4_kw_at_the_wall_every_15_s(self):
        log = read_export(CASES / "power_grafana_wide.csv", "grafana", BERLIN)
        assert total_w(log) == pytest.approx(2400.0)
        assert [one.period_s for one in log.series] == [15.0, 15.0]
        assert {one.channel.scope for one in log.series} == {"node"}


START_S = utc("2026-03-02 08:00:00")


def rows(count, line):
    return "".join(line(START_S + n, n) + "\n" for n in range(count))


# csv


def test_a_csv_has_the_columns_of_a_live_log_or_declared_ones(read):
    text = "timestamp,source,watts\n" + rows(5, lambda t, n: f"{t:.0f},a,400\n{t:.0f},b,100")
    assert watts(read(text, "csv")) == {"a": 400.0, "b": 100.0}
    german = "Zeit;Zähler;Leistung (kW)\n" + rows(
        5, lambda t, n: f"02.03.2026 09:00:0{n},250;PDU 1;1,42"
    )
    columns = {"timestamp": ["Zeit"], "source": ["Zähler"], "power": ["Leistung (kW)"]}
    for encoded in (german.encode(), german.encode("utf-16"), german.encode("cp1252"),
                    german.encode("utf-16-le"), german.encode("utf-8-sig")):  # fmt: skip
        log = read(encoded, "csv", columns=columns, zone="Europe/Berlin")
        assert watts(log) == {"PDU 1": 1420.0}
        assert log.span_s[0] == utc("2026-03-02 08:00:00") + 0.25
    wide = "t,A (W),B (W)\n" + rows(5, lambda t, n: f"{t * 1000:.0f},400,100")
    log = read(wide, "csv", columns={"timestamp": ["t"], "power": ["A (W)", "B (W)"]})
    assert watts(log) == {"A": 400.0, "B": 100.0}


def test_a_counter_in_kwh_is_joules(read):
    text = "time,energy (kWh)\n" + rows(5, lambda t, n: f"{t:.0f},{1000 + n * 1e-4:.4f}")
    (one,) = read(text, "csv").series
    assert one.channel.quantity == "energy" and one.values[1] - one.values[0] == pytest.approx(360)


def test_kilowatts_called_watts_and_watts_called_kilowatts_are_refused(read):
    text = "timestamp,source,watts\n" + rows(5, lambda t, n: f"{t:.0f},a,1.42")
    refused(read, text, "csv", "kilowatts? Then --unit kW")
    assert watts(read(text, "csv", unit="kW")) == {"a": 1420.0}
    refused(read, text.replace("1.42", "1420"), "csv", "is the unit right?", unit="kW")
    refused(read, text.replace("1.42", "0"), "csv", "no measurement")


def test_a_unit_that_changes_is_refused_and_units_in_cells_are_read(read):
    def half(t, n):
        return f"{t:.0f},a,{400 + n if n < 3 else 0.4 + n / 1000}"

    refused(read, "timestamp,source,watts\n" + rows(6, half), "csv", "its unit changes")

    def cells(t, n):
        return f"{t:.0f},a,{'400 W' if n < 3 else '0.4 kW'}"

    assert watts(read("timestamp,source,watts\n" + rows(6, cells), "csv")) == {"a": 400.0}


def test_a_total_beside_its_parts_and_one_meter_twice_are_refused(read):
    def three(t, n):
        return "\n".join(f"{t:.0f},{name},{w}" for name, w in
                         (("a", 300 + n), ("b", 200 + 2 * n), ("sum", 500 + 3 * n)))  # fmt: skip

    text = "timestamp,source,watts\n" + rows(20, three)
    refused(read, text, "csv", "sum is the sum of a, b", "--source")
    assert set(watts(read(text, "csv", sources=("a", "b")))) == {"a", "b"}
    refused(read, text, "csv", "no source 'c'", sources=("c",))

    def twice(t, n):
        return f"{t:.0f},a,{300 + n}\n{t:.0f},b,{300 + n}"

    refused(read, "timestamp,source,watts\n" + rows(20, twice), "csv", "one meter under two names")


def test_damaged_rows_are_counted_by_kind_and_leave_gaps(read):
    def row(t, n):
        return {
            3: f"{t:.0f},a,NaN", 4: f"{t:.0f},a,", 5: f"{t:.0f},a,-1", 6: f"{t:.0f},a,inf",
            7: f"{t:.0f},a,0", 8: "yesterday,a,400", 9: f"{t:.0f},a", 10: f'{t:.0f},"a,400',
        }.get(n, f"{t:.0f},a,400")  # fmt: skip

    log = read("timestamp,source,watts\n" + rows(30, row), "csv")
    (one,) = log.series
    assert len(one.times_s) == 22 and one.mean_w == 400.0 and np.diff(one.times_s).max() == 9.0
    assert len(log.faults) == 8 and len(log.faults.counts()) >= 5


def test_rows_out_of_order_and_written_twice_are_put_right_and_counted(read):
    lines = rows(40, lambda t, n: f"{t:.0f},a,{400 + n}").splitlines()
    lines[10], lines[11] = lines[11], lines[10]
    lines.insert(20, lines[20])
    log = read("timestamp,source,watts\n" + "\n".join(lines), "csv")
    (one,) = log.series
    assert list(one.values) == [400.0 + n for n in range(40)]
    assert sorted(log.faults.counts().values()) == [1, 1]


def test_a_file_that_is_mostly_damaged_or_has_no_sample_is_refused(read):
    text = "timestamp,source,watts\n" + rows(9, lambda t, n: f"{t:.0f},a,{'x' if n > 3 else 400}")
    refused(read, text, "csv", "5 rows of 9 are no samples")
    refused(read, "timestamp,source,watts\n", "csv", "no row of 0 is a sample")
    refused(read, "when;what\n1;2\n", "csv", "no header", "--columns")
    refused(read, b"\x00\xff\x13" * 300, "csv", "no header")


# times and numbers


def test_the_hour_that_a_local_clock_shows_twice_is_told_by_the_order(read):
    def row(minutes):
        local = 60 * 1 + 30 + minutes  # 01:30 of 25 October, summer time
        shown = local if local < 180 else local - 60
        return f"2026-10-25 {shown // 60:02d}:{shown % 60:02d}:00,a,400"

    text = "timestamp,source,watts\n" + "\n".join(row(m) for m in range(180))
    (one,) = read(text, "csv", zone="Europe/Berlin").series
    assert np.diff(one.times_s).tolist() == [60.0] * 179
    assert one.times_s[0] == utc("2026-10-24 23:30:00")


def test_an_hour_that_was_not_there_is_a_fault(read):
    text = "timestamp,source,watts\n" + "\n".join(
        f"2026-03-29 0{h}:{m:02d}:00,a,400" for h in (1, 2, 3) for m in range(0, 60, 5)
    )
    log = read(text, "csv", zone="Europe/Berlin")
    assert len(log.faults) == 12 and "no time of Europe/Berlin" in log.faults.text()


def test_dates_that_can_be_read_in_two_ways_are_refused(read):
    text = "timestamp,source,watts\n" + rows(5, lambda t, n: f"03/02/2026 09:00:0{n},a,400")
    refused(read, text, "csv", "--date-order dmy", zone="UTC")
    log = read(text, "csv", zone="UTC", date_order="mdy")
    assert log.span_s[0] == utc("2026-03-02 09:00:00")
    text = text.replace("03/02", "13/02")
    assert read(text, "csv", zone="UTC").span_s[0] == utc("2026-02-13 09:00:00")


def test_a_comma_of_thousands_or_decimals_is_asked_for(read):
    text = "timestamp;source;watts\n" + rows(5, lambda t, n: f"{t:.0f};a;1,420")
    refused(read, text, "csv", "--decimal")
    assert watts(read(text, "csv", decimal=".")) == {"a": 1420.0}
    assert watts(read(text, "csv", decimal=",", unit="kW")) == {"a": 1420.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1772438400", 0.0), ("1772438400500", 0.5), ("2026-03-02T09:00:00+01:00", 0.0),
        ("2026-03-02T08:00:00.1234567Z", 0.123456), ("2026/03/02 08:00:00 UTC", 0.0),
        ("Mon Mar  2 08:00:00 UTC 2026", 0.0), ("Mon Mar  2 09:00:00 +0100 2026", 0.0),
        ("03/02/2026 08:00:00 AM", 0.0),
    ],
)  # fmt: skip
def test_times_are_read_as_they_are_written(read, text, expected):
    zone = "UTC" if "AM" in text else None
    body = f"timestamp;source;watts\n{text};a;400\n"
    log = read(body, "csv", zone=zone, date_order="mdy")
    assert log.span_s[0] - utc("2026-03-02 08:00:00") == pytest.approx(expected, abs=1e-6)


# the other forms


def test_nvidia_smi_without_index_and_units(read):
    text = "timestamp, power.draw [W], utilization.gpu [%]\n" + "".join(
        f"2026/03/02 09:00:0{n}.000, 300.00, 99\n" for n in range(5)
    )
    log = read(text, "nvidia-smi", zone="Europe/Berlin")
    assert watts(log) == {"gpu": 300.0} and "tells the GPUs apart" in log.notes[0]
    refused(read, text, "nvidia-smi", "gpu alone", zone="UTC", scope="node")


def test_grafana_in_rows_with_units_in_its_cells(read):
    text = "sep=;\nSeries;Time;Value\n" + "".join(
        f"{name};2026-03-02T08:00:{n:02d}+00:00;{watts} kW\n"
        for name, watts in (("A", "1.42"), ("B", "0.98"))
        for n in range(5)
    )
    assert watts(read(text, "grafana")) == {"A": 1420.0, "B": 980.0}
    text = "Time,pdu\n" + rows(5, lambda t, n: f"{t * 1000:.0f},400")
    log = read(text, "grafana")
    assert watts(log) == {"pdu": 400.0} and "--unit" in log.notes[0]


def prometheus(*series) -> str:
    result = [
        {"metric": labels, "values": [[1772438400 + n, value(n)] for n in range(20)]}
        for labels, value in series
    ]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


def test_prometheus_knows_units_and_scopes_by_the_metric(read):
    log = read(prometheus(
        ({"__name__": "DCGM_FI_DEV_POWER_USAGE", "gpu": "0"}, lambda n: "300"),
        ({"__name__": "DCGM_FI_DEV_POWER_USAGE", "gpu": "1"}, lambda n: "NaN" if n == 3 else "310"),
    ), "prometheus")  # fmt: skip
    assert total_w(log) == pytest.approx(610) and len(log.faults) == 1
    assert {one.channel.scope for one in log.series} == {"gpu"}
    log = read(prometheus(
        ({"__name__": "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "gpu": "0"},
         lambda n: str(5_000_000 + n * 300_000)),
    ), "prometheus")  # fmt: skip
    assert total_w(log) == pytest.approx(300.0) and log.series[0].channel.quantity == "energy"


def test_two_rapl_zones_that_mirror_one_counter_are_68_w_once(read):
    log = read(prometheus(*(
        ({"__name__": "node_rapl_package_joules_total", "index": str(die)},
         lambda n: str(1e5 + 68.0 * n)) for die in (0, 1)
    )), "prometheus")  # fmt: skip
    assert total_w(log) == pytest.approx(68.0) and "again and is not added" in log.notes[0]
    log = read(prometheus(*(
        ({"__name__": "kepler_node_cpu_joules_total", "zone": zone},
         lambda n, each=each: str(1e5 + each * n))
        for zone, each in (("package", 60.0), ("core", 50.0), ("dram", 8.0))
    )), "prometheus")  # fmt: skip
    assert len(log.series) == 2 and "zone core" in log.notes[0]


def test_prometheus_that_says_no_unit_or_holds_no_series_is_refused(read):
    refused(read, prometheus(({"__name__": "pdu"}, lambda n: "400")), "prometheus", "its unit")
    text = prometheus(({"__name__": "pdu_watts"}, lambda n: "400"))
    refused(read, text, "prometheus", "--scope node")
    assert total_w(read(text, "prometheus", scope="node")) == pytest.approx(400.0)
    for text in ("", "[]", "{}", '{"status":"error","error":"too many points"}',
                 '{"data":{"resultType":"vector","result":[]}}'):  # fmt: skip
        refused(read, text, "prometheus", "METRIC[1h]")


CODECARBON = "timestamp,project_name,run_id,duration,emissions,cpu_energy,gpu_energy,ram_energy,energy_consumed,pue\n"  # noqa: E501


def test_codecarbon_is_a_counter_of_each_run_and_partly_modelled(read):
    """120 s at 60 W are 0.002 kWh."""
    text = CODECARBON + "".join(
        f"2026-03-02T09:0{2 * n}:00,p,run,{120 * n},0,{0.002 * n},{0.01 * n},0.0,{0.012 * n},1.0\n"
        for n in (1, 2)
    )
    log = read(text, "codecarbon", zone="Europe/Berlin")
    assert watts(log) == {"cpu": 60.0, "gpu": 300.0, "ram": 0.0}
    by_place = {one.channel.place: one.channel for one in log.series}
    assert by_place["cpu"].kind == "modelled" and by_place["gpu"].kind == "measured"
    assert log.span_s == (utc("2026-03-02 08:00:00"), utc("2026-03-02 08:04:00"))
    refused(read, text.replace(",1.0\n", ",1.4\n"), "codecarbon", "PUE of 1.4", zone="UTC")


def test_zeus_windows_are_a_counter_that_ends_at_pauses(read):
    t = 1772438400.0
    text = "start_time,window_name,elapsed_time,gpu0_energy,gpu1_energy\n" + "".join(
        f"{t + at},{name},{length},{100 * length},{50 * length}\n"
        for at, name, length in (
            (0, "epoch", 3.0), (0, "step", 1.0), (1, "step", 1.0), (2, "step", 1.0),
            (60, "step", 1.0),
        )
    )  # fmt: skip
    log = read(text, "zeus")
    assert watts(log) == {"gpu0": 100.0, "gpu1": 50.0} and "1 window overlaps" in log.notes[0]
    first = log.series[0]
    assert np.diff(first.values)[list(np.diff(first.times_s)).index(57.0)] < 0, "it is told apart"
    text = "time,0,1\n" + rows(5, lambda t, n: f"{t},300,310")
    assert total_w(read(text, "zeus")) == pytest.approx(610.0)


def test_dcmi_loops_take_the_time_of_the_machine_or_of_the_board_controller(read):
    def reading(n, before, stamp, state="activated"):
        return (
            f"{before}\n    Instantaneous power reading:     {220 + n} Watts\n"
            f"    Minimum during sampling period:    4 Watts\n    Maximum during sampling period: "
            f"384 Watts\n    Average power reading over sample period:  221 Watts\n"
            f"    IPMI timestamp:          {stamp}    Sampling period:          00000001 Seconds."
            f"\n    Power reading state is:                   {state}\n\n"
        )

    text = "".join(
        reading(n, f"2026-03-02T09:00:0{n}+01:00", "Thu Jan  1 00:00:00 1970") for n in range(5)
    )
    log = read(text, "dcmi")
    assert watts(log) == {"bmc": 222.0} and log.span_s[0] == utc("2026-03-02 08:00:00")
    text = "".join(reading(n, "", f"Mon Mar  2 09:00:0{n} 2026") for n in range(5))
    refused(read, text, "dcmi", "no offset")
    log = read(text, "dcmi", zone="Europe/Berlin")
    assert log.span_s[0] == utc("2026-03-02 08:00:00") and "own clock" in log.notes[0]
    text = "".join(reading(n, str(1772438400 + n), "", "deactivated") for n in range(5))
    refused(read, text, "dcmi", "deactivated")


def test_apc_has_lines_of_its_own_before_a_table_of_tabs(read):
    text = (
        "Name:\tapc5F2A\tContact:\tops\tLocation:\trow 3\nDate:\t03/02/2026\tTime:\t10:00:00\n\n"
        "Date\tTime\tPwr.kW\tMax.kW.Ph1.A\tEnergy.kWh\t\n"
    ) + "".join(f"03/02/2026\t09:0{n}:00\t1.42\t6.5\t1203.{n}\t\n" for n in range(5))
    log = read(text, "apc", zone="Europe/Berlin", date_order="mdy")
    assert watts(log) == {"Pwr": 1420.0} and log.series[0].period_s == 60.0


def test_an_unknown_form_or_unit_is_refused(read):
    refused(read, "x", "excel", "--format excel")
    refused(read, "x", "csv", "--unit horses", unit="horses")


# damage

SAMPLES = {
    "csv": "timestamp,source,watts\n" + rows(12, lambda t, n: f"{t:.0f},a,{400 + n}"),
    "nvidia-smi": "timestamp, index, power.draw [W]\n"
    + "".join(f"2026/03/02 09:00:0{n}.000, {i}, 300.00 W\n" for n in range(6) for i in (0, 1)),
    "grafana": '"Time";"A (kW)";"B (kW)"\n'
    + "".join(f'"2026-03-02 09:00:{n:02d}";"1,42";"0,98"\n' for n in range(0, 60, 5)),
    "prometheus": prometheus(({"__name__": "ipmi_dcmi_power_consumption_watts"}, lambda n: "400")),
    "codecarbon": CODECARBON
    + "".join(f"2026-03-02T09:0{n}:00,p,r,{60 * n},0,{n / 1e3},0,0,{n / 1e3},1\n"
              for n in range(1, 9)),
    "zeus": "start_time,window_name,elapsed_time,gpu0_energy\n"
    + rows(9, lambda t, n: f"{t},s,1.0,300.0"),
    "dcmi": "".join(f"{1772438400 + n}\nInstantaneous power reading: {400 + n} Watts\n"
                    for n in range(9)),
    "apc": "Date\tTime\tPwr.kW\n" + "".join(f"02.03.2026\t09:0{n}:00\t0.42\n" for n in range(9)),
}  # fmt: skip


def test_every_form_has_a_sample():
    assert set(SAMPLES) == set(FORMS) - {"recording"}


@pytest.mark.parametrize("form", SAMPLES)
def test_the_samples_are_read(read, form):
    log = read(SAMPLES[form], form, zone="Europe/Berlin")
    assert not len(log.faults)


def pairs_of(log) -> set[tuple[str, float, float]]:
    return {
        (one.channel.place, at_s, value)
        for one in log.series
        for at_s, value in zip(one.times_s, one.values, strict=True)
    }


@pytest.mark.parametrize("form", ["csv", "nvidia-smi", "grafana", "dcmi", "apc"])
@settings(
    max_examples=40, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(st.data())
def test_damage_of_a_row_changes_no_other_row(read, form, data):
    """Below the header: as many samples may differ as lines were touched."""
    whole = SAMPLES[form].encode()
    below = whole.index(b"\n") + 1 if form != "dcmi" else 0
    start = data.draw(st.integers(below, len(whole)))
    length = data.draw(st.integers(0, 60))
    noise = data.draw(st.one_of(st.binary(max_size=20), st.sampled_from([b"\n", b'"', b"1", b";"])))
    damaged = whole[:start] + noise + whole[start + length :]
    touched = whole[start : start + length].count(b"\n") + 1
    touched += noise.count(b"\n") + noise.count(b"\r")
    intact = pairs_of(read(whole, form, zone="Europe/Berlin"))
    try:
        found = pairs_of(read(damaged, form, zone="Europe/Berlin"))
    except ConfigError:
        return
    columns = 2 if form == "grafana" else 1
    assert len(found - intact) <= columns * touched


@pytest.mark.parametrize("form", SAMPLES)
@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(st.data())
def test_damage_is_refused_or_counted_and_no_value_is_made_up(read, form, data):
    """A piece of the file is replaced by other bytes. What is still read was in the file: between
    the smallest and the largest power of the whole sample, give or take digits that were damaged
    into other digits; nothing but a ConfigError is raised."""
    whole = SAMPLES[form].encode()
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, 40))
    noise = data.draw(
        st.one_of(
            st.binary(max_size=30), st.sampled_from(
                [b"", b"\n", b",,,", b'"', b"NaN", b"1e999", b"-1", b"[N/A]", b"\x00\x00", b"]}",
                 b"null", b"\xff\xfe", b"12:00", b"\t", b"0x10", b"9" * 400]
            ),
        )
    )  # fmt: skip
    damaged = whole[:start] + noise + whole[start + length :]
    try:
        log = read(damaged, form, zone="Europe/Berlin")
    except ConfigError as error:
        assert error.got
        return
    for one in log.series:
        assert np.isfinite(one.values).all() and (one.values >= 0).all()
        assert (np.diff(one.times_s) >= 0).all()
        assert np.isfinite(one.times_s).all()
