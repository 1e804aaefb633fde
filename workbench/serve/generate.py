"""One request from its body to its answer, whole or as a stream of server-sent events.

A request waits for its first token before the answer's head is sent. So an engine that fails
early is an honest 500, and the head can name the arm (``x-workbench-arm``, percent-encoded,
since a head is Latin-1). A client that goes away at any moment, in the queue included, frees its
place.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from transformers import PreTrainedTokenizerBase

from workbench.engine.request import GenerationRequest
from workbench.serve import prompts
from workbench.serve.answers import DONE, Form, sse, usage
from workbench.serve.metrics import Metrics
from workbench.serve.router import NoArm, QueueFull, RoutedRequest, Router
from workbench.serve.text import StopTexts, TextStream
from workbench.serve.wire import ApiError, ChatRequest, CommonFields, CompletionRequest, parse

ARM_HEADER = "x-workbench-arm"
Result = TypeVar("Result")


@dataclass
class Service:
    """What the endpoints work on.

    model: the name under which the route answers; an arm's own name, as ``model``, pins a
    request to that arm. context: tokens a request may have, prompt and output together.
    route_token: what an order to change the route must carry; None asks for none.
    """

    router: Router
    tokenizer: PreTrainedTokenizerBase
    model: str
    context: int
    vocab_size: int
    route_token: str | None = None

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.router, self.model)
        self.limit = prompts.PromptLimit.of(self.tokenizer, self.context)
        # One thread, because encoding sets the tokenizer's options: texts and chats differ.
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="prompts")

    async def beside_the_loop(self, work: Callable[..., Result], *given: Any) -> Result:
        """What ``work(*given)`` gives, while the other requests' tokens go on."""
        return await asyncio.get_running_loop().run_in_executor(self._beside, work, *given)

    def pinned(self, model: str | None) -> str | None:
        """The arm that a request's ``model`` asks for; None leaves it to the route."""
        if model is None or model == self.model:
            return None
        if model in self.router.arms:
            return model
        names = ", ".join([self.model, *self.router.arms])
        raise ApiError(
            404,
            f"model {model!r}; allowed: {names}",
            kind="not_found_error",
            code="model_not_found",
            param="model",
        )


async def complete(service: Service, request: Request, body: Any) -> Response:
    """POST /v1/completions with a decoded body. Raises ApiError."""
    return await _answer(service, request, CompletionRequest, body)


async def chat(service: Service, request: Request, body: Any) -> Response:
    """POST /v1/chat/completions with a decoded body. Raises ApiError."""
    return await _answer(service, request, ChatRequest, body)


async def _answer(
    service: Service, request: Request, kind: type[CommonFields], body: Any
) -> Response:
    fields, wanted, pinned = await service.beside_the_loop(_understood, service, kind, body)
    try:
        routed = service.router.submit(wanted, pinned)
    except QueueFull as full:
        raise ApiError(
            429,
            f"{full}; try again later",
            kind="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(max(1, math.ceil(full.retry_after_s)))},
        ) from None
    except NoArm as error:
        raise ApiError(503, str(error), kind="server_error", code="arm_out") from None
    output = _AnswerText(service, routed, fields.stop_texts)
    try:
        await _unless_gone(request, output.begin())
        form = Form(
            model=fields.model or service.model,
            arm=routed.arm or "none",
            chat=isinstance(fields, ChatRequest),
            counts=fields.include_usage,
        )
        headers = {ARM_HEADER: quote(form.arm, safe="")}
        if fields.stream:
            return _Stream(output, form, {**headers, "cache-control": "no-cache"})
        text = await _unless_gone(request, output.rest())
    except BaseException:
        service.router.cancel(routed)
        raise
    return JSONResponse(form.whole(text, output.finish_reason, output.usage), headers=headers)


def _understood(
    service: Service, kind: type[CommonFields], body: Any
) -> tuple[CommonFields, GenerationRequest, str | None]:
    """The checked fields, what the engine is asked, and the arm that was asked for."""
    fields = parse(kind, body)
    pinned = service.pinned(fields.model)
    if isinstance(fields, ChatRequest):
        prompt = prompts.chat_tokens(service.tokenizer, fields, service.limit)
    else:
        assert isinstance(fields, CompletionRequest)
        prompt = prompts.completion_tokens(service.tokenizer, fields, service.limit)
    wanted = prompts.generation_request(
        fields, prompt, context=service.context, vocab_size=service.vocab_size
    )
    return fields, wanted, pinned


class _AnswerText:
    """The text of one request, piece by piece: one piece a token, then what was held back."""

    def __init__(self, service: Service, routed: RoutedRequest, stops: tuple[str, ...]) -> None:
        decode = partial(
            service.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        self._router, self._routed = service.router, routed
        self._text, self._stops = TextStream(decode), StopTexts(stops)
        self._pieces = self._read()
        self._first: str | None = None

    async def begin(self) -> None:
        """Wait for the first token. Raises ApiError 500 when the request failed before it."""
        self._first = await anext(self._pieces, None)
        self.check()

    def check(self) -> None:
        if self._routed.finish_reason == "error":
            raise ApiError(
                500,
                f"arm {self._routed.arm}: {self._routed.error or 'the engine failed'}",
                kind="server_error",
                code="engine_failed",
            )
        if self._routed.finish_reason == "cancelled":
            raise ApiError(503, "the server is closing", kind="server_error", code="server_closing")

    async def rest(self) -> str:
        """All of the text. Raises ApiError when the request failed on the way."""
        text = "".join([piece async for piece in self.pieces()]) + self.held_back()
        self.check()
        return text

    async def pieces(self) -> AsyncIterator[str]:
        if self._first is not None:
            yield self._first
        async for piece in self._pieces:
            yield piece

    def held_back(self) -> str:
        """After the last piece: text that waited for a further token."""
        return self._stops.push(self._text.flush()) + self._stops.flush()

    async def _read(self) -> AsyncIterator[str]:
        count, fewest = 0, self._routed.request.min_tokens
        async for token in self._routed.stream():
            piece, count = self._text.push(token), count + 1
            # Text before the minimum is out of a stop text's reach, its beginning included.
            yield piece if count < fewest else self._stops.push(piece)
            if self._stops.found:
                self._router.stop(self._routed)
                return

    def cancel(self) -> None:
        """The rest is not wanted; nothing happens when there is none."""
        self._router.cancel(self._routed)

    @property
    def finish_reason(self) -> str:
        return "stop" if self._stops.found else self._routed.finish_reason or "stop"

    @property
    def usage(self) -> dict[str, int]:
        return usage(len(self._routed.request.prompt_tokens), self._routed.tokens)


async def _events(output: _AnswerText, form: Form) -> AsyncIterator[str]:
    """The chunks of a stream, in order."""
    first = True
    try:
        async for piece in output.pieces():
            yield sse(form.chunk(piece, first=first))
            first = False
        output.check()
        last = form.chunk(output.held_back(), first=first, finish_reason=output.finish_reason)
        yield sse(last)
        if form.counts:
            yield sse(form.counts_chunk(output.usage))
    except ApiError as error:
        yield sse(error.body())
    yield DONE


class _Stream(StreamingResponse):
    """A stream whose request ends when the client leaves, even before the first chunk."""

    media_type = "text/event-stream"

    def __init__(self, output: _AnswerText, form: Form, headers: dict[str, str]) -> None:
        super().__init__(_events(output, form), headers=headers)
        self._output = output

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._output.cancel()


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of ``work``; raises ClientDisconnect as soon as the client is gone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        for task in (working, leaving):
            task.cancel()
