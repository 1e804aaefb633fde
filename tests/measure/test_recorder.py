"""Meters logged for days: what a kill, a lost meter and a week leave of the recording."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest

from workbench.errors import ConfigError, StageError
from workbench.measure.meters.find import MissingMeter
from workbench.measure.meters.recorder import REOPEN_S, Recorder
from workbench.measure.meters.recording import (
    Recording,
    parts_of,
    read_recording,
    row_channel,
    sample_row,
)
from workbench.measure.meters.sample import Channel, MeterFault, Sample
from workbench.pilot.sections.meters import Meters

PDU = Channel("snmp", "pdu/1", "node", "power", averaging_s=2.0, resolution=1.0)
CPU = Channel("rapl", "package-0", "cpu", "energy", "modelled", wraps_at_j=65.5, contains=("dram",))


class Played:
    """A meter of one channel that does not answer at some times of the clock."""

    def __init__(self, channel, clock, gone=(), reconnects=True):
        self.reader, self.notes, self.closed = channel.reader, [], False
        self._channel, self._clock, self._gone, self._reconnects = channel, clock, gone, reconnects
        self._lost = False

    def read(self):
        now_s = self._clock.monotonic_s()
        out = any(begin <= now_s < end for begin, end in self._gone)
        self._lost = out or (self._lost and not self._reconnects)
        if self._lost:
            raise OSError("no answer within 2 s")
        return [Sample(self._channel, now_s, self._clock.wall_s(), 400.0 + now_s)]

    def close(self):
        self.closed = True


def recorder(clock, out, *meters, missing=(), said=None, again=None, **options):
    """``again``: what is found when a reader is opened anew."""

    def find(section):
        first = section.sources == ["auto"]
        return (list(meters), list(missing)) if first else ((again or (lambda _: []))(section), [])

    say = said.append if said is not None else (lambda _: None)
    return Recorder(Meters(), out, clock=clock, find=find, say=say, **options)


def rows_of(path):
    return [row for batch in read_recording(path) for row in batch.to_pylist()]


def values_of(path, reader):
    return [row for row in rows_of(path) if row["reader"] == reader and row["value"] is not None]


def test_a_recording_holds_every_sample_with_what_its_channel_declares(tmp_path, clock):
    out = tmp_path / "power.parquet"
    written = recorder(clock, out, Played(PDU, clock), Played(CPU, clock)).run(60.0)
    rows = rows_of(out)
    assert written == len(rows) == 2 * 61 and not parts_of(out).exists()
    assert {row_channel(row) for row in rows} == {PDU, CPU}
    pdu = [row for row in rows if row["reader"] == "snmp"]
    assert [row["value"] for row in pdu] == [400.0 + s for s in range(61)]
    assert pdu[-1]["wall_s"] - pdu[0]["wall_s"] == 60.0
    assert pq.read_metadata(out).num_rows == 122  # any reader of Parquet opens it


def test_a_meter_that_goes_and_comes_back_leaves_a_gap_and_two_sentences(tmp_path, clock):
    out, said = tmp_path / "power.parquet", []
    gone = Played(PDU, clock, gone=[(20.0, 50.0)])
    recorder(clock, out, gone, Played(CPU, clock), said=said).run(100.0)
    times_s = np.array([row["monotonic_s"] for row in values_of(out, "snmp")])
    assert len(times_s) == 101 - 30 and np.diff(times_s).max() == 31.0
    assert len(values_of(out, "rapl")) == 101, "the others go on"
    assert said == [
        "snmp does not answer: no answer within 2 s",
        "snmp answers again after 30.0 s, 30 readings failed",
    ]
    faults = [row["fault"] for row in rows_of(out) if row["fault"]]
    assert said[1].removeprefix("snmp ") in faults and len(faults) <= 32


def test_a_driver_that_does_not_recover_is_opened_anew(tmp_path, clock):
    out, made = tmp_path / "power.parquet", []

    def again(section):
        assert section.sources == ["snmp"]
        made.append(Played(PDU, clock, gone=[(20.0, 50.0)]))
        return [made[-1]] if clock.monotonic_s() >= 50.0 else []

    lost = Played(PDU, clock, gone=[(20.0, 50.0)], reconnects=False)
    recorder(clock, out, lost, again=again).run(100.0)
    times_s = np.array([row["monotonic_s"] for row in values_of(out, "snmp")])
    assert np.diff(times_s).max() <= 31.0 + REOPEN_S and times_s[-1] == 100.0 and lost.closed


def test_a_meter_that_is_not_there_at_the_start_is_recorded_once_it_is(tmp_path, clock):
    missing = [MissingMeter("snmp", "10.0.0.9 does not answer")]
    out = tmp_path / "power.parquet"
    recorder(
        clock, out, Played(CPU, clock), missing=missing, again=lambda _: [Played(PDU, clock)]
    ).run(150.0)
    assert values_of(out, "snmp")[0]["monotonic_s"] == pytest.approx(60.0, abs=1.0)


def test_faults_of_rows_are_counted_and_few_are_written(tmp_path, clock):
    class Damaged(Played):
        def read(self):
            return [MeterFault(f"row '{n}' is no number") for n in range(100)]

    out = tmp_path / "power.parquet"
    recording = recorder(clock, out, Damaged(PDU, clock), Played(CPU, clock))
    recording.run(10.0)
    (count,) = recording.faults["snmp"].counts().values()
    assert count == 1100 and len(rows_of(out)) <= 11 + 12


def test_without_any_meter_nothing_is_begun(tmp_path, clock):
    with pytest.raises(ConfigError) as raised:
        recorder(clock, tmp_path / "p.parquet", missing=[MissingMeter("rapl", "no powercap")])
    assert "rapl: no powercap" in str(raised.value) and not list(tmp_path.iterdir())


def test_two_recorders_do_not_share_a_file_and_none_takes_a_foreign_one(tmp_path, clock):
    out = tmp_path / "power.parquet"
    first = recorder(clock, out, Played(PDU, clock))
    with pytest.raises(StageError, match="another process"):
        recorder(clock, out, Played(PDU, clock))
    assert first.run(1.0) == 2
    (tmp_path / "other.parquet").write_text("timestamp,source,watts\n")
    with pytest.raises(ConfigError, match="no recording"):
        recorder(clock, tmp_path / "other.parquet", Played(PDU, clock))


def test_the_same_command_goes_on_with_a_finished_file(tmp_path, clock):
    out = tmp_path / "power.parquet"
    for seconds in (10.0, 20.0):
        recorder(clock, out, Played(PDU, clock)).run(seconds)
        clock.sleep(5.0)
    assert [row["monotonic_s"] for row in rows_of(out)] == [*range(11), *range(15, 36)]


def test_rows_of_a_log_that_is_opened_again_are_recorded_once(tmp_path, clock):
    """A log that is opened begins with its latest rows."""

    class Log(Played):
        def __init__(self, *options, **more):
            super().__init__(*options, **more)
            self._from_s = clock.monotonic_s() - 8.0

        def read(self):
            super().read()
            now_s, from_s = clock.monotonic_s(), max(0.0, self._from_s)
            rows = [second for second in range(int(from_s), int(now_s) + 1) if second >= from_s]
            self._from_s = int(now_s) + 1
            return [Sample(PDU, s, clock.wall_s() - now_s + s, float(s)) for s in rows]

    out = tmp_path / "power.parquet"
    gone = [(30.0, 45.0)]
    lost = Log(PDU, clock, gone=gone, reconnects=False)
    recorder(clock, out, lost, again=lambda _: [Log(PDU, clock, gone=gone)]).run(60.0)
    clock.sleep(5.0)
    recorder(clock, out, Log(PDU, clock)).run(20.0)
    seconds = [row["value"] for row in rows_of(out) if row["value"] is not None]
    assert len(seconds) == len(set(seconds)) and seconds == sorted(seconds)
    assert seconds[0] == 0.0 and seconds[-1] == 85.0


@pytest.mark.parametrize("cut", [1, 7, 100, 1000])
def test_a_stream_that_is_cut_off_anywhere_gives_its_whole_batches(tmp_path, clock, cut):
    recording = Recording(tmp_path / "whole.parquet")
    for _ in range(20):
        clock.sleep(1.0)
        recording.append([sample_row(one) for one in Played(PDU, clock).read()])
    (stream,) = parts_of(tmp_path / "whole.parquet").glob("*.arrows")
    whole = stream.read_bytes()
    assert recording.finish() == 20
    out = tmp_path / "cut.parquet"
    parts_of(out).mkdir()
    (parts_of(out) / stream.name).write_bytes(whole[:-cut])
    kept = [row["value"] for row in rows_of(out)]
    assert kept == [400.0 + s for s in range(1, len(kept) + 1)]
    assert len(kept) >= 20 - 2 - cut // (len(whole) // 21)


def test_memory_is_flat_over_a_week(tmp_path, clock):
    """A reading every five minutes, an hour a piece."""
    out = tmp_path / "power.parquet"
    week = recorder(clock, out, Played(PDU, clock), every_s=300.0, flush_s=300.0)
    peaks = []

    def look():
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()

    clock.every(86400.0, look)
    tracemalloc.start()
    try:
        written = week.run(7 * 86400.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert written == 7 * 288 + 1
    assert max(peaks[1:]) < 1.1 * peaks[0] + 200_000, f"peaks by day, bytes: {peaks}"


CHILD = """
import json, sys
from workbench.measure.meters.clock import SYSTEM_CLOCK as clock
from workbench.measure.meters.recorder import Recorder
from workbench.measure.meters.sample import Channel, Sample
from workbench.pilot.sections.meters import Meters

class Counting:
    reader, notes, n = "played", [], 0
    def read(self):
        self.n += 1
        sys.stderr.write(json.dumps([self.n, clock.wall_s()]) + "\\n")
        sys.stderr.flush()
        channel = Channel("played", "pdu", "node", "power")
        return [Sample(channel, clock.monotonic_s(), clock.wall_s(), float(self.n))]
    def close(self): pass

Recorder(Meters(), __import__("pathlib").Path(sys.argv[1]), 0.05,
         find=lambda _: ([Counting()], [])).run()
"""


def test_a_kill_loses_the_last_second_at_most_and_the_next_one_goes_on(tmp_path):
    out = tmp_path / "power.parquet"
    read = []
    for _ in range(2):
        with (tmp_path / "read.jsonl").open("w") as log:
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(out)], stderr=log, env=dict(os.environ)
            )
        deadline = time.monotonic() + 60.0
        while len((tmp_path / "read.jsonl").read_text().splitlines()) < 30:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        lines = (tmp_path / "read.jsonl").read_text().splitlines()
        read.append([json.loads(line) for line in lines if line.endswith("]")])
    kept = values_of(out, "played")
    passes = np.split([row["value"] for row in kept], [
        at for at in range(1, len(kept)) if kept[at]["value"] < kept[at - 1]["value"]
    ])  # fmt: skip
    assert len(passes) == 2
    for values, seen in zip(passes, read, strict=True):
        assert list(values) == list(range(1, len(values) + 1)), "no sample is lost in the middle"
        lost = [at_s for number, at_s in seen if number > len(values)]
        if lost:
            assert seen[-1][1] - lost[0] < 1.0, f"{len(lost)} of {len(seen)} samples lost"
