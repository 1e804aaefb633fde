"""One pilot from the first stage to the report.

The whole pilot is validated before anything starts. Each stage's notebook is executed by
papermill in a kernel of its own; whether the stage succeeded is read from its record, never
from the notebook. Everything finished stays finished: the same command goes on from there.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import ConfigError, GateError, StageError
from workbench.files import write_json
from workbench.machine.environment import describe_environment
from workbench.paths import NOTEBOOKS, shown
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.events import Progress
from workbench.records.published import ENVIRONMENT, publish, publish_page
from workbench.records.run import Run, open_run
from workbench.records.stage_record import StageRecord
from workbench.records.store import store_here
from workbench.records.terminal import watching
from workbench.roadmap import STAGES, stage_named
from workbench.runner.checks import check_pilot
from workbench.runner.mlflow_log import log_to_mlflow
from workbench.runner.time_left import time_left
from workbench.stages.execute import (
    execute,
    finished,
    obtain,
    recorded_failure,
    require_upstream,
)
from workbench.stages.second_judgement import judge_again


def run_pilot(
    resolved: ResolvedPilot,
    *,
    stages: Sequence[str] = tuple(STAGES),
    force: bool = False,
    notebooks: bool | None = None,
) -> tuple[Run, StageRecord | None]:
    """Run ``stages`` in order; the run, and its judgement where it is not the first one.

    A run that was begun with other gates is judged by them first and then by those of ``resolved``
    (:func:`judge_again`); nothing else depends on them.

    stages: names; those before them must be finished, or are among them.
    force: compute them again. For a whole pilot that makes a new run.
    notebooks: None executes notebooks where papermill and the notebooks themselves are installed.
    Raises ConfigError, StageError, GateError; KeyboardInterrupt also for SIGTERM.
    """
    notebooks = _executable_notebooks() if notebooks is None else notebooks
    if notebooks and not NOTEBOOKS.is_dir():
        raise ConfigError(
            f"--notebooks: there are none at {shown(NOTEBOOKS)}",
            allowed="in a checkout, which has them; the package alone does not",
            next_step="leave the option out, or say --no-notebooks: the stages are the same",
        )
    check_pilot(resolved)
    check_store()
    whole = tuple(stages) == tuple(STAGES)
    run = open_run(resolved, fresh=force and whole)
    with terminable(), run.working(), watching(run.events, time_left(resolved, run, stages)):
        _keep_environment(run)
        for name in stages:
            if force and not whole:
                execute(name, resolved, run, force=True)
            if notebooks:
                _notebook(name, resolved, run)
            else:
                execute(name, resolved, run)
            publish_finished(run, name)
        again = None
        if "report" in stages:
            again = judge_again(resolved, run)
            write_report(run, resolved)
            if again:
                write_report(run, resolved, again)
            if store := store_here():
                publish_page(store, run.folder)
    return run, again


def run_stage(name: str, resolved: ResolvedPilot, *, force: bool = False) -> StageRecord:
    """One stage in this process, without Jupyter, papermill or Plotly.

    The report asked in other words than the run began with is its second judgement.
    """
    check_pilot(resolved, (name,))
    check_store()
    run = open_run(resolved)
    with terminable(), watching(run.events):
        _keep_environment(run)
        record = execute(name, resolved, run, force=force)
        publish_finished(run, name)
        return (judge_again(resolved, run) or record) if name == "report" else record


def check_store() -> None:
    """ConfigError or StageError, before anything is computed, for a store that cannot be used."""
    if store := store_here():
        store.check()


def publish_finished(run: Run, stage: str) -> None:
    """Put into the store what is finished of the run and not there yet; ``stage`` says so.

    Raises StageError where the store does not answer, and what is finished is kept here.
    """
    progress = Progress(run.events, stage)
    if store := store_here(progress.note):
        publish(store, run.folder, progress)


def raise_failed_gates(run: Run, again: StageRecord | None = None) -> None:
    """GateError if a gate that must hold does not; nothing if the report is not done.

    again: the judgement that was asked for, where it is not the first one.
    """
    record = again or run.record("report")
    stopping = record.facts.get("stopping_gates", []) if record else []
    if stopping:
        raise GateError(
            "gate failed: " + "; ".join(stopping),
            next_step=f"read the gates in {shown(page_of(run, again))}",
        )


def page_of(run: Run, again: StageRecord | None = None) -> Path:
    """The page of the run's first judgement, or of another one."""
    return again.folder / "report.html" if again else run.report


def write_report(run: Run, asked: ResolvedPilot, again: StageRecord | None = None) -> Path:
    """Draw the page of the first judgement, or of ``again``, in the language of ``asked``, and log
    the run to MLflow where ``MLFLOW_TRACKING_URI`` asks for it."""
    from workbench.figures.page import stage_figures
    from workbench.report.html import write_html

    language = asked.pilot.report.language
    page = write_html(run.folder, stage_figures, language, again=again)
    if said := log_to_mlflow(run, again):
        print(said, file=sys.stderr)
    return page


def selected_stages(only: str | None, first: str | None) -> tuple[str, ...]:
    """The stages that ``--only`` or ``--from`` name; all without them."""
    if only and first:
        raise ConfigError("--only and --from together", allowed="one of them")
    if only:
        return (stage_named(only).name,)
    names = tuple(STAGES)
    return names[names.index(stage_named(first).name) :] if first else names


def _executable_notebooks() -> bool:
    return NOTEBOOKS.is_dir() and importlib.util.find_spec("papermill") is not None


def _notebook(name: str, resolved: ResolvedPilot, run: Run) -> None:
    """Execute a stage's notebook unless it shows the finished record already."""
    from workbench.runner.papermill_run import execute_notebook

    record = obtain(name, resolved, run)
    target = run.notebooks / STAGES[name].notebook
    if record and target.exists():
        return
    # What a kernel says before its stage begins is lost: it is asked here first.
    require_upstream(name, resolved, run)
    with run.lock(name):
        pass
    problem = execute_notebook(STAGES[name].notebook, target, resolved, run)
    if finished(name, resolved, run) is None:
        raise recorded_failure(run, name) or StageError(
            f"{name} did not finish: "
            + (problem.what if problem else "its notebook ended before the stage did"),
            next_step=problem.cure if problem else "the same command goes on from here",
        )
    if problem:
        target.unlink(missing_ok=True)
        raise StageError(
            f"{name} finished, but its notebook did not: {problem.what}",
            next_step=f"open notebooks/{STAGES[name].notebook}; the stage itself is kept",
        )


def _keep_environment(run: Run) -> None:
    """As it is when the run begins: what is found finished later was not made later."""
    path = run.folder / ENVIRONMENT
    if not path.exists():
        write_json(path, describe_environment())


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM stops a run the way Ctrl-C does, so that a scheduler loses nothing either."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
