"""Routers on a loop whose clock steps from one timer to the next: nothing is waited for, and what
else a machine does changes no time. conftest.py loads it for the tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

from workbench.engine.request import GenerationRequest

Result = TypeVar("Result")
ARMS = ("full_precision", "hybrid")
REQUEST = GenerationRequest((5,), max_tokens=1)


class SilentScheduler:
    """Takes requests and never gives a token. hangs: it does not end cancelled ones either."""

    failed = None

    def __init__(self, *, hangs: bool) -> None:
        self.hangs, self.taken = hangs, 0

    def submit(self, request, on_token, on_done):
        self.taken += 1
        submitted = SimpleNamespace(finish_reason=None, error=None)

        def cancel() -> None:
            if not self.hangs and submitted.finish_reason is None:
                submitted.finish_reason = "cancelled"
                on_done(submitted)

        submitted.cancel, submitted.on_done = cancel, on_done
        return submitted

    def end(self, submitted) -> None:
        submitted.finish_reason = "length"
        submitted.on_done(submitted)


class SteppedLoop(asyncio.SelectorEventLoop):
    """Its clock stands still while there is work and jumps to the next timer when there is none,
    so that nobody waits, and a busy machine is as quick as a quiet one."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._ready_now, self._selector.select = self._selector.select, self._step

    def time(self) -> float:
        return self.now_s

    def _step(self, timeout: float | None) -> list:
        self.now_s += timeout or 0.0
        return self._ready_now(0.0)


def at_once(work: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=SteppedLoop) as runner:
        return runner.run(work)


class SteadyScheduler(SilentScheduler):
    """One token after ``takes_s``, as many requests at a time as it is given."""

    def __init__(self, takes_s: float) -> None:
        super().__init__(hangs=False)
        self.takes_s = takes_s

    def submit(self, request, on_token, on_done):
        submitted = super().submit(request, on_token, on_done)

        def end() -> None:
            on_token(7)
            self.end(submitted)

        asyncio.get_running_loop().call_later(self.takes_s, end)
        return submitted
