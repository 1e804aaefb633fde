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
from workbench.paths import BASE, SHIPPED, shipped_names, shown
from workbench.pilot.extends import files_of, pilot_path
from workbench.pilot.problems import did_you_mean, section_at
from workbench.pilot.reference import description_of
from workbench.pilot.renamed import with_todays_names
from workbench.pilot.resolve import merged, path_fields
from workbench.pilot.sections.meters import NETWORK, Reader
from workbench.pilot.spec import Pilot
from workbench.pilot.yaml_file import dump_scalar, parse_scalar

WIDTH = 96
ONCE = ("auto", "none")
"""Answers about meters that stand alone."""


METERS = ("sources", "csv", "recording", *NETWORK)
"""Fields of ``measure_ab.meters`` that name a meter."""
DECIDES: dict[str, tuple[tuple[str, ...], ...]] = {
    "extends": (("extends",),),
    "question": (("question",),),
    "model": (("model", "preset"), ("model", "checkpoint")),
    "data": (("data", "corpus"), ("data", "sources")),
    "trace": (("profile_load", "trace"),),
    "columns": (("profile_load", "columns"),),
    "meters": tuple(("measure_ab", "meters", name) for name in METERS),
    "device": (("readiness", "device"),),
    "processes": (("train", "launch", "processes"),),
    "gates": (("report", "gates"),),
}
"""Answer -> the fields of the pilot that it decides."""
OPTIONS = {name: f"--{name}" for name in DECIDES} | {
    "columns": "--column",
    "meters": "--meter",
    "gates": "--gate",
}
"""Answer -> the option of ``workbench new`` that gives it."""


@dataclass(frozen=True)
class Answers:
    """What a new pilot is asked for.

    model: a preset, a Hugging Face folder or ``hf:owner/name``. data: ``python``, a path or
    ``hf:owner/name``. trace: a path; None declares the load. columns: role -> what the trace calls
    it. meters: ``auto``, ``none``, power logs, and ``READER: {...}`` for meters of a network.
    gates: METRIC=LIMIT for one of the usual gates; METRIC{label=value}<=LIMIT, or >=, for another.
    fields: further ``section.key=value`` texts. extends: the pilot whose values hold where nothing
    else does. given: the answers that somebody gave; the others are written only where the pilot
    extends ``workbench:base`` and no text of ``fields`` decides the same.
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
    extends: str = BASE
    given: frozenset[str] = frozenset()


def usual_gates(extends: str = BASE) -> list[dict[str, Any]]:
    """Those of a pilot that a new one extends."""
    files = files_of(pilot_path(extends))
    reports = (file.values.get("report") for file in reversed(files))
    return next((r["gates"] for r in reports if isinstance(r, dict) and r.get("gates")), [])


def decided(name: str, texts: Sequence[str]) -> bool:
    """Whether a ``section.key=value`` of ``texts`` decides what answer ``name`` does."""
    return bool(_decided(name, fields_of(Path(), texts)))


def as_options(answers: Answers) -> list[str]:
    """The options of ``workbench new`` that give the same answers again."""
    words: list[str] = []
    for name in DECIDES:
        if name in answers.given:
            value = getattr(answers, name)
            if name == "columns":
                value = tuple(f"{role}={column}" for role, column in value)
            each = value if isinstance(value, tuple) else ("none" if value is None else value,)
            words += [f"{OPTIONS[name]}={one}" for one in each]
    return [*words, *(f"--set={text}" for text in answers.fields)]


def in_options(text: str, path: Path, answers: Answers) -> str:
    """What an error says of the pilot file at ``path``, said of the options it was made from."""
    text = re.sub(rf"(?m)^{re.escape(shown(path.absolute()))}(:\d+)?: ", "", text)

    def named(found: re.Match[str]) -> str:
        keys = tuple(found[0].split("."))
        section = section_at(Pilot, keys[:1])
        if section is None or keys[1] not in section.model_fields:
            return found[0]
        own = {n for n, fields in DECIDES.items() if any(keys[: len(f)] == f for f in fields)}
        option = next((OPTIONS[name] for name in own if not decided(name, answers.fields)), "--set")
        return f"{option} ({found[0]})" if own and option != "--set" else f"--set {found[0]}"

    return re.sub(r"(?<![\w./-])(?<!--set )[a-z_]+(?:\.\w+)+(?!\w|\.\w)", named, text)


def draft(path: Path, answers: Answers, presets: Sequence[str]) -> str:
    """The text of the pilot file ``path``; paths in it are seen from its folder.

    presets: the names of models that are no folders. Raises ConfigError for an answer that means
    nothing, and for a field that is given by its option and by ``fields``; whether what it names is
    good for a pilot is seen when the file is resolved.
    """
    said = fields_of(path, answers.fields)
    for name in sorted(answers.given):
        if twice := _decided(name, said):
            raise ConfigError(
                f"--set {'.'.join(twice)} beside {OPTIONS[name]}: both decide it",
                next_step=f"leave out one of both; {OPTIONS[name]} checks what it is given",
            )
    extends = said.pop("extends", answers.extends)
    _require_extended(extends)
    stem = re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_") or "pilot"
    values: dict[str, Any] = {
        "extends": extends if extends.startswith(SHIPPED) else _seen_from(path, extends),
        "name": stem,
        "question": answers.question,
    }
    for name, part in _parts(path, answers, presets, extends):
        if name in answers.given or (extends == BASE and not _decided(name, said)):
            values = merged(values, part)
    values = merged(values, said)
    question = values["question"]
    if isinstance(question, dict):
        question = next(iter(question.values()), "")
    lines = [
        f"# Question: {question}",
        f"# Command:  workbench run {path.name}",
        f"# Written by workbench new. Every field and its default: workbench show {path.name}",
        *(f"{key}: {dump_scalar(values.pop(key))}" for key in ("extends", "name", "question")),
    ]
    report = values.pop("report", {})  # last, as the run has it
    for section, given in (*values.items(), ("report", report)):
        if isinstance(given, dict):
            lines += ["", f"{section}:", *_section((section,), given)] if given else []
        else:
            lines += ["", *_field((section,), given, "")]
    return "\n".join(lines) + "\n"


def _parts(
    path: Path, answers: Answers, presets: Sequence[str], extends: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each answer says in the pilot, in the order of its sections."""
    trace = None if answers.trace is None else _seen_from(path, answers.trace)
    processes = {"launch": {"processes": answers.processes}} if answers.processes > 1 else {}
    yield "model", {"model": _model(path, answers.model, presets)}
    yield "data", {"data": {"corpus": _seen_from(path, answers.data, "python")}}
    yield "trace", {"profile_load": {"trace": trace}}
    if answers.columns:
        yield "columns", {"profile_load": {"columns": dict(answers.columns)}}
    yield "device", {"readiness": {"device": answers.device}}
    yield "processes", {"train": processes}
    yield "meters", {"measure_ab": {"meters": _meters(path, answers.meters)}}
    yield "gates", {"report": {"gates": _gates(answers.gates, usual_gates(extends))}}


