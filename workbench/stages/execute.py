"""Runs one stage of one run, or loads it when it is finished.

The notebook, the batch run and ``workbench stage`` all come through here, so what counts as
done, what is kept on failure and what a user reads is the same for all three.
"""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import StageError, WorkbenchError
from workbench.files import digest_json, read_json, write_json, write_text
from workbench.machine.environment import describe_software
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.events import Progress, attempts_s
from workbench.records.run import Run
from workbench.records.stage_record import RECORD, StageRecord
from workbench.records.store import store_here
from workbench.roadmap import STAGES
from workbench.stages.adopt import adopt, set_aside, take_from
from workbench.stages.context import StageContext
from workbench.stages.find import stage_run
from workbench.stages.keys import stage_key

FAILURE = "failure.json"
KEY = "key.txt"


def finished(name: str, resolved: ResolvedPilot, run: Run) -> StageRecord | None:
    """The stage's record if it is finished for exactly this pilot, else None.

    Whatever words the pilot is asked in now: the report is the one by those the run began with.
    """
    resolved = _as_begun(resolved, run)
    record = run.record(name)
    return record if record and record.key == stage_key(name, resolved, run) else None


def obtain(
    name: str,
    resolved: ResolvedPilot,
    run: Run,
    listener: Callable[[dict[str, Any]], None] | None = None,
) -> StageRecord | None:
    """The finished stage, taken from the store where it is finished there and not here."""
    if record := finished(name, resolved, run):
        return record
    progress = Progress(run.events, name, listener)
    store = store_here(progress.note)
    if store is None or not run.is_from_here:
        return None
    key = stage_key(name, _as_begun(resolved, run), run)
    with run.lock(name):
        record = adopt(name, key, run) if STAGES[name].adoptable else None  # linked, not copied
        record = record or take_from(store, name, key, run)
    if record:
        progress.note(record.notes[-1])
    return record


def execute(
    name: str,
    resolved: ResolvedPilot,
    run: Run,
    *,
    force: bool = False,
    listener: Callable[[dict[str, Any]], None] | None = None,
) -> StageRecord:
    """The record of a stage, computed only if it is not there yet (or with ``force``), neither in
    the run's folder nor in the store.

    The report judges by what the run began with; :func:`judge_again` answers other words.

    Raises StageError when the stage fails, when one before it is missing, or when another
    process is at work on it.
    """
    resolved = _as_begun(resolved, run)
    if not force and (record := obtain(name, resolved, run, listener)):
        return record
    if not run.is_from_here:
        raise StageError(
            f"{name} is not finished in {run.name}, and that run was made on another machine",
            next_step="finish it there, or start a run of the same pilot here",
        )
    progress = Progress(run.events, name, listener)
    with run.lock(name):
        upstream = require_upstream(name, resolved, run)
        folder = run.stage_folder(name)
        key = stage_key(name, resolved, run)
        if not force and STAGES[name].adoptable and (record := adopt(name, key, run)):
            progress.note(record.notes[-1])
            return record
        earlier = attempts_s(run.events, name, key) if _prepare(folder, key, force) else []
        record = StageRecord(
            name, folder, key, time.strftime("%Y-%m-%dT%H:%M:%S%z"), software=describe_software()
        )
        progress.event("started", text=STAGES[name].decides, key=key, pid=os.getpid())
        try:
            run_stage = stage_run(name)  # imports torch and more: seconds that are not the stage's
            began = time.monotonic()
            run_stage(StageContext(resolved.pilot, record, progress, upstream))
            record.duration_s = round(sum(earlier) + time.monotonic() - began, 2)
            record.attempts = len(earlier) + 1
            record.save()
        except BaseException as error:
            failure = _as_failure(name, folder, error)
            _keep_failure(folder, failure)
            progress.event("failed", text=str(failure))
            if isinstance(error, Exception):
                raise failure from error
            raise
        (folder / FAILURE).unlink(missing_ok=True)
        progress.event("finished", duration_s=record.duration_s, attempts=record.attempts)
    return record


def _as_begun(resolved: ResolvedPilot, run: Run) -> ResolvedPilot:
    """The pilot in the words that were fixed before the run."""
    if run.header.get("words") == digest_json(resolved.words):
        return resolved
    return resolved.judged_like(run.resolved())


def recorded_failure(run: Run, name: str) -> StageError | None:
    """What the last attempt at a stage left behind when it failed."""
    path = run.stage_folder(name) / FAILURE
    if not path.exists():
        return None
    fields = read_json(path)
    return StageError(fields["got"], allowed=fields["allowed"], next_step=fields["next_step"])


def require_upstream(name: str, resolved: ResolvedPilot, run: Run) -> dict[str, StageRecord]:
    """The finished stages that ``name`` needs; StageError if one is not."""
    records = {before: obtain(before, resolved, run) for before in STAGES[name].after}
    absent = [before for before, record in records.items() if record is None]
    if absent:
        raise StageError(
            f"{name} needs {', '.join(absent)}, not finished in {run.name}",
            next_step=f"workbench run PILOT.yaml, or workbench stage {absent[0]} PILOT.yaml first",
        )
    return {before: record for before, record in records.items() if record}


def _prepare(folder: Path, key: str, force: bool) -> bool:
    """An empty folder for a new key; the unfinished work of the same key is kept: whether it is.

    A finished result that no longer applies is moved aside, never deleted.
    """
    marker = folder / KEY
    kept = not force and not (folder / RECORD).exists() and marker.exists()
    kept = kept and marker.read_text() == key
    if not kept:
        set_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    write_text(marker, key)
    return kept


def _as_failure(name: str, folder: Path, error: BaseException) -> WorkbenchError:
    if isinstance(error, WorkbenchError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return StageError(f"{name} was interrupted", next_step="the same command goes on from here")
    if not folder.exists():
        return StageError(
            f"{name}: its folder {folder} was removed while it ran",
            next_step="the same command begins that stage again",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(
            f"{name}: no space left on the disk ({error.filename or folder})",
            next_step="free some space; the same command goes on from the last whole file",
        )
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return StageError(
            f"{name}: out of memory: {str(error).splitlines()[0] if str(error) else 'allocation'}",
            next_step="lower train.batch_size, data.sequence_length or the model's preset, "
            "or close other programs, and run the same command again",
        )
    return StageError(
        f"{name} failed: {type(error).__name__}: {error}",
        next_step=f"this is a fault of the program; the traceback is in {folder / 'traceback.txt'}",
    )


def _keep_failure(folder: Path, failure: WorkbenchError) -> None:
    """Best effort: with a full disk there may be no room even for the reason."""
    if not folder.exists():
        return
    try:
        write_text(folder / "traceback.txt", traceback.format_exc())
        fields = {k: getattr(failure, k) for k in ("got", "allowed", "next_step", "exit_code")}
        write_json(folder / FAILURE, fields)
    except OSError:
        return
