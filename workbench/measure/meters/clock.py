"""The time of a metering session: of its windows, its samples and the rows of its logs.

Everything that meters asks a :class:`Clock` and nothing else, so that a test gives one that it
steps itself (:class:`SteppedClock`): minutes of metering then take milliseconds, and a busy machine
changes nothing.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Two readings of the time, a pause, and a call every so often."""

    def monotonic_s(self) -> float:
        """Of this process; never goes back."""
        ...

    def wall_s(self) -> float:
        """Unix time, which the rows of a log are dated by."""
        ...

    def sleep(self, seconds: float) -> None: ...

    def every(self, interval_s: float, call: Callable[[], None]) -> Callable[[], None]:
        """Call ``call`` every ``interval_s`` from now on, beside what goes on; what is returned
        ends that, and no call is under way any more when it returns."""
        ...


class SystemClock:
    """The machine's own time; what is called regularly runs in a thread."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def every(self, interval_s: float, call: Callable[[], None]) -> Callable[[], None]:
        # Waiting at a pipe takes half the time of a processor that waiting for an Event takes.
        ended, end_it = os.pipe()
        waiting = select.poll()
        waiting.register(ended, select.POLLIN)

        def run() -> None:
            due_s = self.monotonic_s() + interval_s
            while not waiting.poll(math.ceil(1e3 * max(0.0, due_s - self.monotonic_s()))):
                call()
                # A late call is not caught up with others at its heels: two samples at one moment
                # look like two devices under one name.
                due_s = max(due_s + interval_s, self.monotonic_s() + interval_s / 2)

        thread = threading.Thread(target=run, name="energy", daemon=True)
        thread.start()

        def end() -> None:
            if thread.is_alive():
                os.write(end_it, b".")
                thread.join()
                os.close(ended)
                os.close(end_it)

        return end


SYSTEM_CLOCK = SystemClock()


STARTED_AT_S = 1_800_000_000.0
"""Unix time at which every stepped clock starts."""


class SteppedClock:
    """For tests and simulations: time passes in ``sleep`` alone, and what is due meanwhile is
    called at its own moment."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._calls: list[_Regular] = []

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return STARTED_AT_S + self.now_s

    def sleep(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while due := [one for one in self._calls if one.due_s <= until_s]:
            first = min(due, key=lambda one: one.due_s)
            self.now_s = max(self.now_s, first.due_s)
            first.due_s += first.interval_s
            first.call()
        self.now_s = until_s

    def every(self, interval_s: float, call: Callable[[], None]) -> Callable[[], None]:
        one = _Regular(self.now_s + interval_s, interval_s, call)
        self._calls.append(one)
        return lambda: self._calls.remove(one)


@dataclass(eq=False)
class _Regular:
    due_s: float
    interval_s: float
    call: Callable[[], None]
