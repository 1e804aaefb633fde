"""Does a server fall behind? Told while requests still come, so that a hopeless rate costs seconds.

A server that is offered more than it can do shows it twice: requests pile up, and each waits
longer than the one before. Both must **rise** over the windows of the measurement: Kendall's rank
correlation with time, one-sided, so that one long request or one quiet second decides nothing. A
busy server that keeps up drifts too, up and down and for long; so it counts only once the pile has
grown by a whole batch and by more than arrivals scatter (twice the square root of their number),
and, while requests still come, once the first tokens of the latest window are late for their
target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST_WINDOWS = 8
"""Before the first look."""
SCATTER = 2.0
"""Standard deviations of a Poisson count."""
LEVEL = 0.01
"""Of each of the two trends, at every look."""


@dataclass(frozen=True)
class Windows:
    """What a server did, window by window. concurrency: requests that were due and had not ended
    when a window closed. ttft_s: mean of the first tokens that came within it; where none did, the
    age of the oldest that was waiting, NaN where nothing was. Shapes ``[windows]``."""

    concurrency: np.ndarray
    ttft_s: np.ndarray

    @classmethod
    def of(
        cls,
        until_s: float,
        width_s: float,
        due_s: np.ndarray,
        first_s: np.ndarray,
        end_s: np.ndarray,
    ) -> Windows:
        """The whole windows up to ``until_s``. due_s, first_s, end_s: of all planned requests,
        ``[requests]``; NaN for what has not happened."""
        edges = width_s * np.arange(1, int(until_s / width_s + 1e-9) + 1)
        came = np.searchsorted(np.sort(due_s), edges, "right")
        gone = np.searchsorted(np.sort(end_s), edges, "right")  # NaN sorts behind all
        ttft_s = np.full(len(edges), np.nan)
        for at, edge in enumerate(edges):
            answered = (first_s > edge - width_s) & (first_s <= edge)
            waiting = (due_s <= edge) & ~(first_s <= edge) & ~(end_s <= edge)
            if answered.any():
                ttft_s[at] = (first_s - due_s)[answered].mean()
            elif waiting.any():
                ttft_s[at] = edge - due_s[waiting].min()
        return cls(came - gone, ttft_s)

    def overloaded(self, slots: int, requests: int, target_ttft_s: float = 0.0) -> bool:
        """Whether the server falls behind. slots: requests that it runs together. requests: due so
        far. target_ttft_s: what the latest first tokens must have missed; 0 asks for the trends
        alone."""
        if len(self.concurrency) < FEWEST_WINDOWS or not self.ttft_s[-1] > target_ttft_s:
            return False
        third = len(self.concurrency) // 3
        grown = self.concurrency[-third:].mean() - self.concurrency[:third].mean()
        scatter = SCATTER * math.sqrt(requests)
        return bool(grown >= max(slots, scatter) and rises(self.concurrency) and rises(self.ttft_s))


def rises(series: np.ndarray, level: float = LEVEL) -> bool:
    """Whether values in time order rise by more than chance: Kendall's tau, one-sided."""
    known = ~np.isnan(series)
    if known.sum() < FEWEST_WINDOWS or np.ptp(series[known]) == 0:
        return False
    times = np.flatnonzero(known)
    return bool(stats.kendalltau(times, series[known], alternative="greater").pvalue < level)
