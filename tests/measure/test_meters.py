"""Meters over replayed sources: a folder laid out like powercap, a growing log, and a
driver's recorded answers."""

import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.errors import ConfigError
from workbench.measure.meters import EnergySession, MissingMeter, find_meters
from workbench.measure.meters.clock import SystemClock
from workbench.measure.meters.csv_log import CsvMeter
from workbench.measure.meters.faults import MeterFaults
from workbench.measure.meters.nvml import NvmlMeter
from workbench.measure.meters.rapl import find_rapl
from workbench.measure.meters.sample import MeterFault, Sample
from workbench.pilot.sections.meters import Meters

WATTS = 40.0


def powercap(root: Path, zones: dict[str, str], energy_uj: int = 5_000_000) -> Path:
    for folder, name in zones.items():
        zone = root / folder
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{energy_uj}\n")
        (zone / "max_energy_range_uj").write_text("262143328850\n")
    return root


def test_packages_and_their_dram_are_metered_and_overlapping_zones_are_not(tmp_path):
    root = powercap(
        tmp_path,
        {
            "intel-rapl:0": "package-0",
            "intel-rapl:0:0": "core",
            "intel-rapl:0:1": "dram",
            "intel-rapl:1": "psys",
            "intel-rapl-mmio:0": "package-0",
        },
    )
    meter = find_rapl(root)
    assert sorted(s.channel.place for s in meter.read()) == ["dram-0", "package-0"]
    assert {s.value for s in meter.read()} == {5.0}
    assert {s.channel.wraps_at_j for s in meter.read()} == {262143.32885}


def test_dies_that_show_one_counter_are_counted_once(tmp_path, clock):
    """Two dies of a socket at 68 W: the sum of both zones would be 136 W."""
    zones = {"intel-rapl:0": "package-0-die-0", "intel-rapl:1": "package-0-die-1"}
    root = powercap(tmp_path, zones)
    loads = [Load(clock, root / folder, 68.0) for folder in zones]
    meter = find_rapl(root, clock)
    assert meter.notes == [
        "package-0-die-1 shows the counter of package-0-die-0 again and is not added"
    ]
    with EnergySession([meter], interval_s=0.01, clock=clock) as session:
        clock.sleep(2.0)
        energy = session.energy(0.5, 1.5)
    assert energy.energy_j == pytest.approx(68.0, rel=0.01)
    loads[1].joules += 1e-3
    loads[1].advance()
    apart = find_rapl(root, clock)
    assert apart.notes == [] and len(apart.read()) == 2


def test_amd_s_counter_is_a_model_and_intel_s_a_measurement(tmp_path, monkeypatch):
    root = powercap(tmp_path, {"intel-rapl:0": "package-0"})
    for vendor, kind in (("AuthenticAMD", "modelled"), ("GenuineIntel", "measured")):
        monkeypatch.setattr(
            "workbench.measure.meters.rapl.cpu",
            lambda vendor=vendor: SimpleNamespace(vendor=vendor),
        )
        assert find_rapl(root).read()[0].channel.kind == kind


def test_counters_that_only_root_may_read_say_so(tmp_path, monkeypatch):
    root = powercap(tmp_path, {"intel-rapl:0": "package-0"})

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("workbench.measure.meters.rapl._energy_uj", refuse)
    with pytest.raises(OSError, match=r"root only \(since CVE-2020-8694\)"):
        find_rapl(root)


def test_a_machine_without_powercap_says_so(tmp_path):
    with pytest.raises(OSError, match=r"no .*absent: "):
        find_rapl(tmp_path / "absent")
    with pytest.raises(OSError, match="no package zone"):
        find_rapl(tmp_path)


class Load:
    """A processor whose counter goes on with the clock, at a power that a test sets."""

    def __init__(self, clock, zone: Path, watts: float, every_s: float = 0.004) -> None:
        self.clock, self.zone, self.watts = clock, zone, watts
        self.joules, self.at_s = 5.0, clock.monotonic_s()
        clock.every(every_s, self.advance)

    def advance(self) -> None:
        now_s = self.clock.monotonic_s()
        self.joules += self.watts * (now_s - self.at_s)
        self.at_s = now_s
        (self.zone / "energy_uj").write_text(f"{round(self.joules * 1e6)}\n")


