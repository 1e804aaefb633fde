"""A run's folder: ``runs/<pilot>/<id>/``, found again by what the pilot says.

The id is the time of the first start and a digest of the resolved pilot, the content of the
files it names, and the machine. The same pilot started again on the same machine finds its
folder and goes on there; a changed value, a changed file or another machine makes a new one.
What only judges or shows is no such value: asked by other gates, the same run answers; nor is
``train.launch``, with which a training goes on.
A run folder can be carried to another machine to be read there. Where ``WORKBENCH_STORE`` names a
store, the runs in it are found as well (:mod:`.published`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, StageError
from workbench.files import digest_json, digest_path, read_json, write_json, write_text
from workbench.machine.identity import machine_digest
from workbench.paths import runs_root, shown
from workbench.pilot.resolve import ResolvedPilot, digest_of, path_fields, resolved_from
from workbench.pilot.sections.base import said_in
from workbench.pilot.spec import Pilot
from workbench.pilot.yaml_file import dump_yaml, read_yaml
from workbench.records.attachment import with_attachment
from workbench.records.plan import write_plan
from workbench.records.published import (
    ENVIRONMENT,
    HEADER,
    PAGE,
    PILOT,
    fetch,
    mirror,
    take_begun,
    with_tables,
)
from workbench.records.stage_record import StageRecord
from workbench.records.store import RunStore, store_here
from workbench.roadmap import STAGES
from workbench.wording.counts import number_of

JUDGEMENTS = "judgements"
ASKED = "asked.json"
"""What the run was last judged and shown by, where that is not what it began with."""
WORKING = ".working.lock"
FORMAT = 2
"""Of the header. 1, without the field: the digest holds what only judges or shows as well."""
FIELDS = {"digest", "files", "machine", "created", "question", "pilot_file", "overrides"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One folder of results.

    header: created, question, pilot_file, overrides, and the run's identity: ``digest`` (of
    the resolved pilot), ``files`` (field -> digest of what it names), ``machine``.
    """

    folder: Path
    header: dict[str, Any]

    @property
    def name(self) -> str:
        """``<pilot>/<id>``, the name that ``workbench runs`` prints."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def is_from_here(self) -> bool:
        """Whether this machine made the run, so that it may go on here."""
        return self.header["machine"] == machine_digest()

    def resolved(self) -> ResolvedPilot:
        """The pilot as this run resolved it, whatever became of the pilot file."""
        values = read_yaml(self.folder / PILOT).values
        return resolved_from(values, self.folder / PILOT)

    def asked(self) -> ResolvedPilot:
        """The pilot in the words that the run was last judged and shown in: language, prices,
        gates, question. Those it began with, unless it was asked in others since."""
        begun, later = self.resolved(), self.judgements()
        if (path := self.folder / ASKED).exists():
            words = read_json(path)
        elif later:  # as versions before this file left it
            words = later[-1].facts["second_judgement"]["words"]
        else:
            return begun
        return resolved_from(begun.values | words, begun.path)

    def keep_asked(self, asked: ResolvedPilot) -> None:
        """For :meth:`asked`. Nothing is written where nothing changes."""
        if self.asked().words != asked.words:
            write_json(self.folder / ASKED, asked.words)

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def report(self) -> Path:
        return self.folder / PAGE

    @property
    def notebooks(self) -> Path:
        return self.folder / "notebooks"

    def stage_folder(self, stage: str) -> Path:
        return self.folder / "stages" / stage

    def judgements(self) -> list[StageRecord]:
        """Those made after the first one, oldest first."""
        folders = sorted(self.folder.glob(f"{JUDGEMENTS}/*"))
        return [record for folder in folders if (record := StageRecord.load(folder))]

    def new_judgement(self, key: str) -> Path:
        folder = self.folder / JUDGEMENTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{key[:6]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def record(self, stage: str) -> StageRecord | None:
        """As the stage left it, with what was attached to it afterwards."""
        record = StageRecord.load(self.stage_folder(stage))
        return with_attachment(record) if record else None

    def records(self) -> dict[str, StageRecord]:
        """The finished stages, in the order of the roadmap."""
        found = {name: self.record(name) for name in STAGES}
        return {name: record for name, record in found.items() if record}

    def environment(self) -> dict[str, Any]:
        """What the run was begun with; empty where nothing was kept, or nothing can be read."""
        path = self.folder / ENVIRONMENT
        try:
            return read_json(path) if path.exists() else {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): what made this run is unknown", shown(path), error)
            return {}

    def software(self) -> dict[str, dict[str, Any]]:
        """Stage -> what it was made with: code, interpreter, packages that decide figures."""
        begun = self.environment()
        return {name: record.software or begun for name, record in self.records().items()}

    @contextmanager
    def lock(self, stage: str) -> Iterator[None]:
        """One process at a time works on a stage; a second one is told so."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.working(), (self.folder / f".{stage}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StageError(
                    f"{stage} of {self.name} is being worked on by another process",
                    next_step="wait for it, or stop it, and run the same command again",
                ) from None
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """Tell other processes that somebody is at work here, however this one ends; a whole pilot
        holds it between its stages as well."""
        with (self.folder / WORKING).open("w+") as file:  # NFS: a shared lock needs it readable
            try:
                fcntl.flock(file, fcntl.LOCK_SH)
            except OSError as error:
                raise StageError(
                    f"{self.folder}: its file system keeps no locks: {error.strerror}",
                    allowed="a local disk, NFS with its lock manager, Lustre mounted with -o flock",
                    next_step="set WORKBENCH_RUNS to one, and share finished runs by --store",
                ) from error
            yield

    def at_work(self) -> bool:
        """Whether any process is at work on this run at this moment."""
        try:
            # NFS: to be tried for alone, a file has to be open for writing.
            mode = "r+" if os.access(self.folder / WORKING, os.W_OK) else "r"
            with (self.folder / WORKING).open(mode) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def open_run(resolved: ResolvedPilot, *, fresh: bool = False) -> Run:
    """The newest run of exactly this pilot on this machine, or a new one (with ``fresh``).

    resolved: of ``resolve``. A new run is a folder below ``$WORKBENCH_RUNS``, or ``runs/``; one
    that was begun elsewhere, on a machine like this one, is taken from the store.
    Raises ConfigError where that cannot be written, or a file of the pilot cannot be read.

    >>> from workbench.api import open_run, resolve
    >>> run = open_run(resolve("workbench:smoke", ["train.lr=3e-4"]))
    >>> run.name.startswith("smoke/"), run.records()
    (True, {})
    """
    siblings = runs_root() / resolved.pilot.name
    identity = identity_of(resolved)
    if not fresh:
        for run in reversed(runs_in(siblings)):
            if _that_are([run], identity):
                _take_launch(run, resolved)
                return run
        if begun := _begun_elsewhere(identity, siblings):
            _take_launch(begun, resolved)
            return begun
    with _folder_errors_named(siblings):
        return _create(resolved, identity, siblings)


