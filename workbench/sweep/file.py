"""A sweep file: one pilot, and the values in which its runs differ.

Everything is read, resolved and checked before anything starts, as one pilot is, and all that is
wrong is said at once. Two entries that ask for the same run are refused: a run is identified by
what it asks, so the second would find the first.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from workbench.errors import ConfigError
from workbench.paths import SHIPPED, expanded, located, shown
from workbench.pilot.problems import sentence
from workbench.pilot.resolve import ResolvedPilot, path_fields, resolve
from workbench.pilot.sections.base import Count, Positive, Section
from workbench.pilot.spec import Pilot
from workbench.pilot.yaml_file import YamlFile, dump_scalar, read_yaml
from workbench.records.run import identity_of
from workbench.wording.counts import number_of

NAME = r"^[a-z0-9][a-z0-9_-]*$"
MOST_RUNS = 1000
"""Of one sweep: what Slurm takes as one array where nobody raised it, and more than anybody
reads side by side."""
MOST_PROBLEMS = 10
"""Shown at once; a wrong key is wrong in every run."""


class Resources(Section):
    """Of one run, for a scheduler: Ray keeps them free for it, Slurm asks for them."""

    cpus: Count = Field(1, description="cores")
    gpus: int = Field(0, ge=0, description="GPUs")
    memory_gb: Positive | None = Field(None, description="main memory, GB; null: not asked for")
    hours: Positive | None = Field(None, description="Slurm's time limit, h; null: the partition's")


class SweepFile(Section):
    """What stands in the file. ``grid`` or ``runs``: every combination, or each as it is given."""

    name: str | None = Field(None, pattern=NAME, description="null: the file's name without ending")
    question: str = Field("", description="what the sweep answers, one sentence")
    pilot: str = Field(
        min_length=1, description="the pilot file, relative to this one, or workbench:NAME"
    )
    values: dict[str, Any] = Field(
        {}, description="fields of the pilot with another value in every run: {train.steps: 200}"
    )
    grid: dict[str, list[Any]] | None = Field(
        None, description="fields with their values; a run for every combination"
    )
    runs: list[dict[str, Any]] | None = Field(
        None, description="one mapping of fields to values for each run"
    )
    resources: Resources = Resources()
    slurm: list[Annotated[str, Field(pattern=r"^--[a-z].*$")]] = Field(
        [], description="further options of sbatch: ['--partition=gpu', '--account=nlp']"
    )


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep. number: from 1, in the order of the file. differences: field -> value,
    those of this run alone. identity: of the run, by :func:`identity_of`."""

    number: int
    differences: dict[str, Any]
    resolved: ResolvedPilot
    identity: dict[str, Any]

    @property
    def text(self) -> str:
        """``train.lr=0.001, seed=2``."""
        return ", ".join(f"{name}={dump_scalar(v)}" for name, v in self.differences.items())


