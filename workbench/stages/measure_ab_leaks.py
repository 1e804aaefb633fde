"""Whether the pilot's own prompts and tasks stand in the text that was learned."""

from __future__ import annotations

import pandas as pd

from workbench.data.corpus import training_documents
from workbench.data.leaks import STRETCH, find_leaks
from workbench.errors import ConfigError
from workbench.stages.context import StageContext
from workbench.stages.measure_ab_own import OwnQuestions
from workbench.wording.counts import number_of

EXAMPLES = 3
PROMPTS = "prompts"
NAME = "asked_leaked_share"


def record_asked_leaks(context: StageContext, asked: OwnQuestions) -> None:
    """The table ``asked_leaks`` and a figure for the prompts and for each task; nothing where the
    pilot has neither. A task's row is looked for with its right answer."""
    texts = [(PROMPTS, own.name, own.text) for own in asked.prompts]
    for name, rows in asked.tasks.items():
        texts += [(name, row.name, row.asked + row.continuations[row.right]) for row in rows]
    if not texts:
        return
    try:
        training = training_documents(context.pilot.data, context.pilot.seed)
    except ConfigError as error:  # trained elsewhere, on text that is not here
        for name in dict.fromkeys(name for name, *_ in texts):
            context.record.missing(
                NAME, "share", f"the training text cannot be read: {error.got}", asked=name
            )
        return
    leaks = find_leaks([text for *_, text in texts], ((d.id, d.text) for d in training))
    table = pd.DataFrame(
        {
            "asked": [name for name, *_ in texts],
            "row": [row for _, row, _ in texts],
            "characters": [leak.characters for leak in leaks],
            "leaked": [leak.leaked for leak in leaks],
            "passage": [leak.passage for leak in leaks],
            "learned_in": [leak.learned_in for leak in leaks],
        }
    )
    context.record.save_table("asked_leaks", table)
    for name, rows in table.groupby("asked", sort=False):
        _record(context, str(name), rows)


def _record(context: StageContext, name: str, rows: pd.DataFrame) -> None:
    leaked = rows[rows["leaked"] > 0]
    short = int((rows["characters"] < STRETCH).sum())
    how = f"rows that share a stretch of {STRETCH} letters and digits with the training text"
    if short:
        how += f"; {short} of {len(rows)} are shorter than that and cannot be told"
    context.record.measured(
        NAME, len(leaked) / len(rows), "share", how, n=len(rows), basis="exact", asked=name
    )
    if len(leaked):
        examples = "; ".join(
            f"row {row.row}, in {row.learned_in}: {' '.join(row.passage.split())!r}"
            for row in leaked.head(EXAMPLES).itertuples()
        )
        context.note(
            f"leak check: {len(leaked)} of {number_of(len(rows), 'row')} of {name} stand in the "
            f"training text in part, so the trained arms may know the answer: {examples}"
        )
