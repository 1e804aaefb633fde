"""The trace formats that sites have, and which of them a file is, told by its first lines.

============ ============ =====================================================================
format       file         fields
============ ============ =====================================================================
azure        CSV          ``TIMESTAMP`` (date and time), ``ContextTokens``, ``GeneratedTokens``
burstgpt     CSV          ``Timestamp`` (s), ``Request tokens``, ``Response tokens``; the second
                          edition also ``Session ID`` and ``Elapsed time`` (s)
mooncake     JSONL        ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``
bailian      JSONL        the same names with ``timestamp`` in seconds, ``chat_id`` and
                          ``parent_chat_id``
openai_jsonl JSONL, CSV,  a time (``startTime``, ``timestamp``, ``created``, ...) and ``usage``
             Parquet      with prompt and completion tokens, at the top or below ``response``
                          or ``response.body``: OpenAI's objects, LiteLLM, other gateways
vllm         text         what ``vllm serve --enable-log-requests --enable-log-outputs`` says
                          (:mod:`workbench.load.vllm_log`)
servegen     folder       windows of rates and lengths (:mod:`workbench.load.servegen`)
============ ============ =====================================================================

``columns`` of the pilot names the fields of any other table, ``pattern`` those of a text log.
Any format may carry ``class``: ``interactive`` or ``batch``. Other fields are ignored.

Schemas: github.com/Azure/AzurePublicDataset, kvcache-ai/Mooncake,
alibaba-edu/qwen-bailian-usagetraces-anon, HPMLL/BurstGPT, alibaba/ServeGen, the usage objects of
OpenAI's and Anthropic's APIs, and LiteLLM's spend logs.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from workbench.errors import ConfigError
from workbench.load.blocks import TraceFile, reading
from workbench.paths import shown
from workbench.pilot.problems import closest
from workbench.pilot.sections.profile_load import ProfileLoad

NEEDED = ("time", "prompt", "output")
HEAD_ROWS = 2000
"""First rows that a decision about the whole file is made from."""


@dataclass(frozen=True)
class Format:
    """fields: role -> names, the first that a row has counts. unit: of times that are numbers and
    count from 0; empty where the format has dates alone.
    block_tokens: prompt tokens that one of ``hash_ids`` stands for."""

    fields: dict[str, tuple[str, ...]]
    unit: Literal["s", "ms", ""] = "s"
    block_tokens: int = 0


def _usage(*names: str) -> tuple[str, ...]:
    places = ("usage.", "response.usage.", "response.body.usage.", "")
    return tuple(place + name for place in places for name in names)


_STATUS = ("status", "status_code", "http_status", "response_code", "response.status_code")
_LENGTHS = {"prompt": ("input_length",), "output": ("output_length",), "hashes": ("hash_ids",)}
FORMATS = {
    "azure": Format(
        {"time": ("TIMESTAMP",), "prompt": ("ContextTokens",), "output": ("GeneratedTokens",)},
        unit="",
    ),
    "burstgpt": Format(
        {
            "time": ("Timestamp",),
            "prompt": ("Request tokens",),
            "output": ("Response tokens",),
            "session": ("Session ID",),
            "duration": ("Elapsed time",),
        }
    ),
    "mooncake": Format({"time": ("timestamp",), **_LENGTHS}, unit="ms", block_tokens=512),
    "bailian": Format(
        {"time": ("timestamp",), **_LENGTHS, "chat": ("chat_id",), "parent": ("parent_chat_id",)},
        block_tokens=16,
    ),
    "openai_jsonl": Format(
        {
            "time": (
                *("startTime", "start_time", "timestamp", "created", "created_at"),
                *("response.created", "response.created_at", "response.body.created"),
                *("response.body.created_at", "request_time", "time"),
            ),
            "prompt": _usage(
                *("prompt_tokens", "input_tokens", "promptTokens", "inputTokens"),
                "promptTokenCount",
            ),
            "output": _usage(
                *("completion_tokens", "output_tokens", "completionTokens", "outputTokens"),
                "candidatesTokenCount",
            ),
            "end": ("endTime", "end_time"),
            "session": ("session_id", "conversation_id", "thread_id"),
            "tenant": ("tenant", "team_id", "end_user", "user"),
        }
    ),
}
OPTIONAL = {
    "class": ("class",),
    "status": _STATUS,
    "error": ("error", "response.error", "response.body.error"),
    "code": ("error.code", "error.status", "error.type"),
}
"""Fields that any format may have."""
CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")
"""Anthropic's: beside ``input_tokens``, not within. LiteLLM counts them into ``prompt_tokens``."""
CACHED_WITHIN = ("prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens")
"""OpenAI's: within the prompt's tokens; gateways that translate may leave them out of it."""


