"""The time of a metering session: of its windows, its samples and the rows of its logs.

Everything that meters asks a :class:`Clock` and nothing else, so that a test gives one that it
steps itself: minutes of metering then take milliseconds, and a busy machine changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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
        ended = threading.Event()

        def run() -> None:
            due_s = self.monotonic_s() + interval_s
            while not ended.wait(max(0.0, due_s - self.monotonic_s())):
                call()
                # A late call is not caught up with a burst of calls.
                due_s = max(due_s + interval_s, self.monotonic_s())

        thread = threading.Thread(target=run, name="energy", daemon=True)
        thread.start()

        def end() -> None:
            ended.set()
            thread.join()

        return end


SYSTEM_CLOCK = SystemClock()
