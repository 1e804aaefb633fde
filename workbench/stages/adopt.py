"""A finished training need not be paid for twice.

When another run of the same pilot holds a finished result with the same key, that result is
taken over: its files are linked (copied where links are not possible), and a note says where
it came from. Only stages marked adoptable: a speed is measured anew in every run. The same run,
gone on with on another machine like the one it was begun on, takes every stage that is finished
in the store.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from workbench.errors import StageError
from workbench.records.published import bring, result
from workbench.records.run import Run, runs_in
from workbench.records.stage_record import RECORD, StageRecord
from workbench.records.store import RunStore
from workbench.roadmap import STAGES


def adopt(name: str, key: str, run: Run) -> StageRecord | None:
    """Take over stage ``name`` from a sibling run that finished it with the same ``key``."""
    target = run.stage_folder(name)
    if target.exists():
        return None
    for other in reversed(runs_in(run.folder.parent)):
        record = None if other.folder == run.folder else _whole(other, name)
        if record is None or record.key != key:
            continue
        partial = target.with_name(f".{name}.adopting")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(record.folder, partial, copy_function=_link)
        record.folder = partial
        record.notes.append(f"taken over from run {other.name}, where it has the same key")
        record.save()
        partial.rename(target)
        record.folder = target
        return record
    return None


def take_from(store: RunStore, name: str, key: str, run: Run) -> StageRecord | None:
    """Take stage ``name`` of ``run`` from the store, where it is finished with that ``key``; an
    adoptable one from other runs of the pilot as well."""
    found = result(store, run.name, name, key, others=STAGES[name].adoptable)
    if found is None:
        return None
    target = run.stage_folder(name)
    partial = target.with_name(f".{name}.taking")
    record = bring(store, found, partial)
    of = "/".join(found.files.split("/")[1:3])
    record.notes.append(f"taken from the store {store.url}: run {of}, {found.text}")
    record.save()
    set_aside(target)
    partial.rename(target)
    record.folder = target
    return record


def set_aside(folder: Path) -> None:
    """Move a stage's folder out of the way, a finished result or unfinished work: never deleted."""
    if folder.exists():
        why = "until" if (folder / RECORD).exists() else "dropped"
        folder.rename(folder.with_name(f"{folder.name}.{why}-{time.strftime('%Y%m%d-%H%M%S')}"))


def _whole(run: Run, name: str) -> StageRecord | None:
    """The record, where nothing of it is damaged or gone."""
    try:
        record = run.record(name)
    except StageError:
        return None
    return record if record and record.is_whole() else None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
