"""Lengths as histograms: exact for each, joint in cells of 6 %.

A joint cell is linear below 16 tokens and has 16 steps an octave above, as HdrHistogram's:
cell = 16 e + (tokens >> e) with e = floor(log2(tokens)) - 4.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STEPS = 16
CELLS = STEPS * 25
"""Enough for 2**27 tokens."""
DENSE = 2**17
"""Lengths up to here are counted in an array, the few beyond in a dictionary."""


def cells_of(tokens: np.ndarray) -> np.ndarray:
    """The cell of each length, ``[n]``."""
    tokens = np.asarray(tokens, np.int64)
    exponent = np.maximum(np.frexp(np.maximum(tokens, 1).astype(float))[1] - 1 - 4, 0)
    return STEPS * exponent + (tokens >> exponent)


def cell_bounds(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first length of each cell, and the first one after it."""
    cells = np.asarray(cells, np.int64)
    exponent = np.maximum(cells // STEPS - 1, 0)
    first = (cells - STEPS * exponent) << exponent
    return first, first + (1 << exponent)


@dataclass
class Histogram:
    """How often each length occurs."""

    dense: np.ndarray = field(default_factory=lambda: np.zeros(DENSE, np.int64))
    beyond: Counter[int] = field(default_factory=Counter)

    def add(self, tokens: np.ndarray) -> None:
        usual = tokens < DENSE
        self.dense += np.bincount(tokens[usual], minlength=DENSE)
        if not usual.all():
            values, counts = np.unique(tokens[~usual], return_counts=True)
            self.beyond.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """The lengths that occur, ascending, and their counts."""
        at = np.flatnonzero(self.dense)
        more = sorted(self.beyond.items())
        values = np.concatenate([at, np.array([v for v, _ in more], np.int64)])
        counts = np.concatenate([self.dense[at], np.array([c for _, c in more], np.int64)])
        return values, counts


@dataclass(frozen=True)
class Counted:
    """Values with their counts, ascending: an ordered sample without its length in memory."""

    values: np.ndarray
    counts: np.ndarray

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    def ordered(self, rank: int) -> float:
        """The order statistic of ``rank``, from 0."""
        at = np.searchsorted(np.cumsum(self.counts), rank, side="right")
        return float(self.values[min(int(at), len(self.values) - 1)])

    def quantile(self, q: float) -> float:
        """As ``numpy.quantile``: linear between order statistics."""
        position = (self.n - 1) * q
        low = self.ordered(int(np.floor(position)))
        return low + (position % 1) * (self.ordered(int(np.ceil(position))) - low)


@dataclass
class Joint:
    """How often prompt, output and class occur together, in cells."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(CELLS * CELLS * 2, np.int64))

    def add(self, prompt: np.ndarray, output: np.ndarray, class_: np.ndarray) -> None:
        code = (_looked_up(prompt) * CELLS + _looked_up(output)) * 2 + class_
        self.counts += np.bincount(code, minlength=len(self.counts))

    def to_json(self) -> dict[str, list[int]]:
        """Columns prompt_cell, output_cell, class and count, of the cells that occur."""
        at = np.flatnonzero(self.counts)
        return {
            "prompt_cell": (at // 2 // CELLS).tolist(),
            "output_cell": (at // 2 % CELLS).tolist(),
            "class": (at % 2).tolist(),
            "count": self.counts[at].tolist(),
        }


_CELLS_OF_USUAL = cells_of(np.arange(DENSE)).astype(np.int32)


def _looked_up(tokens: np.ndarray) -> np.ndarray:
    """:func:`cells_of`, from a table where all lengths are usual ones."""
    return _CELLS_OF_USUAL[tokens] if tokens.max(initial=0) < DENSE else cells_of(tokens)


def drawn_lengths(
    joint: dict[str, Any], n: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompt tokens, output tokens and class codes of ``n`` requests, each ``[n]``."""
    counts = np.array(joint["count"], float)
    chosen = random.choice(len(counts), n, p=counts / counts.sum())
    lengths = []
    for name in ("prompt_cell", "output_cell"):
        first, end = cell_bounds(np.array(joint[name])[chosen])
        lengths.append(np.maximum(1, random.integers(first, end)))
    return lengths[0], lengths[1], np.array(joint["class"])[chosen]
