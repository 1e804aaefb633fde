"""What happens to every request on its way in and out: id, key, count and a line in the log.

The line is an event of the logger ``workbench.access``, with fields and without any text of a
prompt, an answer or a key; ``--log json`` writes it (:mod:`.log`). The id is the client's own
``x-request-id`` where it sends one that a log can hold, and goes back with the answer.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from workbench.serve.metrics import counted
from workbench.serve.wire import ApiError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from workbench.serve.router import RoutedRequest
    from workbench.serve.service import Service

REQUEST_ID_HEADER = "x-request-id"
KEYED = "/v1/"
"""Paths below it ask for the key; probes and scrapers have none."""
OTHER_PATH = "other"
_ID = re.compile(r"[\x21-\x7e]{1,128}")
log = logging.getLogger("workbench.access")


@dataclass
class Seen:
    """One HTTP request. requests: what it gave to the router; several where it asked for several
    answers. status: None until the answer begins."""

    request_id: str
    started_s: float
    status: int | None = None
    requests: list[RoutedRequest] = field(default_factory=list)


_current: ContextVar[Seen | None] = ContextVar("workbench_access", default=None)


def note(routed: RoutedRequest) -> None:
    """The HTTP request that is being answered gave this one to the router."""
    if seen := _current.get():
        seen.requests.append(routed)


class Access:
    """The ASGI application around the one that answers."""

    def __init__(self, app: Starlette, service: Service) -> None:
        self._app, self._service = app, service
        self._key = service.api_key.encode() if service.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID_HEADER, "")
        seen = Seen(given if _ID.fullmatch(given) else uuid.uuid4().hex, time.monotonic())

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = seen.request_id
            await send(message)

        token = _current.set(seen)
        try:
            if refusal := self._refusal(scope["path"], headers):
                response = JSONResponse(refusal.body(), refusal.status, refusal.headers)
                await response(scope, receive, answering)
            else:
                await self._app(scope, receive, answering)
        finally:
            _current.reset(token)
            self._service.metrics.answered(self._known_path(scope), seen.status or 499)
            if log.isEnabledFor(logging.INFO):
                log.info("request", extra={"fields": _line(scope, seen)})

    def malformed(self, client: tuple[str, int] | None) -> None:
        """Something came that is no HTTP, and was answered with 400."""
        self._service.metrics.answered(OTHER_PATH, 400)
        fields = {"client": client[0] if client else None, "status": 400}
        log.info("no HTTP", extra={"fields": fields})

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy before this server may go by the other one: what follows on the connection
            # would be another request to it than to us (RFC 9112, 6.1).
            return ApiError(
                400,
                "both content-length and transfer-encoding are given; allowed: one of them",
                code="ambiguous_length",
                headers={"connection": "close"},
            )
        if self._key is None or not path.startswith(KEYED):
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key):
            return None
        return ApiError(
            401,
            "the key is missing or another one; send Authorization: Bearer KEY",
            kind="authentication_error",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    def _known_path(self, scope: Scope) -> str:
        """The path as it was declared: what clients make up must not become labels."""
        for route in self._app.routes:
            if route.matches(scope)[0] is not Match.NONE:
                return str(getattr(route, "path", OTHER_PATH))
        return OTHER_PATH


def _line(scope: Scope, seen: Seen) -> dict[str, Any]:
    """The fields of a line: seconds, tokens; None for what did not come to be."""
    client = scope.get("client")
    fields: dict[str, Any] = {
        "request_id": seen.request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"],
        "status": seen.status,
        "duration_s": round(time.monotonic() - seen.started_s, 6),
    }
    if seen.requests:
        fields |= _routed_fields(seen.requests)
    return fields


def _routed_fields(requests: list[RoutedRequest]) -> dict[str, Any]:
    """Of several answers to one request: the first one's, and the tokens of all."""
    first = requests[0]
    counts = [counted(each) for each in requests]

    def since_arrival(at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - first.arrived_s, 6)

    return {
        "arm": first.arm,
        # What has not ended when its HTTP request has was left by its client.
        "finish_reason": first.finish_reason or "cancelled",
        "error": first.error,
        "prompt_tokens": counts[0][0],
        "output_tokens": None if None in (c[1] for c in counts) else sum(c[1] or 0 for c in counts),
        "queue_s": since_arrival(first.started_s),
        "ttft_s": since_arrival(first.first_token_s),
    }