def test_a_session_measures_gross_idle_and_net_of_a_known_load(tmp_path, clock):
    root = powercap(tmp_path, {"intel-rapl:0": "package-0"})
    load = Load(clock, root / "intel-rapl:0", 10.0)
    session = EnergySession([find_rapl(root, clock)], idle_s=0.4, interval_s=0.01, clock=clock)
    with session:
        session.rest()
        load.watts = WATTS
        start_s = session.now()
        clock.sleep(0.5)
        end_s = session.now()
        load.watts = 10.0
        session.rest()
        energy = session.energy(start_s, end_s)
    assert end_s - start_s == pytest.approx(0.5)
    # A reading is up to one renewal of the counter late: 4 ms of 30 W at either edge.
    assert energy.energy_j == pytest.approx(WATTS * 0.5, abs=2 * 0.004 * 30)
    assert (energy.idle_before_w, energy.idle_after_w) == pytest.approx((10, 10), abs=0.4)
    assert energy.net_j == pytest.approx(30.0 * 0.5, rel=0.03)
    assert energy.scope == "CPU packages alone (rapl package-0)"
    samples = session.samples()
    assert samples["monotonic_s"].is_monotonic_increasing
    assert samples["monotonic_s"].min() == 0.0
    assert set(samples["reader"]) == {"rapl"}
    metric = energy.metric("training_energy_j", arm="ternary")
    assert metric.value == energy.energy_j
    assert metric.labels == {"arm": "ternary"}
    # The same window is read again after the session; a window after it is not bracketed.
    assert session.energy(start_s, end_s).energy_j == pytest.approx(energy.energy_j)
    assert session.energy(session.now(), session.now() + 1).reason == "not_bracketed"


def test_a_counter_that_vanishes_gives_no_number(tmp_path, clock):
    root = powercap(tmp_path, {"intel-rapl:0": "package-0"})
    meter = find_rapl(root, clock)
    session = EnergySession([meter], max_gap_s=0.2, interval_s=0.01, clock=clock)
    with session:
        start_s = session.now()
        clock.sleep(0.05)
        (root / "intel-rapl:0" / "energy_uj").unlink()
        clock.sleep(0.1)
        energy = session.energy(start_s, session.now())
    assert energy.energy_j is None
    assert energy.reason == "not_bracketed"
    assert "No such file" in energy.text
    assert energy.net_j is None


def test_the_machine_s_own_clock_calls_until_it_is_told_to_end():
    called = threading.Event()
    end = SystemClock().every(0.001, called.set)
    assert called.wait(30.0)
    end()
    assert "energy" not in {thread.name for thread in threading.enumerate()}


EIGHT_WATTS = range(380, 388)


def follow(clock, log: Path, rows_at, seconds: float) -> EnergySession:
    """A session of ``seconds`` beside a logger that writes ``rows_at(unix time)`` each second."""
    write_log(log, [])

    def write() -> None:
        with log.open("a") as file:
            file.writelines(f"{row}\n" for row in rows_at(clock.wall_s()))

    clock.every(1.0, write)
    session = EnergySession([CsvMeter(log, clock)], interval_s=0.1, clock=clock)
    with session:
        clock.sleep(seconds)
    return session


@pytest.mark.parametrize("apart_s", [0.0, 0.003])
def test_eight_boards_under_one_name_are_no_eighth_of_their_power(tmp_path, clock, apart_s):
    """3,068 W together; one row a second of them would be 0.38 kW."""
    session = follow(
        clock,
        tmp_path / "power.csv",
        lambda now: [f"{now + i * apart_s},gpu,{w}" for i, w in enumerate(EIGHT_WATTS)],
        12.0,
    )
    energy = session.energy(2.0, 10.0)
    assert (energy.energy_j, energy.reason) == (None, "repeated")
    assert "8 rows at one time" in energy.text and "its own source" in energy.text


