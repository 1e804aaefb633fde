"""Continuous batching: many requests share the engine's slots, one step at a time.

Each step decodes one token of every running request and, in the same native call, prefills a
bounded piece of the prompts that wait for their first token. A long prompt therefore delays
the others by one piece at most, and a request that ends frees its slot for the next one at
once. One thread owns the engine; ``submit`` and ``cancel`` may be called from any thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from workbench.engine.engine import Engine
from workbench.engine.request import FinishReason, GenerationRequest
from workbench.engine.sampling import Sampler


class QueueFull(RuntimeError):
    """As many requests wait as may wait; try again later (a server answers 429)."""


@dataclass(eq=False)
class Handle:
    """One submitted request and what has become of it.

    Times are ``time.monotonic()`` seconds: ``submitted_s``; ``started_s``, when it got a slot;
    ``first_token_s``, ``last_token_s``; ``finished_s``. tokens: the output so far; an end or
    stop token is not part of it. error: set when ``finish_reason`` is ``error``.
    """

    request: GenerationRequest
    submitted_s: float
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finished_s: float | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    tokens: list[int] = field(default_factory=list)
    _cancelled: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask for an end before the next step; nothing happens if it has ended already."""
        self._cancelled = True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until it has ended; False when ``timeout_s`` passed first."""
        return self._ended.wait(timeout_s)


@dataclass(eq=False)
class _Running:
    handle: Handle
    sampler: Sampler
    slot: int
    on_token: Callable[[int], None] | None
    on_done: Callable[[Handle], None] | None
    fed: int = 0  # prompt tokens already in the cache


class Scheduler:
    """Runs requests on an engine that nobody else uses meanwhile.

    queue_limit: requests that may wait for a slot. prefill_chunk: prompt tokens a step takes
    along while others decode (0: a quarter of the engine's ``prefill_rows``); four times as many
    when none does.

    Callbacks run in the scheduler's thread, in order: ``on_token(token)`` for each output
    token, then ``on_done(handle)`` once. They must return at once (hand over to a queue or to
    ``loop.call_soon_threadsafe``), because every request waits for them.
    """

    def __init__(self, engine: Engine, *, queue_limit: int = 256, prefill_chunk: int = 0) -> None:
        self.engine, self.queue_limit = engine, queue_limit
        self.prefill_chunk = prefill_chunk or engine.prefill_rows // 4
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._free = list(range(engine.slots))
        self._wake = threading.Condition()
        self._closing = self._draining = False
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    def submit(
        self,
        request: GenerationRequest,
        on_token: Callable[[int], None] | None = None,
        on_done: Callable[[Handle], None] | None = None,
    ) -> Handle:
        """Queue a request. Raises ValueError for one that can never run here, QueueFull when
        ``queue_limit`` requests wait, RuntimeError after ``close``."""
        self.engine.check_tokens(request.prompt_tokens, request.max_tokens)
        handle = Handle(request, time.monotonic())
        sampler = Sampler(request, self.engine.eos_tokens)
        with self._wake:
            if self._closing or self._draining:
                raise RuntimeError("the scheduler is closed; submit to another one")
            if len(self._waiting) >= self.queue_limit + len(self._free):
                raise QueueFull(f"{len(self._waiting)} requests wait; allowed: {self.queue_limit}")
            self._waiting.append(_Running(handle, sampler, -1, on_token, on_done))
            self._wake.notify()
        return handle

    def close(self, *, drain: bool = False, timeout_s: float | None = None) -> None:
        """Stop. With ``drain`` accepted requests finish first; else they end as cancelled."""
        with self._wake:
            self._draining, self._closing = drain, not drain
            self._wake.notify()
        self._thread.join(timeout_s)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._running or self._closing or self._draining):
                    self._wake.wait()
                idle = not (self._waiting or self._running)
                if self._closing or (self._draining and idle):
                    break
            self._drop_cancelled()
            self._admit()
            if self._running:
                self._step()
        for running in [*self._running, *self._waiting]:
            self._end(running, "cancelled")

    def _drop_cancelled(self) -> None:
        for running in [r for r in [*self._running, *self._waiting] if r.handle._cancelled]:
            self._end(running, "cancelled")

    def _admit(self) -> None:
        with self._wake:
            while self._waiting and self._free:
                running = self._waiting.popleft()
                running.slot = self._free.pop()
                running.handle.started_s = time.monotonic()
                self._running.append(running)

    def _step(self) -> None:
        """One native call: a token of each request that decodes, a piece of the prompts."""
        decoding = [r for r in self._running if r.handle.tokens]
        tokens = [r.handle.tokens[-1] for r in decoding]
        slots = [r.slot for r in decoding]
        want = [True] * len(decoding)
        asking = list(decoding)
        budget = self.prefill_chunk if decoding else 4 * self.prefill_chunk
        for running in self._running:
            if running.handle.tokens or not budget:
                continue
            prompt = running.handle.request.prompt_tokens
            piece = prompt[running.fed : running.fed + budget]
            running.fed += len(piece)
            budget -= len(piece)
            tokens += piece
            slots += [running.slot] * len(piece)
            want += [False] * len(piece)
            if running.fed == len(prompt):
                want[-1] = True
                asking.append(running)
        try:
            logits = self.engine.step(tokens, slots, want)
        except (ValueError, RuntimeError, MemoryError) as error:
            for running in list(self._running):
                running.handle.error = f"{type(error).__name__}: {error}"
                self._end(running, "error")
            return
        now = time.monotonic()
        for running, logits_V in zip(asking, logits, strict=True):
            self._deliver(running, logits_V, now)

    def _deliver(self, running: _Running, logits_V: np.ndarray, now: float) -> None:
        handle = running.handle
        token = running.sampler.choose(logits_V, len(handle.tokens))
        if token in running.sampler.ends:
            self._end(running, "stop")
            return
        handle.tokens.append(token)
        handle.last_token_s = now
        if handle.first_token_s is None:
            handle.first_token_s = now
        if running.on_token:
            try:
                running.on_token(token)
            except Exception as error:  # a listener's fault must not stop the other requests
                handle.error = f"on_token failed: {type(error).__name__}: {error}"
                self._end(running, "error")
                return
        if len(handle.tokens) >= handle.request.max_tokens:
            self._end(running, "length")

    def _end(self, running: _Running, reason: FinishReason) -> None:
        with self._wake:
            if running in self._running:
                self._running.remove(running)
                self.engine.release(running.slot)
                self._free.append(running.slot)
            elif running in self._waiting:
                self._waiting.remove(running)
        handle = running.handle
        handle.finish_reason, handle.finished_s = reason, time.monotonic()
        handle._ended.set()
        if running.on_done:
            try:
                running.on_done(handle)
            except Exception:
                logging.getLogger(__name__).exception("on_done failed")
