"""Readers of the trace formats that sites have, and the choice between them.

============ ===== ========================================================================
format       file  fields
============ ===== ========================================================================
azure        CSV   ``TIMESTAMP`` (date and time, with or without an offset; without one it
                   is UTC), ``ContextTokens``, ``GeneratedTokens``
burstgpt     CSV   ``Timestamp`` (s), ``Request tokens``, ``Response tokens``
mooncake     JSONL ``timestamp`` (ms), ``input_length``, ``output_length``
openai_jsonl JSONL ``created``, ``created_at`` or ``timestamp`` (Unix seconds, or date and
                   time) and ``usage`` with ``prompt_tokens`` and ``completion_tokens`` (or
                   ``input_tokens`` and ``output_tokens``), at the top or below ``response``
                   or ``response.body``
============ ===== ========================================================================

Any of them may carry one more field, ``class``: ``interactive`` or ``batch``. Other fields
are ignored. A last line without a line break is normal (the Azure files end so); it is taken
for cut off only when it cannot be read.

Schemas: github.com/Azure/AzurePublicDataset, github.com/kvcache-ai/Mooncake,
github.com/HPMLL/BurstGPT, and the objects of OpenAI's API.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ConfigError
from workbench.load.trace import Log, Row, Trace, as_trace
from workbench.paths import shown

MILLISECONDS_FROM = 1e11
"""Unix seconds reach this in the year 5138; Unix milliseconds passed it in 1973."""


def _date_seconds(texts: pd.Series) -> np.ndarray:
    # By ISO 8601 a whole number alone is a year; in a log it is a time in some other unit.
    dated = texts.where(texts.str.contains("[-:]") & ~texts.str.startswith("-"))
    times = pd.to_datetime(dated, format="ISO8601", utc=True, errors="coerce")
    # From an epoch in whole seconds: one in nanoseconds cannot be taken from the year 1 or 9999.
    since = times - pd.Timestamp("1970-01-01", tz="UTC").as_unit("s")
    return _in_seconds((since / pd.Timedelta(seconds=1)).to_numpy(float))


def _numbers(texts: pd.Series) -> np.ndarray:
    return pd.to_numeric(texts, errors="coerce").to_numpy(float, copy=True)


def _number_seconds(texts: pd.Series) -> np.ndarray:
    return _in_seconds(_numbers(texts))


def _milliseconds(texts: pd.Series) -> np.ndarray:
    return _in_seconds(_numbers(texts) / 1000.0)


def _unix_or_date(texts: pd.Series) -> np.ndarray:
    numbers = _numbers(texts)
    return np.where(np.isfinite(numbers), _in_seconds(numbers), _date_seconds(texts))


def _in_seconds(numbers: np.ndarray) -> np.ndarray:
    """NaN for what a finer unit was taken for; the rate would be a thousandth of the site's."""
    return np.where(numbers >= MILLISECONDS_FROM, np.nan, numbers)


@dataclass(frozen=True)
class Format:
    """names: of time, prompt tokens and output tokens. times: what times are allowed."""

    names: tuple[str, str, str]
    seconds: Callable[[pd.Series], np.ndarray]
    times: str
    is_csv: bool


_DATE = "a date and time such as 2023-11-16 18:17:03.9799600, with or without an offset"
FORMATS = {
    "azure": Format(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _date_seconds, _DATE, True),
    "burstgpt": Format(
        ("Timestamp", "Request tokens", "Response tokens"),
        _number_seconds,
        "seconds from 0 (not milliseconds)",
        True,
    ),
    "mooncake": Format(
        ("timestamp", "input_length", "output_length"),
        _milliseconds,
        "milliseconds from 0 (not micro- or nanoseconds)",
        False,
    ),
    "openai_jsonl": Format(
        ("created", "usage.prompt_tokens", "usage.completion_tokens"),
        _unix_or_date,
        f"Unix seconds (not milliseconds), or {_DATE}",
        False,
    ),
}


def read_trace(path: str | Path, format: str = "auto") -> Trace:
    """The requests of a trace file.

    format: a key of :data:`FORMATS`, or ``auto`` to tell it from the first line.
    Raises ConfigError with file and line when the file is empty, cut off, in no known format,
    or has a row with a missing, non-numeric or negative value or a time that goes back.

    >>> from pathlib import Path
    >>> from workbench.api import read_trace
    >>> _ = Path("log.csv").write_text(
    ...     "TIMESTAMP,ContextTokens,GeneratedTokens\\n"
    ...     "2026-11-28 10:00:00.0,120,30\\n"
    ...     "2026-11-28 10:00:02.5,80,700\\n")
    >>> read_trace("log.csv").requests[["start_s", "prompt_tokens", "output_tokens"]]
       start_s  prompt_tokens  output_tokens
    0      0.0            120             30
    1      2.5             80            700
    """
    path = Path(path)
    lines = _text_lines(path)
    name = _sniff(path, lines) if format == "auto" else format
    chosen = FORMATS[name]
    log = Log(path, chosen.names, len(lines), unfinished=not lines[-1].endswith("\n"))
    if chosen.is_csv:
        log.rows.extend(_csv_rows(log, lines))
    else:
        fields = _mooncake_fields if name == "mooncake" else _openai_fields
        log.rows.extend(_json_rows(log, lines, fields))
    if not log.rows:
        raise _empty(path, "has a header and no requests")
    return as_trace(log, chosen.seconds, chosen.times)


