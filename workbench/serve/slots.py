"""Who may take an arm's next slot.

- Fair shares: long requests, those that want more than ``short_tokens``, hold all of an arm's
  slots but ``kept``, so a short one never waits for the end of long ones. Within what its class
  may hold, the next slot is the oldest request's, so neither class starves.
- Gathering: an arm with free slots may let requests wait up to ``batch_wait_s`` for others, to
  start them together: prompts that start together share the passes over the weights. 0, the
  default, starts each at once.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

from workbench.engine.request import GenerationRequest
from workbench.serve.routed import RoutedRequest, ServedArm

REMEMBERED = 32
"""Answers whose time says how long the queue will take."""


class Slots:
    """short_tokens: None makes no request a long one. kept: of each arm, for short ones alone."""

    def __init__(
        self, batch_wait_s: float = 0.0, short_tokens: int | None = None, kept: int = 0
    ) -> None:
        self.batch_wait_s, self.short_tokens, self.kept = batch_wait_s, short_tokens, kept
        self._took_s: deque[float] = deque(maxlen=REMEMBERED)

    def is_long(self, request: GenerationRequest) -> bool:
        return self.short_tokens is not None and request.max_tokens > self.short_tokens

    def has_one(self, arm: ServedArm, routed: RoutedRequest) -> bool:
        """Whether this arm has a free slot for it."""
        if routed.long and arm.long >= max(1, arm.slots - self.kept):
            return False
        return arm.running < arm.slots

    def gathering(
        self, waiting: Iterable[tuple[ServedArm, RoutedRequest]], now_s: float
    ) -> dict[str, float]:
        """The arms that wait for more requests, and for how many seconds yet: fewer wait than slots
        are free, and the oldest has not waited ``batch_wait_s``. waiting: oldest first."""
        if not self.batch_wait_s:
            return {}
        by_arm: dict[str, tuple[ServedArm, list[RoutedRequest]]] = {}
        for arm, routed in waiting:
            by_arm.setdefault(arm.name, (arm, []))[1].append(routed)
        found = {}
        for name, (arm, own) in by_arm.items():
            left_s = own[0].arrived_s + self.batch_wait_s - now_s
            if len(own) < arm.slots - arm.running and left_s > 0:
                found[name] = left_s
        return found

    def took(self, seconds: float) -> None:
        """An answer took so long from its start."""
        self._took_s.append(seconds)

    def time_to_drain_s(self, waiting: int, arm: ServedArm) -> float:
        """Seconds until the queue is empty if its requests take as long as the latest ones did,
        as many at a time as the arm has slots; 1 if unknown. What came before a pause counts."""
        if not self._took_s:
            return 1.0
        return waiting * statistics.fmean(self._took_s) / max(arm.slots, 1)
