"""What the monitors of pairs see of a run's own arms, and how soon they would take each back.

``python -m workbench.serve.calibration RUN``: every arm of a finished run as the candidate beside
full precision, both go on from its held-out texts, and full precision reads the two answers as a
server does (:mod:`.comparison`). It prints the rows of docs/results/serving.jsonl
that are named ``calibration``: by arm and monitor the mean of the pairs with its interval, and of
``LIVES`` servers that meet these pairs in an order of their own, how many take the candidate back
and after how many pairs. An arm that a team would serve must lie below the rule's limit, and one
that it would not, above: ``max_disagreement`` and ``unlikely_nats`` are chosen between the two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.tokenizer import load_tokenizer
from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.engine.scores import score_rows
from workbench.errors import StageError, WorkbenchError
from workbench.measure.anytime import ExcessBets
from workbench.measure.statistics import mean
from workbench.records.run import Run, find_run
from workbench.serve.comparison import PROBE_TOKENS, ReadAnswer, pair_values
from workbench.serve.rollback_rule import RollbackRule

LIVES, LONGEST = 300, 2_000
PROMPT_TOKENS = 48
LEAST = {"disagreement": -1.0, "unlikely": 0.0}
"""Smallest value of a pair."""


def calibrate(run: Run, rule: RollbackRule, most: int = 128) -> list[dict[str, Any]]:
    """Two rows, ``disagreement`` and ``unlikely``, of each of the run's arms.

    most: prompts. Raises StageError for a run whose training is not finished.
    """
    folders = _arms(run)
    prompts = _prompts(run, most)
    rows = []
    with _engine(folders.pop("full_precision")) as full:
        own = [_read(full, prompt, _answer(full, prompt)) for prompt in prompts]
        for arm, folder in folders.items():
            with _engine(folder) as candidate:
                read = [_read(full, prompt, _answer(candidate, prompt)) for prompt in prompts]
            pairs = [
                pair_values(*each, unlikely_nats=rule.unlikely_nats)
                for each in zip(read, own, strict=True)
            ]
            for name in LEAST:
                if values := [pair[name] for pair in pairs if name in pair]:
                    rows.append(_row(run, arm, name, values, rule))
    return rows


def _arms(run: Run) -> dict[str, Path]:
    """Folders of all arms, full precision's first."""
    trained, planned = run.record("train_qat"), run.record("hybrid_plan")
    if trained is None:
        raise StageError(
            f"{run.name} has no finished train_qat, which makes its arms",
            next_step="finish that run with workbench run",
        )
    names = ("full_precision", "checkpoint", "int8", "int4", "post_training", "ternary")
    found = {name: trained.artefact(name) for name in names if name in trained.artefacts}
    if planned and "hybrid" in planned.artefacts:
        found["hybrid"] = planned.artefact("hybrid")
    return found


def _prompts(run: Run, most: int) -> list[tuple[int, ...]]:
    """Beginnings of the held-out texts, as long as a short request's prompt."""
    record = run.record("train_qat")
    assert record is not None
    tokenizer = load_tokenizer(str(record.artefact("tokenizer")))
    texts = [text for text in record.table("heldout")["text"] if text.strip()][:most]
    return [tuple(tokenizer(text)["input_ids"][:PROMPT_TOKENS]) for text in texts]


def _engine(folder: Path) -> Engine:
    return Engine.load(folder, context=PROMPT_TOKENS + PROBE_TOKENS)


def _answer(engine: Engine, prompt: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(engine.generate(GenerationRequest(prompt, max_tokens=PROBE_TOKENS)).tokens)


def _read(full: Engine, prompt: tuple[int, ...], answer: tuple[int, ...]) -> ReadAnswer:
    if not answer:
        return []
    logits = full.logits((*prompt, *answer), first=len(prompt) - 1)[:-1]
    scores = score_rows(logits, answer, 1)
    return [(score.logprob, score.top[0][0] == score.token) for score in scores]


def _row(
    run: Run, arm: str, monitor: str, values: Sequence[float], rule: RollbackRule
) -> dict[str, Any]:
    limit = {"disagreement": rule.max_disagreement, "unlikely": rule.max_unlikely_share}[monitor]
    found, delay = _lives(values, limit, LEAST[monitor], rule.false_alarms)
    estimate = mean(values, "pairs")
    assert estimate.value is not None, "there are pairs"
    return {
        "name": "calibration", "run": run.name, "arm": arm, "monitor": monitor,
        "mean": round(estimate.value, 4), "lo": estimate.lo, "hi": estimate.hi,
        "pairs": len(values), "limit": limit, "taken_back": found, "median_delay": delay,
        "runs": LIVES,
    }  # fmt: skip


def _lives(
    values: Sequence[float], limit: float, least: float, false_alarms: float
) -> tuple[float, float | None]:
    """(share of :data:`LIVES` that take back within :data:`LONGEST` pairs drawn from ``values``,
    median pairs until then, None where fewer than half do)."""
    rng = np.random.default_rng(0)
    monitor = RollbackRule().monitor(compares=True, pairs=True)
    each_begins_with = 1 / (len(monitor.shares) + len(monitor.pairs))
    bets, needed = ExcessBets(limit, LIVES), -np.log(false_alarms * each_begins_with)
    back = np.full(LIVES, np.inf)
    drawn = rng.choice(np.asarray(values), (LONGEST, LIVES))
    for number, scores in enumerate(drawn, start=1):
        bets.take(scores, least)
        back[(bets.log_capital >= needed) & np.isinf(back)] = number
    delay = float(np.median(back))
    return float(np.isfinite(back).mean()), None if np.isinf(delay) else delay


def main(arguments: Sequence[str] = ()) -> int:
    if len(arguments) != 1:
        print("usage: python -m workbench.serve.calibration RUN", file=sys.stderr)
        return 2
    try:
        run = find_run(arguments[0])
        section = run.resolved().pilot.deploy_rollback.rollback_rule
        rule = RollbackRule(**section.model_dump()) if section else RollbackRule()
        for row in calibrate(run, rule):
            print(json.dumps(row), flush=True)
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
