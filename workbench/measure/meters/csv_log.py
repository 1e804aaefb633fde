"""A power log that something else writes while the pilot runs: a PDU's export, a wall meter.

Columns ``timestamp,source,watts``; further ones are ignored. ``timestamp`` is Unix seconds or
a date and time *with* its offset, because a log in unnamed local time cannot be placed. Each
``source`` is one feed of the machine, and the feeds are summed: a log must not hold a part of
the machine beside the whole. The clocks of the logger and of this machine must agree.
"""

from __future__ import annotations

import csv
import math
from datetime import datetime
from pathlib import Path

from workbench.errors import ConfigError
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.sample import Channel, Sample
from workbench.paths import shown

COLUMNS = ("timestamp", "source", "watts")
TAIL_BYTES = 1 << 16
"""What is read of the rows that were in the log before the session; enough to bracket its
start without going through a log of months."""
SHOWN_CHARACTERS = 200
"""Of a row that is no sample."""


class CsvMeter:
    """Follows the log; each reading gives the whole lines added since the last one.

    A line that is no sample fails a reading of its own; those around it count.
    """

    source = "csv"

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        """Raises ConfigError when the file has no header with the columns."""
        self.path, self._clock = path, clock
        with path.open("rb") as file:
            header = file.readline()
            try:
                names = _fields(header.decode("utf-8-sig", "replace"))
            except ValueError:
                names = []
            self._names = [name.strip() for name in names]
            if not set(COLUMNS) <= set(self._names):
                raise ConfigError(
                    f"{shown(path)}:1: the power log's columns are {', '.join(self._names) or '-'}",
                    allowed=f"a header with {', '.join(COLUMNS)}",
                    next_step="correct the log, or leave measure_ab.meters.csv out",
                )
            begin = file.tell()
            size = file.seek(0, 2)
            self._at = begin
            if size - begin > TAIL_BYTES:
                file.seek(size - TAIL_BYTES)
                file.readline()
                self._at = file.tell()

    def read(self) -> list[Sample]:
        with self.path.open("rb") as file:
            if file.seek(0, 2) < self._at:
                raise OSError(f"{shown(self.path)} became shorter")
            file.seek(self._at)
            # The last piece has no line end yet and may still be written to.
            *lines, _ = file.read().split(b"\n")
        offset_s = self._clock.wall_s() - self._clock.monotonic_s()
        samples = []
        for line in lines:
            try:
                if line.strip():
                    samples.append(self._sample(line.decode("utf-8", "replace"), offset_s))
            except ValueError as error:
                if samples:
                    break
                self._at += len(line) + 1
                text = line.decode("utf-8", "replace").strip()[:SHOWN_CHARACTERS]
                raise OSError(f"{shown(self.path)}: row {text!r}: {error}") from None
            self._at += len(line) + 1
        return samples

    def close(self) -> None:
        """Nothing is kept open."""

    def _sample(self, line: str, offset_s: float) -> Sample:
        """Raises ValueError for a line that is no sample."""
        fields = _fields(line)
        if len(fields) != len(self._names):
            raise ValueError(f"{len(fields)} fields, the header has {len(self._names)}")
        row = dict(zip(self._names, fields, strict=True))
        wall_s, watts = _unix_seconds(row["timestamp"].strip()), float(row["watts"])
        if not (math.isfinite(wall_s) and math.isfinite(watts)) or watts < 0:
            raise ValueError("negative or not finite")
        channel = Channel("csv", f"wall:{row['source'].strip()}", "power", "measured")
        return Sample(channel, wall_s - offset_s, wall_s, watts)


def _fields(line: str) -> list[str]:
    """Raises ValueError for a line that is no CSV, e.g. with a carriage return inside."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _unix_seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("the time has no offset from UTC")
    return moment.timestamp()
