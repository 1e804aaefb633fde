"""Another OpenAI-compatible server as an arm: what a team runs today, or a candidate for it.

Bodies and answers go through as they are, because the tokenizer is not ours: a stream is passed
on event by event, and what a body asks for is between the client and the upstream. Only
``model`` is the upstream's own name for it.

An upstream that refuses connections, breaks them before an answer, says 502, 503 or 504, or
leaves two looks at its health in a row unanswered is **out** until a look succeeds again; the
router gives its requests without a token to another arm. An answer of 400 to 499 is the
client's own fault and goes back to it; it says nothing about the arm.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from workbench.engine.request import FinishReason
from workbench.errors import StageError
from workbench.serve.spec import UpstreamSpec

GATEWAY = (502, 503, 504)
"""A server that cannot be reached behind the one that answers, or one that is loading."""
LOOKS = 2
"""Looks at its health that fail in a row before an upstream is out."""
PASSED_HEADERS = ("content-type", "retry-after", "x-request-id")
NO_NUMBER = re.compile(rb"[:\[,]\s*-?(NaN|Infinity)\s*[,\]}]")
"""In an answer's JSON, as many servers write a log-probability that is no number."""
AT_LIMIT = re.compile(rb'"finish_reason"\s*:\s*"length"')


@dataclass(frozen=True)
class PassedRequest:
    """A request that goes through. path: after the base URL. stream: it is answered in events."""

    path: str
    fields: dict[str, Any]
    stream: bool
    prompt_tokens: tuple[int, ...] = ()
    max_tokens: float = math.inf


