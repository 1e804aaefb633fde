"""Rows of a training, kept on disk so that a kill neither loses nor repeats one.

Each table is a file of JSON lines that only grows. Rows of a step are written before the
checkpoint of that step, so when a training goes on from step s, every row up to s is there,
and the rows after s, which will be made again, are cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.files import write_text


class Telemetry:
    """The tables in ``folder``, as they stood after ``step`` finished steps (0: empty)."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.jsonl"):
            kept = [line for line, row in _whole_rows(path) if row["step"] <= step]
            write_text(path, "".join(kept))

    def add(self, table: str, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; each has a key ``step``, the number of finished steps it belongs to."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        with self._path(table).open("a", encoding="utf-8") as file:
            file.write(lines)

    def sync(self) -> None:
        """Make the rows outlive a power cut as well; a kill they outlive anyway."""
        for path in self.folder.glob("*.jsonl"):
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def last(self, table: str) -> dict[str, Any] | None:
        rows = self._rows(table)
        return rows[-1] if rows else None

    def frame(self, table: str) -> pd.DataFrame:
        return pd.DataFrame(self._rows(table))

    def _rows(self, table: str) -> list[dict[str, Any]]:
        path = self._path(table)
        return [row for _, row in _whole_rows(path)] if path.exists() else []

    def _path(self, table: str) -> Path:
        return self.folder / f"{table}.jsonl"


def _whole_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Lines with their rows. Only the last line can be cut off, and it is left out then."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [(line, json.loads(line)) for line in lines if line.endswith("\n")]
