"""Samples on disk, for days: one Parquet file in the end, and nothing that a kill loses meanwhile.

A Parquet file can be read only once its footer is written, so the recording grows beside its place,
in ``power.parquet.parts/``: whole pieces as Parquet, and the latest rows in an Arrow stream
(``.arrows``), to which a batch is added every second. A kill cuts off the last batch at most. An
hour of the stream becomes a piece; :meth:`Recording.finish` puts the pieces together. Whatever
reads a recording reads all three, so it may be cut off, growing or finished.

A row has the declarations of its channel beside its value, which compress to nothing and need no
second file; what stood where a sample should is a row with ``fault`` and without a value.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workbench.errors import ConfigError, StageError
from workbench.files import replacing
from workbench.measure.meters.sample import Channel, Sample
from workbench.paths import shown

PARTS = ".parts"
STREAM, PIECE = ".arrows", ".parquet"
PIECE_ROWS = 250_000
PIECE_S = 3600.0
"""A stream becomes a piece when it has so many rows or is so old."""
BATCH_ROWS = 64 * 1024


def _column(name: str, declared: str) -> pa.Field:
    if declared.startswith("tuple"):
        return pa.field(name, pa.list_(pa.string()))
    return pa.field(name, pa.float64() if declared.startswith("float") else pa.string())


CHANNEL_FIELDS = [field.name for field in fields(Channel)]
SCHEMA = pa.schema(
    [
        pa.field("wall_s", pa.float64()),
        pa.field("monotonic_s", pa.float64()),
        *(_column(field.name, str(field.type)) for field in fields(Channel)),
        pa.field("value", pa.float64()),
        pa.field("fault", pa.string()),
    ]
)
"""wall_s: Unix time. value: in J of a counter, W of a power."""


def sample_row(sample: Sample) -> dict[str, Any]:
    about = {name: getattr(sample.channel, name) for name in CHANNEL_FIELDS}
    about |= {name: list(value) for name, value in about.items() if isinstance(value, tuple)}
    return about | {
        "wall_s": sample.wall_s, "monotonic_s": sample.monotonic_s, "value": sample.value,
    }  # fmt: skip


def fault_row(reader: str, wall_s: float, monotonic_s: float, text: str) -> dict[str, Any]:
    return {"wall_s": wall_s, "monotonic_s": monotonic_s, "reader": reader, "fault": text}


def row_channel(row: dict[str, Any]) -> Channel:
    """The channel that a row was read from; columns that a recording lacks are undeclared."""
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in CHANNEL_FIELDS
        if (value := row.get(name)) is not None
    }
    return Channel(**known)


class Recording:
    """Writes one recording; one process at a time.

    path: the file in the end. What is there already, finished or cut off, is gone on with.
    Raises ConfigError where ``path`` is some other file, StageError where it is being written.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            require_recording(path)
        self.path, self._folder = path, parts_of(path)
        self.kept = self._folder.exists() or path.exists()
        """Whether there was something to go on with."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StageError(
                f"{shown(path)} is being recorded by another process",
                next_step="wait for it, stop it, or record into another file",
            ) from None
        self._number = 1 + max((int(piece.stem) for piece in pieces_of(path)), default=-1)
        if path.exists():
            path.rename(self._folder / f"{self._number:06d}{PIECE}")
            self._number += 1
        for stream in sorted(self._folder.glob(f"*{STREAM}")):
            _as_piece(stream)
        self._rows = 0
        self._begun_s: float | None = None
        self._file: Any = None
        self._writer: pa.RecordBatchWriter | None = None

    def latest_s(self) -> dict[Channel, float]:
        """Unix time of the latest sample of each channel in what there was, its last piece alone:
        a log that is followed again begins with rows of a short while ago."""
        found: dict[Channel, float] = {}
        for piece in pieces_of(self.path)[-1:]:
            for batch in _piece_batches(piece):
                for row in batch.to_pylist():
                    if row["value"] is not None:
                        found[row_channel(row)] = row["wall_s"]
        return found

    def append(self, rows: list[dict[str, Any]]) -> None:
        """On disk when it returns, as far as a kill of this process goes."""
        if not rows:
            return
        at_s = rows[-1]["wall_s"]
        if self._writer is None:
            self._begun_s = at_s
            self._file = (self._folder / f"{self._number:06d}{STREAM}").open("wb")
            self._writer = pa.ipc.new_stream(self._file, SCHEMA)
        self._writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
        self._file.flush()
        self._rows += len(rows)
        begun_s = self._begun_s if self._begun_s is not None else at_s
        if self._rows >= PIECE_ROWS or at_s - begun_s >= PIECE_S:
            self._end_stream()

    def finish(self) -> int:
        """Put the pieces together into the one file; its rows. Memory: a row group."""
        self._end_stream()
        rows = 0
        with replacing(self.path) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
            for piece in sorted(self._folder.glob(f"*{PIECE}")):
                for batch in _piece_batches(piece):
                    writer.write_batch(batch)
                    rows += batch.num_rows
        for piece in self._folder.iterdir():
            piece.unlink()
        self._folder.rmdir()
        self._lock.close()
        return rows

    def _end_stream(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.close()
        self._writer, self._rows = None, 0
        _as_piece(self._folder / f"{self._number:06d}{STREAM}")
        self._number += 1


def parts_of(path: Path) -> Path:
    return path.with_name(path.name + PARTS)


def pieces_of(path: Path) -> list[Path]:
    """The pieces and streams of a recording that is not finished, in their order, each once."""
    by_number: dict[str, Path] = {}
    for piece in sorted(parts_of(path).glob(f"*{STREAM}")):
        by_number[piece.stem] = piece
    for piece in sorted(parts_of(path).glob(f"*{PIECE}")):
        if not piece.name.startswith("."):
            by_number[piece.stem] = piece
    return [by_number[number] for number in sorted(by_number)]


def is_recording(path: Path) -> bool:
    """Whether a recording is there, finished or not."""
    return bool(pieces_of(path)) or (path.is_file() and _has_our_columns(path))


def require_recording(path: Path) -> None:
    """Raises ConfigError where ``path`` is no recording."""
    if not is_recording(path):
        raise ConfigError(
            f"{shown(path)} is no recording of meters",
            allowed="a file that workbench meter record wrote, whole or cut off",
            next_step="name another file",
        )


def read_recording(path: Path) -> Iterator[pa.RecordBatch]:
    """All rows, in the order in which they were written; the last one of a cut-off stream that is
    whole ends it. Raises ConfigError where ``path`` is no recording."""
    require_recording(path)
    if path.is_file():
        yield from _piece_batches(path)
    for piece in pieces_of(path):
        yield from _stream_batches(piece) if piece.suffix == STREAM else _piece_batches(piece)


def _has_our_columns(path: Path) -> bool:
    try:
        return {"wall_s", "reader", "place", "value"} <= set(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError):
        return False


def _piece_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            # A recording of an older version may lack a column.
            columns = [
                batch.column(field.name).cast(field.type)
                if field.name in batch.schema.names
                else pa.nulls(batch.num_rows, field.type)
                for field in SCHEMA
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def whole_batches(file: Any) -> Iterator[pa.RecordBatch]:
    """Those of a stream from where ``file`` stands to its end, or to where it was cut off or is
    still being written to; ``file`` then stands behind the last whole one."""
    while True:
        at = file.tell()
        try:
            message = pa.ipc.read_message(file)
            if message.type == "record batch":
                yield pa.ipc.read_record_batch(message, SCHEMA)
        except (EOFError, pa.ArrowInvalid, OSError):
            file.seek(at)
            return


def _stream_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as file:
        yield from whole_batches(file)


def _as_piece(stream: Path) -> None:
    """A stream, cut off or not, as Parquet in its place."""
    target = stream.with_suffix(PIECE)
    if not target.exists():
        batches: Iterable[pa.RecordBatch] = _stream_batches(stream)
        with replacing(target) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
            gathered: list[pa.RecordBatch] = []
            for batch in batches:
                gathered.append(batch)
                if sum(one.num_rows for one in gathered) >= BATCH_ROWS:
                    writer.write_table(pa.Table.from_batches(gathered, SCHEMA))
                    gathered = []
            writer.write_table(pa.Table.from_batches(gathered, SCHEMA))
    os.unlink(stream)
