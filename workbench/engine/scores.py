"""Log probabilities of tokens, as the model gave them.

They are taken from the logits before temperature, penalties, a grammar or anything else that a
request asks for changes them: of one text they are the same however it was asked for. Shapes: n
rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class TokenScore:
    """logprob: natural logarithm of the token's probability. top: the likeliest tokens at its
    place with theirs, likeliest first; the token itself need not be among them."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def plain(self) -> list[Any]:
        """As JSON takes it."""
        return [self.token, self.logprob, self.top]

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> TokenScore:
        token, logprob, top = plain
        return cls(token, logprob, tuple((other, of) for other, of in top))


class ScoredToken(int):
    """An output token that brings its score along. To all who do not ask for that it is a token
    like any other, so it takes the same way through scheduler, process and router."""

    score: TokenScore

    def __new__(cls, score: TokenScore) -> ScoredToken:
        token = super().__new__(cls, score.token)
        token.score = score
        return token


def score_rows(logits_nV: np.ndarray, tokens: Sequence[int], top: int) -> list[TokenScore]:
    """How likely ``tokens[i]`` was by row i, beside the ``top`` likeliest tokens there."""
    largest_n1 = logits_nV.max(axis=1, keepdims=True)
    weight_n = np.exp(logits_nV - largest_n1).sum(axis=1, dtype=np.float64)
    log_sum_n = largest_n1[:, 0] + np.log(weight_n)
    scores = []
    for logits_V, log_sum, token in zip(logits_nV, log_sum_n, tokens, strict=True):
        likeliest = _likeliest(logits_V, top)
        others = tuple((int(t), float(logits_V[t] - log_sum)) for t in likeliest)
        scores.append(TokenScore(int(token), float(logits_V[token] - log_sum), others))
    return scores


def _likeliest(logits_V: np.ndarray, count: int) -> np.ndarray:
    """Likeliest first; among equals the lower number, as greedy decoding chooses."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    count = min(count, len(logits_V))
    found = np.argpartition(-logits_V, count - 1)[:count]
    # A partition cuts anywhere among equals of the last place; greedy's choice must be there.
    first = int(logits_V.argmax())
    if first not in found:
        found[int(logits_V[found].argmin())] = first
    return found[np.lexsort((found, -logits_V[found]))]