def fields_of(path: Path, texts: Sequence[str]) -> dict[str, Any]:
    """What all ``section.key=value`` say, by the fields' names of today, paths as a pilot at
    ``path`` sees them."""
    said: dict[str, Any] = {}
    for text in texts:
        said = merged(said, _set(text))
    try:
        said = with_todays_names(said)
    except ValueError as error:
        raise ConfigError(f"--set {error}") from None
    for keys, rule in path_fields(Pilot, said):
        inner: Any = said
        for key in keys[:-1]:
            inner = inner[key]
        if isinstance(name := inner[keys[-1]], str) and name:
            inner[keys[-1]] = _seen_from(path, name, *rule.words)
    return said


def _decided(name: str, said: Any) -> tuple[str, ...]:
    """The field of answer ``name`` that ``said`` decides too, or what it lies in; () for none."""
    for keys in DECIDES[name]:
        inner = said
        for depth, key in enumerate(keys, 1):
            if not isinstance(inner, dict):
                return keys[: depth - 1]
            if key not in inner:
                break
            inner = inner[key]
        else:
            return keys
    return ()


def _require_extended(extends: Any) -> None:
    known = [f"{SHIPPED}{name}" for name in shipped_names()]
    if not isinstance(extends, str):
        raise ConfigError(f"extends: got {extends!r}", allowed=", ".join(known) + ", or a path")
    if extends.startswith(SHIPPED) or Path(extends).expanduser().is_file():
        files_of(pilot_path(extends))
        return
    hint = did_you_mean(f"{SHIPPED}{Path(extends).stem}", known)
    raise ConfigError(f"--extends {extends}: no such pilot file{hint}, or a pilot file of yours")


def _model(path: Path, model: str, presets: Sequence[str]) -> dict[str, str]:
    if model in presets:
        return {"preset": model}
    if not model.startswith("hf:") and not Path(model).expanduser().exists():
        raise ConfigError(
            f"model {model}: no preset and no path{did_you_mean(model, presets)}, a Hugging Face "
            "folder, a .gguf file, or hf:owner/name"
        )
    return {"checkpoint": _seen_from(path, model)}


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


def _set(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    keys = name.strip().split(".")
    try:
        given = parse_scalar(value)
    except ValueError:
        equals = ""
    if not equals or not all(keys):
        raise ConfigError(f"--set {text}", allowed="section.key=value, the value in YAML")
    for key in reversed(keys):
        given = {key: given}
    return given


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
    if keys == ("report", "gates") and value and isinstance(value, list):
        told = "Fixed before the run: what the verdict is decided by. Every metric: docs/fields.md"
        yield f"{indent}# {told}"
        yield f"{indent}gates:"
        for gate in value:
            yield from _gate(gate, indent)
        return
    section = section_at(Pilot, keys[:-1]) if len(keys) > 1 else Pilot
    field = section.model_fields.get(keys[-1]) if section else None
    if field is not None:
        told = description_of(field)
        yield from (f"{indent}# {line}" for line in textwrap.wrap(told, WIDTH - len(indent)))
    yield f"{indent}{keys[-1]}: {dump_scalar(value)}"


def _gate(gate: Any, indent: str) -> Iterator[str]:
    if not isinstance(gate, dict) or not gate:
        yield f"{indent}  - {dump_scalar(gate)}"
        return
    first, *rest = [f"{key}: {dump_scalar(value)}" for key, value in gate.items()]
    yield f"{indent}  - {first}"
    yield from (f"{indent}    {line}" for line in rest)


def _gates(changes: Sequence[str], gates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``gates`` with other limits, and gates more; why a limit holds stands last in each."""
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
    return [
        {key: gate[key] for key in sorted(gate, key=lambda key: key == "why")} for gate in gates
    ]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
