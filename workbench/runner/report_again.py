"""``workbench report``: the page of a run drawn again from its records, or the run judged again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.pilot.resolve import asked_again
from workbench.records.run import find_run
from workbench.records.terminal import describe
from workbench.runner.checks import check_pilot
from workbench.runner.pilot_run import write_report
from workbench.stages.second_judgement import STAGE, judge_again


def report_again(name: str, overrides: Sequence[str]) -> Path:
    """The page of run ``name``; with ``overrides`` (``report.*``, ``question``) that of a second
    judgement, unless they only show (``report.language``).

    Raises ConfigError for a value that is wrong or decides figures, StageError for a run that
    has not been judged yet.
    """
    run = find_run(name)
    if not overrides:
        return write_report(run, run.resolved())
    asked = asked_again(run.resolved(), overrides)
    check_pilot(asked, (STAGE,))
    again = judge_again(asked, run)
    if again:
        said = again.facts["second_judgement"]["text"]
        print(describe({"stage": STAGE, "kind": "note", "text": said}), file=sys.stderr)
        write_report(run, run.resolved())  # its first page names the judgements that came after
    return write_report(run, asked, again)
