"""The reference of all fields, written from the sections themselves.

``python -m workbench.pilot.reference > docs/fields.md``; a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from workbench.pilot.problems import section_at
from workbench.pilot.spec import Pilot
from workbench.pilot.yaml_file import dump_scalar
from workbench.wording.vocabulary import FIGURES

HEAD = """# Fields of a pilot file

Written by `python -m workbench.pilot.reference`; what each section is for stands in
[pilots.md](pilots.md). Unknown keys and wrong types are errors.
"""

MANY: dict[Any, str] = {list: "[]", dict: ".NAME"}
"""What stands behind the name of a field with several sections."""

FIGURES_HEAD = """
## Figures of a run

What a gate may name (`gates_failed`, which the gates make, excepted): a metric, and as many of the
labels of one of its rows as it needs. A gate holds for every figure that its labels fit.

| metric | labels | better |
|---|---|---|
"""


def reference() -> str:
    """Markdown: one table a section, each field with its type, default and meaning."""
    return HEAD + "".join(_section("", Pilot, {})) + "".join(_figures())


def _figures() -> Iterator[str]:
    """What ``report.gates[].metric`` and ``labels`` may be: a row for each set of labels."""
    yield FIGURES_HEAD
    for name, figure in FIGURES.items():
        for own in figure.labels:
            labels = "; ".join(f"`{label}`: {values.text}" for label, values in own.items())
            yield f"| `{name}` | {labels} | {figure.better} |\n"


def _section(title: str, section: type[BaseModel], defaults: dict[str, Any]) -> Iterator[str]:
    """One section's table, then those of the sections in it; ``defaults`` are its values where
    the section above gives others than its own."""
    below = {name: s for name in section.model_fields if (s := section_at(section, (name,)))}
    yield f"\n## `{title}`\n\n{' '.join((section.__doc__ or '').split())}\n\n" if title else "\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|\n"
    for name, field in section.model_fields.items():
        if name not in below or get_origin(field.annotation) in MANY:
            yield _row(name, field, defaults.get(name, field.default))
    for name, inner in below.items():
        field = section.model_fields[name]
        many = MANY.get(get_origin(field.annotation) or object, "")
        given = {} if many else dict(defaults.get(name, field.default) or {})
        yield from _section(f"{title}.{name}{many}".lstrip("."), inner, given)


def _row(name: str, field: FieldInfo, default_value: Any) -> str:
    default = "required" if default_value is PydanticUndefined else f"`{_plain(default_value)}`"
    meaning = description_of(field).replace("|", "\\|")
    kind = _type(field.annotation).replace("|", "\\|")
    return f"| `{name}` | {kind} | {default} | {meaning} |\n"


def description_of(field: FieldInfo) -> str:
    """What a field means, as its section says it."""
    return field.description or _described(field.annotation) or ""


def _plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        return dump_scalar(value.model_dump(mode="json"))
    return dump_scalar(value)


def _type(annotation: Any) -> str:
    """``float | None`` for ``Annotated[float, Gt(0)] | None``, ``'a', 'b'`` for a literal."""
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__)
    arguments = get_args(annotation)
    if arguments and all(isinstance(a, str) for a in arguments):
        return ", ".join(f"`{a}`" for a in arguments)
    if get_origin(annotation) in (list, dict):
        inner = ", ".join(_type(a) for a in arguments)
        return f"{get_origin(annotation).__name__} of {inner}"
    if arguments:
        return " or ".join("null" if a is type(None) else _type(a) for a in arguments)
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, re.sub(r"^.*\.", "", getattr(annotation, "__name__", "any")))


def _described(annotation: Any) -> str | None:
    """The description that a path field carries inside its annotation."""
    for extra in getattr(annotation, "__metadata__", ()):
        if isinstance(extra, FieldInfo) and extra.description:
            return extra.description
    return next((text for a in get_args(annotation) if (text := _described(a))), None)


if __name__ == "__main__":
    print(reference(), end="")
