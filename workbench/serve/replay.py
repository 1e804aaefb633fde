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
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import httpx

from workbench.load.piece import PlannedRequest

Status = Literal["ok", "failed", "truncated", "rejected"]
"""ok: all wanted tokens and a proper end. truncated: some tokens, not all. rejected: 429.
failed: no token."""
SILENCE_S = 300.0
"""Without a byte for this long an answer counts as broken off."""


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
        except (httpx.HTTPError, ValueError, KeyError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        if outcome.error is not None and outcome.status != "rejected":
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
                outcome.status = "rejected" if answer.status_code == 429 else "failed"
                outcome.error = f"HTTP {answer.status_code}: {answer.text[:200]}"
                return
            counted, ended = None, False
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    ended = True
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise ValueError(chunk["error"]["message"])
                if not chunk["choices"]:
                    counted = chunk["usage"]["completion_tokens"]
                elif chunk["choices"][0]["finish_reason"] is None:
                    outcome.last_token_s = self.now_s()
                    outcome.output_tokens += 1
                    if outcome.first_token_s is None:
                        outcome.first_token_s = outcome.last_token_s
        whole = ended and counted == outcome.output_tokens == outcome.wanted_tokens
        if whole:
            outcome.status = "ok"
        else:
            said = f"the server counted {counted}" if ended else "the stream broke off"
            outcome.error = f"{outcome.output_tokens} of {outcome.wanted_tokens} tokens; {said}"


@asynccontextmanager
async def load_client(address: str) -> AsyncIterator[LoadClient]:
    """A client of the server at ``address``, e.g. ``http://127.0.0.1:8000``.

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
        headers={"content-type": "application/json"},
        timeout=httpx.Timeout(SILENCE_S),
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
