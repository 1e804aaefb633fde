"""Several corpora in one training: which sequence comes from which, by their weights.

Each corpus has a clock that ticks once a sequence, at a rate that is its weight, and a first tick
that the seed draws; the ticks of all, in the order of their times, are the order of the training.
So every beginning of a training has the corpora in proportion, to within a sequence of each, and
item i depends on nothing but the seed and i: a training that goes on needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TokenPart:
    """The tokens ``begin`` to ``end`` of a training's array are of the corpus ``name``. share: of
    the training's sequences, all parts together 1."""

    name: str
    share: float
    begin: int
    end: int


def mixed_order(shares: Sequence[float], length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(the part of each of ``length`` items, which item of its part it is, from 0).

    >>> mixed_order([0.75, 0.25], 8, seed=1)[0].tolist().count(1)
    2
    """
    phases = np.random.default_rng([seed, len(shares), 0x317]).random(len(shares))
    times, parts, places = [], [], []
    for part, (share, phase) in enumerate(zip(shares, phases, strict=True)):
        count = math.ceil(share * length) + 1
        times.append((np.arange(count) + phase) / share)
        parts.append(np.full(count, part))
        places.append(np.arange(count))
    order = np.argsort(np.concatenate(times), kind="stable")[:length]
    return np.concatenate(parts)[order], np.concatenate(places)[order]
