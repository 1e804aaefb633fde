"""What the notebooks call: one stage or one study, computed or loaded, with one live block of
progress.

The only module of the library that knows IPython, and only when it runs inside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, StageError, WorkbenchError
from workbench.pilot.resolve import resolve
from workbench.records.events import watched
from workbench.records.run import open_folder, open_run
from workbench.records.stage_record import StageRecord
from workbench.records.terminal import describe
from workbench.report import compare
from workbench.report.compare import Comparison
from workbench.runner.pilot_run import publish_finished
from workbench.stages.execute import execute, finished, recorded_failure, require_upstream
from workbench.stages.second_judgement import judge_again
from workbench.widgets.headless import interactive

REFRESH_S = 0.5
TRAINING = "train_qat"
"""The stage that is long enough to be watched from more than one place."""


def stage(
    name: str,
    pilot: str | Path,
    overrides: Sequence[str] = (),
    run_folder: str | Path | None = None,
) -> StageRecord:
    """The record of stage ``name`` of a pilot; a finished stage is loaded, not computed.

    pilot: path of the pilot file, relative to the notebook. overrides: ``section.key=value``.
    run_folder: the run to work in, whose own resolved pilot then counts; None takes the newest
        run of this pilot or starts one.
    """
    _plain_errors()
    if run_folder:
        run = open_folder(Path(run_folder))
        resolved = run.resolved()
    else:
        resolved = resolve(pilot, overrides)
        run = open_run(resolved)
    watched = interactive()
    if watched and name == TRAINING and finished(name, resolved, run) is None:
        from workbench.widgets.live import training_panel

        require_upstream(name, resolved, run)
        training_panel(run)
        if finished(name, resolved, run) is None:  # stopped or failed: not to be begun again here
            raise recorded_failure(run, name) or StageError(
                f"{name} did not finish", next_step=f"its output lies in {run.folder / name}.log"
            )
    block = LiveBlock()
    record = execute(name, resolved, run, listener=block.show)
    if watched:  # executed by `workbench run`, that publishes
        publish_finished(run, name)
    if name == "report":
        record = judge_again(resolved, run) or record
    block.text(f"{name}: finished in {record.duration_s:.0f} s · run {run.name}")
    if watched:
        from workbench.widgets.pickers import show_run_picker

        show_run_picker(name, run, str(pilot))
    return record


def study(
    name: str,
    pilot: str | Path,
    overrides: Sequence[str] = (),
    run_folder: str | Path | None = None,
) -> StageRecord:
    """The record of study ``name`` of a pilot; trainings that are finished are loaded.

    run_folder: a run that has the study: it is shown, nothing trained; None takes the pilot's.
    """
    from workbench.study.run import run_study  # all of training: seconds that no stage should wait

    _plain_errors()
    block, stage_name = LiveBlock(), f"study_{name}"
    if run_folder:
        run = open_folder(Path(run_folder))
        record = run.record(stage_name)
        if record is None:
            raise ConfigError(
                f"run_folder: {run.name} has no finished {stage_name}",
                next_step="choose another in the picker, or set run_folder to None",
            )
    else:
        resolved = resolve(pilot, overrides)
        run = open_run(resolved)
        with watched(run.events, block.follow):
            record = run_study(name, resolved, jobs=0)
    block.text(f"study {name}: finished in {record.duration_s:.0f} s · run {run.name}")
    if interactive():
        from workbench.widgets.pickers import show_run_picker

        show_run_picker(stage_name, run, str(pilot))
    return record


def compare_runs(runs: Sequence[str] = ()) -> Comparison:
    """Two or more runs side by side, the reference first; none named takes the newest two."""
    _plain_errors()
    found = compare.compare_runs(runs)
    if interactive():
        from workbench.widgets.comparison import comparison_picker

        comparison_picker(found)
    return found


class LiveBlock:
    """One output that is rewritten in place, so that a stored notebook keeps a single line."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        self._shown = 0.0

    def show(self, event: dict[str, Any]) -> None:
        urgent = event["kind"] != "step" or event["done"] == event["total"]
        if urgent or time.monotonic() - self._shown > REFRESH_S:
            self.text(describe(event))

    def follow(self, events: Iterable[dict[str, Any]]) -> None:
        for event in events:
            self.show(event)

    def text(self, line: str) -> None:
        self._shown = time.monotonic()
        if self._handle:
            self._handle.update({"text/plain": line}, raw=True)


def _plain_errors() -> None:
    """In a notebook an error of the workbench is its message, without a traceback."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return

    def message_only(self: Any, kind: Any, error: Any, trace: Any, tb_offset: Any = None) -> list:
        lines = [f"{kind.__name__}: {error}"]
        self._showtraceback(kind, error, lines)
        return lines

    shell.set_custom_exc((WorkbenchError,), message_only)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
