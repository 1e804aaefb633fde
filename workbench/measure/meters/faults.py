"""Failures of meters, counted by kind: a log may hold millions of bad rows, a report a sentence.

Two failures are of one kind where their sentences differ in numbers and in quoted text alone.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from workbench.errors import shortened

MOST_KINDS = 12
"""Beyond these the rest is counted together."""
SHOWN_KINDS = 3
REMEMBERED = 1000
"""Latest times of each kind, which tell whether it fell into a window."""
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?")
OTHER = "other failures"


@dataclass
class _Counted:
    text: str
    count: int = 0
    at_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class MeterFaults:
    """Grows by kinds, never by failures."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Counted] = {}

    def __len__(self) -> int:
        return sum(kind.count for kind in self._kinds.values())

    def add(self, at_s: float, text: str) -> None:
        """at_s: on the session's clock. text: its first one stands for the kind."""
        key = _VARYING.sub("#", text)[:200]
        if key not in self._kinds and len(self._kinds) >= MOST_KINDS:
            key, text = OTHER, OTHER
        kind = self._kinds.setdefault(key, _Counted(shortened(text)))
        kind.count += 1
        kind.at_s.append(at_s)

    def counts(self) -> dict[str, int]:
        """First sentence of each kind -> how often."""
        return {kind.text: kind.count for kind in self._kinds.values()}

    def text(self, start_s: float | None = None, end_s: float | None = None) -> str:
        """The most frequent kinds, of a window where one is given; empty where there is none."""
        found = [(kind.text, kind.count) for kind in self._kinds.values()]
        if start_s is not None and end_s is not None:
            found = [
                (kind.text, sum(start_s <= at_s <= end_s for at_s in kind.at_s))
                for kind in self._kinds.values()
            ]
        found = sorted((f for f in found if f[1]), key=lambda one: -one[1])
        said = [text if count == 1 else f"{text} ({count} times)" for text, count in found]
        if len(said) > SHOWN_KINDS:
            said[SHOWN_KINDS:] = [f"{len(said) - SHOWN_KINDS} more kinds of failure"]
        return "; ".join(said)
