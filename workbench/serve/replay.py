"""An open-loop load: every request is sent when it is due, whatever became of the others.

Latency counts from the *intended* start. A client that waits for answers, or measures from the
moment it got around to sending, hides exactly the stalls that a test is for (coordinated
omission). Lengths are forced (``ignore_eos``, minimum = maximum) where the server can do that, so
that two replays ask for the same work.

This is what runs in each client process; a stage uses :mod:`workbench.serve.client`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO, Literal
from urllib.parse import unquote

from workbench.errors import StageError
from workbench.load.planned import PlannedRequest
from workbench.serve.completion_events import Completion, read_events
from workbench.serve.endpoint import Endpoint, PromptInput
from workbench.serve.exchange import FAULTS as FAULTS
from workbench.serve.exchange import Exchange, Fault, Faulty, Raw, TlsName, read_answer
from workbench.wording.counts import number_of

Status = Literal["ok", "failed", "truncated", "rejected"]
"""ok: all wanted tokens and a proper end. truncated: some tokens, not all. rejected: 429.
failed: no token."""
SILENCE_S = 300.0
"""Without a byte for this long an answer counts as hung."""
OPEN_AHEAD_S = 0.25
"""A connection is opened this long before its request is due."""
KEPT_BYTES = 64 * 2**20
"""Answers in memory; what is beyond lies in a file until the load is over."""
LOOK_S = 5.0
"""For a connection to one of the several addresses of a name."""
ARM_HEADER = "x-workbench-arm"


@dataclass
class Outcome:
    """What became of one request. Times: seconds after the start of the replay.

    intended_s: when it was due. sent_s: when the client got to it. end_s: when its connection
    had nothing more. arm: as the server said; None if it never did. counted_by: where
    output_tokens is from, the server's ``usage`` or, of a server without, the chunks with text.
    counted_prompt_tokens: by the server's ``usage``, with its own tokenizer.
    gaps_s: between the chunks that carried tokens, the first to the second first.
    """

    id: int
    class_: str
    intended_s: float
    sent_s: float
    prompt_tokens: int
    wanted_tokens: int
    arm: str | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    end_s: float | None = None
    output_tokens: int = 0
    status: Status = "failed"
    error: str | None = None
    fault: Fault | None = None
    counted_by: Literal["usage", "chunks"] | None = None
    counted_prompt_tokens: int | None = None
    gaps_s: array[float] = field(default_factory=lambda: array("f"), repr=False)


class LoadClient:
    """Requests to one endpoint, with times on one clock; use :func:`load_client`.

    origin_s: ``time.monotonic()`` that counts as 0, set by :meth:`start`.
    """

    def __init__(
        self, endpoint: Endpoint, where: tuple[str, int], tls: TlsName | None, silence_s: float
    ) -> None:
        self.endpoint = endpoint
        self._where, self._tls, self._silence_s = where, tls, silence_s
        self.start()

    def start(self, origin_s: float | None = None) -> None:
        """From now on times count from this moment."""
        self.origin_s = time.monotonic() if origin_s is None else origin_s

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    async def replay(
        self,
        schedule: Sequence[PlannedRequest],
        prompt_of: Callable[[PlannedRequest], PromptInput],
        on_end: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        """Send every request of the schedule when it is due after ``origin_s``; all outcomes,
        in the schedule's order. on_end: called when an answer has ended, before it is read."""
        bodies = {
            planned.id: self.endpoint.body(planned, prompt_of(planned)) for planned in schedule
        }
        return await self.play(schedule, lambda planned: bodies[planned.id], on_end)

    async def play(
        self,
        schedule: Sequence[PlannedRequest],
        body_of: Callable[[PlannedRequest], bytes],
        on_end: Callable[[], None] = lambda: None,
        open_ahead_s: float = OPEN_AHEAD_S,
    ) -> list[Outcome]:
        """As :meth:`replay`, of bodies that are made. A body is asked for when its connection is
        opened, ``open_ahead_s`` before it is due."""
        with tempfile.SpooledTemporaryFile(KEPT_BYTES) as file:
            kept = _Kept(file)

            async def one(planned: PlannedRequest) -> None:
                due_s = self.origin_s + planned.intended_s
                request = self.endpoint.request(body_of(planned))
                exchange = Exchange(request, self._silence_s)
                kept.add(planned, await exchange.run(self._where, due_s, self._tls))
                on_end()

            async with asyncio.TaskGroup() as tasks:
                for planned in sorted(schedule, key=lambda planned: planned.intended_s):
                    ahead_s = planned.intended_s - open_ahead_s - self.now_s()
                    await asyncio.sleep(max(0.0, ahead_s))  # 0: what has come is taken first
                    tasks.create_task(one(planned))
            outcomes = {p.id: self._outcome(p, raw) for p, raw in kept.all()}
        return [outcomes[planned.id] for planned in schedule]

    def _outcome(self, planned: PlannedRequest, raw: Raw) -> Outcome:
        outcome = Outcome(
            planned.id,
            planned.class_,
            planned.intended_s,
            max(raw.sent_s - self.origin_s, planned.intended_s),  # timers may be 1 ns early
            planned.prompt_tokens,
            planned.output_tokens,
            end_s=raw.end_s - self.origin_s,
        )
        try:
            self._read(outcome, raw)
            outcome.status = "ok"
        except Faulty as error:
            outcome.fault, outcome.error = error.fault, self._without_key(str(error))
            outcome.status = "truncated" if outcome.output_tokens else "failed"
            if error.fault == "queue_full":
                outcome.status = "rejected"
        return outcome

    def _read(self, outcome: Outcome, raw: Raw) -> None:
        """Fill in the outcome. Raises Faulty unless it is a whole answer."""
        if not raw.pieces and raw.failed:
            raise raw.failed
        answer = read_answer(raw.pieces, raw.times_s)
        if (arm := answer.headers.get(ARM_HEADER)) is not None:
            outcome.arm = unquote(arm)
        if answer.status != 200:
            said = f"HTTP {answer.status}: {answer.text[:200]}"
            raise Faulty("queue_full" if answer.status == 429 else "http_error", said)
        own, completion = outcome.arm is not None, Completion()
        try:
            read_events(completion, answer.body, a_chunk_a_token=own)
        finally:
            self._fill(outcome, completion, own)
        tokens = f"{outcome.output_tokens} of {number_of(outcome.wanted_tokens, 'token')}"
        if raw.failed:
            raise Faulty(raw.failed.fault, f"{tokens}; {raw.failed}")
        if not (answer.ended and (completion.done or (completion.finished and not own))):
            raise Faulty("broken_off", f"{tokens}; the stream broke off")
        counted = completion.counted
        if own and counted != len(completion.token_s):
            raise Faulty("broken_sse", f"{tokens}; the server counted {counted}")
        if not outcome.output_tokens:
            raise Faulty("short", "a proper end without a token")
        if self.endpoint.fixed_length and outcome.output_tokens != outcome.wanted_tokens:
            raise Faulty("short", f"{tokens}; the server counted {counted}")

    def _fill(self, outcome: Outcome, completion: Completion, own: bool) -> None:
        came_s = completion.token_s
        if came_s:
            outcome.first_token_s = came_s[0] - self.origin_s
            outcome.last_token_s = came_s[-1] - self.origin_s
            outcome.gaps_s = array("f", (b - a for a, b in pairwise(came_s)))
        if own or completion.counted is None:
            outcome.output_tokens = len(came_s)
        else:
            outcome.output_tokens = completion.counted
        outcome.counted_by = "chunks" if completion.counted is None else "usage"
        outcome.counted_prompt_tokens = completion.counted_prompt

    def _without_key(self, said: str) -> str:
        """Some servers repeat a wrong key."""
        key = self.endpoint.key()
        return said.replace(key, "(the key)") if key else said


