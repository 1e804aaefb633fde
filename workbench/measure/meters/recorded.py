"""Meters that ``workbench meter record`` reads meanwhile, followed through its growing recording.

For what this user may not read (RAPL's counters are root's), or what another tool must ask but
once. Every reader of the recording is a meter of its own, so that bases are made as if it were read
here; its rows are of up to a second ago.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.recording import (
    PARTS,
    STREAM,
    parts_of,
    row_channel,
    whole_batches,
)
from workbench.measure.meters.sample import MeterFault, Sample
from workbench.paths import shown

TAIL_S = 10.0
"""Of the rows that were there before: enough to bracket the start of a session."""
STALE_S = 30.0
"""A recording whose latest row is older is not being written."""


class RecordedMeter:
    """Follows the rows of one reader. Raises OSError where the recording does not grow."""

    def __init__(self, path: Path, reader: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self.reader, self.notes = reader, [f"{reader} is read through {shown(path)}"]
        self._path, self._clock = path, clock
        self._file: Any = None
        self._stream: Path | None = None
        self._since_s = clock.wall_s() - TAIL_S

    def read(self) -> list[Sample | MeterFault]:
        offset_s = self._clock.wall_s() - self._clock.monotonic_s()
        found: list[Sample | MeterFault] = []
        for row in self._rows():
            if row["reader"] != self.reader or row["wall_s"] < self._since_s:
                continue
            if row["value"] is None:
                found.append(MeterFault(row["fault"] or "no value"))
                continue
            wall_s = row["wall_s"]
            found.append(Sample(row_channel(row), wall_s - offset_s, wall_s, row["value"]))
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rows(self) -> list[dict[str, Any]]:
        """What was written since the last call; through the end of one stream into the next."""
        batches: list[pa.RecordBatch] = []
        while True:
            later = self._later_stream()
            if self._file is not None:
                # Where there is a later one, nothing comes into this one any more.
                batches += whole_batches(self._file)
            if later is None:
                return [row for batch in batches for row in batch.to_pylist()]
            self.close()
            self._stream, self._file = later, later.open("rb")

    def _later_stream(self) -> Path | None:
        folder = parts_of(self._path)
        if not folder.exists():
            raise OSError(f"{shown(self._path)} is not being recorded any more")
        streams = sorted(folder.glob(f"*{STREAM}"))
        return next(
            (s for s in streams if self._stream is None or s.name > self._stream.name), None
        )


def recorded_meters(path: Path, clock: Clock = SYSTEM_CLOCK) -> list[RecordedMeter]:
    """One for each reader of the recording at ``path``, its file in the end or its folder of
    parts. Raises OSError where none is being written there."""
    if path.name.endswith(PARTS):
        path = path.with_name(path.name.removesuffix(PARTS))
    streams = sorted(parts_of(path).glob(f"*{STREAM}"))
    if not streams:
        raise OSError(f"{shown(path)} is not being recorded")
    readers: dict[str, None] = {}
    latest_s = 0.0
    with streams[-1].open("rb") as file:
        for batch in whole_batches(file):
            latest_s = max(latest_s, batch.column("wall_s")[-1].as_py())
            names = batch.column("reader").filter(batch.column("value").is_valid())
            readers |= dict.fromkeys(names.to_pylist())
    age_s = clock.wall_s() - latest_s
    if not readers or age_s > STALE_S:
        raise OSError(
            f"{shown(path)} does not grow: its latest row is {age_s:.0f} s old"
            if readers
            else f"{shown(path)} has no sample yet"
        )
    return [RecordedMeter(path, reader, clock) for reader in readers]
