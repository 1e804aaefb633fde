"""Which share of the requests one falls into: evenly over time, for each kind, or by its client.

A position is a number in [0, 1); a request is the candidate's when it is below the route's weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

GOLDEN = (5**0.5 - 1) / 2
MOST_KINDS = 256
"""Kinds with a sequence of their own; further ones share one."""


class Positions:
    """A golden-ratio sequence for each kind of request: every stretch of each kind has the right
    mixture, so neither arm gets the long ones, and no arm the whole of a burst."""

    def __init__(self) -> None:
        self._latest: dict[Hashable, float] = {}

    def next(self, kind: Hashable = None, key: str | None = None) -> float:
        """Of a request of this kind. key: of a client that stays where it is while the weight
        does, and moves once, to the candidate, while the weight grows."""
        if key is not None:
            return _hashed(key)
        if kind not in self._latest and len(self._latest) >= MOST_KINDS:
            kind = None
        position = (self._latest.get(kind, _begin(len(self._latest))) + GOLDEN) % 1.0
        self._latest[kind] = position
        return position


def kind_of(prompt: int, wanted: float) -> Hashable:
    """prompt, wanted: tokens, or what grows with them. Requests of one kind differ at most
    fourfold in either."""
    return int(prompt).bit_length() // 2, int(min(wanted, 2**31)).bit_length() // 2


def _begin(number: int) -> float:
    """Of the sequence of the n-th kind: else every kind's first request were the same arm's."""
    return number * GOLDEN**2 % 1.0


def _hashed(key: str) -> float:
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
