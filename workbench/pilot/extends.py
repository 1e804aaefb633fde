"""The files that a pilot is made of: itself, the one it extends, the one that extends, and so on.

``extends:`` names one pilot file: relative to the file that says it, or ``workbench:NAME`` for a
pilot that the workbench ships, which is found from anywhere.
"""

from __future__ import annotations

from pathlib import Path

from workbench.errors import ConfigError
from workbench.paths import SHIPPED, expanded, located, shipped_names, shipped_pilots, shown
from workbench.pilot.problems import did_you_mean
from workbench.pilot.yaml_file import YamlFile, read_yaml


def pilot_path(name: Path | str) -> Path:
    """The absolute path of a pilot named on the command line: a path, or ``workbench:NAME``."""
    text = str(name)
    return _shipped(text) if text.startswith(SHIPPED) else expanded(Path(text)).absolute()


def files_of(path: Path) -> list[YamlFile]:
    """The pilot file at ``path`` and all that it extends, the furthest first.

    Raises ConfigError with file and line for a base that is not there, and with the whole chain
    for files that extend each other in a circle.
    """
    files = [read_yaml(path)]
    while "extends" in files[-1].values:
        base = _base_of(files[-1])
        if any(base.resolve() == file.path.resolve() for file in files):
            chain = " -> ".join(shown(p) for p in (*(file.path for file in files), base))
            raise ConfigError(
                f"{_place(files[-1])}: extends goes in a circle: {chain}",
                allowed="a chain of files that ends in one without extends",
                next_step="take extends out of one of them",
            )
        files.append(read_yaml(base))
    return files[::-1]


def _base_of(file: YamlFile) -> Path:
    name = file.values["extends"]
    if not isinstance(name, str):
        raise ConfigError(
            f"{_place(file)}: extends: got {name!r}", allowed="the name of one pilot file"
        )
    if name.startswith(SHIPPED):
        return _shipped(name, f"{_place(file)}: extends: ")
    path, absent = located(file.path.parent, name)
    if absent:
        raise ConfigError(
            f"{_place(file)}: extends: {absent}",
            allowed=f"a pilot file, relative to this one, or {SHIPPED}NAME for a shipped one",
            next_step=f"write {SHIPPED}{path.stem}"
            if path.stem in shipped_names()
            else "check the path",
        )
    return path


def _shipped(name: str, place: str = "") -> Path:
    bare = name.removeprefix(SHIPPED)
    if bare not in shipped_names():
        raise ConfigError(
            f"{place}{name}: no shipped pilot has that name{did_you_mean(bare, shipped_names())}"
        )
    return shipped_pilots() / f"{bare}.yaml"


def _place(file: YamlFile) -> str:
    return f"{shown(file.path)}:{file.lines[('extends',)]}"