def open_folder(folder: Path) -> Run:
    """The run in ``folder``."""
    if not (folder / HEADER).exists():
        raise ConfigError(
            f"{shown(folder)} is not a run: it has no {HEADER}",
            next_step="workbench runs lists the runs",
        )
    try:
        header = read_json(folder / HEADER)
        missing = FIELDS - header.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(folder, str(error)) from error
    if missing:
        raise _damaged(folder, f"without {', '.join(sorted(missing))}")
    return Run(folder.resolve(), header)


def _damaged(folder: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{shown(folder / HEADER)} is damaged: {what}",
        next_step="restore it, or move that run's folder away",
    )


def runs_that_ask(pilot: str, digest: str, files: Mapping[str, str]) -> list[Run]:
    """The runs of pilot ``pilot`` with this identity, made on whatever machine; oldest first."""
    asked = {"digest": digest, "files": dict(files)}
    here = runs_in(runs_root() / pilot)
    found = _that_are(here, asked)
    if store := store_here():
        names = {run.name for run in here}
        there = _that_are(runs_in(mirror(store, pilot) / pilot), asked)
        for run in there:
            with_tables(store, run.folder)
        found += [run for run in there if run.name not in names]
    return sorted(found, key=lambda run: run.folder.name)


def all_runs() -> list[Run]:
    """Every run below the runs folder and in the store, oldest first within its pilot."""
    here, store = _runs_below(runs_root()), store_here()
    found = here + (_only_there(store, here) if store else [])
    return sorted(found, key=lambda run: (run.folder.parent.name, run.folder.name))


def find_run(name: str) -> Run:
    """A run by folder, by ``pilot/id``, by a unique part of that, or by pilot (its newest).

    One that is not here is looked for in the store; its figures and tables are brought here.
    ``run.record(stage)`` has its figures, tables and artefacts, or is None for a stage that has
    not finished. Raises ConfigError, with the runs that there are, for a name of none or several.

    >>> from workbench.api import find_run, open_run, resolve
    >>> begun = open_run(resolve("workbench:smoke"))
    >>> run = find_run("smoke")
    >>> run.folder == begun.folder, run.record("measure_ab")
    (True, None)
    """
    if (Path(name) / HEADER).exists():
        return open_folder(Path(name))
    runs = _runs_below(runs_root())
    matches = _matching(name, runs)
    if not matches and (store := store_here()):
        there = _only_there(store, runs)
        matches, runs = _matching(name, there), runs + there
        if len(matches) == 1:
            with_tables(store, matches[0].folder)
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(run.name for run in runs) or "none yet"
    many = number_of(len(matches), "run matches", "runs match")
    raise ConfigError(
        f"{name}: {many if matches else 'no run has that name'}",
        allowed=f"a run's folder, name, or a unique part of it; runs: {known}",
        next_step="workbench runs lists them",
    )


def fetch_run(name: str) -> Run:
    """The run of the store with this name, whole, among the runs here; the one here if it is."""
    run, store = find_run(name), store_here()
    if run.folder.parents[1] == runs_root():
        return run
    if store is None:
        raise ConfigError(f"{name}: no store is named", next_step="say --store URL")
    return open_folder(fetch(store, run.folder))