def _text_lines(path: Path) -> list[str]:
    """The file's lines with their line breaks."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)}: byte {error.start} is not UTF-8 text",
            allowed="a CSV or JSONL file as UTF-8 text, not compressed",
            next_step="decompress or convert the trace",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{shown(path)}: cannot be read: {error.strerror}",
            allowed="a readable trace file",
            next_step="correct profile_load.trace",
        ) from None
    if not text.strip():
        raise _empty(path, "is empty")
    if "\n" not in text:  # a table saved in the old way of the Macintosh
        text = text.replace("\r", "\n")
    # Not splitlines(): texts in a log may hold other separators that end no line.
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1].removesuffix("\n")
    return lines if lines[-1] else lines[:-1]


def _empty(path: Path, how: str) -> ConfigError:
    return ConfigError(
        f"{shown(path)}: the trace {how}",
        allowed=f"a trace with requests in one of the formats {', '.join(FORMATS)}",
        next_step="give another trace, or leave profile_load.trace out for a declared load",
    )


def _sniff(path: Path, lines: list[str]) -> str:
    first = next(line for line in lines if line.strip())
    if first.lstrip().startswith("{"):
        return "mooncake" if '"input_length"' in first else "openai_jsonl"
    header = set(_header(path, first))
    # One right name is enough: the reader then says which column is missing.
    tables = {name: header & set(f.names) for name, f in FORMATS.items() if f.is_csv}
    best = max(tables, key=lambda name: len(tables[name]))
    if tables[best]:
        return best
    known = "; ".join(f"{name}: {', '.join(FORMATS[name].names)}" for name in tables)
    raise ConfigError(
        f"{shown(path)}:1: no known trace format; the first line is {first.strip()[:80]!r}",
        allowed=f"CSV with a header ({known}), or JSONL as of Mooncake or OpenAI",
        next_step="rename the columns",
    )


def _header(path: Path, line: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line]), [])]
    except csv.Error as error:
        raise ConfigError(
            f"{shown(path)}:1: not CSV: {error}",
            allowed="a header of comma-separated names, or JSONL as of Mooncake or OpenAI",
            next_step="convert the trace",
        ) from None


def _csv_rows(log: Log, lines: list[str]) -> Iterator[Row]:
    header = _header(log.path, lines[0])
    for name in log.names:
        if name not in header:
            raise log.error(
                1,
                f"no column {name!r}; the columns are {', '.join(header)}",
                f"a header with {', '.join(log.names)}",
                "add or rename the column, or set profile_load.format",
            )
    time, prompt, output = (header.index(name) for name in log.names)
    class_ = header.index("class") if "class" in header else None
    reader = csv.reader(lines)
    try:
        next(reader)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise log.error(
                    reader.line_num, f"{len(fields)} fields", f"{len(header)}, as in the header"
                )
            yield Row(
                reader.line_num,
                fields[time].strip(),
                fields[prompt].strip(),
                fields[output].strip(),
                "" if class_ is None else fields[class_].strip(),
            )
    except csv.Error as error:
        raise log.error(reader.line_num, f"not CSV: {error}", "comma-separated fields") from None


Fields = Callable[[dict[str, Any]], dict[str, Any]]
"""Picks time, prompt, output (and class) out of one JSON object; what is absent is None."""


def _mooncake_fields(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": entry.get("timestamp"),
        "prompt": entry.get("input_length"),
        "output": entry.get("output_length"),
    }


def _openai_fields(entry: dict[str, Any]) -> dict[str, Any]:
    response = _mapping(entry.get("response"))
    places = [entry, response, _mapping(response.get("body"))]
    usage = next((_mapping(p["usage"]) for p in places if "usage" in p), {})
    return {
        "time": _first(places, "timestamp", "created", "created_at"),
        "prompt": _first([usage], "prompt_tokens", "input_tokens"),
        "output": _first([usage], "completion_tokens", "output_tokens"),
    }


def _json_rows(log: Log, lines: list[str], pick: Fields) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise log.error(number, f"not JSON: {error}", "one JSON object a line") from None
        if not isinstance(entry, dict):
            raise log.error(number, f"a JSON {type(entry).__name__}", "one JSON object a line")
        fields = pick(entry)
        for name, value in zip(log.names, fields.values(), strict=True):
            if not isinstance(value, int | float | str):
                raise log.error(number, f"{name} is missing", f"{', '.join(log.names)}")
        class_ = entry.get("class")
        yield Row(
            number,
            # JSON can spell lone surrogates, which a column of text cannot hold.
            *(str(value).encode("utf-8", "replace").decode() for value in fields.values()),
            class_="" if class_ is None else str(class_),
        )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(places: list[dict[str, Any]], *names: str) -> Any:
    return next((place[name] for place in places for name in names if name in place), None)
