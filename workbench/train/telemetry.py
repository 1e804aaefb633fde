"""Rows of a training, kept on disk so that a kill neither loses nor repeats one.

Each table is a file of JSON lines that only grows. Rows of a step are written before the
checkpoint of that step, so when a training goes on from step s, every row up to s is there,
and the rows after s, which will be made again, are cut off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.json_lines import as_line, keep_rows, read_rows


class Telemetry:
    """The tables in ``folder``, as they stood after ``step`` finished steps (0: empty)."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.jsonl"):
            keep_rows(path, lambda row: row["step"] <= step)

    def add(self, table: str, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; each has a key ``step``, the number of finished steps it belongs to."""
        lines = "".join(map(as_line, rows))
        with self._path(table).open("a", encoding="utf-8") as file:
            file.write(lines)

    def sync(self) -> None:
        """Make the rows outlive a power cut as well; a kill they outlive anyway."""
        for path in self.folder.glob("*.jsonl"):
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def last(self, table: str) -> dict[str, Any] | None:
        rows = read_rows(self._path(table))
        return rows[-1] if rows else None

    def frame(self, table: str) -> pd.DataFrame:
        return pd.DataFrame(read_rows(self._path(table)))

    def _path(self, table: str) -> Path:
        return self.folder / f"{table}.jsonl"
