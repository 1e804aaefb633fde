"""``workbench report``: the pages of a run drawn again from its records, or the run judged again.

What was set stays set: a run asked for Russian, and then for another tariff, answers in Russian
and by that tariff (:meth:`Run.asked`), and says what of it was not given this time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.pilot.resolve import ResolvedPilot, asked_again, changed_leaves
from workbench.pilot.yaml_file import dump_scalar
from workbench.records.run import Run, find_run
from workbench.records.terminal import describe
from workbench.runner.checks import check_pilot
from workbench.runner.pilot_run import write_report
from workbench.stages.second_judgement import STAGE, judge_again

MOST_SHOWN = 60
"""Characters of a value that is kept; a list of gates is longer."""


def report_again(name: str, overrides: Sequence[str], *, afresh: bool = False) -> Path:
    """The page of run ``name``; with ``overrides`` (``report.*``, ``question``) that of a second
    judgement, unless they only show (``report.language``).

    afresh: by the run's pilot and ``overrides`` alone, not by what was set before.
    Raises ConfigError for a value that is wrong or decides figures, StageError for a run that
    has not been judged yet.
    """
    run = find_run(name)
    before = run.resolved() if afresh else run.asked()
    asked = asked_again(before, overrides)
    if overrides:
        check_pilot(asked, (STAGE,))
    if kept := _kept(run, before, overrides):
        _say(f"as it was last asked: {kept}; --afresh goes by the pilot and --set alone")
    again = judge_again(asked, run)
    page = write_report(run, asked)  # the first page names the judgements that came after
    if again is None:
        return page
    _say(again.facts["second_judgement"]["text"])
    return write_report(run, asked, again)


def _kept(run: Run, before: ResolvedPilot, overrides: Sequence[str]) -> str:
    """What was set before, and not by ``overrides``: ``report.language: ru, ...``."""
    given = tuple(f"{text.partition('=')[0].strip()}." for text in overrides)
    return ", ".join(
        f"{field}: {value if len(value := dump_scalar(now)) <= MOST_SHOWN else '...'}"
        for field, _, now in changed_leaves(run.resolved(), before)
        if not f"{field}.".startswith(given)
    )


def _say(text: str) -> None:
    print(describe({"stage": STAGE, "kind": "note", "text": text}), file=sys.stderr)
