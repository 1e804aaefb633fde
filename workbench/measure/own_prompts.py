"""Own prompts: what every arm answers, and how near each comes to the reference's answers.

The reference is the checkpoint as it came, or full precision where there is none. Every arm answers
greedily, for itself: that is what a reader sees and what checks are held against. Free answers go
apart at the first token that differs, so how near two arms are is measured at the same places: each
reads the prompt and the *reference's* answer, and at every place of that answer, its end included,
the two distributions of the next token are compared. Nothing here is timed.

Shapes: n places of an answer, V vocabulary.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from workbench.data.own_prompts import OwnPrompt
from workbench.engine.engine import Engine, Generation
from workbench.engine.request import GenerationRequest
from workbench.json_lines import as_line, keep_rows, read_rows

GRAM = 4
"""Tokens of the pieces whose repetition is counted."""
Progressed = Callable[[int, int], None]
"""Hears (done, of how many)."""


def answer_prompts(
    engines: Mapping[str, Engine],
    reference: str,
    prompts: Sequence[OwnPrompt],
    prompt_ids: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    path: Path,
    report: Progressed = lambda done, of: None,
) -> pd.DataFrame:
    """Table ``prompts``: a row a prompt and arm, the reference first.

    prompt_ids: tokens of each prompt. max_tokens: of an answer, where the prompt says nothing else.
    path: keeps each prompt once all arms have answered it, so that a killed stage goes on there.

    Columns: prompt (its name), line, text, arm, answer, tokens (of the answer), ended (``stop`` or
    ``length``), repeated and grams (4-grams of the answer that were there before, and all), agreed
    and places (of the reference's answer where the likeliest token is the same, and all), kl_nats
    (sum over these places), accepted (None without a check), broken and wanted (what it did not
    keep to, and what that asked for).
    """
    keep_rows(path)
    rows = read_rows(path)
    arms = [reference, *(arm for arm in engines if arm != reference)]
    with path.open("a", encoding="utf-8") as file:
        for place in range(len(rows), len(prompts)):
            own, ids = prompts[place], prompt_ids[place]
            request = GenerationRequest(tuple(ids), own.max_tokens or max_tokens)
            answers = {arm: engines[arm].generate(request) for arm in arms}
            nearness = _nearness(engines, arms, ids, answers[reference])
            found = [
                {"arm": arm, **_answered(own, answers[arm], tokenizer), **nearness[arm]}
                for arm in arms
            ]
            row = {"prompt": own.name, "line": own.line, "text": own.text, "arms": found}
            file.write(as_line(row))
            file.flush()
            os.fsync(file.fileno())
            rows.append(row)
            report(place + 1, len(prompts))
    flat = [{**row, **arm} for row in rows for arm in row["arms"]]
    return pd.DataFrame(flat).drop(columns="arms")


def repeated_grams(tokens: Sequence[int]) -> tuple[int, int]:
    """(4-grams that stood in the answer before, all of its 4-grams).

    >>> repeated_grams([1, 2, 3, 4, 1, 2, 3, 4])
    (1, 5)
    """
    grams = Counter(tuple(tokens[k : k + GRAM]) for k in range(len(tokens) - GRAM + 1))
    return sum(grams.values()) - len(grams), sum(grams.values())


def _answered(
    own: OwnPrompt, answer: Generation, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    text = str(
        tokenizer.decode(
            answer.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    )
    broken = own.broken_by(text) if own.has_check else None
    repeated, grams = repeated_grams(answer.tokens)
    return {
        "answer": text,
        "tokens": len(answer.tokens),
        "ended": answer.finish_reason,
        "repeated": repeated,
        "grams": grams,
        "accepted": broken is None if own.has_check else None,
        "broken": broken[0] if broken else None,
        "wanted": broken[1] if broken else None,
    }


def _nearness(
    engines: Mapping[str, Engine], arms: Sequence[str], ids: Sequence[int], answer: Generation
) -> dict[str, dict[str, Any]]:
    """Of each arm, at the places of the reference's answer; the reference is the first of ``arms``.

    An answer that ended by itself has a place more: the one at which it ended.
    """
    read = [*ids, *answer.tokens] if answer.finish_reason == "stop" else [*ids, *answer.tokens[:-1]]
    found: dict[str, dict[str, Any]] = {}
    of_reference_nV = np.empty((0, 0))
    for arm in arms:
        log_nV = _log_softmax(engines[arm].logits(read, first=len(ids) - 1))
        if not found:
            of_reference_nV = log_nV
        # Spare rows of an embedding are no tokens: an arm may have more of them than another.
        shared = min(of_reference_nV.shape[1], log_nV.shape[1])
        p_nV, q_nV = of_reference_nV[:, :shared], log_nV[:, :shared]
        kl_n = (np.exp(p_nV) * (p_nV - q_nV)).sum(axis=1, dtype=np.float64)
        same_n = p_nV.argmax(axis=1) == q_nV.argmax(axis=1)
        found[arm] = {
            "kl_nats": float(kl_n.sum()),
            "agreed": int(same_n.sum()),
            "places": len(same_n),
        }
    return found


def _log_softmax(logits_nV: np.ndarray) -> np.ndarray:
    shifted_nV = logits_nV - logits_nV.max(axis=1, keepdims=True)
    sum_n1 = np.exp(shifted_nV).sum(axis=1, dtype=np.float64, keepdims=True)
    return shifted_nV - np.log(sum_n1).astype(np.float32)
