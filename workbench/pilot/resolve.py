"""From a pilot file, its base and the command line to one validated pilot.

Later wins: defaults, then the files named by ``extends``, the furthest first, then the pilot
file, then each ``--set``; of a pilot with a checkpoint the recipe for it stands above
``workbench:base`` (:mod:`workbench.pilot.recipe`).
Mappings merge key by key; lists and scalars are replaced whole. All
problems are reported at once, and every value remembers where it came from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from workbench.errors import ConfigError
from workbench.files import digest_json
from workbench.paths import located, shipped_pilots, shown
from workbench.pilot.extends import files_of, pilot_path
from workbench.pilot.problems import did_you_mean, section_at, sentence
from workbench.pilot.recipe import SOURCE, recipe_for
from workbench.pilot.renamed import todays_name, with_todays_names
from workbench.pilot.sections.base import InputPath
from workbench.pilot.spec import Pilot
from workbench.pilot.yaml_file import Keys, YamlFile, parse_scalar

Place = TypeVar("Place")
JUDGES_OR_SHOWS = ("question", "tags", "report")
"""Parts of the pilot that decide no figure."""


def digest_of(values: dict[str, Any]) -> str:
    """Of a resolved pilot's values, without what only judges or shows and without the launch, with
    which a run may change when it goes on."""
    asked = {k: v for k, v in with_todays_names(values).items() if k not in JUDGES_OR_SHOWS}
    if isinstance(train := asked.get("train"), dict):
        asked["train"] = {k: v for k, v in train.items() if k != "launch"}
    return digest_json(asked)


@dataclass(frozen=True)
class ResolvedPilot:
    """A pilot and its history.

    values: every field, defaults included, as plain data.
    sources: where each given value came from (``pilots/base.yaml:12``, ``--set``); a field
    without an entry has its default.
    """

    pilot: Pilot
    path: Path
    overrides: tuple[str, ...]
    values: dict[str, Any]
    sources: dict[Keys, str]

    @property
    def digest(self) -> str:
        """Of all that decides figures: what only judges or shows is left out."""
        return digest_of(self.values)

    @property
    def words(self) -> dict[str, Any]:
        """What the pilot is asked in, language included: all that the digest leaves out."""
        return {name: self.values[name] for name in JUDGES_OR_SHOWS if name != "tags"}

    @property
    def judging(self) -> dict[str, Any]:
        """What is judged by, the question included; the report's language only shows."""
        report = {k: v for k, v in self.values["report"].items() if k != "language"}
        return {"question": self.values["question"], "report": report}

    def judged_like(self, other: ResolvedPilot) -> ResolvedPilot:
        """This pilot, asked in the words of ``other``."""
        kept = {name: getattr(other.pilot, name) for name in JUDGES_OR_SHOWS}
        pilot, values = self.pilot.model_copy(update=kept), self.values | other.words
        return replace(self, pilot=pilot, values=values)

    def where(self, problem: str) -> str:
        """File and line (or ``--set``) of the field that a sentence begins with; the pilot file
        where it begins with none, or with one that nobody gave."""
        name = re.match(r"\w+(\.\w+)*", problem)
        parts = name[0].split(".") if name else []
        keys = tuple(int(part) if part.isdigit() else part for part in parts)
        return _nearest(self.sources, keys) or shown(self.path)

    def leaves(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted name, value, source) of every field, in the order of the sections."""
        for keys, value in leaves_of(self.values, ()):
            within = (keys[:n] for n in range(len(keys), 0, -1))
            own = (k for k in within if k == keys or section_at(Pilot, k) is None)
            source = next((self.sources[k] for k in own if k in self.sources), "default")
            yield ".".join(map(str, keys)), value, source


def resolve(path: Path | str, overrides: Sequence[str] = ()) -> ResolvedPilot:
    """Read and check a whole pilot.

    path: of the pilot file, or ``workbench:NAME`` for one that the workbench ships.
    overrides: ``section.key=value`` texts, values by YAML's rules.
    Raises ConfigError listing every problem with file and line.

    >>> from workbench.api import resolve
    >>> resolve("workbench:smoke", ["train.lr=3e-4"]).pilot.train.lr
    0.0003
    """
    path = pilot_path(path)
    merge = _Merge()
    for file in files_of(path):
        merge.file(file)
    for text in overrides:
        merge.override(text)
    merge.take_recipe()
    merge.resolve_paths()
    merge.refuse_endless_numbers()

    pilot = merge.checked("nothing was started (workbench show lists all fields)")
    return ResolvedPilot(
        pilot, path, tuple(overrides), pilot.model_dump(mode="json"), merge.sources
    )


def asked_again(begun: ResolvedPilot, overrides: Sequence[str]) -> ResolvedPilot:
    """A run's pilot with other values of what only judges or shows.

    Raises ConfigError for a wrong value, and for one that decides figures.
    """
    merge = _Merge()
    merge.values = begun.values
    for text in overrides:
        if (part := text.partition(".")[0].partition("=")[0].strip()) not in JUDGES_OR_SHOWS:
            merge.problems.append(
                f"--set {text}: {part} decides figures, and those of this run are made; allowed: "
                "report.language, report.gates, report.cost, question"
            )
            continue
        merge.override(text)
    pilot = merge.checked("nothing was changed; other figures need a run: workbench run PILOT.yaml")
    values = pilot.model_dump(mode="json")
    return ResolvedPilot(pilot, begun.path, tuple(overrides), values, merge.sources)


def changed_leaves(before: ResolvedPilot, now: ResolvedPilot) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value before, value now) of each field that judges or shows and differs."""
    old, new = ({name: value for name, value, _ in each.leaves()} for each in (before, now))
    for name in dict.fromkeys([*old, *new]):
        if name.split(".")[0] in JUDGES_OR_SHOWS and old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def resolved_from(values: dict[str, Any], path: Path) -> ResolvedPilot:
    """A pilot from values that were resolved before (a run's own ``pilot.yaml``); the inputs it
    names need not exist any more."""
    try:
        pilot = Pilot.model_validate(values)
    except ValidationError as error:
        wrong = "\n".join(sentence(detail, Pilot)[1] for detail in error.errors())
        raise ConfigError(
            f"{shown(path)}: {wrong}",
            next_step="the run was made by another version of the workbench; start a new one",
        ) from error
    return ResolvedPilot(pilot, path, (), pilot.model_dump(mode="json"), {})


