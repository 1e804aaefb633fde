"""An open-loop client: every request is sent when it is due, whatever became of the others.

Latency counts from the *intended* start. A client that waits for answers, or measures from the
moment it got around to sending, hides exactly the stalls that a test is for (coordinated
omission). Lengths are forced (``ignore_eos``, minimum = maximum), so that two replays ask for
the same work.

It only talks to a loopback address: it is a load generator and must not meet other machines.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

import httpx

from workbench.load.piece import PlannedRequest

Status = Literal["ok", "failed", "truncated", "rejected"]
"""ok: all wanted tokens and a proper end. truncated: some tokens, not all. rejected: 429.
failed: no token."""
Fault = Literal[
    "refused",
    "hung",
    "queue_full",
    "http_error",
    "server_error",
    "broken_off",
    "broken_sse",
    "short",
]
"""Why a request was not answered in full. refused: no connection. hung: no byte for too long.
queue_full: 429. http_error: any other answer but 200. server_error: an error within the stream.
broken_off: the connection ended first. broken_sse: what came is no stream of events, or not
the one that was asked for. short: a proper end after too few tokens."""
FAULTS: tuple[Fault, ...] = get_args(Fault)
SILENCE_S = 300.0
"""Without a byte for this long an answer counts as hung."""


@dataclass
class Outcome:
    """What became of one request. Times: seconds after the start of the replay.

    intended_s: when it was due. sent_s: when the client got to it. end_s: when its connection
    had nothing more. arm: as the server said; None if it never did.
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


class _Faulty(Exception):
    """What a server answered is not an answer."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class LoadClient:
    """Requests to one server, with times on one clock; use :func:`load_client`.

    origin_s: ``time.monotonic()`` that counts as 0, set by :meth:`start`.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.start()

    def start(self) -> None:
        """From now on times count from this moment."""
        self.origin_s = time.monotonic()

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    async def replay(
        self,
        schedule: Sequence[PlannedRequest],
        prompt_of: Callable[[PlannedRequest], list[int]],
        on_end: Callable[[Outcome], None] = lambda outcome: None,
    ) -> list[Outcome]:
        """Send every request of the schedule when it is due after ``origin_s``; all outcomes,
        in the schedule's order."""
        bodies = [_body(planned, prompt_of(planned)) for planned in schedule]

        async def one(planned: PlannedRequest, body: bytes) -> Outcome:
            await asyncio.sleep(planned.intended_s - self.now_s())
            outcome = await self.send(planned, body)
            on_end(outcome)
            return outcome

        work = (one(planned, body) for planned, body in zip(schedule, bodies, strict=True))
        return list(await asyncio.gather(*work))

    async def burst(
        self,
        schedule: Sequence[PlannedRequest],
        prompt_of: Callable[[PlannedRequest], list[int]],
        arm: str,
    ) -> tuple[list[Outcome], float]:
        """Send all at once to one arm, whatever the route; outcomes and seconds until the last
        had ended."""
        bodies = [_body(planned, prompt_of(planned), arm) for planned in schedule]
        began = self.now_s()
        work = (self.send(p, b) for p, b in zip(schedule, bodies, strict=True))
        outcomes = list(await asyncio.gather(*work))
        return outcomes, self.now_s() - began

    async def send(self, planned: PlannedRequest, body: bytes) -> Outcome:
        """One request, now."""
        outcome = Outcome(
            planned.id,
            planned.class_,
            planned.intended_s,
            self.now_s(),
            planned.prompt_tokens,
            planned.output_tokens,
        )
        try:
            await self._stream(outcome, body)
            outcome.status = "ok"
        except _Faulty as error:
            outcome.fault, outcome.error = error.fault, str(error)
        except httpx.HTTPError as error:
            outcome.fault, outcome.error = _fault_of(error), f"{type(error).__name__}: {error}"
        if outcome.fault == "queue_full":
            outcome.status = "rejected"
        elif outcome.fault is not None:
            outcome.status = "truncated" if outcome.output_tokens else "failed"
        outcome.end_s = self.now_s()
        return outcome

    async def switch(self, arm: str, reason: str) -> float:
        """Order a route; the moment of the order, in seconds after ``origin_s``."""
        ordered_s = self.now_s()
        answer = await self._http.post("/workbench/route", json={"arm": arm, "reason": reason})
        answer.raise_for_status()
        return ordered_s

    async def switches(self) -> list[dict[str, Any]]:
        """The server's switches, ``time_s`` on this client's clock: both are processes of one
        machine, and its monotonic clock is the same for both."""
        answer = await self._http.get("/workbench/route")
        answer.raise_for_status()
        rows = answer.json()["switches"]
        return [{**row, "time_s": row["time_s"] - self.origin_s} for row in rows]

    async def gpu_bytes(self) -> int | None:
        """The most that the server has held on its GPU; None without one."""
        answer = await self._http.get("/health")
        answer.raise_for_status()
        return answer.json()["gpu_bytes"]

    async def _stream(self, outcome: Outcome, body: bytes) -> None:
        async with self._http.stream("POST", "/v1/completions", content=body) as answer:
            if (arm := answer.headers.get("x-workbench-arm")) is not None:
                outcome.arm = unquote(arm)
            if answer.status_code != 200:
                await answer.aread()
                said = f"HTTP {answer.status_code}: {answer.text[:200]}"
                raise _Faulty("queue_full" if answer.status_code == 429 else "http_error", said)
            # Nothing is parsed while tokens come: work here would be read as the server's time.
            came: list[tuple[float, bytes]] = []
            try:
                async for piece in answer.aiter_raw():
                    came.append((self.now_s(), piece))
            except httpx.HTTPError:
                _read_events(outcome, came)  # what came before it broke off
                raise
            counted, ended = _read_events(outcome, came)
        tokens = f"{outcome.output_tokens} of {outcome.wanted_tokens} tokens"
        if not ended:
            raise _Faulty("broken_off", f"{tokens}; the stream broke off")
        if counted != outcome.output_tokens:
            raise _Faulty("broken_sse", f"{tokens}; the server counted {counted}")
        if counted != outcome.wanted_tokens:
            raise _Faulty("short", f"{tokens}; the server counted {counted}")