@dataclass(frozen=True)
class Sweep:
    """A sweep with all its runs resolved. path: of its file."""

    name: str
    question: str
    path: Path
    runs: tuple[SweepRun, ...]
    resources: Resources
    slurm: tuple[str, ...] = ()


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file and resolve every run.

    Raises ConfigError for anything that is wrong in the file, in a run or with their number.
    """
    path = expanded(path).absolute()
    file = read_yaml(path)
    try:
        asked = SweepFile.model_validate(file.values)
    except ValidationError as error:
        problems = [
            f"{_place(file, keys)}: {text}"
            for keys, text in (sentence(detail, SweepFile) for detail in error.errors())
        ]
        raise refused(problems) from error
    name = asked.name or path.stem
    if not re.match(NAME, name):
        raise refused([f"{shown(path)}: {name} cannot name a sweep; give it a name: {NAME[1:-1]}"])
    pilot = asked.pilot if asked.pilot.startswith(SHIPPED) else _pilot_file(file, asked.pilot)
    runs = _resolved(file, pilot, asked.values, list(_differences(file, asked)))
    return Sweep(name, asked.question, path, runs, asked.resources, tuple(asked.slurm))


def _differences(file: YamlFile, asked: SweepFile) -> Iterator[dict[str, Any]]:
    if (asked.grid is None) == (asked.runs is None):
        raise refused(
            [f"{shown(file.path)}: a sweep has either a grid or a list of runs; got "
             + ("neither" if asked.grid is None else "both")]
        )  # fmt: skip
    if asked.grid is not None:
        empty = [name for name, values in asked.grid.items() if not values]
        if empty or not asked.grid:
            key = ("grid", *empty[:1])
            raise refused(
                [f"{_place(file, key)}: {'.'.join(key)}: empty, so there is no run; allowed: "
                 "fields with one value or more"]
            )  # fmt: skip
        _refuse_too_many(file, math.prod(len(values) for values in asked.grid.values()))
        for values in itertools.product(*asked.grid.values()):
            yield dict(zip(asked.grid, values, strict=True))
        return
    assert asked.runs is not None
    if not asked.runs:
        raise refused([f"{_place(file, ('runs',))}: runs: empty, so there is no run"])
    _refuse_too_many(file, len(asked.runs))
    yield from asked.runs


def _refuse_too_many(file: YamlFile, count: int) -> None:
    if count > MOST_RUNS:
        raise ConfigError(
            f"{shown(file.path)}: {number_of(count, 'run', form=',')}",
            allowed=f"{MOST_RUNS:,} in one sweep",
            next_step="take fewer values, or list the runs that matter; nothing was started",
        )


def _pilot_file(file: YamlFile, name: str) -> Path:
    pilot, absent = located(file.path.parent, name)
    if absent:
        raise refused(
            [f"{_place(file, ('pilot',))}: pilot: {absent} (allowed: a pilot file, relative to "
             f"this one, or {SHIPPED}NAME)"]
        )  # fmt: skip
    return pilot


def _resolved(
    file: YamlFile, pilot: Path | str, common: Mapping[str, Any], differing: Sequence[dict]
) -> tuple[SweepRun, ...]:
    found: list[SweepRun] = []
    first: dict[str, int] = {}
    problems: dict[str, None] = {}
    for number, differences in enumerate(differing, 1):
        values = {**common, **differences}
        texts = [
            f"{name}={dump_scalar(_from_here(file, str(name), value))}"
            for name, value in values.items()
        ]
        try:
            resolved = resolve(pilot, texts)
        except ConfigError as error:
            problems |= dict.fromkeys(
                line.replace("--set ", "", 1) for line in error.got.splitlines()
            )
            continue
        run = SweepRun(number, dict(differences), resolved, identity_of(resolved))
        same = first.setdefault(str(run.identity), number)
        if same != number:
            problems[
                f"runs {same} and {number} are one run ({run.text or 'nothing differs'}): what "
                "only judges or shows makes no other"
            ] = None
        found.append(run)
    if problems:
        raise refused([f"{shown(file.path)}: {problem}" for problem in problems])
    return tuple(found)


def _from_here(file: YamlFile, name: str, value: Any) -> Any:
    """``value`` of field ``name``, its path made absolute where it is one relative to the file."""
    keys = tuple(name.split("."))
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    for (*above, last), rule in path_fields(Pilot, nested):
        holder: Any = nested
        for step in above:
            holder = holder[step]
        text = holder[last]
        if isinstance(text, str) and text and text not in rule.words and text[:3] != "hf:":
            holder[last] = str(located(file.path.parent, text)[0])
    for key in keys:
        nested = nested[key]
    return nested


def _place(file: YamlFile, keys: Sequence[str | int]) -> str:
    near = (tuple(keys[:n]) for n in range(len(keys), 0, -1))
    line = next((file.lines[k] for k in near if k in file.lines), None)
    return shown(file.path) if line is None else f"{shown(file.path)}:{line}"


def refused(problems: Sequence[str]) -> ConfigError:
    """The first of ``problems``, and how many more there are."""
    more = len(problems) - MOST_PROBLEMS
    told = [*problems[:MOST_PROBLEMS], *([f"and {more} more like these"] if more > 0 else [])]
    return ConfigError("\n".join(told), next_step="correct the above; nothing was started")