@dataclass(frozen=True)
class Layout:
    """How one file is read.

    kind: csv, json, parquet, pattern or vllm. fields: role -> the names of this file that can
    hold it, the first with a value counts. header: the names of a CSV file's columns.
    types: JSON name -> ``number``, ``text``, ``list`` or ``object``. unit: of the format's times.
    """

    name: str
    kind: Literal["csv", "json", "parquet", "pattern", "vllm"]
    fields: dict[str, tuple[str, ...]]
    unit: str = "s"
    header: tuple[str, ...] = ()
    delimiter: str = ","
    types: dict[str, str] = field(default_factory=dict)
    block_tokens: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Every field that is read, each once."""
        return tuple(dict.fromkeys(name for names in self.fields.values() for name in names))

    def cached_beside(self, prompt: str) -> tuple[str, ...]:
        """The fields whose tokens come on top of those in field ``prompt``."""
        place, _, name = prompt.rpartition(".")
        if name != "input_tokens":
            return ()
        dot = f"{place}." if place else ""
        return tuple(f"{dot}{c}" for c in CACHED if f"{dot}{c}" in self.fields.get("cached", ()))


def layout_of(file: TraceFile, section: ProfileLoad) -> Layout:
    """What ``section`` says about the file, and its first lines where it says nothing.

    Raises ConfigError when that gives no time, prompt and output.
    """
    if section.pattern:
        roles = (*NEEDED, *OPTIONAL, "tenant", "session", "duration")
        groups: dict[str, tuple[str, ...]] = {
            role: (role,) for role in roles if f"(?P<{role}>" in section.pattern
        }
        return Layout("pattern", "pattern", groups, header=(section.pattern,))
    table = _table(file, section)
    if table is None:
        return Layout("vllm", "vllm", {role: (role,) for role in NEEDED})
    layout = _named(file.path, section, table.kind, table.names, table.types)
    if table.kind != "csv":
        return layout
    header = {"header": tuple(table.names), "delimiter": table.delimiter}
    return Layout(**{**vars(layout), **header})


class _Table(NamedTuple):
    """names: of its fields. types: of JSON, as in :class:`Layout`. delimiter: of CSV."""

    kind: Literal["csv", "json", "parquet"]
    names: list[str]
    types: dict[str, str]
    delimiter: str = ","


def _table(file: TraceFile, section: ProfileLoad) -> _Table | None:
    """What kind of table the file is; None for vLLM's log."""
    if file.is_parquet:
        import pyarrow.parquet as pq

        with reading(file.path):
            return _Table("parquet", _flat_names(pq.read_schema(file.path)), {})
    text = file.head().decode().replace("\r\n", "\n").replace("\r", "\n")
    head = [line for line in text.split("\n") if line.strip()][:HEAD_ROWS]
    if not head:
        raise empty(file.path, "is empty")
    first = head[0].lstrip()
    if section.format == "vllm" or (
        section.format == "auto" and any("Received request" in line for line in head)
    ):
        return None
    if first.startswith("["):
        raise ConfigError(
            f"{shown(file.path)}:1: a JSON list",
            allowed="one JSON object a line",
            next_step=f"jq -c '.[]' {file.path.name} > trace.jsonl",
        )
    if first.startswith("{") or section.format in ("mooncake", "bailian"):
        types = _json_types(head)
        return _Table("json", list(types), types)
    delimiter = section.delimiter or max(",;\t|", key=first.count)
    return _Table("csv", _header(file.path, first, delimiter), {}, delimiter)


def field_names(path: Path, section: ProfileLoad) -> list[str]:
    """What the fields of a trace are called, in their order; none where it is no table.

    Raises ConfigError for a file that cannot be read.
    """
    table = None if path.is_dir() or section.pattern else _table(TraceFile(path), section)
    return table.names if table else []


def empty(path: Path, how: str) -> ConfigError:
    """The error about a file without requests."""
    return ConfigError(
        f"{shown(path)}: the trace {how}",
        allowed=f"a trace with requests in one of the formats {', '.join(FORMATS)}",
        next_step="give another trace, or leave profile_load.trace out for a declared load",
    )


