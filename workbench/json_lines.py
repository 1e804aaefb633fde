"""Files of JSON lines: our own, which a kill may cut off, and other people's.

A row of ours is appended in one piece, so only the last line can be cut off, and what stands
before it is whole. A line of somebody else's file may be anything; the reader says which line
is wrong, and the caller what to do about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from workbench.files import write_text


class LineError(ValueError):
    """A line that is not JSON. number: from 1. is_cut: the file ends in the middle of it."""

    def __init__(self, number: int, reason: str, is_cut: bool) -> None:
        super().__init__(f"line {number}: not JSON: {reason}")
        self.number, self.reason, self.is_cut = number, reason, is_cut


def parsed(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of each line that is not blank. Raises LineError."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LineError(number, str(error), not line.endswith("\n")) from None
        yield number, value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a file of ours; none where there is no file."""
    return [row for _, row in parsed(_whole_lines(path))]


def keep_rows(path: Path, keep: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
    """Cut off what a kill left of a last row, and take out the rows that are not to be kept.
    What stays keeps its bytes."""
    if path.exists():
        lines = _whole_lines(path)
        write_text(path, "".join(lines[n - 1] for n, row in parsed(lines) if keep(row)))


def as_line(row: dict[str, Any]) -> str:
    """A row as it is appended, its end included."""
    return json.dumps(row) + "\n"


def _whole_lines(path: Path) -> list[str]:
    """Cut at the end of a line alone: a text within a row may hold other separators."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]
