"""An arm as the server sees it: a process of its own that is started, listened to, and replaced.

Two models in one process fall together: a crash, a kill or a hang of one takes every stream of
the other with it. So each arm has a process (:mod:`.arm_process`), and this server none of their
weights. What can become of it:

- It ends, by a kill, a crash or an engine that has failed: the arm is **out**, requests that it
  had end with an error (the router gives those without a token to another arm), and it is
  started again, after 0.5 s and then after twice as long each time, a minute at most.
- It hangs: it gives no sign of life for ``silence_s``, or is busy with one step for ``step_s``.
  Then it is killed, and the same follows.

Processes are forked from one that has imported what a model needs (multiprocessing's
``forkserver``), so a restart costs the loading of the weights and no imports, and the code's
memory is shared. Everything here runs on the server's event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from typing import Any

from workbench.child import how_it_ended
from workbench.engine.request import FinishReason, GenerationRequest
from workbench.engine.scores import ScoredToken, TokenScore
from workbench.engine.speculation_counts import SpeculationCounts
from workbench.errors import ConfigError, StageError, WorkbenchError
from workbench.serve.arm_process import PRELOADED, ArmSpec, run_arm
from workbench.serve.spec import ArmReady

START_S = 600.0
"""A large model takes minutes to read."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
"""Before an arm is started again: the first time, and at most."""
STEADY_S = 60.0
"""An arm that ran so long has not failed at once; the next wait is the first again."""
LOOK_S = 0.25
KILL_S = 5.0
"""For a process that was told to end, or was killed, to be gone."""
log = logging.getLogger(__name__)


@dataclass(eq=False)
class AskedRequest:
    """A request in an arm's process. error: set when ``finish_reason`` is ``error``. prompt_scores,
    end_score: as of a scheduler's :class:`SubmittedRequest`."""

    number: int
    arm: ArmProcess
    on_token: Callable[[int], None]
    on_done: Callable[[AskedRequest], None]
    finish_reason: FinishReason | None = None
    error: str | None = None
    prompt_scores: list[TokenScore] = field(default_factory=list)
    end_score: TokenScore | None = None

    def cancel(self) -> None:
        """Ask for an end; nothing happens if it has ended already."""
        if self.finish_reason is None:
            self.arm.say({"cancel": self.number})

    def end(self, reason: FinishReason, error: str | None) -> None:
        self.finish_reason, self.error = reason, error
        self.on_done(self)


