"""What stage ``train_qat`` records of the leak check: a table, figures and a sentence."""

from __future__ import annotations

import pandas as pd

from workbench.data.leaks import STRETCH
from workbench.records.metric import Metric
from workbench.stages.context import StageContext
from workbench.wording.counts import number_of

HOW = f"letters and digits in stretches of {STRETCH} that stand in the training text too, case, "
HOW += "spaces and signs dropped; all stretches looked for"


def record_leaks(context: StageContext, leaks: pd.DataFrame) -> None:
    """leaks: of ``Corpus.leaks``."""
    record = context.record
    record.save_table("leaks", leaks)
    judged = leaks[~leaks["left_out"]]
    before, after = (_share(rows) for rows in (leaks, judged))
    for name, rows, share, what in (
        ("leaked_share", leaks, before, f"of {number_of(len(leaks), 'held-out document')}"),
        (
            "judged_leaked_share",
            judged,
            after,
            f"of {number_of(len(judged), 'document')} that are judged",
        ),
    ):
        record.add(
            Metric(
                name, share, "share", f"{what}: {HOW}", "measured", n=int(rows["characters"].sum()),
                basis="exact",
            )
        )  # fmt: skip
    most = context.pilot.data.max_leaked_share
    out = int(leaks["left_out"].sum())
    how = f"held-out documents with a leaked share above data.max_leaked_share {most:g}"
    record.measured("leaked_documents", out, "documents", how, n=len(leaks), basis="exact")
    if before > 0:
        context.note(_sentence(leaks, before, after, most))


def _share(rows: pd.DataFrame) -> float:
    return float(rows["leaked"].sum() / max(1, rows["characters"].sum()))


def _sentence(leaks: pd.DataFrame, before: float, after: float, most: float) -> str:
    out = int(leaks["left_out"].sum())
    said = (
        f"leak check: {before:.1%} of the held-out text stands in the training text too, in "
        f"stretches of {STRETCH} letters and digits"
    )
    if out:
        return (
            f"{said}; {out} of {number_of(len(leaks), 'held-out document')} share more than "
            f"{most:.0%} and are not judged, {after:.1%} of what is judged remains"
        )
    if bool((leaks["share"] > most).all()):
        return (
            f"{said}; every held-out document shares more than {most:.0%}, so none could be left "
            "out: quality is judged on text that was partly learned"
        )
    return f"{said}; no document shares more than {most:.0%}, all are judged"