def _named(
    path: Path, section: ProfileLoad, kind: Any, names: list[str], types: dict[str, str]
) -> Layout:
    """The layout of a file with these field names."""
    if section.columns:
        name, base = "columns", Format({})
        for role, said in section.columns.items():
            if said not in names:
                others = {name for other, name in section.columns.items() if other != role}
                free = [name for name in names if name not in others]
                raise ConfigError(
                    f"{shown(path)}: no field {said!r} for {role}{closest(said, free)}",
                    allowed=", ".join(names),
                    next_step=f"correct profile_load.columns.{role}",
                )
        if section.format != "auto":
            name, base = section.format, FORMATS[section.format]
    else:
        name = _recognised(path, section, kind, names)
        base = FORMATS[name]
    wanted = {**OPTIONAL, **base.fields}
    wanted |= {role: (said,) for role, said in section.columns.items()}
    fields: dict[str, tuple[str, ...]] = {
        role: found
        for role, candidates in wanted.items()
        if (found := tuple(each for each in candidates if each in names))
    }
    if missing := [role for role in NEEDED if role not in fields]:
        ask = {role: " or ".join(wanted.get(role, (f"columns.{role}",))[:4]) for role in missing}
        raise ConfigError(
            f"{shown(path)}:1: no column {', '.join(repr(text) for text in ask.values())}; "
            f"the columns are {', '.join(names)}",
            allowed="a time, prompt tokens and output tokens",
            next_step="name them in profile_load.columns, or set profile_load.format",
        )
    places = {each.rpartition(".")[0] for each in fields["prompt"]}
    for cached, known in (("cached", CACHED), ("cached_within", CACHED_WITHIN)):
        paths = [f"{place}.{each}" if place else each for place in places for each in known]
        if found := tuple(each for each in paths if each in names):
            fields[cached] = found
    return Layout(name, kind, fields, base.unit, types=types, block_tokens=base.block_tokens)


def _recognised(path: Path, section: ProfileLoad, kind: str, names: list[str]) -> str:
    if section.format in FORMATS:
        return section.format
    has = set(names)
    if "input_length" in has:
        return "bailian" if "chat_id" in has else "mooncake"
    # One right name is enough: the reader then says which field is missing.
    scores = {
        name: sum(not has.isdisjoint(found) for found in (each.fields[r] for r in NEEDED))
        for name, each in FORMATS.items()
    }
    best = max(scores, key=lambda name: scores[name])
    if kind == "json" and scores[best] < 2:
        best = "openai_jsonl"
    if scores[best] >= (1 if best in ("azure", "burstgpt") or kind == "json" else 2):
        return best
    known = "; ".join(
        f"{name}: {', '.join(each.fields[role][0] for role in NEEDED)}"
        for name, each in FORMATS.items()
    )
    raise ConfigError(
        f"{shown(path)}:1: no known trace format; its fields are {', '.join(names)[:200]!r}",
        allowed=f"a header with the names of a known format ({known})",
        next_step="name its fields in profile_load.columns (time, prompt, output), or give a "
        "pattern for a text log",
    )


def _header(path: Path, line: str, delimiter: str) -> list[str]:
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error as error:
        raise ConfigError(
            f"{shown(path)}:1: not CSV: {error}",
            allowed="a header of names with a delimiter between them, or JSONL",
            next_step="convert the trace",
        ) from None
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(
            f"{shown(path)}:1: more than one column {twice[0]!r}",
            allowed="different names",
            next_step="rename one of them",
        )
    return names


def _json_types(lines: Iterable[str]) -> dict[str, str]:
    """Name -> type of every field that the lines have, objects within others by dots.

    The commonest type counts; lines with another one are read one by one.
    """
    seen: dict[str, Counter[str]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            _walk(entry, "", seen, depth=4)
    return {
        name: next((kind for kind, _ in counts.most_common() if kind != "null"), "null")
        for name, counts in seen.items()
    }


def _walk(entry: dict[str, Any], place: str, seen: dict[str, Counter[str]], depth: int) -> None:
    for key, value in entry.items():
        name = f"{place}{key}"
        kind = _kind(value)
        seen.setdefault(name, Counter())[kind] += 1
        if kind == "object" and depth > 1:
            _walk(value, f"{name}.", seen, depth - 1)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "flag"
    for kind, types in (("number", int | float), ("text", str), ("list", list), ("object", dict)):
        if isinstance(value, types):
            return kind
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _flat_names(schema: Any, place: str = "") -> list[str]:
    """The names of a Parquet schema, objects within others by dots."""
    import pyarrow as pa

    found = []
    for each in schema:
        found.append(f"{place}{each.name}")
        if pa.types.is_struct(each.type):
            found += _flat_names(each.type, f"{place}{each.name}.")
    return found
