"""``workbench watch``: a run followed from another process, from its beginning until it ends.

All that is shown comes from the run's event stream. Whether somebody is at work is told by a lock
that the operating system takes back however a process ends, so a run that was killed ends too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from workbench.errors import ConfigError, StageError
from workbench.records.events import follow
from workbench.records.run import Run
from workbench.records.terminal import Whole, show_events
from workbench.roadmap import STAGES
from workbench.runner.pilot_run import raise_failed_gates
from workbench.runner.time_left import time_left
from workbench.stages.execute import recorded_failure


def watch_run(run: Run) -> None:
    """Show what happened so far and what happens until nobody is at work on ``run`` any more.

    Ends as the run did. Raises StageError for one whose stage failed, or that was left or killed
    before its report; GateError where a gate that must hold does not.
    """
    show_events(follow(run.events, lambda: not run.at_work()), _whole(run))
    finished = run.records()
    if "report" in finished:
        raise_failed_gates(run, next(iter(run.judgements()[::-1]), None))
        return
    for name in STAGES:
        if name not in finished and (failure := recorded_failure(run, name)):
            raise failure
    raise StageError(
        f"nobody is at work on {run.name}; finished: {', '.join(finished) or 'nothing'}",
        next_step=f"workbench run {run.header['pilot_file']} goes on with it",
    )


def _whole(run: Run) -> Whole:
    """The time that is left in all, said of what happens from now on alone."""
    began = time.time()
    try:
        left = time_left(run.resolved(), run, tuple(STAGES))
    except ConfigError:  # of another version of the workbench: its events are read all the same
        return lambda event: ""

    def say(event: Mapping[str, Any]) -> str:
        said = left(event)
        return said if event["time"] >= began else ""

    return say
