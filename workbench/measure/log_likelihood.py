"""How likely a text is after another, to an engine: what tasks are scored by."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from workbench.data.tokenizer import document_start, encode
from workbench.engine.engine import Engine
from workbench.engine.scores import score_rows


@dataclass(frozen=True)
class Likelihood:
    """nats: natural logarithm of the probability. greedy: whether each token was the likeliest at
    its place."""

    nats: float
    greedy: bool


def split_tokens(
    tokenizer: PreTrainedTokenizerBase, before: str, after: str
) -> tuple[list[int], list[int]]:
    """Tokens of ``before``, behind the token that starts a document, and of ``after`` as it goes
    on.

    Both are encoded together, since a tokenizer does not read a text in the pieces that it was
    given in, and cut where ``before`` ends by itself; spaces at its end belong to what follows, as
    tokenizers have it. So does lm-evaluation-harness.
    """
    bare = before.rstrip()
    before, after = bare, before[len(bare) :] + after
    start = document_start(tokenizer)
    first = [] if start is None else [start]
    alone, whole = encode(tokenizer, [before, before + after])
    cut = min(len(alone), len(whole) - 1)  # a tokenizer may join what it is given apart
    return [*first, *whole[:cut]], whole[cut:]


def likelihood(engine: Engine, before: list[int], after: list[int]) -> Likelihood:
    """Of tokens ``after`` behind ``before``, one each at least. ValueError for what does not
    fit."""
    logits_nV = engine.logits([*before, *after][:-1], first=len(before) - 1)
    scores = score_rows(logits_nV, after, 1)
    return Likelihood(
        sum(score.logprob for score in scores),
        all(score.top[0][0] == score.token for score in scores),
    )