class ArmProcess:
    """One arm's process and its successors.

    on_out(why), on_back(): told when it can answer no more, and when it can again.
    failed: why it is out; None while it answers.
    """

    on_loop = True

    def __init__(
        self, name: str, spec: ArmSpec, *, silence_s: float = 10.0, step_s: float = 60.0
    ) -> None:
        self.name, self.spec = name, spec
        self.silence_s, self.step_s = silence_s, step_s
        self.on_out: Callable[[str], None] = lambda why: None
        self.on_back: Callable[[], None] = lambda: None
        self.failed: str | None = "it has not been started"
        self.restarts = 0
        self.gpu_bytes: int | None = None
        self.speculation: SpeculationCounts | None = None
        """Of an arm that is drafted, since its process started."""
        self._process: BaseProcess | None = None
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, AskedRequest] = {}
        self._number = 0
        self._ready: asyncio.Future[ArmReady] | None = None
        self._why: str | None = None
        """Why the process is about to end, where that is known before it has."""
        self._heard_s = self._moved_s = self._up_s = 0.0
        self._rounds: tuple[int, bool] = (0, False)
        self._wait_s = FIRST_WAIT_S
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pid(self) -> int | None:
        """Of the process at this moment; None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> ArmReady:
        """Start the process and wait until it is warm.

        Raises ConfigError or StageError with what it said is wrong.
        """
        loop = asyncio.get_running_loop()
        own, theirs = socket.socketpair()
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=run_arm, args=(theirs, self.spec), daemon=True)
        self._why, self._ready = None, loop.create_future()

        def begin() -> None:
            with theirs:  # closed here: an interrupted start must not take it from under this one
                process.start()  # waits for the imports, the first time

        try:
            await asyncio.to_thread(begin)
            self._process = process
            await loop.create_connection(lambda: _Channel(self, process), sock=own)
            async with asyncio.timeout(START_S):
                ready = await self._ready
        except BaseException as error:
            own.close()
            if self._process is process:
                self._kill()
            if isinstance(error, TimeoutError):
                raise StageError(
                    f"arm {self.name} did not start within {START_S:.0f} s",
                    next_step="a smaller preset loads faster",
                ) from None
            raise
        self._heard_s = self._moved_s = self._up_s = time.monotonic()
        self._rounds = (0, False)
        self.failed = None
        self._later(self._watch(process))
        return ready

    def submit(
        self,
        request: GenerationRequest,
        on_token: Callable[[int], None],
        on_done: Callable[[AskedRequest], None],
    ) -> AskedRequest:
        """Hand a request over. Raises RuntimeError while the arm is out."""
        if self.failed:
            raise RuntimeError(f"the arm is out: {self.failed}")
        self._number += 1
        asked = AskedRequest(self._number, self, on_token, on_done)
        self._asked[asked.number] = asked
        self.say({"ask": asked.number, "request": asdict(request)})
        return asked

    def inject(self, fault: str, seconds: float = 0.0) -> None:
        """In a drill: let the engine fail so; see :mod:`.faults`. It is not held against it: the
        next start waits no longer than a first one."""
        self._wait_s = FIRST_WAIT_S
        self.say({"fault": fault, "seconds": seconds})

    def say(self, order: dict[str, Any]) -> None:
        if self._transport is not None:
            self._transport.write(json.dumps(order).encode() + b"\n")

    async def close(self) -> None:
        """End the process; it is not started again."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.join, KILL_S)
            if self._process.exitcode is None:
                self._kill()

    def heard(self, message: dict[str, Any]) -> None:
        """One line of the process."""
        self._heard_s = time.monotonic()
        match message:
            case {"tokens": tokens, "ended": ended}:
                if scores := message.get("scores"):
                    self._scored(scores)
                for number, token in tokens:
                    if asked := self._asked.get(number):
                        asked.on_token(token)
                for number, reason, error in ended:
                    if asked := self._asked.pop(number, None):
                        asked.end(reason, error)
            case {"alive": [rounds, busy], "gpu_bytes": gpu_bytes}:
                if not busy or rounds != self._rounds[0]:
                    self._moved_s = self._heard_s
                self._rounds, self.gpu_bytes = (rounds, busy), gpu_bytes
                if counts := message.get("speculation"):
                    self.speculation = SpeculationCounts.of_plain(counts)
            case {"ready": fields} if self._ready and not self._ready.done():
                self._ready.set_result(ArmReady(**fields))
            case {"unusable": fields} if self._ready and not self._ready.done():
                kind = ConfigError if fields.pop("kind") == "ConfigError" else StageError
                self._ready.set_exception(kind(**fields))
            case {"failed": why}:
                self._why = str(why)

    def _scored(self, scores: list[tuple[int, str, Any]]) -> None:
        """Log probabilities, of requests that asked for them: of the prompt, of an output token,
        which comes by this way only, and of what ended the output."""
        for number, of, plain in scores:
            asked = self._asked.get(number)
            if asked is None:
                continue
            if of == "prompt":
                asked.prompt_scores += map(TokenScore.of_plain, plain)
            elif of == "token":
                asked.on_token(ScoredToken(TokenScore.of_plain(plain)))
            else:
                asked.end_score = TokenScore.of_plain(plain)

    def connected(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def lost(self, process: BaseProcess) -> None:
        """The channel has ended, and so has the process, or it is about to."""
        self._transport = None
        if not self._closing:
            self._later(self._gone(process))

    async def _gone(self, process: BaseProcess) -> None:
        await asyncio.to_thread(process.join, KILL_S)
        if process.exitcode is None:
            self._kill()
            await asyncio.to_thread(process.join, KILL_S)
        code = process.exitcode
        why = self._why or f"its process {'ended' if code is None else how_it_ended(code)}"
        if self._ready and not self._ready.done():
            self._ready.set_exception(StageError(f"arm {self.name}: {why} while it was started"))
        elif self.failed is None and not self._closing:
            self._out(why)
            await self._again()

    def _out(self, why: str) -> None:
        log.warning("arm %s is out: %s", self.name, why)
        self.failed = why
        self.on_out(why)
        lost, self._asked = list(self._asked.values()), {}
        for asked in lost:
            asked.end("error", why)

    async def _again(self) -> None:
        """Start it until it runs, with longer and longer waits."""
        if time.monotonic() - self._up_s > STEADY_S:
            self._wait_s = FIRST_WAIT_S
        while not self._closing:
            await asyncio.sleep(self._wait_s)
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            self.restarts += 1
            try:
                await self.start()
            except (WorkbenchError, OSError) as error:
                log.warning("arm %s could not be started again: %s", self.name, error)
                continue
            log.warning("arm %s answers again", self.name)
            self.on_back()
            return

    async def _watch(self, process: BaseProcess) -> None:
        """Kill the process when it hangs."""
        looked_s = time.monotonic()
        while self._process is process and self.failed is None:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            if now - looked_s > 4 * LOOK_S:
                # This loop stood still itself: what has come meanwhile is read first.
                self._heard_s = self._moved_s = max(self._heard_s, now - LOOK_S)
            looked_s = now
            if now - self._heard_s > self.silence_s:
                self._why = f"it hung: no sign of life for {self.silence_s:g} s"
            elif self._rounds[1] and now - self._moved_s > self.step_s:
                self._why = f"it hung: one step took more than {self.step_s:g} s"
            else:
                continue
            self._kill()
            return

    def _kill(self) -> None:
        if self._process is not None and self._process.pid and self._process.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Channel(asyncio.Protocol):
    """Lines of JSON from one process."""

    def __init__(self, arm: ArmProcess, process: BaseProcess) -> None:
        self._arm, self._process = arm, process
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._arm.connected(transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._arm.heard(json.loads(line))

    def connection_lost(self, error: Exception | None) -> None:
        self._arm.lost(self._process)


def import_ahead() -> None:
    """Start the process that arms are forked from; it imports while this one does other things."""
    forkserver.set_forkserver_preload(list(PRELOADED))
    if threading.current_thread() is not threading.main_thread():
        return forkserver.ensure_running()
    # Ctrl-C goes to the terminal's whole group, and this process alone answers it: what is ignored
    # here is ignored in those begun meanwhile.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
