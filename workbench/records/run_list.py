"""``workbench runs``: one line a run, by the time it was begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from workbench.errors import WorkbenchError
from workbench.records.run import Run
from workbench.roadmap import STAGES
from workbench.wording.numbers import duration

STATE = 3
"""Its column."""
NEVER = datetime.min.replace(tzinfo=UTC)


def run_lines(runs: Sequence[Run], paint: Callable[[str], str] = str) -> list[str]:
    """Date, duration of the finished stages, name, state and question; the newest run last.

    paint: gives a state (``go``, ``3/7 stages``) its colour, once it is as wide as its column.
    """
    if not runs:
        return ["no runs yet; make pilot, or workbench run PILOT.yaml"]
    rows = [_row(run) for run in sorted(runs, key=_begun)]
    head = ("begun", "took", "run", "state", "question")
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        cells[STATE] = paint(cells[STATE])
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(run: Run) -> tuple[str, ...]:
    begun = _begun(run)
    date = "unknown" if begun == NEVER else begun.strftime("%Y-%m-%d %H:%M")
    try:
        records = run.records()
    except WorkbenchError:
        return date, "", run.name, "damaged", run.header["question"]
    took = duration(sum(record.duration_s for record in records.values()))
    state = f"{len(records)}/{len(STAGES)} stages"
    if "report" in records:
        state = records["report"].facts.get("verdict", {}).get("decision", state)
        again = len(run.judgements())
        state += f", judged {again + 1} times" if again else ""
    return date, took if records else "", run.name, state, run.header["question"]


def _begun(run: Run) -> datetime:
    try:
        return datetime.strptime(run.header["created"], "%Y-%m-%dT%H:%M:%S%z")
    except (TypeError, ValueError):
        return NEVER
