"""One request from its body to its answer, whole or as a stream of server-sent events.

A request waits for its first token before the answer's head is sent. So an engine that fails
early is an honest 500, and the head can name the arm (``x-workbench-arm``, percent-encoded,
since a head is Latin-1). A client that goes away at any moment, in the queue included, frees its
place.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from workbench.engine.request import GenerationRequest
from workbench.serve import prompts
from workbench.serve.answers import ARM_HEADER, DONE, Form, sse, usage
from workbench.serve.routed import RoutedRequest
from workbench.serve.service import Service, routed_request, unless_gone
from workbench.serve.text import StopTexts, TextStream
from workbench.serve.wire import ApiError, ChatRequest, CommonFields, CompletionRequest, parse


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
    routed = routed_request(service, wanted, pinned, service.key(request, body))
    output = _AnswerText(service, routed, fields.stop_texts)
    try:
        await unless_gone(request, output.begin())
        form = Form(
            model=fields.model or service.model,
            arm=routed.arm or "none",
            chat=isinstance(fields, ChatRequest),
            counts=fields.include_usage,
        )
        headers = {ARM_HEADER: quote(form.arm, safe="")}
        if fields.stream:
            return _Stream(output, form, {**headers, "cache-control": "no-cache"})
        text = await unless_gone(request, output.rest())
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
        if self._routed.overdue:
            message = str(self._routed.error)
            raise ApiError(504, message, kind="server_error", code="deadline_exceeded")
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
    def arm(self) -> str | None:
        """The one that answers now: another one where the first was lost on the way."""
        return self._routed.arm

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
            if output.arm not in (None, form.arm):
                form = replace(form, arm=output.arm)
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
