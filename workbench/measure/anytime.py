"""Evidence that may be looked at after every observation, for as long as one likes: betting.

A bet that cannot win on average if a mean is at most ``limit`` multiplies a capital that begins at
1; by Ville's inequality that capital ever reaches ``1/a`` with a probability of at most ``a``
however often it is looked at. So ``capital >= 1/a`` rejects "at most limit" with an error of at
most ``a`` over the whole life (Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", 2024). Nothing is assumed about the observations but their bounds and that,
given what came before, their mean is at most the limit; they may drift and change together.

What share of the capital is bet decides the power, not the validity. Bets of several sizes share
the capital, and after every observation a little of it, 1/t at the t-th, is spread over all sizes
again (fixed share: Herbster and Warmuth, "Tracking the best expert", 1998): a candidate that
breaks after ten thousand good requests is found out within a few, not held up by its past.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

SIZES = np.array([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 0.99])
"""Of the largest bet that cannot lose everything."""
LEAST_LIMIT = 1e-6


class ExcessBets:
    """Bets that a mean is above ``limit``.

    limit: above every ``least`` that :meth:`take` will be given; for shares 0 is taken as a
    millionth. runs: that many independent sequences at once, for simulations; None is one. With
    ``runs`` there may be limits of several kinds of sequence, ``[kinds, 1]``.
    """

    def __init__(self, limit: float | np.ndarray, runs: int | None = None) -> None:
        self.limit = np.maximum(limit, LEAST_LIMIT)
        kinds = self.limit.shape[:-1]
        shape = SIZES.shape if runs is None else (*kinds, runs, len(SIZES))
        self._parts = np.full(shape, 1 / len(SIZES))
        self._log_capital = np.zeros(shape[:-1])
        self._taken = 0

    @property
    def log_capital(self) -> np.ndarray:
        """Natural logarithm of the capital; a scalar array where there is one sequence."""
        return self._log_capital

    def take(self, score: float | np.ndarray, least: float | np.ndarray = 0.0) -> None:
        """Settle the bets on one observation. least: the smallest value that it could have had,
        known beforehand."""
        won = (np.asarray(score, float) - self.limit) / (self.limit - least)
        parts = self._parts * (1 + SIZES * won[..., None])
        total = parts.sum(axis=-1)
        self._taken += 1
        spread = 1 / (self._taken + 1)
        self._parts = (1 - spread) * parts / total[..., None] + spread / len(SIZES)
        self._log_capital = self._log_capital + np.log(total)

    def kept(self) -> dict[str, Any]:
        """What :meth:`go_on_from` needs, as JSON holds it."""
        parts, log_capital = self._parts.tolist(), self._log_capital.tolist()
        return {"parts": parts, "log_capital": log_capital, "taken": self._taken}

    def go_on_from(self, kept: dict[str, Any]) -> None:
        """As if it had taken what was taken before. Raises ValueError for another shape."""
        parts, log_capital = np.asarray(kept["parts"]), np.asarray(kept["log_capital"])
        if parts.shape != self._parts.shape or log_capital.shape != self._log_capital.shape:
            raise ValueError(f"bets of shape {parts.shape}; allowed: {self._parts.shape}")
        self._parts, self._log_capital, self._taken = parts, log_capital, int(kept["taken"])

    def copy(self) -> ExcessBets:
        """Bets that go on from here by themselves."""
        return copy.copy(self)  # its arrays are replaced, never written to
