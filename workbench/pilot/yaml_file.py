"""YAML 1.2 with positions: plain values, and the line each of them stands on.

YAML 1.1 readers take ``1e-4`` for text, ``off`` for False and ``12:30`` for 750; a pilot
must mean what it says, so this reads 1.2 (ruamel.yaml) and refuses a key given twice.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from workbench.errors import ConfigError
from workbench.paths import shown

Keys = tuple[str | int, ...]
SHOWN = 6
"""Files of a folder that an error names, at most."""


@dataclass(frozen=True)
class YamlFile:
    """values: plain dicts, lists and scalars. lines: the line (from 1) of each key or item."""

    path: Path
    values: dict[str, Any]
    lines: dict[Keys, int]


def read_yaml(path: Path) -> YamlFile:
    """Read one file whose top level is a mapping, or raise ConfigError with its line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{shown(path)}: no such file", next_step="check the path of the pilot file"
        ) from None
    except IsADirectoryError:
        raise _a_folder(path) from None
    except OSError as error:
        raise ConfigError(
            f"{shown(path)}: cannot be read: {error.strerror or error}",
            allowed="a readable YAML file",
            next_step="see to its permissions, or name another file",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{shown(path)}: is no UTF-8 text: {error.reason}",
            allowed="a YAML file in UTF-8",
            next_step="check the path: a pilot is a text file such as those of workbench new",
        ) from error
    try:
        tree = YAML(typ="rt").load(StringIO(text))
        lines: dict[Keys, int] = {}
        values = _plain(tree, (), lines)
    except (YAMLError, ValueError, LookupError, RecursionError) as error:
        raise _syntax_error(path, error) from error
    if not isinstance(tree, CommentedMap):
        raise ConfigError(
            f"{shown(path)}: the top level is {_kind(tree)}",
            allowed="a mapping of sections (name:, question:, train:, ...)",
        )
    return YamlFile(path, values, lines)


def parse_scalar(text: str) -> Any:
    """The value of ``--set key=VALUE``, by the same YAML rules as a file; ValueError if none."""
    try:
        return _plain(YAML(typ="rt").load(StringIO(text)), (), {})
    except (YAMLError, LookupError, RecursionError) as error:
        raise ValueError(str(error)) from error


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as block-style YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def dump_scalar(value: Any) -> str:
    """One value on one line, as it could stand in a pilot file."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.width = 10_000
    stream = StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").strip()


def _plain(node: Any, keys: Keys, lines: dict[Keys, int]) -> Any:
    if isinstance(node, CommentedMap):
        for key in node:
            # A key that a merge (<<) brought has no place of its own.
            own = key in (node.lc.data or {})
            lines[(*keys, key)] = (node.lc.key(key)[0] if own else node.lc.line) + 1
        return {key: _plain(value, (*keys, key), lines) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*keys, index)] = node.lc.item(index)[0] + 1
        return [_plain(value, (*keys, index), lines) for index, value in enumerate(node)]
    if isinstance(node, (bool, ScalarBoolean)):
        return bool(node)
    if isinstance(node, TaggedScalar):
        raise ValueError(f"{node.tag.value} {node.value}: tags mean nothing here")
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _a_folder(path: Path) -> ConfigError:
    inside = sorted(shown(p) for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
    many = ", ".join(inside[:SHOWN]) + (", ..." if len(inside) > SHOWN else "")
    return ConfigError(
        f"{shown(path)}: is a folder",
        allowed="a YAML file, such as a pilot",
        next_step=f"name one of its files: {many}"
        if inside
        else "if it holds your text, a pilot about it is made by workbench new PILOT.yaml --data "
        f"{shlex.quote(shown(path))}, and run by workbench run PILOT.yaml",
    )


def _syntax_error(path: Path, error: Exception) -> ConfigError:
    line, problem = 0, str(error)
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        problem = error.problem or error.context or problem
    return ConfigError(
        f"{shown(path)}:{line}: not valid YAML: {problem.strip()}"
        if line
        else f"{shown(path)}: not valid YAML: {problem.strip()}",
        next_step="check indentation, colons, quotes and keys given twice"
        + (" near that line" if line else ""),
    )


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"
