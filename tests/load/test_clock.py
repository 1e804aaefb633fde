"""Times: units, zones, the hour that is shown twice, and what is implausible."""

import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from workbench.errors import ConfigError
from workbench.load.profile import LoadProfile

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
START = datetime(2026, 3, 2, 8, tzinfo=UTC)


def times_s(n=400, rate=2.0, seed=0):
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))


def mooncake(times, unit_s, whole=True) -> bytes:
    stamps = [int(t / unit_s) if whole else round(t / unit_s, 3) for t in times]
    return "".join(
        json.dumps({"timestamp": t, "input_length": 5, "output_length": 6}) + "\n" for t in stamps
    ).encode()


def azure(moments) -> bytes:
    return (HEADER + "".join(f"{m:%Y-%m-%d %H:%M:%S.%f},{i + 1},5\n" for i, m in enumerate(moments))
            ).encode()  # fmt: skip


def rate(trace) -> float:
    requests = trace.store.frame()["start_s"]
    return (len(requests) - 1) / requests.iloc[-1]


@pytest.mark.parametrize(("unit", "size"), [("s", 1), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)])
def test_a_declared_unit_and_a_unix_time_give_the_rate_in_any_unit(read, unit, size):
    found = times_s()
    true = (len(found) - 1) / (found[-1] - found[0])
    if unit != "s":
        assert rate(read(mooncake(found, size), time_unit=unit)) == pytest.approx(true, rel=1e-3)
    unix = 1_772_438_400 + found
    trace = read(mooncake(unix, size, whole=unit != "s"))
    assert rate(trace) == pytest.approx(true, rel=1e-3)
    assert trace.origin_s == pytest.approx(1_772_438_400 + found[0], abs=0.002)


def test_fractions_of_a_millisecond_are_seconds_where_only_they_are_plausible(read):
    found = times_s()
    as_seconds = read(mooncake(found, 1.0, whole=False))
    true = (len(found) - 1) / (found[-1] - found[0])
    assert rate(as_seconds) == pytest.approx(true, rel=1e-3)
    assert any("fractions" in note for note in as_seconds.notes)
    as_ms = read(mooncake(found, 1e-3, whole=False))
    assert rate(as_ms) == pytest.approx(true, rel=1e-3)
    with pytest.raises(ConfigError, match="do not have") as caught:  # 0.05 /s, or 50 /s
        read(mooncake(times_s(rate=0.05), 1.0, whole=False))
    assert "time_unit" in caught.value.next_step


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_a_wrong_unit_counted_from_0_is_said(read, tmp_path, size):
    trace = read(
        mooncake(times_s(), size, whole=True), **({"time_unit": "ms"} if size == 1 else {})
    )
    notes = LoadProfile.of(trace, 60.0, tmp_path).summary["notes"]
    assert any("another unit" in note for note in notes) or trace.whole_seconds


def test_milliseconds_in_a_table_of_seconds_are_said(read, tmp_path):
    table = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    rows = "".join(f"{int(1e3 * t)},a,5,6,11,API log\n" for t in times_s())
    notes = LoadProfile.of(read((table + rows).encode()), 60.0, tmp_path).summary["notes"]
    assert any("is little for a service" in note for note in notes)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Europe/London"])
def test_a_local_clock_at_the_end_of_summer_time_is_a_question_and_right_once_declared(read, zone):
    autumn = datetime(2026, 10, 24, 20, tzinfo=UTC)
    if zone == "America/New_York":
        autumn = datetime(2026, 11, 1, 1, tzinfo=UTC)
    found = times_s(3000, rate=0.1)
    local = [(autumn + timedelta(seconds=t)).astimezone(ZoneInfo(zone)) for t in found]
    content = azure(local)
    with pytest.raises(ConfigError, match="the clock goes back") as caught:
        read(content)
    assert "time_zone" in caught.value.next_step
    trace = read(content, time_zone=zone)
    assert trace.store.frame()["start_s"].to_numpy() == pytest.approx(found - found[0], abs=1e-5)
    assert trace.origin_s == pytest.approx(autumn.timestamp() + found[0], abs=1e-3)


def test_a_line_written_late_does_not_turn_the_clock_back(read):
    found = times_s(2000, rate=0.5)
    autumn = datetime(2026, 10, 25, 0, tzinfo=UTC)
    local = [(autumn + timedelta(seconds=t)).astimezone(ZoneInfo("Europe/Berlin")) for t in found]
    late = local[600] - timedelta(seconds=1500)
    content = azure([*local[:600], late, *local[601:]])
    trace = read(content, time_zone="Europe/Berlin")
    assert len(trace.store.frame()) == 1999
    assert trace.store.frame()["start_s"].iloc[-1] == pytest.approx(found[-1] - found[0], abs=1e-5)


