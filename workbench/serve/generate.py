"""One body from its fields to its answer, whole or as a stream of server-sent events.

A body asks for one answer or for several: ``n`` to each of its prompts, each a request of its own
that goes where the first one went. The head is sent with the first token of the first. So an
engine that fails early is an honest 500, and the head can name the arm (``x-workbench-arm``,
percent-encoded, since a head is Latin-1). A client that goes away at any moment, in the queue
included, frees its places.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from workbench.engine import grammar
from workbench.engine.request import GenerationRequest
from workbench.serve import prompts
from workbench.serve.answer_text import AnswerPiece, AnswerText
from workbench.serve.answers import ARM_HEADER, DONE, Form, sse, usage
from workbench.serve.routed import RoutedRequest
from workbench.serve.service import Service, routed_request, unless_gone
from workbench.serve.wire import ApiError, ChatRequest, CommonFields, CompletionRequest, parse

SoFar = Callable[[], dict[str, int] | None]
"""The token counts of a body's answers until now; None where they are not asked for."""


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
    routed = _routed_requests(service, wanted, pinned, service.key(request, body))
    choices = [AnswerText(service, each, fields, index) for index, each in enumerate(routed)]
    # A prompt counts once, however many answers it gets.
    prompt_tokens = sum(len(each.prompt_tokens) for each in wanted[:: fields.n])
    try:
        await unless_gone(request, choices[0].begin())
        form = Form(
            model=fields.model or service.model,
            arm=choices[0].arm or "none",
            chat=isinstance(fields, ChatRequest),
            counts=fields.include_usage,
            counts_so_far=fields.usage_so_far,
        )
        headers = {ARM_HEADER: quote(form.arm, safe="")}
        if fields.stream:
            headers["cache-control"] = "no-cache"
            return _Stream(choices, form, prompt_tokens, headers)
        whole = [await unless_gone(request, choice.rest()) for choice in choices]
    except BaseException:
        for choice in choices:
            choice.cancel()
        raise

    def written() -> Response:
        said = [
            form.choice(choice.index, piece.text, choice.finish_reason, choice.logprobs(piece))
            for choice, piece in zip(choices, whole, strict=True)
        ]
        return JSONResponse(form.whole(said, _counted(prompt_tokens, choices)), headers=headers)

    # Log probabilities of a long prompt are megabytes of JSON.
    scored = fields.alternatives is not None
    return await service.beside_the_loop(written) if scored else written()


def _understood(
    service: Service, kind: type[CommonFields], body: Any
) -> tuple[CommonFields, list[GenerationRequest], str | None]:
    """The checked fields, what the engine is asked, and the arm that was asked for."""
    fields = parse(kind, body)
    pinned = service.pinned(fields.model)
    rules = None if fields.json_as is None else _grammar(service, fields.json_as)
    assert service.tokenizer is not None, "of upstreams bodies are passed on"
    if isinstance(fields, ChatRequest):
        tokens = [prompts.chat_tokens(service.tokenizer, fields, service.limit)]
    else:
        assert isinstance(fields, CompletionRequest)
        tokens = prompts.completion_tokens(service.tokenizer, fields, service.limit)
    limits = {"context": service.context, "vocab_size": service.vocab_size}
    wanted = prompts.generation_requests(fields, tokens, **limits, grammar=rules)
    return fields, list(wanted), pinned


def _grammar(service: Service, schema: dict[str, Any]) -> str:
    """Of ``response_format``. Raises ApiError."""
    if not grammar.AVAILABLE:
        message = (
            "response_format is not supported here: this server runs without llguidance "
            "(pip install ternary-workbench[formats]); leave it out"
        )
        raise ApiError(400, message, code="unsupported_parameter", param="response_format")
    try:
        service.grammars.prepare()
        return grammar.json_grammar(schema)
    except grammar.GrammarError as error:
        place = "response_format.json_schema.schema"
        raise ApiError(400, f"{place}: {error}", param="response_format") from None


def _routed_requests(
    service: Service, wanted: Sequence[GenerationRequest], pinned: str | None, key: str | None
) -> list[RoutedRequest]:
    """All, or none: raises ApiError where one finds no place."""
    routed: list[RoutedRequest] = []
    try:
        for each in wanted:
            first = routed[0] if routed else None
            routed.append(routed_request(service, each, pinned, key, beside=first))
    except ApiError:
        for begun in routed:
            service.router.cancel(begun)
        raise
    return routed


def _counted(prompt_tokens: int, choices: Sequence[AnswerText]) -> dict[str, int]:
    return usage(prompt_tokens, sum(choice.tokens for choice in choices))


async def _events(
    choices: Sequence[AnswerText], form: Form, prompt_tokens: int
) -> AsyncIterator[str]:
    """The chunks of a stream, in order; those of several answers as they come."""

    def so_far() -> dict[str, int] | None:
        read = sum(choice.tokens_read for choice in choices)
        return usage(prompt_tokens, read) if form.counts_so_far else None

    try:
        if len(choices) == 1:
            async for event in _chunks(choices[0], form, so_far):
                yield event
        else:
            async with aclosing(_as_they_come(choices, form, so_far)) as events:
                async for event in events:
                    yield event
        if form.counts:
            yield sse(form.counts_chunk(_counted(prompt_tokens, choices)))
    except ApiError as error:
        yield sse(error.body())
    yield DONE


async def _chunks(choice: AnswerText, form: Form, so_far: SoFar) -> AsyncIterator[str]:
    """Of one answer. Raises ApiError."""
    first = True

    def chunk(piece: AnswerPiece, finish_reason: str | None = None) -> str:
        return sse(
            form.chunk(
                piece.text,
                first=first,
                finish_reason=finish_reason,
                index=choice.index,
                logprobs=choice.logprobs(piece) if piece.tokens else None,
                so_far=so_far(),
            )
        )

    async for piece in choice.pieces():
        if choice.arm not in (None, form.arm):
            form = replace(form, arm=choice.arm)
        yield chunk(piece)
        first = False
    choice.check()
    yield chunk(choice.last(), choice.finish_reason)


async def _as_they_come(
    choices: Sequence[AnswerText], form: Form, so_far: SoFar
) -> AsyncGenerator[str]:
    """Of all of them. Raises the ApiError of the first that fails; the others then end too."""
    came: asyncio.Queue[str | ApiError | None] = asyncio.Queue()

    async def read(choice: AnswerText) -> None:
        try:
            async for event in _chunks(choice, form, so_far):
                came.put_nowait(event)
            came.put_nowait(None)
        except ApiError as error:
            came.put_nowait(error)

    tasks = [asyncio.create_task(read(choice)) for choice in choices]
    try:
        left = len(tasks)
        while left:
            event = await came.get()
            if isinstance(event, ApiError):
                raise event
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for task in tasks:
            task.cancel()


class _Stream(StreamingResponse):
    """A stream whose requests end when the client leaves, even before the first chunk."""

    media_type = "text/event-stream"

    def __init__(
        self, choices: Sequence[AnswerText], form: Form, prompt_tokens: int, headers: dict[str, str]
    ) -> None:
        super().__init__(_events(choices, form, prompt_tokens), headers=headers)
        self._choices = choices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for choice in self._choices:
                choice.cancel()
