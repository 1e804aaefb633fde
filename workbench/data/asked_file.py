"""JSONL files of what to ask a model, row by row: what is wrong is said with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, PrivateAttr, ValidationError

from workbench.errors import ConfigError
from workbench.json_lines import LineError, parsed
from workbench.paths import shown
from workbench.pilot.problems import sentence
from workbench.pilot.sections.base import Section

FilledText = Annotated[str, Field(min_length=1)]
NEXT = "mend that line; nothing was started"


class AskedRow(Section):
    """A row of such a file. id: unique in it; without one the row's line is its name."""

    id: str | int | None = None
    _line: int = PrivateAttr(0)

    @property
    def line(self) -> int:
        """Where it stands in its file, from 1."""
        return self._line

    @property
    def name(self) -> str:
        return str(self.line if self.id is None else self.id)


Row = TypeVar("Row", bound=AskedRow)


def read_asked(path: Path, kind: type[Row], most: int) -> list[Row]:
    """The first ``most`` rows, all of them checked. Raises ConfigError for the first row that is
    wrong, for two of one name, and for a file without any."""
    rows: list[Row] = []
    lines: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line, value in parsed(file):
                row = _checked(value, kind, f"{shown(path)}, line {line}", line)
                if (first := lines.setdefault(row.name, line)) != line:
                    raise ConfigError(
                        f"{shown(path)}, line {line}: id {row.name!r} is that of line {first} too",
                        allowed="each id once",
                        next_step=NEXT,
                    )
                if len(rows) < most:
                    rows.append(row)
    except LineError as error:
        raise ConfigError(
            f"{shown(path)}, {error}", allowed="one JSON object a line", next_step=NEXT
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)} is not UTF-8 text: {error.reason}", next_step="convert it to UTF-8"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{shown(path)} cannot be read: {error.strerror}", allowed="a JSONL file"
        ) from None
    if not rows:
        raise ConfigError(
            f"{shown(path)} has no rows", allowed="at least one JSON object, one a line"
        )
    return rows


def _checked(value: object, kind: type[Row], where: str, line: int) -> Row:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where}: got {type(value).__name__}", allowed="one JSON object a line", next_step=NEXT
        )
    if (bad := _half_a_character(value)) is not None:
        raise ConfigError(
            f"{where}: {bad!a} holds half a character",
            allowed="text that UTF-8 can hold",
            next_step=NEXT,
        )
    try:
        row = kind.model_validate(value)
    except ValidationError as error:
        problems = [sentence(found, kind)[1] for found in error.errors(include_url=False)]
        raise ConfigError(
            f"{where}: {'; '.join(dict.fromkeys(problems))}", next_step=NEXT
        ) from None
    row._line = line
    return row


def _half_a_character(value: object) -> str | None:
    """A text in it with a lone surrogate, which JSON can say and UTF-8 cannot hold."""
    if isinstance(value, str):
        return value if any("\ud800" <= letter <= "\udfff" for letter in value) else None
    inner: list[object] = []
    if isinstance(value, dict):
        inner = [*value, *value.values()]
    elif isinstance(value, list):
        inner = value
    return next((bad for one in inner if (bad := _half_a_character(one)) is not None), None)
