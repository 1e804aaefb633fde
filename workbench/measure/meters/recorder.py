"""Logs meters for days: ``workbench meter record``.

Every reader is asked in a thread of its own, so that one that hangs leaves no gap in the others.
A reader that fails is asked again, and after a while opened anew; when it answers again the
recording goes on, with a gap and a row that says so. Memory holds a second of samples and the
kinds of failure, never their number.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, StageError, reason_of
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.faults import MeterFaults
from workbench.measure.meters.find import MissingMeter, find_meters
from workbench.measure.meters.recording import Recording, fault_row, sample_row
from workbench.measure.meters.sample import Channel, Meter, MeterFault, Sample
from workbench.paths import shown
from workbench.pilot.sections.meters import Meters
from workbench.wording.counts import number_of

Find = Callable[[Meters], tuple[list[Meter], list[MissingMeter]]]
FLUSH_S = 0.5
"""How long a sample is in memory alone; with the writing, what a kill loses is under a second."""
REOPEN_S = 10.0
"""A reader that failed for so long is opened anew, and again every so often."""
MISSING_S = 60.0
"""One that was not there at the start is looked for every so often."""


def all_meters(section: Meters) -> tuple[list[Meter], list[MissingMeter]]:
    """Those of every GPU that the driver shows, whoever computes on it."""
    return find_meters(section, gpus=None)


@dataclass
class _Reader:
    """All meters of one reader. failing_s: since when none answered, None while one does. lacks:
    whether some that are declared did not answer at the start. opened: just now; a log that is
    opened again begins with rows that were read before."""

    name: str
    meters: list[Meter]
    lacks: bool = False
    opened: bool = True
    failing_s: float | None = None
    failed: int = 0
    looked_s: float = 0.0
    said_s: float = -1e9
    faults: MeterFaults = field(default_factory=MeterFaults)


class Recorder:
    """Records what ``find`` finds into ``out``.

    section: which meters. every_s: between two readings of a meter. say: hears of meters that go
    and come back, in words. Raises ConfigError where no meter answers.
    """

    def __init__(
        self,
        section: Meters,
        out: Path,
        every_s: float = 1.0,
        clock: Clock = SYSTEM_CLOCK,
        find: Find = all_meters,
        say: Callable[[str], None] = lambda _: None,
        flush_s: float = FLUSH_S,
    ) -> None:
        self._every_s, self._clock = every_s, clock
        self._find, self._say, self._flush_s = find, say, flush_s
        # A pilot may name this very recording among its meters.
        self._section = section.model_copy(update={"recording": None})
        found, missing = find(self._section)
        if not found:
            reasons = "; ".join(f"{one.source}: {one.reason}" for one in missing)
            raise ConfigError(
                f"no meter answers here: {reasons or 'none was asked'}",
                allowed="a meter of this machine, or one that a pilot declares",
                next_step="workbench meter list --pilot PILOT.yaml says what each needs",
            )
        names = dict.fromkeys(meter.reader for meter in found)
        self._readers = [_Reader(n, [m for m in found if m.reader == n]) for n in names]
        for name in dict.fromkeys(one.source for one in missing):
            if name in names:
                next(r for r in self._readers if r.name == name).lacks = True
            else:
                self._readers.append(_Reader(name, [], True, failing_s=clock.monotonic_s()))
        for reader in self._readers:
            reader.looked_s = clock.monotonic_s()
        self._recording = Recording(out)
        self.kept = self._recording.kept
        self._latest_s = self._recording.latest_s()
        self.channels: dict[Channel, int] = {}
        """Channel -> samples so far."""
        self._rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._ends: list[Callable[[], None]] = []
        self._broken: OSError | None = None

    @property
    def faults(self) -> dict[str, MeterFaults]:
        """Reader -> what went wrong, by kind."""
        return {reader.name: reader.faults for reader in self._readers if len(reader.faults)}

    def run(self, for_s: float | None = None) -> int:
        """Record for ``for_s``, or until interrupted; the rows of the finished file."""
        until_s = None if for_s is None else self._clock.monotonic_s() + for_s
        try:
            for reader in self._readers:
                self._read(reader)
                self._ends.append(self._clock.every(self._every_s, partial(self._read, reader)))
            self._ends.append(self._clock.every(self._flush_s, self._flush))
            while until_s is None or (left_s := until_s - self._clock.monotonic_s()) > 0:
                nap_s = max(1.0, self._every_s)
                self._clock.sleep(nap_s if until_s is None else min(nap_s, left_s))
                if self._broken:
                    raise StageError(
                        f"{shown(self._recording.path)} cannot be written: {self._broken}",
                        next_step="free some space; the same command goes on with what is there",
                    )
        finally:
            rows = self._finish()
        return rows

    def _finish(self) -> int:
        for end in self._ends:
            end()
        self._flush()
        for reader in self._readers:
            for meter in reader.meters:
                meter.close()
        return self._recording.finish()

    def _read(self, reader: _Reader) -> None:
        if reader.lacks and not self._look_again(reader, MISSING_S) and not reader.meters:
            return
        answered, reasons = False, []
        for meter in reader.meters:
            try:
                found = meter.read()
                answered = True
            except Exception as error:
                # Whatever a driver raises, a log of days goes on.
                reasons.append(reason_of(error))
                continue
            self._keep(reader, found)
        reader.opened = reader.opened and not answered
        for reason in reasons:
            self._fault(reader, reason)
        now_s = self._clock.monotonic_s()
        if answered:
            if reader.failing_s is not None:
                gone_s = now_s - reader.failing_s
                self._announce(
                    reader,
                    f"answers again after {gone_s:.1f} s, {number_of(reader.failed, 'reading')} "
                    "failed",
                )
            reader.failing_s, reader.failed = None, 0
            return
        reader.failed += 1
        if reader.failing_s is None:
            reader.failing_s = now_s
            self._announce(reader, f"does not answer: {reasons[0]}")
        elif now_s - reader.failing_s >= REOPEN_S:
            self._look_again(reader, REOPEN_S)

    def _look_again(self, reader: _Reader, every_s: float) -> bool:
        """Open the meters of a reader anew; whether there are any now."""
        now_s = self._clock.monotonic_s()
        if now_s - reader.looked_s < every_s:
            return False
        reader.looked_s = now_s
        only = self._section.model_copy(update={"sources": [reader.name]})
        try:
            found, _ = self._find(only)
        except Exception as error:
            self._fault(reader, reason_of(error))
            return False
        answers = reader.failing_s is None
        if not found or (answers and len(found) <= len(reader.meters)):
            for meter in found:
                meter.close()
            return False
        for meter in reader.meters:
            meter.close()
        reader.meters, reader.opened = found, True
        return True

    def _keep(self, reader: _Reader, found: list[Sample | MeterFault]) -> None:
        for one in found:
            if isinstance(one, MeterFault):
                self._fault(reader, one.text)
                continue
            latest_s = self._latest_s.get(one.channel, -math.inf)
            if reader.opened and one.wall_s <= latest_s:
                continue
            with self._lock:
                self._latest_s[one.channel] = max(latest_s, one.wall_s)
                self._rows.append(sample_row(one))
                self.channels[one.channel] = self.channels.get(one.channel, 0) + 1

    def _fault(self, reader: _Reader, text: str) -> None:
        """Counted always; a row at most once a second, so that failures fill no disk."""
        now_s = self._clock.monotonic_s()
        reader.faults.add(now_s, f"{reader.name}: {text}")
        if now_s - reader.said_s >= 1.0:
            reader.said_s = now_s
            self._fault_row(reader, text)

    def _announce(self, reader: _Reader, text: str) -> None:
        self._fault_row(reader, text)
        self._say(f"{reader.name} {text}")

    def _fault_row(self, reader: _Reader, text: str) -> None:
        row = fault_row(reader.name, self._clock.wall_s(), self._clock.monotonic_s(), text)
        with self._lock:
            self._rows.append(row)

    def _flush(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, []
        try:
            self._recording.append(rows)
        except OSError as error:
            self._broken = error
