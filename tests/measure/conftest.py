"""A clock that a test steps; see :mod:`workbench.measure.meters.clock`."""

from collections.abc import Callable

import pytest

STARTED_AT_S = 1_800_000_000.0
"""Unix time at which every fake clock starts."""


class FakeClock:
    """Time passes in ``sleep`` alone, and what is due meanwhile is called at its own moment."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._calls: list[dict] = []

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return STARTED_AT_S + self.now_s

    def sleep(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while due := [one for one in self._calls if one["due_s"] <= until_s]:
            first = min(due, key=lambda one: one["due_s"])
            self.now_s = max(self.now_s, first["due_s"])
            first["due_s"] += first["interval_s"]
            first["call"]()
        self.now_s = until_s

    def every(self, interval_s: float, call: Callable[[], None]) -> Callable[[], None]:
        one = {"interval_s": interval_s, "call": call, "due_s": self.now_s + interval_s}
        self._calls.append(one)
        return lambda: self._calls.remove(one)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