def _matching(name: str, runs: list[Run]) -> list[Run]:
    of_pilot = [run for run in runs if run.folder.parent.name == name]
    # A whole name is that run's, though another's begins with it.
    whole = of_pilot[-1:] or [run for run in runs if run.name == name]
    return whole or [run for run in runs if name in run.name]


def _runs_below(root: Path) -> list[Run]:
    with _folder_errors_named(root):
        pilots = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        return [run for pilot in pilots for run in runs_in(pilot)]


def _only_there(store: RunStore, here: list[Run]) -> list[Run]:
    """The runs of the store that are not among ``here``; of their files only the records."""
    names = {run.name for run in here}
    return [run for run in _runs_below(mirror(store)) if run.name not in names]


def _that_are(runs: list[Run], asked: Mapping[str, Any]) -> list[Run]:
    return [r for r in runs if all(_identifies(r, key) == value for key, value in asked.items())]


def _begun_elsewhere(identity: Mapping[str, Any], siblings: Path) -> Run | None:
    """The newest run of the store with this identity, from now on a run here as well: its finished
    stages are taken as they are come to."""
    store = store_here()
    if store is None:
        return None
    found = _that_are(runs_in(mirror(store, siblings.name) / siblings.name), identity)
    if not found:
        return None
    with _folder_errors_named(siblings):
        take_begun(found[-1].folder, siblings / found[-1].folder.name)
    store.say(f"going on with {found[-1].name} of the store {store.url}")
    return open_folder(siblings / found[-1].folder.name)


def identity_of(resolved: ResolvedPilot) -> dict[str, Any]:
    """What makes two runs the same run: ``digest``, ``files`` and ``machine`` of its header.

    Raises ConfigError where a file that the pilot names cannot be read.
    """
    files = {}
    for keys, rule in path_fields(Pilot, resolved.values):
        if rule.live:
            continue
        value: Any = resolved.values
        for key in keys:
            value = value[key]
        if isinstance(value, str) and Path(value).is_absolute():
            name = ".".join(map(str, keys))
            try:
                files[name] = digest_path(Path(value))
            except OSError as error:
                raise ConfigError(
                    f"{name}: {shown(Path(error.filename or value))} cannot be read: "
                    f"{error.strerror}",
                    allowed="files that the user of this process may read",
                    next_step="see to its permissions, or move it out of the folder",
                ) from error
    return {"digest": resolved.digest, "files": files, "machine": machine_digest()}


def _identifies(run: Run, key: str) -> Any:
    """A part of a run's identity, worked out from its pilot where an older header has another."""
    if key == "digest" and "format" not in run.header:
        try:
            return digest_of(read_yaml(run.folder / PILOT).values)
        except ConfigError as error:
            log.warning("%s is not found again by its pilot: %s", run.name, error.got)
    return run.header.get(key)


def _take_launch(run: Run, resolved: ResolvedPilot) -> None:
    """What is left of the training is launched as the pilot says now: with fewer processes, say."""
    begun, launch = run.resolved(), resolved.values["train"]["launch"]
    if begun.values["train"]["launch"] == launch or run.record("train_qat"):
        return
    values = begun.values | {"train": {**begun.values["train"], "launch": launch}}
    write_text(run.folder / PILOT, _annotated(replace(begun, values=values)))


def _create(resolved: ResolvedPilot, identity: dict[str, Any], siblings: Path) -> Run:
    folder = siblings / f"{time.strftime('%Y%m%d-%H%M%S')}-{digest_json(identity)[:6]}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        time.sleep(1.0)
        return _create(resolved, identity, siblings)
    write_text(folder / PILOT, _annotated(resolved))
    write_plan(folder, resolved.values)
    header = {
        "format": FORMAT,
        **identity,
        "words": digest_json(resolved.words),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "question": said_in(resolved.pilot.question, resolved.pilot.report.language),
        "tags": list(resolved.pilot.tags),
        "pilot_file": str(resolved.path),
        "overrides": list(resolved.overrides),
    }
    write_json(folder / HEADER, header)
    return Run(folder, header)


def _annotated(resolved: ResolvedPilot) -> str:
    sources = "\n".join(
        f"#   {name}: {source}" for name, _, source in resolved.leaves() if source != "default"
    )
    return (
        f"# Resolved from {resolved.path.name}; every value, defaults included.\n"
        f"# Given values and where they came from:\n{sources}\n{dump_yaml(resolved.values)}"
    )


def runs_in(pilot: Path) -> list[Run]:
    """The runs of a pilot's folder, oldest first; a damaged one is named and left out."""
    found = []
    for header in sorted(pilot.glob(f"*/{HEADER}")):
        try:
            found.append(open_folder(header.parent))
        except ConfigError as error:
            log.warning("left out: %s", error)
    return found


@contextmanager
def _folder_errors_named(folder: Path) -> Iterator[None]:
    """A folder that cannot be used is the user's to change."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the runs folder {shown(folder)}: {error.strerror or error}",
            allowed="a folder that can be read and written",
            next_step="set WORKBENCH_RUNS to one",
        ) from error
