"""The requests of a profile: one Parquet file in the order of their times.

Columns: ``start_s`` (float64, the first request is at 0), ``prompt_tokens`` and ``output_tokens``
(int32), ``class`` (text: ``interactive`` or ``batch``) and, where the trace has them, ``tenant``,
``session``, ``chat``, ``parent`` (int64, names digested) and ``duration_s`` (float32). Thirty
million requests are read in groups of rows, never whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from workbench.load.order import Batch
from workbench.load.requests import CLASSES

ROWS_A_GROUP = 262_144
"""Rows of a group: what is read at once."""
OPTIONAL_TYPES = {
    **dict.fromkeys(("tenant", "session", "chat", "parent"), pa.int64()),
    "duration_s": pa.float32(),
}


class StoreWriter:
    """Writes batches that come in the order of their times.

    most_interactive_tokens: a request of no class with more output is in class batch.
    first_s: time of the first request, which becomes 0; repeats: requests equal to the one before.
    """

    def __init__(self, path: Path, most_interactive_tokens: int) -> None:
        self._path, self._most = path, most_interactive_tokens
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[Batch] = []
        self._rows = 0
        self._last: tuple[float, int, int] | None = None
        self.first_s: float | None = None
        self.requests = self.repeats = 0

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def write(self, batch: Batch) -> None:
        """Append a batch; its times never lie before those of the one before."""
        times = batch["start_s"]
        if self.first_s is None:
            self.first_s = float(times[0])
        self._count_repeats(batch)
        self._pending.append(batch)
        self._rows += len(times)
        self.requests += len(times)
        if self._rows >= ROWS_A_GROUP:
            self._flush()

    def _count_repeats(self, batch: Batch) -> None:
        times, prompt, output = (batch[k] for k in ("start_s", "prompt_tokens", "output_tokens"))
        same = (np.diff(times) == 0) & (np.diff(prompt) == 0) & (np.diff(output) == 0)
        first = (float(times[0]), int(prompt[0]), int(output[0]))
        self.repeats += int(same.sum()) + (first == self._last)
        self._last = (float(times[-1]), int(prompt[-1]), int(output[-1]))

    def _flush(self) -> None:
        if not self._pending:
            return
        joined = {
            name: np.concatenate([batch[name] for batch in self._pending])
            for name in self._pending[0]
        }
        self._pending, self._rows = [], 0
        codes = joined.pop("class")
        long = joined["output_tokens"] > self._most
        codes = np.where(codes == 0, np.where(long, 1, 0), codes - 1).astype(np.int8)
        columns = {
            "start_s": pa.array(joined.pop("start_s") - self.first_s),
            "prompt_tokens": pa.array(joined.pop("prompt_tokens"), pa.int32()),
            "output_tokens": pa.array(joined.pop("output_tokens"), pa.int32()),
            "class": pa.DictionaryArray.from_arrays(codes, pa.array(CLASSES)),
        }
        columns |= {name: pa.array(v, OPTIONAL_TYPES[name]) for name, v in joined.items()}
        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path, table.schema, compression="lz4", use_dictionary=["class"]
            )
        self._writer.write_table(table, row_group_size=ROWS_A_GROUP)


@dataclass(frozen=True)
class Store:
    """Requests in a Parquet file; see the module."""

    path: Path

    def batches(self, columns: Sequence[str]) -> Iterator[Batch]:
        """All requests, in order, in batches of columns; classes as codes of CLASSES."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS_A_GROUP, columns=list(columns)):
                yield {name: _plain(batch.column(name)) for name in columns}

    def rows(self) -> int:
        return pq.read_metadata(self.path).num_rows

    def span_s(self) -> float:
        """Time of the last request."""
        with pq.ParquetFile(self.path) as file:
            last = file.read_row_group(file.num_row_groups - 1, columns=["start_s"])
        return float(last["start_s"][-1].as_py())

    def columns(self) -> list[str]:
        return pq.read_schema(self.path).names

    def between(self, start_s: float, end_s: float) -> pd.DataFrame:
        """The requests in [start_s, end_s), with their own times."""
        parts = []
        with pq.ParquetFile(self.path) as file:
            at = file.schema_arrow.names.index("start_s")
            for group in range(file.num_row_groups):
                limits = file.metadata.row_group(group).column(at).statistics
                if limits.max >= start_s and limits.min < end_s:
                    rows = file.read_row_group(group).to_pandas()
                    inside = (rows["start_s"] >= start_s) & (rows["start_s"] < end_s)
                    parts.append(rows[inside])
            if not parts:
                return file.schema_arrow.empty_table().to_pandas()
        return pd.concat(parts, ignore_index=True)

    def sample(self, count: int, seed: int) -> pd.DataFrame:
        """``count`` different requests at random, or all, in order."""
        with pq.ParquetFile(self.path) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            n = sum(sizes)
            chosen = np.sort(
                np.random.default_rng(seed).choice(n, min(count, n), replace=False, shuffle=False)
            )
            ends = np.cumsum(sizes)
            parts = []
            for group, (start, end) in enumerate(zip(ends - sizes, ends, strict=True)):
                rows = chosen[(chosen >= start) & (chosen < end)] - start
                if len(rows):
                    parts.append(file.read_row_group(group).take(rows).to_pandas())
        return pd.concat(parts, ignore_index=True)

    def frame(self) -> pd.DataFrame:
        """All requests at once; of a long trace that takes 20 bytes and more a request."""
        return pd.read_parquet(self.path)


def _plain(values: pa.Array) -> np.ndarray:
    if pa.types.is_dictionary(values.type):
        order = [CLASSES.index(name) for name in values.dictionary.to_pylist()]
        return np.array(order, np.int8)[values.indices.to_numpy(zero_copy_only=False)]
    return values.to_numpy(zero_copy_only=False)