def test_eight_boards_under_their_own_names_are_summed(tmp_path, clock):
    def rows(now):
        return [f"{now},gpu{i},{w}" for i, w in enumerate(EIGHT_WATTS)]

    session = follow(clock, tmp_path / "power.csv", rows, 12.0)
    assert session.energy(2.0, 10.0).energy_j == pytest.approx(8 * 3068.0)


def test_a_row_that_is_written_twice_now_and_then_is_refused_and_a_late_one_is_not(tmp_path, clock):
    def twice(now):
        return [f"{now},a,100"] * (2 if round(now) % 3 == 0 else 1)

    energy = follow(clock, tmp_path / "twice.csv", twice, 12.0).energy(2.0, 10.0)
    assert (energy.energy_j, energy.reason) == (None, "repeated")

    def late(now):
        return [f"{now - (0.97 if round(now) % 5 == 0 else 0)},a,100"]

    energy = follow(clock, tmp_path / "late.csv", late, 12.0).energy(14.0, 22.0)
    assert energy.energy_j == pytest.approx(800.0)


def test_rows_from_the_future_are_refused_and_said(tmp_path, clock):
    session = follow(clock, tmp_path / "power.csv", lambda now: [f"{now + 5},a,100"], 12.0)
    energy = session.energy(2.0, 10.0)
    assert (energy.energy_j, energy.reason) == (None, "clock_ahead")
    assert "5.0 s ahead of this machine's clock" in energy.text


def test_a_slow_log_beside_a_good_counter_costs_no_figure(tmp_path, clock):
    log = write_log(tmp_path / "power.csv", [])
    root = powercap(tmp_path / "powercap", {"intel-rapl:0": "package-0"})
    Load(clock, root / "intel-rapl:0", WATTS, every_s=0.1)

    def write() -> None:
        with log.open("a") as file:
            file.write(f"{clock.wall_s()},pdu,400\n")

    clock.every(10.0, write)
    meters = [CsvMeter(log, clock), find_rapl(root, clock)]
    with EnergySession(meters, interval_s=0.1, clock=clock) as session:
        clock.sleep(60.0)
        energy = session.energy(15.0, 45.0)
    assert energy.energy_j == pytest.approx(WATTS * 30, rel=0.01)
    assert energy.basis == "cpu"
    assert energy.warnings == (
        "not the whole node (csv pdu): csv pdu: no sample for 10.00 s, allowed: 3 s",
    )


def test_parts_that_show_more_than_the_whole_are_said(tmp_path, clock):
    root = powercap(tmp_path / "powercap", {"intel-rapl:0": "package-0"})
    Load(clock, root / "intel-rapl:0", 150.0, every_s=0.1)
    log = write_log(tmp_path / "power.csv", [])

    def write() -> None:
        with log.open("a") as file:
            file.write(f"{clock.wall_s()},pdu,100\n")

    clock.every(1.0, write)
    meters = [CsvMeter(log, clock), find_rapl(root, clock)]
    with EnergySession(meters, clock=clock) as session:
        clock.sleep(20.0)
        energy = session.energy(5.0, 15.0)
    assert energy.energy_j == pytest.approx(1000.0)
    assert "CPU packages alone (rapl package-0) show 1500 J, more than the node's 1000 J" in (
        energy.warnings
    )


def test_a_log_of_failures_is_counted_by_kind_and_stays_a_sentence(tmp_path, clock):
    """Forty rows a second that are none: their texts alone would be a reason of 66 KB."""
    session = follow(
        clock,
        tmp_path / "power.csv",
        lambda now: [f"{now + i},a,{'[N/A]' if i % 2 else f'many {i}'}" for i in range(40)],
        60.0,
    )
    energy = session.energy(10.0, 50.0)
    assert energy.reason == "device_missing"
    assert "(2400 times)" in energy.text and len(energy.text) < 400
    assert list(session.faults["csv"].counts().values()) == [2400]


