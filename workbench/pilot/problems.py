"""Turns what pydantic found wrong into sentences with file, line and "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from workbench.errors import ConfigError
from workbench.pilot.yaml_file import Keys

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "dataclass_exact_type": "a mapping",
}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # of a section, of a dataclass
Value = TypeVar("Value")


def validated(kind: type[Value], value: Any, where: str) -> Value:
    """``value``, read from a file that a program wrote, as a dataclass ``kind``.

    Raises ConfigError for the first thing that is wrong; ``where`` names the file. Every key must
    be there, also one whose field has a default: a file without it is of another format.
    """
    try:
        found = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        text = sentence(problem, kind)[1]
    else:
        lacking = [name for name in _field_names(kind) if name not in value]
        if not lacking:
            return found
        text = f"no {', '.join(lacking)}"
    raise ConfigError(
        f"{where}: {kind.__name__}: {text}",
        next_step="the file is damaged or of another format; make the artefact again",
    ) from None


def sentence(error: ErrorDetails, model: type) -> tuple[Keys, str]:
    """The keys of the value at fault, and what is wrong with it."""
    kind, got = error["type"], error.get("input")
    *above, last = error["loc"] or ("",)
    # An unknown key may be called like a branch of a union, but never is one.
    branch = _is_union_branch(last) and kind not in _UNKNOWN
    keys = tuple(k for k in above if not _is_union_branch(k)) + (() if branch else (last,))
    name = ".".join(map(str, keys)) or (
        "the pilot" if issubclass(model, BaseModel) else "the value"
    )
    if kind in _UNKNOWN:
        allowed = _field_names(model, keys[:-1])
        hint = did_you_mean(str(keys[-1]), allowed) if allowed else ""
        return keys, f"{name}: unknown key{hint}"
    if kind == "missing":
        return keys, f"{name}: missing, and it has no default"
    if kind in _KINDS:
        return keys, f"{name}: got {got!r}, allowed: {_KINDS[kind]}"
    if kind == "literal_error":
        expected = error["ctx"]["expected"]
        words = [w.strip(" '") for w in expected.replace(" or ", ", ").split(",")]
        return keys, f"{name}: got {got!r}, allowed: {expected}{closest(str(got), words)}"
    message = error["msg"].removeprefix("Value error, ")
    return keys, f"{name}: got {got!r}: {message[0].lower()}{message[1:]}"


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """``; did you mean lr? allowed: ...`` for a name that is not one of ``allowed``."""
    names = list(allowed)
    return f"{closest(got, names)}; allowed: {', '.join(names)}"


def closest(got: str, words: Sequence[str]) -> str:
    """``; did you mean lr?``; empty where none of ``words`` is near."""
    near = difflib.get_close_matches(got, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def section_at(model: type[BaseModel], keys: Keys) -> type[BaseModel] | None:
    """The section class below ``model`` that ``keys`` lead to."""
    here: type[BaseModel] | None = model
    for key in keys:
        if isinstance(key, int) or here is None:
            continue
        field = here.model_fields.get(key)
        here = _section_in(field.annotation) if field else None
    return here


def _field_names(kind: type, keys: Keys = ()) -> list[str]:
    """What may stand in the section, or the dataclass, below ``kind`` that ``keys`` lead to."""
    if issubclass(kind, BaseModel):
        section = section_at(kind, keys)
        return list(section.model_fields) if section else []
    return [field.name for field in fields(kind)] if is_dataclass(kind) and not keys else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for a in get_args(annotation) if (s := _section_in(a))), None)


def _is_union_branch(key: str | int) -> bool:
    return isinstance(key, str) and ("[" in key or key in {"none", "nullable"})
