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
from workbench.measure.meters.nvml import NvmlMeter
from workbench.measure.meters.rapl import find_rapl
from workbench.pilot.sections.measure_ab import Meters

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
    assert sorted(s.channel.scope for s in meter.read()) == ["dram-0", "package-0"]
    assert {s.value for s in meter.read()} == {5.0}
    assert {s.channel.wraps_at_j for s in meter.read()} == {262143.32885}


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
    read_text = Path.read_text

    def refuse(path, *arguments, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(OSError, match=r"root only \(since CVE-2020-8694\)"):
        find_rapl(root)


def test_a_machine_without_powercap_says_so(tmp_path):
    with pytest.raises(OSError, match=r"no .*absent: "):
        find_rapl(tmp_path / "absent")
    with pytest.raises(OSError, match="no package zone"):
        find_rapl(tmp_path)


class Load:
    """A processor whose counter goes on with the clock, at a power that a test sets."""

    def __init__(self, clock, zone: Path, watts: float) -> None:
        self.clock, self.zone, self.watts = clock, zone, watts
        self.joules, self.at_s = 5.0, clock.monotonic_s()
        clock.every(0.004, self.advance)

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
    assert energy.scope == "rapl package-0"
    samples = session.samples()
    assert samples["monotonic_s"].is_monotonic_increasing
    assert samples["monotonic_s"].min() == 0.0
    assert set(samples["source"]) == {"rapl"}
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
    assert energy.scope == "csv wall:feed-a + csv wall:feed-b"
    assert len(energy.parts) == 3


def test_a_bad_row_is_a_failed_reading_and_its_neighbours_count(tmp_path):
    now = time.time()
    rows = [f"{now},a,10", f"{now + 1},a,many", f"{now + 2},a,12", "2026-01-01 12:00:00,a,1"]
    meter = CsvMeter(write_log(tmp_path / "power.csv", rows))
    assert [s.value for s in meter.read()] == [10]
    with pytest.raises(OSError, match="many"):
        meter.read()
    assert [s.value for s in meter.read()] == [12]
    with pytest.raises(OSError, match="no offset from UTC"):
        meter.read()
    assert meter.read() == []


def test_a_row_that_is_no_csv_stops_nothing(tmp_path):
    now = time.time()
    rows = [f"{now},a,10\r", f"{now},a\r,100", f"{now + 1},a,{'9' * 200_000}", f"{now + 2},a,12"]
    meter = CsvMeter(write_log(tmp_path / "power.csv", []))
    write_log(meter.path, rows)
    assert [s.value for s in meter.read()] == [10]
    with pytest.raises(OSError, match="new-line character"):
        meter.read()
    with pytest.raises(OSError, match="field larger") as caught:
        meter.read()
    assert len(str(caught.value)) < 1000
    assert [s.value for s in meter.read()] == [12]


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
    assert energy.scope == "nvml gpu0"
    assert "polled power" in energy.warnings[0]


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
    assert sorted([m.source for m in found] + [m.source for m in missing]) == [
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
