"""Answers of upstreams, passed on to the client as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from workbench.serve.answers import ARM_HEADER, DONE, sse
from workbench.serve.routed import RoutedRequest
from workbench.serve.router import Router
from workbench.serve.service import Service, routed_request, unless_gone
from workbench.serve.shares import kind_of
from workbench.serve.upstream import PassedOn, PassedRequest
from workbench.serve.wire import ApiError


async def pass_on(service: Service, request: Request, path: str, body: Any) -> Response:
    """POST of ``path`` with a decoded body. Raises ApiError where no upstream answers."""
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is a JSON {type(body).__name__}; allowed: an object")
    model, stream = body.get("model"), body.get("stream", False)
    if not isinstance(model, (str, type(None))) or not isinstance(stream, (bool, type(None))):
        raise ApiError(400, "model: allowed is a text; stream: true or false")
    wanted = PassedRequest(path, body, bool(stream))
    key, kind = service.key(request, body), _kind_of(body, bool(stream))
    routed = routed_request(service, wanted, service.pinned(model), key, kind)
    try:
        first = await unless_gone(request, anext(routed.stream(), None))
        passed = routed.submitted
        headers = {ARM_HEADER: quote(routed.arm or "none", safe="")}
        if not isinstance(first, bytes) or not isinstance(passed, PassedOn):
            return _refusal(routed, headers)
        if not stream:
            return Response(first, headers=headers, media_type=passed.content_type)
        return _PassedStream(service.router, routed, first, headers)
    except BaseException:
        service.router.cancel(routed)
        raise


def _kind_of(body: dict[str, Any], stream: bool) -> Hashable:
    """Of requests that are compared: alike in the length of the prompt and of what is wanted."""
    prompt = body.get("messages") or body.get("prompt") or ""
    wanted = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    return stream, kind_of(len(str(prompt)), wanted if isinstance(wanted, int) else 0)


def _refusal(routed: RoutedRequest, headers: dict[str, str]) -> Response:
    """What an upstream said instead of an answer. Raises ApiError where it said nothing."""
    passed = routed.submitted
    if isinstance(passed, PassedOn) and passed.refusal and not routed.overdue:
        said = passed.refusal
        return Response(said.body, said.status, {**headers, **said.headers})
    status, code = (504, "deadline_exceeded") if routed.overdue else (502, "upstream_failed")
    message = f"arm {routed.arm}: {routed.error or 'the upstream gave no answer'}"
    raise ApiError(status, message, kind="server_error", code=code)


async def _events(routed: RoutedRequest, first: bytes) -> AsyncIterator[bytes | str]:
    yield first
    async for event in routed.stream():
        assert isinstance(event, bytes)
        yield event
    passed = routed.submitted
    if routed.finish_reason == "error" and not (isinstance(passed, PassedOn) and passed.declared):
        message = f"arm {routed.arm}: {routed.error}"
        yield sse(ApiError(502, message, kind="server_error", code="upstream_failed").body())
    yield DONE


class _PassedStream(StreamingResponse):
    """A stream whose request ends when the client leaves, even before the first event."""

    media_type = "text/event-stream"

    def __init__(
        self, router: Router, routed: RoutedRequest, first: bytes, headers: dict[str, str]
    ) -> None:
        super().__init__(_events(routed, first), headers={**headers, "cache-control": "no-cache"})
        self._router, self._routed = router, routed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._router.cancel(self._routed)
