"""Continuous batching: many requests share the engine's slots, one step at a time.

Each step decodes one token of every running request and, in the same native call, prefills a
bounded piece of the prompts that wait for their first token. A long prompt therefore delays
the others by one piece at most, and a request that ends frees its slot for the next one at
once. One thread owns the engine; ``submit`` and ``cancel`` may be called from any thread.
On a :class:`~.speculative.SpeculativeEngine` a request's step gives as many tokens as its draft
guessed right, and one more; the pieces of prompts are then a call of their own.

A step that fails for its rows or for want of memory ends the requests in it, and the next ones
run. Logits that are not finite, and any error that nobody foresaw, end the engine: ``failed``
says why, and every request ends with it at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from ternary_kernels.core import NotFiniteError

from workbench.engine.engine import ChoosableRow, Engine, Speculated
from workbench.engine.grammar import GrammarError, Grammars
from workbench.engine.request import FinishReason, GenerationRequest
from workbench.engine.request import QueueFull as QueueFull
from workbench.engine.sampling import Guess, Sampler
from workbench.engine.scores import ScoredToken, TokenScore, score_rows
from workbench.engine.speculative import SpeculativeEngine

SCORED_ROWS = 64
"""Prompt tokens of a step that others decode in, where each gives logits: those of a vocabulary of
128 k take 0.3 ms each."""


@dataclass(eq=False)
class SubmittedRequest:
    """One request in a scheduler, and what has become of it.

    Times are ``time.monotonic()`` seconds: ``submitted_s``; ``started_s``, when it got a slot;
    ``first_token_s``, ``last_token_s``; ``finished_s``. tokens: the output so far; an end or
    stop token is not part of it. error: set when ``finish_reason`` is ``error``. prompt_scores: of
    the prompt's tokens but the first, where asked for; complete before the first output token.
    end_score: of the end or stop token, where scores are asked for and one came.
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
    prompt_scores: list[TokenScore] = field(default_factory=list)
    end_score: TokenScore | None = None
    _sampler: Sampler | None = None
    _on_token: Callable[[int], None] | None = None
    _on_done: Callable[[SubmittedRequest], None] | None = None
    _on_prompt: Callable[[list[TokenScore]], None] | None = None
    _slot: int = -1
    _prefilled: int = 0
    """Prompt tokens already in the cache."""
    _cancelled: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask for an end before the next step; nothing happens if it has ended already."""
        self._cancelled = True

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until it has ended; False when ``timeout_s`` passed first."""
        return self._ended.wait(timeout_s)


