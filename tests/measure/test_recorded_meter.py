"""A recording that grows, read as meters of this machine."""

import pytest

from workbench.measure.meters import recording as recording_module
from workbench.measure.meters.find import find_meters
from workbench.measure.meters.recorded import RecordedMeter, recorded_meters
from workbench.measure.meters.recording import Recording, fault_row, parts_of, sample_row
from workbench.measure.meters.sample import Channel, MeterFault, Sample
from workbench.measure.meters.session import EnergySession
from workbench.pilot.sections.meters import Meters

CPU = Channel(
    "rapl", "package-0", "cpu", "energy", period_s=0.001, averaging_s=0.0, lag_s=0.0
)  # fmt: skip
PDU = Channel("snmp", "pdu", "node", "power", lag_s=0.0, averaging_s=0.0)
WATTS = 60.0


def write(clock, recording, *channels):
    rows = []
    for channel in channels:
        value = WATTS * clock.monotonic_s() if channel.quantity == "energy" else 400.0
        rows.append(sample_row(Sample(channel, clock.monotonic_s(), clock.wall_s(), value)))
    recording.append(rows)


@pytest.fixture
def growing(tmp_path, clock):
    """A recorder that has been at work for a while, a row a second."""
    recording = Recording(tmp_path / "power.parquet")
    for _ in range(60):
        clock.sleep(1.0)
        write(clock, recording, CPU, PDU)
    yield recording
    if parts_of(recording.path).exists():
        recording.finish()


def test_each_reader_is_a_meter_that_begins_with_the_latest_rows(growing, clock):
    meters = recorded_meters(parts_of(growing.path), clock)
    assert [meter.reader for meter in meters] == ["rapl", "snmp"]
    assert [len(meter.read()) for meter in meters] == [11, 11]
    clock.sleep(1.0)
    write(clock, growing, CPU, PDU)
    for meter, channel in zip(meters, (CPU, PDU), strict=True):
        (sample,) = meter.read()
        assert sample.channel == channel and sample.monotonic_s == clock.monotonic_s()
        assert meter.read() == []
        meter.close()


def test_rows_are_followed_into_the_next_piece(growing, clock, monkeypatch):
    monkeypatch.setattr(recording_module, "PIECE_ROWS", 50)
    meter = RecordedMeter(growing.path, "rapl", clock)
    meter.read()
    found = []
    for second in range(200):
        clock.sleep(1.0)
        write(clock, growing, CPU, PDU)
        if second % 3 == 0:
            found += meter.read()
    found += meter.read()
    meter.close()
    assert [one.monotonic_s for one in found] == [61.0 + n for n in range(200)]


def test_faults_come_as_faults_and_an_ended_recording_does_not_answer(growing, clock):
    meter = RecordedMeter(growing.path, "rapl", clock)
    meter.read()
    growing.append([fault_row("rapl", clock.wall_s(), clock.monotonic_s(), "does not answer: x")])
    assert meter.read() == [MeterFault("does not answer: x")]
    growing.finish()
    with pytest.raises(OSError, match="not being recorded any more"):
        meter.read()
    meter.close()


def test_one_that_does_not_grow_is_missing(growing, clock, tmp_path):
    section = Meters(recording=str(growing.path), sources=["recording"])
    clock.sleep(100.0)
    found, (missing,) = find_meters(section, clock=clock)
    assert not found and "latest row is 100 s old" in missing.reason
    section = Meters(recording=str(tmp_path / "other.parquet"), sources=["recording"])
    _, (missing,) = find_meters(section, clock=clock)
    assert "is not being recorded" in missing.reason


def test_a_session_has_the_energy_of_its_windows_from_it(growing, clock):
    section = Meters(recording=str(growing.path), sources=["recording"])
    found, missing = find_meters(section, clock=clock)
    end = clock.every(1.0, lambda: write(clock, growing, CPU, PDU))
    with EnergySession(found, missing, clock=clock) as session:
        clock.sleep(2.3)
        start_s = session.now()
        clock.sleep(20.0)
        end_s = session.now()
        clock.sleep(3.0)
        node, boards = session.energies(start_s, end_s)
    end()
    assert (node.basis.name, node.energy_j) == ("node", pytest.approx(400.0 * 20))
    assert (boards.basis.name, boards.energy_j) == ("cpu", pytest.approx(WATTS * 20))
