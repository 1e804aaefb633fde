"""A power log that something else writes while the pilot runs: a PDU's export, a wall meter.

Columns ``timestamp,source,watts``; further ones are ignored. ``timestamp`` is Unix seconds or
a date and time with its offset from UTC, or without one where the log's time zone is declared.
Each ``source`` is one feed of the machine, and the feeds are summed: a log must not hold a part of
the machine beside the whole, nor several things under one name.
"""

from __future__ import annotations

import csv
import math
import os
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from workbench.errors import ConfigError
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.sample import Channel, MeterFault, Sample, Scope
from workbench.paths import shown
from workbench.wording.counts import number_of

COLUMNS = ("timestamp", "source", "watts")
TAIL_BYTES = 1 << 16
"""What is read of the rows that were in the log before the session; enough to bracket its
start without going through a log of months."""
SHOWN_CHARACTERS = 80
"""Of a row that is no sample."""
WATTS = {"W": 1.0, "kW": 1000.0}


class CsvMeter:
    """Follows the log; each reading gives the whole lines added since the last one.

    A line that is no sample is a fault; those around it count.
    """

    reader = "csv"

    def __init__(
        self,
        path: Path,
        clock: Clock = SYSTEM_CLOCK,
        unit: str = "W",
        time_zone: str | None = None,
        scope: Scope = "node",
    ) -> None:
        """unit: ``W`` or ``kW``. time_zone: of times without an offset.

        Raises ConfigError when the file has no header with the columns.
        """
        self.path, self._clock = path, clock
        self.notes: list[str] = []
        self._factor, self._scope = WATTS[unit], scope
        self._zone = ZoneInfo(time_zone) if time_zone else None
        self._channels: dict[str, Channel] = {}
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

    def read(self) -> list[Sample | MeterFault]:
        # Ten times a second there is mostly nothing: opened anew, so that a log on another machine
        # is looked at there, and without Python's layers of a file.
        file = os.open(self.path, os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            if size < self._at:
                raise OSError(f"{shown(self.path)} became shorter")
            if size == self._at:
                return []
            # The last piece has no line end yet and may still be written to.
            *lines, _ = os.pread(file, size - self._at, self._at).split(b"\n")
        finally:
            os.close(file)
        offset_s = self._clock.wall_s() - self._clock.monotonic_s()
        found: list[Sample | MeterFault] = []
        for line in lines:
            self._at += len(line) + 1
            text = line.decode("utf-8", "replace")
            if not text.strip():
                continue
            try:
                found.append(self._sample(text, offset_s))
            except ValueError as error:
                row = text.strip()[:SHOWN_CHARACTERS]
                found.append(MeterFault(f"{shown(self.path)}: row {row!r}: {error}", "bad_row"))
        return found

    def close(self) -> None:
        """Nothing is kept open."""

    def _sample(self, line: str, offset_s: float) -> Sample:
        """Raises ValueError for a line that is no sample."""
        fields = _fields(line)
        if len(fields) != len(self._names):
            raise ValueError(
                f"{number_of(len(fields), 'field')}, the header has {len(self._names)}"
            )
        row = dict(zip(self._names, fields, strict=True))
        wall_s = self._unix_seconds(row["timestamp"].strip())
        watts = float(row["watts"]) * self._factor
        if not (math.isfinite(wall_s) and math.isfinite(watts)) or watts < 0:
            raise ValueError("negative or not finite")
        place = row["source"].strip()
        channel = self._channels.setdefault(place, Channel("csv", place, self._scope, "power"))
        return Sample(channel, wall_s - offset_s, wall_s, watts)

    def _unix_seconds(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            if self._zone is None:
                raise ValueError(
                    "the time has no offset from UTC; declare measure_ab.meters.csv_time_zone"
                )
            moment = moment.replace(tzinfo=self._zone)
        return moment.timestamp()


def _fields(line: str) -> list[str]:
    """Raises ValueError for a line that is no CSV, e.g. with a carriage return inside."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise ValueError(str(error)) from None
