"""Runs in a store: a stage's result is there whole or not to be seen, and is never overwritten.

    runs/<pilot>/<id>/pilot.yaml, plan.json, environment.json, and last run.json
    runs/<pilot>/<id>/stages/<stage>/<key>/record.json
    files/<pilot>/<id>/<stage>/<writer>/<file>...

A writer puts a stage's files into a folder of its own below ``files`` and then creates
``record.json``, once: the record of the stage, and which of those folders is its own. A writer
that is killed before leaves files that no record names. Of two writers the first record stays; the
other keeps its own result where it was made, and publishes no stage that stands on it. What a stage
keeps only to go on (checkpoints) is not published, and neither is what came after it (logs of
meters, later judgements).

To be listed and compared, the records of all runs are mirrored beside the runs of this machine;
tables come once a run is named, models where a run goes on or is fetched.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, StageError
from workbench.files import digest_json, read_json, write_json, write_text
from workbench.paths import runs_root
from workbench.records.events import Progress
from workbench.records.plan import PLAN
from workbench.records.stage_record import PUBLISHED, RECORD, StageRecord
from workbench.records.store import RunStore
from workbench.roadmap import STAGES
from workbench.wording.counts import number_of

HEADER = "run.json"
PILOT = "pilot.yaml"
ENVIRONMENT = "environment.json"
PAGE = "report.html"
ABOUT = (PILOT, PLAN, ENVIRONMENT)
"""With the header, what a run is."""


@dataclass(frozen=True)
class Published:
    """A stage's result in a store. record: its fields. files: the folder of its files there.
    sizes: file below it -> bytes. by: the machine's name. published: when."""

    record: dict[str, Any]
    files: str
    sizes: dict[str, int]
    by: str
    published: str

    @classmethod
    def read(cls, content: bytes, name: str) -> Published:
        """Raises StageError for what is no such record."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise StageError(
                f"{name} of the store cannot be read: {error}",
                next_step="remove it there, and the same command publishes that stage again",
            ) from error

    @property
    def text(self) -> str:
        return f"published by {self.by} on {self.published}"

    def is_of(self, record: StageRecord) -> bool:
        """Whether ``record`` is of the same computation: alike but for what was noted since."""
        here = read_json(record.folder / RECORD)
        return {**here, "notes": None} == {**self.record, "notes": None}

    def light(self) -> list[str]:
        """What may be shown without the models: tables, and artefacts that are a single file."""
        named = {*self.record["tables"].values(), *self.record["artefacts"].values()}
        return [file for file in self.sizes if file in named]


def publish(store: RunStore, folder: Path, progress: Progress) -> None:
    """Put into the store what is finished of the run in ``folder`` and not there yet."""
    run = _run_name(folder)
    kept = store.read(f"runs/{run}/{HEADER}")
    if kept is None:
        for name in (*ABOUT, HEADER):
            if (folder / name).exists():
                kept = store.create(f"runs/{run}/{name}", (folder / name).read_bytes())
    if kept is None or _identity(kept) != _identity((folder / HEADER).read_bytes()):
        raise StageError(
            f"the store {store.url} has another run of the name {run}",
            next_step=f"rename the folder {folder} and run the same command again",
        )
    strangers: set[str] = set()
    for stage in STAGES:
        record = StageRecord.load(folder / "stages" / stage)
        if record is None:
            continue
        if based := sorted(strangers & set(STAGES[stage].after)):
            strangers.add(stage)
            progress.note(
                f"{stage} is not published: it stands on {', '.join(based)} of this machine, and "
                f"the store {store.url} has another's"
            )
            continue
        found = _publish_stage(store, run, record, progress)
        if found is None:
            strangers.add(stage)
            progress.note(f"{stage} is not published: files of {record.folder} are gone")
        elif not found.is_of(record):
            strangers.add(stage)
            progress.note(
                f"{stage} of {run} is in the store {store.url} already, {found.text}: that stays, "
                f"and yours stays in {record.folder}"
            )


def publish_page(store: RunStore, folder: Path) -> None:
    """The page of the first judgement, once."""
    if (folder / PAGE).exists():
        store.create(f"runs/{_run_name(folder)}/{PAGE}", (folder / PAGE).read_bytes())


def result(store: RunStore, run: str, stage: str, key: str, *, others: bool) -> Published | None:
    """The result of ``stage`` with this key in ``run``; with ``others`` in any run of the pilot."""
    name = _place(run, stage, key)
    names = [name] if not others else [name, *_of_others(store, run, stage, key)]
    for each in names:
        if content := store.read(each):
            return Published.read(content, each)
    return None


def bring(
    store: RunStore, found: Published, folder: Path, files: Iterable[str] | None = None
) -> StageRecord:
    """Files of a result (all of them, or ``files``) into ``folder``; the record, last, as well.

    Raises StageError where a file is not as it was published.
    """
    for name in found.sizes if files is None else files:
        target = folder / name
        if target.exists() and target.stat().st_size == found.sizes[name]:
            continue
        store.get(f"{found.files}/{name}", target)
        if (size := target.stat().st_size) != found.sizes[name]:
            target.unlink()
            raise StageError(
                f"{found.files}/{name} of the store {store.url} has {number_of(size, 'byte')}",
                allowed=f"the {found.sizes[name]} of when it was published",
                next_step=f"leave {found.files.split('/')[-2]} to be computed here (without the "
                "store), or restore the file there",
            )
    fields = dict(found.record)
    write_json(folder / RECORD, fields)
    record = StageRecord.load(folder)
    assert record is not None
    return record


def mirror(store: RunStore, pilot: str = "") -> Path:
    """The runs of the store as folders below the one returned: what they are, and the records of
    their stages; with ``pilot`` of that one alone. What lies there already is not asked for
    again, since nothing in a store changes."""
    root = runs_root() / f".store-{digest_json(store.url, 8)}"
    under = f"runs/{pilot}" if pilot else "runs"
    stages: dict[tuple[str, str], list[str]] = {}
    runs: dict[str, list[str]] = {}
    for name in store.names(under):
        match name.split("/"):
            case ["runs", of, number, file] if file in (HEADER, *ABOUT):
                runs.setdefault(f"{of}/{number}", []).append(file)
            case ["runs", of, number, "stages", stage, _, file] if file == RECORD:
                stages.setdefault((f"{of}/{number}", stage), []).append(name)
    for run, files in runs.items():
        if HEADER not in files:  # its writer has not come to the end of it
            continue
        for file in (*ABOUT, HEADER):
            if file in files and not (root / run / file).exists():
                _mirror_file(store, f"runs/{run}/{file}", root / run / file)
    for (run, stage), names in stages.items():
        if (root / run / HEADER).exists():
            _mirror_stage(store, root / run / "stages" / stage, names)
    return root


def with_tables(store: RunStore, folder: Path) -> None:
    """Add the tables and the page to a mirrored run, so that it can be compared and drawn."""
    for kept in sorted(folder.glob(f"stages/*/{PUBLISHED}")):
        found = Published.read(kept.read_bytes(), str(kept))
        bring(store, found, kept.parent, found.light())
    if not (folder / PAGE).exists():
        _mirror_file(store, f"runs/{_run_name(folder)}/{PAGE}", folder / PAGE)


def take_begun(folder: Path, target: Path) -> None:
    """What the mirrored run in ``folder`` is, without its stages, as the run folder ``target``."""
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    for name in (*ABOUT, HEADER):
        if (folder / name).exists():
            shutil.copyfile(folder / name, partial / name)
    try:
        partial.rename(target)
    except OSError:  # another process was quicker
        shutil.rmtree(partial)
        if not target.exists():
            raise


def fetch(store: RunStore, folder: Path) -> Path:
    """The mirrored run in ``folder`` with all its files, models included, among the runs here."""
    target = runs_root() / _run_name(folder)
    if target.exists():
        raise ConfigError(
            f"{_run_name(folder)} is here already: {target}",
            next_step="workbench run PILOT.yaml goes on with it, and takes what the store has",
        )
    with_tables(store, folder)
    partial = target.with_name(f".{target.name}.fetched")
    for kept in sorted(folder.glob(f"stages/*/{PUBLISHED}")):
        found = Published.read(kept.read_bytes(), str(kept))
        bring(store, found, partial / "stages" / kept.parent.name)
    for name in (*ABOUT, PAGE, HEADER):
        if (folder / name).exists():
            shutil.copyfile(folder / name, partial / name)
    partial.rename(target)
    return target


def _publish_stage(
    store: RunStore, run: str, record: StageRecord, progress: Progress
) -> Published | None:
    """What the store has of this stage from now on; None where there is nothing whole to put."""
    place = _place(run, record.stage, record.key)
    if content := store.read(place):
        return Published.read(content, place)
    if not record.is_whole():
        return None
    files = _files(record)
    folder = f"files/{run}/{record.stage}/{uuid.uuid4().hex}"
    for number, name in enumerate(files):
        progress.step("publishing", number, len(files), "files", name)
        store.put(record.folder / name, f"{folder}/{name}")
    progress.step("publishing", len(files), len(files), "files")
    sizes = {name: (record.folder / name).stat().st_size for name in files}
    fields = json.loads((record.folder / RECORD).read_bytes())
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    ours = asdict(Published(fields, folder, sizes, socket.gethostname(), now))
    return Published.read(store.create(place, json.dumps(ours, indent=1).encode()), place)


def _files(record: StageRecord) -> list[str]:
    """What belongs to a result: the folders that the record names, and files beside it."""
    beside = [path for path in record.folder.iterdir() if path.is_file()]
    named = [record.folder / name for name in record.artefacts.values()]
    inside = [path for top in named for path in top.rglob("*") if path.is_file()]
    found = {str(path.relative_to(record.folder)) for path in (*beside, *inside)} - {RECORD}
    return sorted(name for name in found if not name.startswith("."))


def _of_others(store: RunStore, run: str, stage: str, key: str) -> Sequence[str]:
    """Records of that key in other runs of the pilot, the newest first."""
    pilot = run.split("/")[0]
    end = f"/stages/{stage}/{key}/{RECORD}"
    return [n for n in store.names(f"runs/{pilot}") if n.endswith(end) and run not in n][::-1]


def _mirror_stage(store: RunStore, folder: Path, names: Sequence[str]) -> None:
    """The newest of a stage's results, where another version of the workbench made a second."""
    known = folder / PUBLISHED
    have = Published.read(known.read_bytes(), str(known)) if known.exists() else None
    if have and len(names) == 1:
        return
    read = [(store.read(name), name) for name in names]
    found = [(content, Published.read(content, name)) for content, name in read if content]
    if not found:
        return
    content, newest = max(found, key=lambda each: each[1].record["started"])
    if have and have.record["key"] == newest.record["key"]:
        return
    shutil.rmtree(folder, ignore_errors=True)
    bring(store, newest, folder, ())
    write_text(known, content.decode())


def _mirror_file(store: RunStore, name: str, target: Path) -> None:
    if content := store.read(name):
        write_text(target, content.decode())


def _place(run: str, stage: str, key: str) -> str:
    return f"runs/{run}/stages/{stage}/{key}/{RECORD}"


def _run_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _identity(header: bytes) -> list[Any]:
    fields = json.loads(header)
    return [fields.get(name) for name in ("digest", "files", "machine")]