def _read_events(outcome: Outcome, came: Sequence[tuple[float, bytes]]) -> tuple[int | None, bool]:
    """Fill in the outcome's tokens and their times; (tokens by the server's count, proper end).

    came: (when, bytes) of the answer's body. A line has come when its last byte has. Raises
    _Faulty for what is not a stream of completions, and for an error within it.
    """
    counted, ended, rest = None, False, b""
    for came_s, piece in came:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if not line or line.startswith(b":"):
                continue
            if line == b"data: [DONE]":
                ended = True
                continue
            try:
                chunk = json.loads(line.removeprefix(b"data: ").decode())
                if "error" in chunk:
                    raise _Faulty("server_error", str(chunk["error"]["message"]))
                if not chunk["choices"]:
                    counted = int(chunk["usage"]["completion_tokens"])
                elif chunk["choices"][0]["finish_reason"] is None:
                    outcome.output_tokens += 1
                    outcome.last_token_s = came_s
                    if outcome.first_token_s is None:
                        outcome.first_token_s = came_s
            except (ValueError, KeyError, TypeError, IndexError) as error:
                said = f"not an event of a completion: {line[:80]!r} ({type(error).__name__})"
                raise _Faulty("broken_sse", said) from error
    return counted, ended


def _fault_of(error: httpx.HTTPError) -> Fault:
    if isinstance(error, httpx.TimeoutException):
        return "hung"
    return "refused" if isinstance(error, httpx.ConnectError) else "broken_off"


@asynccontextmanager
async def load_client(address: str, silence_s: float = SILENCE_S) -> AsyncIterator[LoadClient]:
    """A client of the server at ``address``, e.g. ``http://127.0.0.1:8000``.

    silence_s: without a byte for this long a request counts as hung.

    Raises ValueError unless that is a loopback address.
    """
    host = urlsplit(address).hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(f"{address}: a replay is sent to a loopback address only")
    # Proxies of the environment are for other machines; the pool must never delay a request.
    async with httpx.AsyncClient(
        base_url=address,
        headers={"content-type": "application/json", "accept-encoding": "identity"},
        timeout=httpx.Timeout(silence_s),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        trust_env=False,
    ) as http:
        yield LoadClient(http)


def _body(planned: PlannedRequest, prompt: list[int], arm: str | None = None) -> bytes:
    fields = {
        "prompt": prompt,
        "max_tokens": planned.output_tokens,
        "min_tokens": planned.output_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps({**fields, **({"model": arm} if arm else {})}).encode()