def test_kinds_of_failure_beyond_a_dozen_are_counted_together():
    faults = MeterFaults()
    for i in range(1000):
        faults.add(float(i), f"{'abcdefghijklmnopqrstuvwxyz'[i % 26]} failed after {i} s")
    assert len(faults) == 1000
    assert len(faults.counts()) == 13 and sum(faults.counts().values()) == 1000
    assert faults.text().endswith("10 more kinds of failure")
    assert faults.text(0.0, 1.0) == "a failed after 0 s; b failed after 1 s"
    assert faults.text(5000.0, 6000.0) == ""


def split(found) -> tuple[list[float], list[str]]:
    """Values of the samples, and what stood where others should."""
    values = [one.value for one in found if isinstance(one, Sample)]
    return values, [one.text for one in found if isinstance(one, MeterFault)]


def write_log(path: Path, rows: list[str]) -> Path:
    path.write_text("timestamp,source,watts\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_feeds_of_a_wall_log_are_summed_and_stand_for_the_whole_machine(tmp_path, clock):
    log = write_log(tmp_path / "power.csv", [])
    powercap(tmp_path / "powercap", {"intel-rapl:0": "package-0"})

    def advance():
        with log.open("a") as file:
            moment = datetime.fromtimestamp(clock.wall_s(), UTC).isoformat()
            file.write(f"{moment},feed-a,100\n{clock.wall_s()},feed-b,50.5\n")

    clock.every(0.004, advance)
    meters = [CsvMeter(log, clock), find_rapl(tmp_path / "powercap", clock)]
    with EnergySession(meters, interval_s=0.02, clock=clock) as session:
        clock.sleep(0.2)
        start_s = session.now()
        clock.sleep(0.3)
        end_s = session.now()
        clock.sleep(0.2)
        energy = session.energy(start_s, end_s)
    assert energy.energy_j == pytest.approx(150.5 * 0.3)
    assert energy.scope == "the whole node (csv feed-a + csv feed-b)"
    assert len(energy.parts) == 3


def test_a_bad_row_is_a_failed_reading_and_its_neighbours_count(tmp_path):
    now = time.time()
    rows = [f"{now},a,10", f"{now + 1},a,many", f"{now + 2},a,12", "2026-01-01 12:00:00,a,1"]
    meter = CsvMeter(write_log(tmp_path / "power.csv", rows))
    values, faults = split(meter.read())
    assert values == [10, 12]
    assert "many" in faults[0] and "no offset from UTC; declare" in faults[1]
    assert meter.read() == []


def test_a_row_that_is_no_csv_stops_nothing(tmp_path):
    now = time.time()
    rows = [f"{now},a,10\r", f"{now},a\r,100", f"{now + 1},a,{'9' * 200_000}", f"{now + 2},a,12"]
    meter = CsvMeter(write_log(tmp_path / "power.csv", []))
    write_log(meter.path, rows)
    values, faults = split(meter.read())
    assert values == [10, 12]
    assert "new-line character" in faults[0] and "field larger" in faults[1]
    assert max(map(len, faults)) < 300


def test_a_line_that_is_still_being_written_waits_and_an_old_log_is_not_read_whole(tmp_path):
    now = time.time()
    log = write_log(tmp_path / "power.csv", [f"{now - 9999 + i},a,{i}" for i in range(9000)])
    meter = CsvMeter(log)
    values = [s.value for s in meter.read()]
    assert values[-1] == 8999
    assert len(values) < 4000
    with log.open("a") as file:
        file.write(f"{now},a,1")
        file.flush()
        assert meter.read() == []
        file.write("23\n")
    assert [s.value for s in meter.read()] == [123]
    write_log(log, [])
    with pytest.raises(OSError, match="became shorter"):
        meter.read()


def test_a_power_log_with_other_columns_is_a_configuration_error(tmp_path):
    log = tmp_path / "power.csv"
    log.write_text("time,W\n1,2\n")
    with pytest.raises(ConfigError, match="columns are time, W"):
        find_meters(Meters(sources=["csv"], csv=str(log)))
    log.write_bytes(b"timestamp,source,watts\r1,a,2\r")
    with pytest.raises(ConfigError, match="columns are -"):
        find_meters(Meters(sources=["csv"], csv=str(log)))


class NvmlError(Exception):
    pass


def driver(energy_mj, power_mw) -> SimpleNamespace:
    """A driver that answers from recorded lists, and with an error where there is none."""

    def answer(values):
        def ask(_):
            if not values:
                raise NvmlError("Not Supported")
            return values.pop(0) if len(values) > 1 else values[0]

        return ask

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlDeviceGetTotalEnergyConsumption=answer(energy_mj),
        nvmlDeviceGetPowerUsage=answer(power_mw),
    )


