"""A finished run asked in other words: judged again, and never in the place of the first time.

What only judges or shows (the pilot's ``report`` section and its question) identifies no run and
no stage before the report. The first judgement is by the gates fixed before the run; it stays in
``stages/report``. Asked otherwise once the figures are known, the run is judged again from its
records into ``judgements/<id>``, and says so: gates chosen after the figures prove less. What it
was last asked in stays with the run (:meth:`Run.asked`).
"""

from __future__ import annotations

import time
from typing import Any

from workbench.errors import StageError
from workbench.files import digest_json
from workbench.machine.environment import describe_software
from workbench.pilot.resolve import ResolvedPilot, changed_leaves
from workbench.pilot.yaml_file import dump_scalar
from workbench.records.events import Progress
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.roadmap import STAGES
from workbench.stages.context import StageContext
from workbench.stages.find import stage_run

STAGE = "report"


def judge_again(asked: ResolvedPilot, run: Run) -> StageRecord | None:
    """The judgement of ``run`` by what ``asked`` says, from the records it has.

    None where ``asked`` judges like the pilot the run began with (the language only shows).
    Raises StageError where the run has not been judged yet, or a record is missing.
    """
    found = _judged(asked, run)
    run.keep_asked(asked)
    return found


def _judged(asked: ResolvedPilot, run: Run) -> StageRecord | None:
    begun = run.resolved()
    if asked.judging == begun.judging:
        return None
    first = run.record(STAGE)
    upstream = {name: record for name in STAGES[STAGE].after if (record := run.record(name))}
    absent = [name for name in (*STAGES[STAGE].after, STAGE) if name not in (*upstream, STAGE)]
    if first is None or absent:
        raise StageError(
            f"{run.name} cannot be judged again: {', '.join(absent) or STAGE} is not finished",
            allowed="a run judged by the gates that were fixed before it",
            next_step="go on with it first: workbench run PILOT.yaml",
        )
    made_from = {name: _made(record) for name, record in upstream.items()}
    key = digest_json({"asked": asked.judging, "made from": made_from})
    for known in run.judgements():
        if known.key == key:
            return known
    folder = run.new_judgement(key)
    progress = Progress(run.events, STAGE)
    record = StageRecord(
        STAGE, folder, key, time.strftime("%Y-%m-%dT%H:%M:%S%z"), software=describe_software()
    )
    began = time.monotonic()
    stage_run(STAGE)(StageContext(asked.pilot, record, progress, upstream))
    text = (
        f"a second judgement of {run.name}, made after its figures were known: "
        f"{record.facts['verdict']['decision']}; by the gates fixed before the run: "
        f"{first.facts['verdict']['decision']}. Both are in the report"
    )
    record.facts["second_judgement"] = {
        "text": text,
        "words": asked.words,
        "changed": _changes(begun, asked),
        "first": first.facts["verdict"]["decision"],
    }
    record.notes.append(text)
    record.duration_s = round(time.monotonic() - began, 2)
    record.save()
    progress.note(text)
    return record


def _made(record: StageRecord) -> tuple[str, ...]:
    """What tells a record from another one of its stage: a log that was attached to it as well."""
    attached = record.facts.get("attached")
    return (record.key, record.started, *([attached["attached"]] if attached else []))


def _changes(begun: ResolvedPilot, asked: ResolvedPilot) -> list[dict[str, Any]]:
    """Each field that is not what it was, in the form it has in a pilot file."""
    return [
        {"field": name, "before": dump_scalar(before), "now": dump_scalar(now)}
        for name, before, now in changed_leaves(begun, asked)
    ]
