"""A finished training need not be paid for twice.

When another run of the same pilot holds a finished result with the same key, that result is
taken over: its files are linked (copied where links are not possible), and a note says where
it came from. Only stages marked adoptable: a speed is measured anew in every run.
"""

from __future__ import annotations

import os
import shutil

from workbench.errors import StageError
from workbench.records.run import Run, runs_in
from workbench.records.stage_record import StageRecord


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
