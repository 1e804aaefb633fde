"""Own tasks: which choice an arm finds likeliest, and whether it would have written the target.

Of multiple choice the choice with the largest log-likelihood behind the question counts as the
answer; of cloze, each token of the target must be the likeliest at its place, so that greedy
decoding would have written it. Nothing is generated and nothing is timed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from workbench.data.own_tasks import TaskRow
from workbench.engine.engine import Engine
from workbench.json_lines import as_line, keep_rows, read_rows
from workbench.measure.log_likelihood import Likelihood, likelihood, split_tokens
from workbench.measure.own_prompts import Progressed

CHOICE, CLOZE = "choice", "cloze"


def task_tokens(
    tokenizer: PreTrainedTokenizerBase, row: TaskRow
) -> list[tuple[list[int], list[int]]]:
    """Of each choice, or of the target: the tokens before it and its own."""
    return [split_tokens(tokenizer, row.asked, text) for text in row.continuations]


def score_task(
    engines: Mapping[str, Engine],
    name: str,
    rows: Sequence[TaskRow],
    tokenizer: PreTrainedTokenizerBase,
    normalise: Literal["none", "bytes"],
    path: Path,
    report: Progressed = lambda done, of: None,
) -> pd.DataFrame:
    """A task's part of the table ``tasks``: a row a question and arm.

    path: keeps each question once all arms have scored it. Columns: task, row (its name), line,
    kind (``choice``, ``cloze``), asked, answer (the right one), arm, chosen and correct (by
    ``normalise``), correct_other (the other way; None of cloze), nats (of the right one, below 0),
    bytes (of it).
    """
    keep_rows(path)
    known = {row["row"]: row["arms"] for row in read_rows(path)}
    found: list[dict[str, Any]] = []
    with path.open("a", encoding="utf-8") as file:
        for done, row in enumerate(rows, start=1):
            if row.name not in known:
                pairs = task_tokens(tokenizer, row)
                scored = {
                    arm: [vars(likelihood(engine, *pair)) for pair in pairs]
                    for arm, engine in engines.items()
                }
                file.write(as_line({"row": row.name, "arms": scored}))
                file.flush()
                os.fsync(file.fileno())
                known[row.name] = scored
                report(done, len(rows))
            for arm in engines:
                scores = [Likelihood(**score) for score in known[row.name][arm]]
                found.append({"task": name, "arm": arm, **_judged(row, scores, normalise)})
    return pd.DataFrame(found)


def _judged(row: TaskRow, scores: Sequence[Likelihood], normalise: str) -> dict[str, Any]:
    texts = [row.target or ""] if row.choices is None else row.choices
    nats = np.array([score.nats for score in scores])
    sizes = np.array([len(text.encode()) for text in texts])
    said: dict[str, Any] = {
        "row": row.name,
        "line": row.line,
        "kind": CLOZE if row.choices is None else CHOICE,
        "asked": row.asked,
        "answer": texts[row.right],
        "nats": float(nats[row.right]),
        "bytes": int(sizes[row.right]),
    }
    if row.choices is None:
        return said | {"chosen": None, "correct": scores[0].greedy, "correct_other": None}
    # A model whose numbers are none has chosen nothing, and is not right by chance.
    finite = bool(np.isfinite(nats).all())
    by_sum, by_bytes = int(np.argmax(nats)), int(np.argmax(nats / sizes))
    chosen, other = (by_bytes, by_sum) if normalise == "bytes" else (by_sum, by_bytes)
    return said | {
        "chosen": texts[chosen] if finite else None,
        "correct": finite and chosen == row.right,
        "correct_other": finite and other == row.right,
    }