class _Kept:
    """What came of many requests, in a file until it is read. file: takes the bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._rows: list[tuple[PlannedRequest, Raw, array[int]]] = []

    def add(self, planned: PlannedRequest, raw: Raw) -> None:
        lengths = array("L", map(len, raw.pieces))
        self._file.write(b"".join(raw.pieces))
        raw.pieces = ()
        self._rows.append((planned, raw, lengths))

    def all(self) -> Iterator[tuple[PlannedRequest, Raw]]:
        self._file.seek(0)
        for planned, raw, lengths in self._rows:
            raw.pieces = [self._file.read(length) for length in lengths]
            yield planned, raw
            raw.pieces = ()


@asynccontextmanager
async def load_client(
    endpoint: Endpoint | str, silence_s: float = SILENCE_S
) -> AsyncIterator[LoadClient]:
    """A client of an endpoint, or of the base URL of one, e.g. ``http://127.0.0.1:8000``.

    silence_s: without a byte for this long a request counts as hung.

    Raises ConfigError unless that is a loopback address or may be another, and StageError for a
    name that nobody knows.
    """
    if isinstance(endpoint, str):
        endpoint = Endpoint(endpoint)
    tls = TlsName(ssl.create_default_context(), endpoint.host) if endpoint.tls else None
    yield LoadClient(endpoint, await _where(endpoint), tls, silence_s)


async def _where(endpoint: Endpoint) -> tuple[str, int]:
    """The endpoint's numeric address, looked up once: for every request that would be part of its
    latency. Of several, the first that takes a connection."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StageError(
            f"{endpoint.host}: {error}", next_step="correct the address of the endpoint"
        ) from None
    places = list(dict.fromkeys((str(each[4][0]), int(each[4][1])) for each in found))
    for place in places[:-1]:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LOOK_S):
                transport, _ = await loop.create_connection(asyncio.Protocol, *place)
                transport.close()
                return place
    return places[-1]
