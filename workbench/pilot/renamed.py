"""Fields that have another name now: pilots and records that say the old one are read as before.

Both names in one file are two answers to one question, and refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.pilot.yaml_file import Keys

FieldName = tuple[str, ...]
RENAMED: dict[FieldName, FieldName] = {("train", "processes"): ("train", "launch", "processes")}


def todays_name(keys: Keys) -> Keys:
    """Of a field, or of anything else the same."""
    return next((new for old, new in RENAMED.items() if old == keys), keys)


def with_todays_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same pilot, or part of one, by the names that fields have now; ``values`` stays.

    Raises ValueError where a field is given by both names.
    """
    named = dict(values)
    for old, new in RENAMED.items():
        named = _moved(named, old, new)
    return named


def _moved(values: dict[str, Any], old: FieldName, new: FieldName) -> dict[str, Any]:
    """old: (section, field). new: deeper in the same section."""
    (section, field), (_, *within, last) = old, new
    inside = values.get(section)
    if not isinstance(inside, Mapping) or field not in inside:
        return values
    inside = dict(inside)
    value = inside.pop(field)
    place = inside
    for key in within:
        place[key] = dict(place.get(key) or {})
        place = place[key]
    if last in place and place[last] != value:
        raise ValueError(
            f"{_dotted(old)} {value} is {_dotted(new)} by its old name, which is given too: "
            f"{place[last]}; keep one of them"
        )
    place[last] = value
    return {**values, section: inside}


def _dotted(name: FieldName) -> str:
    return ".".join(name)
