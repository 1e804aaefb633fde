"""What is usual of an arm, for requests of one kind: medians of its latest answers."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Hashable, Mapping

LATEST, FEWEST = 200, 20
"""Answers that a median is of: at most, and at least."""
RENEWED_AFTER = 10
"""New answers, until a median is taken anew."""


class Usual:
    """Medians by kind of request and by what was measured."""

    def __init__(self) -> None:
        self._latest: dict[tuple[Hashable, str], deque[float]] = {}
        self._medians: dict[tuple[Hashable, str], float] = {}
        self._new: dict[tuple[Hashable, str], int] = {}

    def take(self, kind: Hashable, measured: Mapping[str, float]) -> None:
        """What an answer to a request of this kind took or had."""
        for name, value in measured.items():
            key = kind, name
            latest = self._latest.setdefault(key, deque(maxlen=LATEST))
            latest.append(value)
            self._new[key] = self._new.get(key, 0) + 1
            if len(latest) >= FEWEST and (
                key not in self._medians or self._new[key] >= RENEWED_AFTER
            ):
                self._medians[key] = statistics.median(latest)
                self._new[key] = 0

    def of(self, kind: Hashable, name: str) -> float | None:
        """The median; None while too few answers were seen."""
        return self._medians.get((kind, name))
