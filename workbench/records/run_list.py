"""``workbench runs``: the runs by the time they were begun, as rows and as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from workbench.errors import WorkbenchError
from workbench.records.run import Run
from workbench.roadmap import STAGES
from workbench.wording.counts import number_of
from workbench.wording.numbers import duration

STATE = 3
"""Its column."""
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class RunRow:
    """date: when it was begun. took_s: of the finished stages; None of none. state: the decision,
    ``unfinished`` or ``damaged``. stages: finished ones and all, where it is unfinished. judged:
    how often."""

    date: str
    took_s: float | None
    name: str
    state: str
    question: str
    tags: tuple[str, ...] = ()
    stages: tuple[int, int] | None = None
    judged: int = 1


def run_rows(runs: Sequence[Run]) -> list[RunRow]:
    """A row a run, the newest last."""
    return [_row(run) for run in sorted(runs, key=_begun)]


def run_lines(runs: Sequence[Run], paint: Callable[[str], str] = str) -> list[str]:
    """Date, duration of the finished stages, name, state, tags and question; the newest run last.

    paint: gives a state (``go``, ``3/7 stages``) its colour, once it is as wide as its column.
    """
    if not runs:
        return ["no runs yet; make pilot, or workbench run PILOT.yaml"]
    rows = [_cells(row) for row in run_rows(runs)]
    head = ("begun", "took", "run", "state", "question")
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        cells[STATE] = paint(cells[STATE])
        lines.append("  ".join(cells).rstrip())
    return lines


def _cells(row: RunRow) -> tuple[str, ...]:
    took = "" if row.took_s is None else duration(row.took_s)
    state = row.state
    if row.stages is not None:
        state = f"{row.stages[0]}/{number_of(row.stages[1], 'stage')}"
    state += f", judged {row.judged} times" if row.judged > 1 else ""
    tags = f"[{', '.join(row.tags)}] " if row.tags else ""
    return row.date, took, row.name, state, f"{tags}{row.question}"


def _row(run: Run) -> RunRow:
    begun = _begun(run)
    date = "unknown" if begun == NEVER else begun.strftime("%Y-%m-%d %H:%M")
    question, tags = run.header["question"], tuple(run.header.get("tags", ()))
    try:
        records = run.records()
    except WorkbenchError:
        return RunRow(date, None, run.name, "damaged", question, tags)
    took_s = sum(record.duration_s for record in records.values()) if records else None
    decision = ""
    if "report" in records:
        decision = records["report"].facts.get("verdict", {}).get("decision", "")
    stages = None if decision else (len(records), len(STAGES))
    judged = len(run.judgements()) + 1 if "report" in records else 1
    state = decision or "unfinished"
    return RunRow(date, took_s, run.name, state, question, tags, stages, judged)


def _begun(run: Run) -> datetime:
    try:
        return datetime.strptime(run.header["created"], "%Y-%m-%dT%H:%M:%S%z")
    except (TypeError, ValueError):
        return NEVER