def test_the_hour_that_summer_time_leaves_out_is_noted_and_closed_by_the_zone(read, tmp_path):
    spring = datetime(2026, 3, 29, 0, 20, tzinfo=UTC)
    found = times_s(900, rate=0.2)
    local = [(spring + timedelta(seconds=t)).astimezone(ZoneInfo("Europe/Berlin")) for t in found]
    notes = LoadProfile.of(read(azure(local)), 60.0, tmp_path).summary["notes"]
    assert any("no request for 1.0" in note and "time_zone" in note for note in notes)
    declared = LoadProfile.of(read(azure(local), time_zone="Europe/Berlin"), 60.0, tmp_path)
    assert not any("no request for" in note for note in declared.summary["notes"])
    assert declared.rate_per_s == pytest.approx(0.2, rel=0.1)
    assert declared.gap_cv == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(
    ("text", "section"),
    [
        ("{:%Y-%m-%dT%H:%M:%S.%f}Z", {}),
        ("{:%Y-%m-%dT%H:%M:%S.%f}+0000", {}),
        ("{:%Y-%m-%d %H:%M:%S.%f} UTC", {}),
        ("{:%Y-%m-%d %H:%M:%S.%f} +00:00", {}),
        ("{:%Y/%m/%d %H:%M:%S.%f}", {}),
        ("{:%d.%m.%Y %H:%M:%S,%f}", {}),
        ("{:%d.%m.%Y %H:%M:%S.%f}", {}),
        ("{:%d/%b/%Y:%H:%M:%S +0000}", {}),
        ("{:%m/%d/%Y %H:%M:%S.%f}", {"time_format": "%m/%d/%Y %H:%M:%S.%f"}),
    ],
)
def test_dates_as_programs_write_them(read, text, section):
    moments = [START + timedelta(seconds=3 * i) for i in range(20)]
    lines = "".join(f'"{text.format(m)}";{i + 1};5\n' for i, m in enumerate(moments))
    content = ("TIMESTAMP;ContextTokens;GeneratedTokens\n" + lines).encode()
    trace = read(content, **section)
    assert trace.origin_s == pytest.approx(START.timestamp())
    assert trace.store.frame()["start_s"].tolist() == pytest.approx([3.0 * i for i in range(20)])


def test_an_ambiguous_order_of_day_and_month_is_refused(read):
    with pytest.raises(ConfigError, match="is not a time"):
        read((HEADER + "02/03/2026 08:00:00,5,6\n02/03/2026 08:00:05,5,6\n").encode())


def test_order_is_restored_within_the_window_and_said(read):
    found = np.arange(200) * 10.0
    shuffled = found.reshape(-1, 5)[:, ::-1].ravel()
    trace = read(mooncake(shuffled, 1e-3))
    assert trace.store.frame()["start_s"].tolist() == found.tolist()
    assert any("out of order, by up to 40 s" in note for note in trace.notes)
    with pytest.raises(ConfigError, match="goes back by more than 20 s"):
        read(mooncake(shuffled, 1e-3), reorder_s=20.0)


def test_one_damaged_time_does_not_make_the_rest_late(read):
    found = np.arange(1000) * 1.0
    for wrong in (1e7, -0.0, 5e5):
        times = found.copy()
        times[700] = wrong
        trace = read(mooncake(times, 1e-3))
        assert trace.bad_lines == 1
        assert len(trace.store.frame()) == 999


def test_requests_written_twice_are_said(read):
    times = np.repeat(np.arange(50) * 1.234, 2)
    assert any("50 requests repeat" in note for note in read(mooncake(times, 1e-3)).notes)


@pytest.mark.parametrize(
    "text", ["2026-03-02 08:00:03.7q52", "2026-03-02 08:00:03+9", "2026-03-02 08:00:03 x+02:00",
             "2026-03-02 08:0", "2026-13-02 08:00:03", "2026-03-02 24:61:03", "2026-03-02T"]
)  # fmt: skip
def test_half_a_date_is_no_time_whatever_stands_beside_it(read, text):
    rows = [f"2026-03-02 08:00:{i:02d}.5,100,10" for i in range(30)]
    rows[15] = f"{text},100,10"
    rows[20] = "2026-03-02 10:00:20.5+02:00,100,10"
    trace = read((HEADER + "\n".join(rows) + "\n").encode(), max_bad_share=0.05)
    assert (trace.bad_lines, len(trace.store.frame())) == (1, 29)
    assert trace.store.frame()["start_s"].iloc[-1] == pytest.approx(29.0)