def test_a_gpu_s_counter_and_power_come_in_joules_and_watts():
    meter = NvmlMeter(driver([0, 187_000], [0, 327_000]), {"gpu0": "handle"}, ExitStack())
    assert [(s.channel.quantity, s.value) for s in meter.read()] == [
        ("energy", 187.0),
        ("power", 327.0),
    ]


def test_a_gpu_without_a_counter_is_metered_by_power_and_without_either_not_at_all():
    meter = NvmlMeter(driver([], [50_000]), {"gpu0": "handle"}, ExitStack())
    assert [s.channel.quantity for s in meter.read()] == ["power"]
    with pytest.raises(OSError, match="neither energy nor power"):
        NvmlMeter(driver([], []), {"gpu0": "handle"}, ExitStack())


def test_a_counter_and_a_power_that_disagree_are_flagged(clock):
    counter = [int(1000 * 20 * i) for i in range(500)]
    meter = NvmlMeter(driver(counter, [30_000]), {"gpu0": "handle"}, ExitStack(), clock)
    with EnergySession([meter], interval_s=0.02, clock=clock) as session:
        start_s = session.now()
        clock.sleep(1.1)
        energy = session.energy(start_s, session.now())
    counted = next(p for p in energy.parts if p.channel.quantity == "energy")
    assert energy.energy_j == counted.energy_j
    assert energy.scope == "GPU boards alone (nvml gpu0)"
    assert "polled power" in energy.warnings[0]


def test_a_session_for_a_log_of_afterwards_rests_without_a_meter_and_says_when(clock):
    with EnergySession([], idle_s=22.0, clock=clock, for_later=True) as session:
        session.rest()
        clock.sleep(60.0)
        session.rest()
        began_s = session.unix_s(0.0)
        assert session.rested() == [(began_s, began_s + 22.0), (began_s + 82.0, began_s + 104.0)]
        assert session.conserved() == []


def test_without_a_meter_nothing_waits_and_the_reasons_stand_for_the_figure():
    missing = [MissingMeter("nvml", "no NVIDIA driver"), MissingMeter("rapl", "no powercap")]
    with EnergySession([], missing, idle_s=60.0) as session:
        session.rest()
        energy = session.energy(session.now() - 1, session.now())
    assert energy.energy_j is None
    assert (energy.reason, energy.net_j) == ("no_meter", None)
    metric = energy.metric("training_energy_j")
    assert metric.reason == "no_meter: nvml: no NVIDIA driver; rapl: no powercap"
    assert session.samples().empty
    assert "energy" not in {thread.name for thread in threading.enumerate()}


def test_every_wanted_source_is_found_or_missing_with_a_reason():
    found, missing = find_meters(Meters())
    assert sorted([m.reader for m in found] + [m.source for m in missing]) == [
        "csv",
        "nvml",
        "rapl",
    ]
    assert all(m.reason for m in missing)
    for meter in found:
        meter.close()
    assert find_meters(Meters(sources=[])) == ([], [])


def test_a_log_that_is_asked_for_must_be_named():
    with pytest.raises(ValueError, match="needs the path of the power log"):
        Meters(sources=["csv"])