class Scheduler:
    """Runs requests on an engine that nobody else uses meanwhile.

    queue_limit: requests that may wait for a slot. prefill_chunk: prompt tokens a step takes
    along while others decode (0: a quarter of the engine's ``prefill_rows``); four times as many
    when none does. grammars: for requests with one.

    Callbacks run in the scheduler's thread, in order: ``on_prompt(scores)`` for each scored piece
    of the prompt, ``on_token(token)`` for each output token (a :class:`ScoredToken` where
    ``logprobs`` are asked for), then ``on_done(submitted)`` once; ``on_round()`` after each round
    of its loop, when all that a step gave has been told. They must return at once (hand over to a
    queue or to ``loop.call_soon_threadsafe``), because every request waits for them.
    """

    failed: str | None = None
    """Why the engine answers nothing more; None while it does."""
    rounds = 0
    """Rounds of its loop so far; one that is busy and makes no more has hung in a step."""

    def __init__(
        self,
        engine: Engine,
        *,
        queue_limit: int = 256,
        prefill_chunk: int = 0,
        on_round: Callable[[], None] = lambda: None,
        grammars: Grammars | None = None,
    ) -> None:
        self.engine, self.queue_limit, self.grammars = engine, queue_limit, grammars
        self.prefill_chunk = prefill_chunk or engine.prefill_rows // 4
        self._on_round = on_round
        self._waiting: deque[SubmittedRequest] = deque()
        self._running: list[SubmittedRequest] = []
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
        on_done: Callable[[SubmittedRequest], None] | None = None,
        on_prompt: Callable[[list[TokenScore]], None] | None = None,
    ) -> SubmittedRequest:
        """Queue a request. Raises ValueError for one that can never run here, QueueFull when
        ``queue_limit`` requests wait, RuntimeError after ``close`` and where it has failed."""
        self.engine.check_tokens(request.prompt_tokens, request.max_tokens)
        constraint = None
        if request.grammar is not None:
            if self.grammars is None:
                raise ValueError(
                    "a grammar, and the scheduler was made without grammars; give it some"
                )
            constraint = self.grammars.begin(request)
        submitted = SubmittedRequest(
            request,
            time.monotonic(),
            _sampler=Sampler(request, self.engine.eos_tokens, constraint),
            _on_token=on_token,
            _on_done=on_done,
            _on_prompt=on_prompt,
        )
        with self._wake:
            if self._closing or self._draining:
                raise RuntimeError("the scheduler is closed; submit to another one")
            if self.failed:
                raise RuntimeError(f"the engine has failed: {self.failed}; start it again")
            if len(self._waiting) >= self.queue_limit + len(self._free):
                raise QueueFull(len(self._waiting))
            self._waiting.append(submitted)
            self._wake.notify()
        return submitted

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
            try:
                self._drop_cancelled()
                self._admit()
                if self._running:
                    self._step()
            except Exception as error:  # a fault of the code or of the weights
                logging.getLogger(__name__).exception("the engine has failed")
                self._fail(f"{type(error).__name__}: {error}")
            self.rounds += 1
            self._on_round()
        for request in [*self._running, *self._waiting]:
            self._end(request, "cancelled")

    def _fail(self, why: str) -> None:
        """End every request with an error, and take none from now on."""
        with self._wake:
            self.failed = why
            requests = [*self._running, *self._waiting]
        for request in requests:
            request.error = why
            self._end(request, "error")

    def _drop_cancelled(self) -> None:
        for request in [r for r in [*self._running, *self._waiting] if r._cancelled]:
            self._end(request, "cancelled")

    def _admit(self) -> None:
        with self._wake:
            while self._waiting and self._free:
                request = self._waiting.popleft()
                request._slot = self._free.pop()
                request.started_s = time.monotonic()
                self._running.append(request)

    def _step(self) -> None:
        """One native call: a token of each request that decodes, a piece of the prompts."""
        decoding = [r for r in self._running if r.tokens]
        busy = bool(decoding)
        try:
            if busy and isinstance(self.engine, SpeculativeEngine):
                self._speculate(decoding)
                decoding = []
            self._step_rows(decoding, busy)
        except NotFiniteError:
            raise
        except (ValueError, RuntimeError, MemoryError) as error:
            for running in list(self._running):
                running.error = f"{type(error).__name__}: {error}"
                self._end(running, "error")

    def _speculate(self, decoding: list[SubmittedRequest]) -> None:
        """What a draft guesses of each request, judged, and the token after that."""
        asked = []
        for running in decoding:
            room = running.request.max_tokens - len(running.tokens) - 1
            asked.append(Speculated(running._slot, running.tokens[-1], room, running._sampler))
        rows_of_each = self.engine.speculate(asked)
        now = time.monotonic()
        for running, rows in zip(decoding, rows_of_each, strict=True):
            self._deliver_rows(running, rows, now)

    def _deliver_rows(
        self, running: SubmittedRequest, rows: list[ChoosableRow], now: float
    ) -> None:
        slot, before = running._slot, len(running.tokens)
        for guess, logits_V in rows:
            token = self._deliver(running, logits_V, now, guess)
            if running.finish_reason is not None or guess is None or token != guess.token:
                break
        if running.finish_reason is None:
            self.engine.keep(slot, rows, running.tokens[before:])

    def _step_rows(self, decoding: list[SubmittedRequest], busy: bool) -> None:
        """busy: others decode meanwhile, so that prompts come in small pieces."""
        tokens = [r.tokens[-1] for r in decoding]
        slots = [r._slot for r in decoding]
        want = [True] * len(decoding)
        asking = list(decoding)
        rows = list(range(len(decoding)))
        """Of the logits: which are of those asking."""
        scored: list[tuple[SubmittedRequest, int, int]] = []
        wanted = len(decoding)
        budget = self.prefill_chunk if busy else 4 * self.prefill_chunk
        for running in self._running:
            if running.tokens or not budget:
                continue
            prompt, begin = running.request.prompt_tokens, running._prefilled
            scoring = running.request.prompt_logprobs is not None
            room = min(budget, SCORED_ROWS) if scoring and busy else budget
            piece = prompt[begin : begin + room]
            running._prefilled += len(piece)
            budget -= len(piece)
            tokens += piece
            slots += [running._slot] * len(piece)
            want += [scoring] * len(piece)
            if scoring:
                scored.append((running, wanted, begin))
                wanted += len(piece) - 1
            if running._prefilled == len(prompt):
                want[-1] = True
                asking.append(running)
                rows.append(wanted)
            wanted += scoring or running._prefilled == len(prompt)
        if not tokens:
            return
        logits = self.engine.step(tokens, slots, want)
        # A sum is finite only where all that it sums is; it costs a pass over what was just made.
        if not np.isfinite(logits.sum(axis=-1)).all():
            raise NotFiniteError("the choice of a token")
        now = time.monotonic()
        for running, row, begin in scored:
            self._score(running, logits[row:], begin)
        for running, row in zip(asking, rows, strict=True):
            self._deliver(running, logits[row], now)

    def _score(self, running: SubmittedRequest, logits_nV: np.ndarray, begin: int) -> None:
        """The prompt's tokens after ``begin`` as far as it is read, by the rows of those before."""
        tokens = running.request.prompt_tokens[begin + 1 : running._prefilled + 1]
        top = running.request.prompt_logprobs or 0
        scores = score_rows(logits_nV[: len(tokens)], tokens, top)
        running.prompt_scores += scores
        if running._on_prompt and scores:
            running._on_prompt(scores)

    def _deliver(
        self,
        running: SubmittedRequest,
        logits_V: np.ndarray,
        now: float,
        guess: Guess | None = None,
    ) -> int | None:
        """The token that was chosen; None where none could be."""
        request, sampler = running.request, running._sampler
        if not request.max_tokens:
            self._end(running, "length")
            return None
        scoring = request.logprobs is not None
        own_V = logits_V.copy() if scoring else logits_V  # the choice may change them
        try:
            token = sampler.choose(logits_V, len(running.tokens), guess)
        except GrammarError as error:
            running.error = str(error)
            self._end(running, "error")
            return None
        score = score_rows(own_V[None], [token], request.logprobs)[0] if scoring else None
        if token in sampler.ends:
            running.end_score = score
            self._end(running, "stop")
            return token
        running.tokens.append(token)
        running.last_token_s = now
        if running.first_token_s is None:
            running.first_token_s = now
        if running._on_token:
            try:
                running._on_token(token if score is None else ScoredToken(score))
            except Exception as error:  # a listener's fault must not stop the other requests
                running.error = f"on_token failed: {type(error).__name__}: {error}"
                self._end(running, "error")
                return token
        if sampler.over:
            self._end(running, "stop")
        elif len(running.tokens) >= request.max_tokens:
            self._end(running, "length")
        return token

    def _end(self, submitted: SubmittedRequest, reason: FinishReason) -> None:
        with self._wake:
            if submitted in self._running:
                self._running.remove(submitted)
                self.engine.release(submitted._slot)
                self._free.append(submitted._slot)
            elif submitted in self._waiting:
                self._waiting.remove(submitted)
        submitted.finish_reason, submitted.finished_s = reason, time.monotonic()
        submitted._ended.set()
        if submitted._on_done:
            try:
                submitted._on_done(submitted)
            except Exception:
                logging.getLogger(__name__).exception("on_done failed")