@dataclass(frozen=True)
class Refusal:
    """An answer other than 200, to be passed on."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(eq=False)
class PassedOn:
    """A request at an upstream. content_type: of its answer, once that has begun. refusal: where it
    was answered with an error. declared: the stream itself has told its client of the error.
    answer_tokens: by the upstream's own count, or its events, or a whole answer's bytes.
    usage: tokens by its own count, where it gives one. not_finite: the answer has a number that is
    none. lost: the upstream went out before it had begun to answer, so another may."""

    request: PassedRequest
    on_token: Callable[[bytes], None]
    on_done: Callable[[PassedOn], None]
    content_type: str = "application/json"
    refusal: Refusal | None = None
    declared: bool = False
    pieces: int = 0
    answer_tokens: int = 0
    usage: dict[str, int] = field(default_factory=dict)
    not_finite: bool = False
    lost: bool = False
    finish_reason: FinishReason | None = None
    error: str | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    def cancel(self) -> None:
        if self.task:
            self.task.cancel()

    def piece(self, piece: bytes) -> None:
        self.pieces += 1
        self.answer_tokens += 1
        self.not_finite = self.not_finite or NO_NUMBER.search(piece) is not None
        self.on_token(piece)

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        if self.finish_reason is None:
            self.finish_reason, self.error = reason, error
            self.on_done(self)


class Upstream:
    """Use it on one event loop. on_out(why), on_back(): told when it answers no more, and when it
    does again. failed: why it is out; None while it answers."""

    on_loop = True

    def __init__(self, name: str, spec: UpstreamSpec) -> None:
        self.name, self.spec = name, spec
        self.on_out: Callable[[str], None] = lambda why: None
        self.on_back: Callable[[], None] = lambda: None
        self.failed: str | None = "it has not been looked at"
        endpoint = spec.endpoint
        key = endpoint.key()
        timeout = httpx.Timeout(spec.silence_s, connect=spec.connect_s, pool=None)
        self._client = httpx.AsyncClient(
            base_url=urlsplit(spec.address)._replace(path=endpoint.base).geturl(),
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,
        )
        self._passed: set[PassedOn] = set()
        self._missed = 0
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look whether it answers, and go on looking. Raises StageError when it does not."""
        if why := await self._look():
            raise StageError(
                f"arm {self.name}: {self.spec.address} does not answer: {why}",
                allowed="an OpenAI-compatible server that runs: GET /models is asked",
                next_step="start that server, or correct the address or its key",
            )
        self.failed = None
        self.watch()

    def watch(self) -> None:
        """Look again and again whether it answers, though it may not have yet."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    @property
    def outstanding(self) -> int:
        """Requests that were passed on and have not ended."""
        return len(self._passed)

    def submit(
        self,
        request: PassedRequest,
        on_token: Callable[[bytes], None],
        on_done: Callable[[PassedOn], None],
    ) -> PassedOn:
        """Pass a request on. Raises RuntimeError while the upstream is out."""
        if self.failed:
            raise RuntimeError(f"the upstream is out: {self.failed}")
        passed = PassedOn(request, on_token, on_done)
        self._passed.add(passed)
        passed.task = asyncio.get_running_loop().create_task(self._pass(passed))
        return passed

    async def close(self) -> None:
        """Ends what is under way first: it would open a connection that nobody closes."""
        tasks = [self._watching, *(passed.task for passed in self._passed)]
        under_way = [task for task in tasks if task]
        for task in under_way:
            task.cancel()
        try:
            await asyncio.gather(*under_way, return_exceptions=True)
        finally:  # whoever closes may be cancelled itself, as by Ctrl-C
            await self._client.aclose()

    async def _pass(self, passed: PassedOn) -> None:
        try:
            await self._exchange(passed)
        except asyncio.CancelledError:
            passed.end("cancelled")
        except (httpx.TransportError, httpx.InvalidURL, OSError) as error:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if not isinstance(error, httpx.ReadTimeout):  # one slow answer is not the server's end
                self._out(why)
                passed.lost = not passed.pieces
            passed.end("error", why)
        except Exception as error:  # whatever an answer may hold
            passed.end("error", f"{type(error).__name__}: {error}")
        finally:
            self._passed.discard(passed)

    async def _exchange(self, passed: PassedOn) -> None:
        fields = dict(passed.request.fields)
        fields.pop("model", None)
        if self.spec.model is not None:
            fields["model"] = self.spec.model
        asked = self._client.stream("POST", passed.request.path, json=fields)
        async with asked as answer:
            if answer.status_code != 200:
                body = await answer.aread()
                headers = {k: v for k, v in answer.headers.items() if k in PASSED_HEADERS}
                passed.refusal = Refusal(answer.status_code, headers, body)
                why = f"HTTP {answer.status_code}: {body[:200].decode(errors='replace')}"
                if answer.status_code in GATEWAY:
                    self._out(why)
                    passed.lost = True
                passed.end("cancelled" if answer.status_code < 500 else "error", why)
                return
            passed.content_type = answer.headers.get("content-type", "application/json")
            if not passed.request.stream:
                whole = await answer.aread()
                passed.piece(whole)
                said = _object(whole)
                passed.usage = _usage(said)
                passed.answer_tokens = passed.usage.get("completion_tokens") or len(whole)
                passed.end("length" if _at_limit(said) else "stop")
                return
            last, limited = b"", False
            async for event in _events(answer.aiter_bytes()):
                if event.strip() == b"data: [DONE]" or event.strip() == b"data:[DONE]":
                    passed.usage = _usage(_said(last))
                    passed.end("length" if limited else "stop")
                    return
                passed.piece(event)
                limited = limited or AT_LIMIT.search(event) is not None
                last = event
        said = _said(last)
        passed.usage = _usage(said)
        passed.declared = "error" in said
        if any(choice.get("finish_reason") for choice in said.get("choices") or ()):
            passed.end("length" if limited else "stop")
        else:
            passed.end("error", str(said.get("error") or "the upstream's stream broke off"))

    async def _look(self) -> str | None:
        """Why it does not answer; None if it does."""
        try:
            answer = await self._client.get("models", timeout=self.spec.health_s)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if answer.status_code in (401, 403):
            return f"HTTP {answer.status_code}: it wants another key"
        return None if answer.status_code < 500 else f"HTTP {answer.status_code}"

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.spec.health_s)
            why = await self._look()
            self._missed = self._missed + 1 if why else 0
            if why is None and self.failed is not None:
                self.failed = None
                self.on_back()
            elif why is not None and self._missed >= LOOKS and self.failed is None:
                self._out(why)

    def _out(self, why: str) -> None:
        """Nothing more goes there; what has no token yet is given up, what has some may go on."""
        if self.failed is not None:
            return
        self.failed = why
        self.on_out(why)
        for passed in [each for each in self._passed if not each.pieces]:
            passed.lost = True
            passed.end("error", why)
            passed.cancel()


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole server-sent events, each with the empty line that ends it."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in whole:
            if event.strip():
                yield event + b"\n\n"


def _said(event: bytes) -> dict[str, Any]:
    """What an event's data says; empty for what is no object."""
    data = b"".join(
        line.removeprefix(b"data:") for line in event.splitlines() if line.startswith(b"data:")
    )
    return _object(data)


def _object(text: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        said = json.loads(text)
        return said if isinstance(said, dict) else {}
    return {}


def _usage(said: dict[str, Any]) -> dict[str, int]:
    """prompt_tokens and completion_tokens, as far as the answer says them."""
    usage = said.get("usage")
    given = usage if isinstance(usage, dict) else {}
    names = ("prompt_tokens", "completion_tokens")
    counts = {name: given.get(name) for name in names}
    return {name: n for name, n in counts.items() if isinstance(n, int) and n >= 0}


def _at_limit(said: dict[str, Any]) -> bool:
    choices = said.get("choices")
    given = choices if isinstance(choices, list) else []
    return any(isinstance(each, dict) and each.get("finish_reason") == "length" for each in given)
