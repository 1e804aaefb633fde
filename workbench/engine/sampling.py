"""One token from one row of logits: greedy, temperature, top-k, top-p, with a seed of its own.

What changes the logits comes first, in this order: no end before ``min_tokens``, penalties of what
is out already, the grammar. Then temperature, the ``top_k`` likeliest tokens, and of these the
nucleus of ``top_p``.

A vocabulary of 128 k costs 10 ms to sort and 0.1 ms to partition, so the nucleus of top-p is
looked for among a few hundred of the largest first, and among more only if they do not hold
enough probability.

A token that was guessed (:mod:`.draft`) is taken or replaced so that what comes out is distributed
as without the guess: taken with probability min(1, p / q), where p is what this sampler gives it
and q what the guess was drawn with, else drawn from what p has above q (Leviathan et al. 2023,
arXiv:2211.17192, theorem 3.5). Where the likeliest token is taken, a guess changes nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.engine.request import GenerationRequest

if TYPE_CHECKING:
    from workbench.engine.grammar import Constraint

FIRST_LOOK = 256
"""Candidates of the first search for the nucleus; each further search takes 8 times as many."""


@dataclass(frozen=True)
class Guess:
    """A token that a draft expects. shares: what it was drawn with, float64 ``[V]`` with sum 1;
    None: no other was possible."""

    token: int
    shares: np.ndarray | None = None


@dataclass(frozen=True)
class Choices:
    """What may come next: float64 ``weights`` of ``tokens``, or of the whole vocabulary."""

    weights: np.ndarray
    tokens: np.ndarray | None = None

    def draw(self, random: np.random.Generator) -> int:
        """One of them, by their weights."""
        cumulative = self.weights.cumsum()
        drawn = random.random() * cumulative[-1]
        index = min(int(cumulative.searchsorted(drawn, side="right")), len(cumulative) - 1)
        return index if self.tokens is None else int(self.tokens[index])

    def shares(self, vocab_size: int) -> np.ndarray:
        """Probabilities ``[V]``."""
        if self.tokens is None:
            return self.weights / self.weights.sum()
        shares_V = np.zeros(vocab_size)
        shares_V[self.tokens] = self.weights / self.weights.sum()
        return shares_V


class Sampler:
    """Chooses the tokens of one request. Equal request and logits give equal tokens.

    constraint: what its grammar allows. Shapes: V vocabulary.
    """

    def __init__(
        self,
        request: GenerationRequest,
        eos_tokens: frozenset[int],
        constraint: Constraint | None = None,
    ) -> None:
        self._temperature, self._top_p = request.temperature, request.top_p
        self._top_k, self._constraint = request.top_k, constraint
        self._presence, self._frequency = request.presence_penalty, request.frequency_penalty
        given = request.prompt_tokens[len(request.prompt_tokens) - request.given_output :]
        self._seen = Counter(given) if self._presence or self._frequency else None
        self._random = np.random.default_rng(request.seed) if request.temperature > 0 else None
        self._min_tokens = request.min_tokens
        ends = set(request.stop_tokens) | (set() if request.ignore_eos else eos_tokens)
        self.ends = frozenset(ends)
        self._forbidden = np.array(sorted(ends), dtype=np.int64)

    def guess(self, logits_V: np.ndarray) -> Guess:
        """What a draft with these logits expects next: likeliest, or drawn, as the request asks.

        Penalties and grammar are left to :meth:`choose`, which judges the guess.
        """
        if self._random is None:
            return Guess(int(logits_V.argmax()))
        choices = self._choices(logits_V)
        return Guess(choices.draw(self._random), choices.shares(len(logits_V)))

    def choose(self, logits_V: np.ndarray, done: int, guess: Guess | None = None) -> int:
        """The next token, when ``done`` tokens are out already. ``logits_V`` may be changed.

        guess: of a draft; it is right where it is what comes back, and changes the odds of none.
        Raises GrammarError where the grammar allows none.
        """
        if done < self._min_tokens and len(self._forbidden):
            logits_V[self._forbidden[self._forbidden < len(logits_V)]] = -np.inf
        if self._seen:
            self._penalize(logits_V, self._seen)
        if self._constraint is not None:
            self._constraint.mask(logits_V)
        if self._random is None:
            token = int(logits_V.argmax())
        elif guess is None:
            token = self._choices(logits_V).draw(self._random)
        else:
            shares_V = self._choices(logits_V).shares(len(logits_V))
            token = _judge(guess, shares_V, self._random)
        if self._seen is not None:
            self._seen[token] += 1
        if self._constraint is not None:
            self._constraint.take(token)
        return token

    @property
    def over(self) -> bool:
        """Whether the grammar allows no further token: the output is whole."""
        return self._constraint is not None and self._constraint.over

    def _penalize(self, logits_V: np.ndarray, seen: Counter[int]) -> None:
        tokens = np.fromiter(seen.keys(), dtype=np.int64, count=len(seen))
        times = np.fromiter(seen.values(), dtype=np.float32, count=len(seen))
        logits_V[tokens] -= self._presence + self._frequency * times

    def _choices(self, logits_V: np.ndarray) -> Choices:
        weights_V = np.exp((logits_V - logits_V.max()).astype(np.float64) / self._temperature)
        if self._top_k and self._top_k < len(weights_V):
            tokens = _largest(weights_V, self._top_k)
            if self._top_p < 1:
                cumulative = weights_V[tokens].cumsum()
                tokens = tokens[: int(cumulative.searchsorted(self._top_p * cumulative[-1])) + 1]
        elif self._top_p < 1:
            tokens = _nucleus(weights_V, self._top_p * weights_V.sum())
        else:
            return Choices(weights_V)
        return Choices(weights_V[tokens], tokens)


def _judge(guess: Guess, shares_V: np.ndarray, random: np.random.Generator) -> int:
    """The guessed token, or one in its place; see the module's text."""
    drawn_with = 1.0 if guess.shares is None else guess.shares[guess.token]
    if random.random() * drawn_with < shares_V[guess.token]:
        return guess.token
    if guess.shares is None:
        shares_V[guess.token] = 0.0
    else:
        shares_V[: len(guess.shares)] -= guess.shares
    return Choices(shares_V.clip(0.0)).draw(random)


def _largest(weights_V: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` likeliest tokens, likeliest first."""
    if count >= len(weights_V):
        found = np.arange(len(weights_V))
    else:
        found = np.argpartition(weights_V, -count)[-count:]
    # A stable order among equal weights keeps the draw independent of the partition.
    found = np.sort(found)
    return found[np.argsort(-weights_V[found], kind="stable")]


def _nucleus(weights_V: np.ndarray, enough: float) -> np.ndarray:
    """The fewest tokens, likeliest first, whose weights sum to at least ``enough``."""
    count = FIRST_LOOK
    while True:
        ordered = _largest(weights_V, count)
        cumulative = weights_V[ordered].cumsum()
        if cumulative[-1] >= enough or count >= len(weights_V):
            return ordered[: int(cumulative.searchsorted(enough)) + 1]
        count *= 8
