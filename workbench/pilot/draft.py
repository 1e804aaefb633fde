"""A new pilot from a few answers: a commented file that says what the answers decide, and no more.

All other fields keep their defaults; the comments are the fields' own descriptions.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from workbench.errors import ConfigError
from workbench.paths import shipped_pilots
from workbench.pilot.problems import did_you_mean, section_at
from workbench.pilot.reference import description_of
from workbench.pilot.sections.meters import NETWORK, Reader
from workbench.pilot.spec import Pilot
from workbench.pilot.yaml_file import dump_scalar, parse_scalar, read_yaml

BASE = "workbench:base"
WIDTH = 96
ONCE = ("auto", "none")
"""Answers about meters that stand alone."""


@dataclass(frozen=True)
class Answers:
    """What a new pilot is asked for.

    model: a preset, a Hugging Face folder or ``hf:owner/name``. data: ``python``, a path or
    ``hf:owner/name``. trace: a path; None declares the load. columns: role -> what the trace calls
    it. meters: ``auto``, ``none``, power logs, and ``READER: {...}`` for meters of a network.
    gates: METRIC=LIMIT for one of the usual gates; METRIC{label=value}<=LIMIT, or >=, for another.
    fields: further ``section.key=value`` texts.
    """

    question: str
    model: str = "tiny-2m"
    data: str = "python"
    trace: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    meters: tuple[str, ...] = ("auto",)
    device: str = "auto"
    processes: int = 1
    gates: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


def usual_gates() -> list[dict[str, Any]]:
    """Those of the shipped base pilot."""
    return read_yaml(shipped_pilots() / "base.yaml").values["report"]["gates"]


def draft(path: Path, answers: Answers, presets: Sequence[str]) -> str:
    """The text of the pilot file ``path``; paths in it are seen from its folder.

    presets: the names of models that are no folders. Raises ConfigError for an answer that means
    nothing; whether what it names is good for a pilot is seen when the file is resolved.
    """
    name = re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_") or "pilot"
    values: dict[str, Any] = {
        "model": _model(path, answers.model, presets),
        "data": {"corpus": _seen_from(path, answers.data, "python")},
        "profile_load": _load(path, answers),
        "readiness": {"device": answers.device},
        "train": {"launch": {"processes": answers.processes}} if answers.processes > 1 else {},
        "measure_ab": {"meters": _meters(path, answers.meters)},
    }
    for text in answers.fields:
        _set(values, text)
    if values["data"].get("sources"):  # several corpora stand in the place of the one
        del values["data"]["corpus"]
    lines = [
        f"# Question: {answers.question}",
        f"# Command:  workbench run {path.name}",
        f"# Written by workbench new. Every field and its default: workbench show {path.name}",
        f"extends: {BASE}",
        f"name: {name}",
        f"question: {dump_scalar(answers.question)}",
    ]
    for section, given in values.items():
        if isinstance(given, dict):
            lines += ["", f"{section}:", *_section((section,), given)] if given else []
        else:
            lines += ["", *_field((section,), given, "")]
    lines += ["", *_gates(answers.gates)] if "report" not in values else []
    return "\n".join(lines) + "\n"


def _model(path: Path, model: str, presets: Sequence[str]) -> dict[str, str]:
    if model in presets:
        return {"preset": model}
    if not model.startswith("hf:") and not Path(model).expanduser().exists():
        raise ConfigError(
            f"model {model}: no preset and no path{did_you_mean(model, presets)}, a Hugging Face "
            "folder, a .gguf file, or hf:owner/name"
        )
    return {"checkpoint": _seen_from(path, model)}


def _load(path: Path, answers: Answers) -> dict[str, Any]:
    if answers.trace is None:
        return {"trace": None}
    load: dict[str, Any] = {"trace": _seen_from(path, answers.trace)}
    return load | ({"columns": dict(answers.columns)} if answers.columns else {})


def _meters(path: Path, meters: Sequence[str]) -> dict[str, Any]:
    if len(meters) > 1 and (alone := set(meters) & {"none"}):
        raise ConfigError(
            f"meters: {', '.join(sorted(alone))} beside others", allowed="one of them"
        )
    if "none" in meters:
        return {"sources": []}
    found: dict[str, Any] = {"sources": ["auto"]}
    for meter in meters:
        reader, colon, rest = meter.partition(":")
        if meter in ONCE:
            continue
        if colon and reader in NETWORK:
            found.setdefault(reader, []).append(_mapping(meter, rest))
        elif Path(meter).expanduser().exists():
            field = "recording" if meter.rstrip("/").endswith(".parts") else "csv"
            found[field] = _seen_from(path, meter)
        else:
            raise ConfigError(
                f"meter {meter}: no such file, and no reader of the network",
                allowed="auto, none, a power log (CSV), a recording (.parts), or READER: {...} "
                f"with one of {', '.join(r for r in get_args(Reader) if r in NETWORK)}",
                next_step="docs/energy.md has an example of each",
            )
    return found


def _mapping(meter: str, text: str) -> dict[str, Any]:
    try:
        found = parse_scalar(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"meter {meter}: what follows the reader is no mapping",
            allowed="READER: {field: value, ...}, such as snmp: {host: 10.0.0.7, profile: apc}",
        )
    return found


def _seen_from(path: Path, name: str, *words: str) -> str:
    """A path as it is written in a file at ``path``."""
    if name in words or name.startswith("hf:") or name.startswith("~") or Path(name).is_absolute():
        return name
    return os.path.relpath(Path.cwd() / name, path.absolute().parent)


def _set(values: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    *sections, last = name.strip().split(".")
    try:
        given = parse_scalar(value)
    except ValueError:
        equals = ""
    if not equals or not last:
        raise ConfigError(f"--set {text}", allowed="section.key=value, the value in YAML")
    inner = values
    for section in sections:
        inner = inner.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text}: {section} is a value and no section")
    inner[last] = given


def _section(keys: tuple[str, ...], given: dict[str, Any]) -> Iterator[str]:
    indent = "  " * len(keys)
    for key, value in given.items():
        here = (*keys, key)
        if isinstance(value, dict) and section_at(Pilot, here) is not None:
            yield f"{indent}{key}:"
            yield from _section(here, value)
        else:
            yield from _field(here, value, indent)


def _field(keys: tuple[str, ...], value: Any, indent: str) -> Iterator[str]:
    section = section_at(Pilot, keys[:-1]) if len(keys) > 1 else Pilot
    field = section.model_fields.get(keys[-1]) if section else None
    if field is not None:
        told = description_of(field)
        yield from (f"{indent}# {line}" for line in textwrap.wrap(told, WIDTH - len(indent)))
    yield f"{indent}{keys[-1]}: {dump_scalar(value)}"


def _gates(changes: Sequence[str]) -> Iterator[str]:
    gates = usual_gates()
    for text in changes:
        found = re.fullmatch(r"\s*(\w+)\s*(?:\{(.*)\})?\s*(<=|>=|=)\s*(\S+)\s*", text)
        limit = _number(found[4]) if found else None
        if found is None or limit is None:
            raise ConfigError(
                f"gate {text}",
                allowed="METRIC=LIMIT, METRIC<=LIMIT or METRIC{label=value,...}>=LIMIT",
            )
        metric, labels, side = found[1], found[2], found[3]
        if side == "=":
            usual = [gate for gate in gates if gate["metric"] == metric]
            if not usual:
                names = [gate["metric"] for gate in gates]
                raise ConfigError(
                    f"gate {text}: none of the usual ones{did_you_mean(metric, names)}",
                    next_step="another metric is given with its side: METRIC<=LIMIT or >=",
                )
            for gate in usual:
                gate["at_most" if "at_most" in gate else "at_least"] = limit
                gate["why"] = {
                    "en": "the limit chosen for this pilot",
                    "ru": "предел, выбранный для этого пилота",
                }
            continue
        pairs = [pair.partition("=") for pair in labels.split(",")] if labels else []
        more = (
            {"labels": {name.strip(): value.strip() for name, _, value in pairs}} if pairs else {}
        )
        gates.append({"metric": metric, **more, "at_most" if side == "<=" else "at_least": limit})
    yield "report:"
    yield "  # Fixed before the run: what the verdict is decided by. Every metric: docs/fields.md"
    yield "  gates:"
    for gate in gates:
        why = gate.pop("why", "")
        first, *rest = [f"{key}: {dump_scalar(value)}" for key, value in gate.items()]
        yield f"    - {first}"
        yield from (f"      {line}" for line in rest)
        if why:
            yield f"      why: {dump_scalar(why)}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
