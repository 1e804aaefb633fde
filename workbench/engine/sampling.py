"""One token from one row of logits: greedy, temperature, top-p, with a seed of its own.

A vocabulary of 128 k costs 10 ms to sort and 0.1 ms to partition, so the nucleus of top-p is
looked for among a few hundred of the largest first, and among more only if they do not hold
enough probability.
"""

from __future__ import annotations

import numpy as np

from workbench.engine.request import GenerationRequest

FIRST_LOOK = 256
"""Candidates of the first search for the nucleus; each further search takes 8 times as many."""


class Sampler:
    """Chooses the tokens of one request. Equal request and logits give equal tokens.

    Shapes: V vocabulary.
    """

    def __init__(self, request: GenerationRequest, eos_tokens: frozenset[int]) -> None:
        self._temperature, self._top_p = request.temperature, request.top_p
        self._random = np.random.default_rng(request.seed) if request.temperature > 0 else None
        self._min_tokens = request.min_tokens
        ends = set(request.stop_tokens) | (set() if request.ignore_eos else eos_tokens)
        self.ends = frozenset(ends)
        self._forbidden = np.array(sorted(ends), dtype=np.int64)

    def choose(self, logits_V: np.ndarray, done: int) -> int:
        """The next token, when ``done`` tokens are out already. ``logits_V`` may be changed."""
        if done < self._min_tokens and len(self._forbidden):
            logits_V[self._forbidden[self._forbidden < len(logits_V)]] = -np.inf
        if self._random is None:
            return int(logits_V.argmax())
        return self._sample(logits_V, self._random)

    def _sample(self, logits_V: np.ndarray, random: np.random.Generator) -> int:
        weights_V = np.exp((logits_V - logits_V.max()).astype(np.float64) / self._temperature)
        if self._top_p < 1:
            tokens = _nucleus(weights_V, self._top_p * weights_V.sum())
            cumulative = weights_V[tokens].cumsum()
        else:
            tokens, cumulative = None, weights_V.cumsum()
        drawn = random.random() * cumulative[-1]
        index = min(int(cumulative.searchsorted(drawn, side="right")), len(cumulative) - 1)
        return index if tokens is None else int(tokens[index])


def _nucleus(weights_V: np.ndarray, enough: float) -> np.ndarray:
    """The fewest tokens, likeliest first, whose weights sum to at least ``enough``."""
    count = FIRST_LOOK
    while True:
        if count >= len(weights_V):
            candidates = np.arange(len(weights_V))
        else:
            candidates = np.argpartition(weights_V, -count)[-count:]
        # A stable order among equal weights keeps the draw independent of the partition.
        candidates = np.sort(candidates)
        ordered = candidates[np.argsort(-weights_V[candidates], kind="stable")]
        cumulative = weights_V[ordered].cumsum()
        if cumulative[-1] >= enough or count >= len(weights_V):
            return ordered[: int(cumulative.searchsorted(enough)) + 1]
        count *= 8
