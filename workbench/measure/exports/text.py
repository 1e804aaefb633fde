"""The text of an export and its table, whatever program wrote it: UTF-8 with or without a mark,
UTF-16, Windows' code page; commas, semicolons or tabs; lines of its own before the header."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ConfigError
from workbench.paths import shown

DELIMITERS = "\t;,|"
MOST_PREAMBLE = 40
"""Lines before a header, at most."""


def text_of(path: Path) -> str:
    """Raises ConfigError for a file that cannot be read or holds no text."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError) as error:
        raise ConfigError(
            f"{shown(path)}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", "replace")
    if raw[:200].count(0) > len(raw[:200]) // 4:  # every second byte of Latin text in UTF-16
        little = raw[1:200:2].count(0) >= raw[0:200:2].count(0)
        return raw.decode("utf-16-le" if little else "utf-16-be", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


@dataclass(frozen=True)
class ExportTable:
    """header: names as written. first_line: number of the first of ``lines``, from 1."""

    header: list[str]
    first_line: int
    lines: list[str]
    delimiter: str

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line number from 1, cells) of every line that is not blank; a line that is no CSV has
        no cells. Line by line, so that a quote which nothing closes spoils its own line alone."""
        for number, line in enumerate(self.lines, start=self.first_line):
            if line.strip():
                yield number, _cells(line, self.delimiter)


def table_of(
    path: Path,
    text: str,
    wanted: Sequence[Sequence[str]],
    also: Callable[[list[str]], bool] = lambda _: True,
) -> ExportTable:
    """The table below the first line that has, for every set of ``wanted``, a column whose name
    begins with one of it, in whatever case, and that is what ``also`` asks for.

    Raises ConfigError, with the columns of the first line, where no line does.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines[:MOST_PREAMBLE]):
        for delimiter in DELIMITERS:
            if delimiter not in line:
                continue
            header = _cells(line, delimiter)
            lowered = [name.lower() for name in header]
            named = all(any(n.startswith(tuple(some)) for n in lowered) for some in wanted)
            if named and also(header):
                return ExportTable(header, number + 2, lines[number + 1 :], delimiter)
    first = next((line for line in lines if line.strip()), "")[:200]
    raise ConfigError(
        f"{shown(path)}: no header with the columns that are wanted; the first line is {first!r}",
        allowed="; ".join("one of " + ", ".join(some) for some in wanted),
        next_step="give --columns with the file's own names, such as "
        "--columns timestamp=Zeit,source=Name,power=Leistung",
    )


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []
