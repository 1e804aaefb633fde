"""Orders in which the arms of a session take turns, balanced for drift and for neighbours.

A Williams square is a Latin square in which every arm also stands directly after every other
arm equally often (once; for an odd number of arms twice, in two mirrored squares). So a slow
drift falls on all places alike, and what an arm leaves to its successor (a hot cache, a lowered
clock) falls on every other arm alike and changes from block to block, where the spread of the
blocks shows it. Williams, Australian Journal of Scientific Research A 2 (1949).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def williams(arms: Sequence[str]) -> list[list[str]]:
    """The orders of one round: as many as arms where those are even, else twice as many."""
    count = len(arms)
    # 0, 1, n-1, 2, n-2, ...: its neighbours' distances are all different.
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) % count for place in range(count)]
    square = [[(place + shift) % count for place in zigzag] for shift in range(count)]
    if count % 2:
        square += [row[::-1] for row in square]
    return [[arms[place] for place in row] for row in square]


def balanced_orders(arms: Sequence[str], seed: int = 0) -> Iterator[list[str]]:
    """One order a block, without end: round after round of :func:`williams`, each shuffled."""
    random = np.random.default_rng(seed)
    square = williams(arms)
    while True:
        yield from (square[row] for row in random.permutation(len(square)))