class _Merge:
    """The values so far, where each came from, and what is wrong with them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[Keys, str] = {}
        self.folders: dict[Keys, Path] = {}
        self.given: set[Keys] = set()  # leaves, by whom the pilot is; not by workbench:base
        self.problems: list[str] = []

    def checked(self, reassurance: str) -> Pilot:
        """The pilot; ConfigError with all problems at once, and what became of the rest."""
        pilot = None
        try:
            pilot = Pilot.model_validate(self.values)
        except ValidationError as error:
            for detail in error.errors():
                self.problem(*sentence(detail, Pilot))
        if pilot is None or self.problems:
            raise ConfigError(
                "\n".join(dict.fromkeys(self.problems)),
                next_step=f"correct the above; {reassurance}",
            )
        return pilot

    def problem(self, keys: Keys, text: str) -> None:
        where = _nearest(self.sources, keys)
        self.problems.append(f"{where}: {text}" if where else text)

    def file(self, file: YamlFile) -> None:
        try:
            own = with_todays_names(file.values)
        except ValueError as error:
            raise ConfigError(f"{shown(file.path)}: {error}") from None
        given = dict(leaves_of(own, ()))
        if not file.path.samefile(shipped_pilots() / "base.yaml"):
            self.given |= {keys for keys, value in given.items() if value != {}}
        for written, line in file.lines.items():
            keys = todays_name(written)
            if keys in given:
                self._forget_below(keys)
            if keys[0] != "extends":
                self.sources[keys] = f"{shown(file.path)}:{line}"
                self.folders[keys] = file.path.parent
        values = {k: v for k, v in own.items() if k != "extends"}
        # The question stands in one or several languages: another pilot's is replaced in all.
        under = {k: v for k, v in self.values.items() if k != "question" or k not in values}
        self.values = merged(under, values)

    def _forget_below(self, keys: Keys) -> None:
        """A list or a scalar replaces all that stood there, so nothing in it has that place."""
        for known in (self.sources, self.folders):
            for old in [k for k in known if len(k) > len(keys) and k[: len(keys)] == keys]:
                del known[old]

    def override(self, text: str) -> None:
        name, equals, value_text = text.partition("=")
        keys = todays_name(tuple(name.strip().split(".")))
        if not equals or not all(keys):
            self.problems.append(f"--set {text}: allowed: section.key=value")
            return
        try:
            value = parse_scalar(value_text)
        except ValueError:
            self.problems.append(f"--set {text}: the value is not valid YAML")
            return
        for depth in range(1, len(keys)):
            if section_at(Pilot, keys[:depth]) is None and not _is_free_map(keys[:depth]):
                known = section_at(Pilot, keys[: depth - 1])
                names = list(known.model_fields) if known else []
                unknown = did_you_mean(str(keys[depth - 1]), names)
                self.problems.append(f"--set {text}: unknown section {keys[depth - 1]}{unknown}")
                return
        nested: Any = value
        for key in reversed(keys):
            nested = {key: nested}
        self.values = merged(self.values, nested)
        for leaf, _ in leaves_of(value, keys):
            self._forget_below(leaf)
            self.given.add(leaf)
            self.sources[leaf] = f"--set {text}"
            self.folders[leaf] = Path.cwd()

    def take_recipe(self) -> None:
        """What a training from a checkpoint takes where the pilot says nothing of it."""
        for keys, value in list(recipe_for(self.values, self.given)):
            nested: Any = value
            for key in reversed(keys):
                nested = {key: nested}
            self.values = merged(self.values, nested)
            self._forget_below(keys)
            self.sources[keys] = SOURCE

    def resolve_paths(self) -> None:
        """Make each given path absolute and insist that it exists."""
        for keys, rule in path_fields(Pilot, self.values):
            section: Any = self.values
            for key in keys[:-1]:
                section = section[key]
            value = section[keys[-1]]
            if not isinstance(value, str) or value in rule.words or not value:
                continue
            if value.startswith("hf:"):
                if not rule.hub:
                    self.problem(
                        keys, f"{'.'.join(map(str, keys))}: takes no hf: name, got {value}"
                    )
                continue
            found, absent = located(_nearest(self.folders, keys) or Path.cwd(), value)
            section[keys[-1]] = str(found)
            if absent:
                words = "".join(f", or {w}" for w in rule.words)
                words += ", or hf:owner/name" if rule.hub else ""
                self.problem(
                    keys,
                    f"{'.'.join(map(str, keys))}: {absent} (allowed: an existing path{words})",
                )

    def refuse_endless_numbers(self) -> None:
        """In free maps, whose values no section checks; the other fields refuse them themselves."""
        for keys, value in _scalars(self.values, ()):
            if isinstance(value, float) and not math.isfinite(value) and _is_free_map(keys):
                name = ".".join(map(str, keys))
                self.problem(keys, f"{name}: got {value}: input should be a finite number")


def _nearest(sources: Mapping[Keys, Place], keys: Keys) -> Place | None:
    """Where a value was given, or what it lies in."""
    near = (keys[:n] for n in range(len(keys), 0, -1))
    return next((sources[k] for k in near if k in sources), None)


def path_fields(
    model: type[BaseModel], values: Any, keys: Keys = ()
) -> Iterator[tuple[Keys, InputPath]]:
    """All fields given in ``values``, those of sections in lists and mappings too, that name
    something to read."""
    for name, field in model.model_fields.items():
        if not isinstance(values, dict) or name not in values:
            continue
        value, here = values[name], (*keys, name)
        rule = next((m for m in field.metadata if isinstance(m, InputPath)), None)
        if rule := rule or _path_rule(field.annotation):
            yield here, rule
        elif inner := section_at(model, (name,)):
            many = get_origin(field.annotation) is dict and isinstance(value, dict)
            if many or isinstance(value, list):
                for key, item in value.items() if many else enumerate(value):
                    yield from path_fields(inner, item, (*here, key))
            else:
                yield from path_fields(inner, value, here)


def _path_rule(annotation: Any) -> InputPath | None:
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, InputPath):
            return part
    return next((rule for arg in get_args(annotation) if (rule := _path_rule(arg))), None)


def _is_free_map(keys: Keys) -> bool:
    """Whether ``keys`` name, or lie in, a field whose own keys are up to the user
    (``model.overrides``, ``study.recipe.arms``)."""
    for depth in range(1, len(keys) + 1):
        section = section_at(Pilot, keys[: depth - 1])
        field = section.model_fields.get(str(keys[depth - 1])) if section else None
        if getattr(getattr(field, "annotation", None), "__origin__", None) is dict:
            return True
    return False


def merged(under: Any, over: Any) -> Any:
    """``over`` laid over ``under``: mappings key by key, all else replaced whole."""
    if isinstance(under, dict) and isinstance(over, dict):
        keys = list(under) + [k for k in over if k not in under]
        return {
            k: merged(under[k], over[k]) if k in under and k in over else {**under, **over}[k]
            for k in keys
        }
    return over


def leaves_of(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """(keys, value) of all below ``value``, which lies at ``keys``, that is no filled mapping."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves_of(item, (*keys, key))
    else:
        yield keys, value


def _scalars(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """Every value that is no mapping and no list."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _scalars(item, (*keys, key))
    else:
        yield keys, value
