"""The HTTP side: paths, bodies, errors in OpenAI's form, and the local door to the route."""

from __future__ import annotations

import hmac
import ipaddress
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Literal
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path

from workbench.serve.access import Access
from workbench.serve.kept_route import TOKEN_HEADER
from workbench.serve.openapi import document
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import RouteHeld, ServedArm
from workbench.serve.service import Service
from workbench.serve.wire import ApiError, parse

LEAST_BODY_BYTES, BYTES_A_TOKEN = 2**20, 16
"""A body may be so long, or so long for each token that a request may have. Decoding it holds the
interpreter, and with it everybody's tokens: some 35 ms a megabyte of the worst JSON."""
Handler = Callable[[Service, Request, Any], Awaitable[Response]]
OnPath = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> Access:
    """The application over one service."""
    complete, chat = _answering(service)
    endpoints: list[tuple[str, str, OnPath]] = [
        ("/v1/completions", "POST", partial(_generate, service, complete)),
        ("/v1/chat/completions", "POST", partial(_generate, service, chat)),
        ("/v1/models", "GET", partial(_models, service)),
        ("/v1/models/{model}", "GET", partial(_model, service)),
        ("/health", "GET", partial(_health, service)),
        ("/ready", "GET", partial(_ready, service)),
        ("/metrics", "GET", partial(_metrics, service)),
        ("/workbench/route", "GET", partial(_show_route, service)),
        ("/workbench/route", "POST", partial(_set_route, service)),
        *([("/workbench/drill", "POST", partial(_drill, service))] if service.faults else []),
    ]
    described = _described([each[:2] for each in endpoints], service)
    endpoints.append(("/openapi.json", "GET", partial(_openapi, described)))
    app = Starlette(
        routes=_routes(endpoints),
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _client_gone,
            Exception: _fault,
        },
    )
    return Access(app, service)


def _routes(endpoints: list[tuple[str, str, OnPath]]) -> list[Path]:
    """One for each path, so that a 405 names all of its methods."""
    by_path: dict[str, dict[str, OnPath]] = {}
    for path, method, endpoint in endpoints:
        by_path.setdefault(path, {})[method] = endpoint
    return [
        Path(path, partial(_by_method, own), methods=list(own)) for path, own in by_path.items()
    ]


async def _by_method(endpoints: dict[str, OnPath], request: Request) -> Response:
    """HEAD is answered as GET, whose body the server leaves out."""
    return await endpoints["GET" if request.method == "HEAD" else request.method](request)


def _answering(service: Service) -> tuple[Handler, Handler]:
    """What answers texts and chats: our engines, or upstreams that they are passed on to."""
    if service.tokenizer is None:
        from workbench.serve.passing import pass_on

        def passed(path: str) -> Handler:
            return lambda service, request, body: pass_on(service, request, path, body)

        return passed("completions"), passed("chat/completions")
    from workbench.serve.generate import chat, complete

    return complete, chat


async def _generate(service: Service, endpoint: Handler, request: Request) -> Response:
    return await endpoint(service, request, await _json_body(service, request))


async def _models(service: Service, request: Request) -> Response:
    cards = [_card(service, name) for name in (service.model, *service.router.arms)]
    return JSONResponse({"object": "list", "data": cards})


async def _model(service: Service, request: Request) -> Response:
    name = request.path_params["model"]
    service.pinned(name)  # raises ApiError for an unknown one
    return JSONResponse(_card(service, name))


def _card(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "workbench",
        "root": name,
        "parent": None,
        **({} if service.tokenizer is None else {"max_model_len": service.context}),
    }


def _described(paths: list[tuple[str, str]], service: Service) -> dict[str, Any]:
    bodies: dict[str, type[BaseModel]] = {
        "/workbench/route": RouteOrder,
        "/workbench/drill": DrillOrder,
    }
    known = {path for path, _ in paths}
    return document(
        [*paths, ("/openapi.json", "GET")],
        {path: kind for path, kind in bodies.items() if path in known},
        passed=service.tokenizer is None,
    )


async def _openapi(described: dict[str, Any], request: Request) -> Response:
    return JSONResponse(described)


async def _health(service: Service, request: Request) -> Response:
    """Whether the server lives; ``status`` is degraded where an arm is out, failed where all
    are. ``arms``: the state of each, its process, and how often that was started again.
    ``resident_bytes``: of this process and those of its arms; shared pages count in each.
    ``gpu_bytes``: the most that torch has held on its GPU so far; None without one."""
    arms = service.router.arms.values()
    out = {arm.name: arm.out for arm in arms if arm.out}
    on_gpu = [each.gpu_bytes for each in service.processes.values() if each.gpu_bytes is not None]
    return JSONResponse(
        {
            "status": "failed" if len(out) == len(arms) else "degraded" if out else "ok",
            "out": out,
            "arms": {arm.name: _arm_state(service, arm) for arm in arms},
            "resident_bytes": sum(service.resident_bytes().values()),
            "gpu_bytes": sum(on_gpu) if on_gpu else None,
            "running": {arm.name: arm.running for arm in arms},
            "waiting": service.router.waiting,
        }
    )


def _arm_state(service: Service, arm: ServedArm) -> dict[str, Any]:
    process = service.processes.get(arm.name)
    own = {"pid": process.pid, "restarts": process.restarts} if process else {}
    return {"state": "out" if arm.out else "up", **own}


async def _ready(service: Service, request: Request) -> Response:
    """200 where requests are answered, 503 where no arm can or the server is about to stop; which
    arms can."""
    able = [arm.name for arm in service.router.arms.values() if not arm.out]
    ready = bool(able) and not service.draining
    state = {"ready": ready, "arms": able, "draining": service.draining}
    return JSONResponse(state, status_code=200 if ready else 503)


async def _metrics(service: Service, request: Request) -> Response:
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})


class RouteOrder(BaseModel):
    """POST /workbench/route. weight: share of the requests; force: in spite of the hold."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    arm: str
    weight: float = Field(1.0, ge=0.0, le=1.0)
    reason: str = Field("ordered", min_length=1, max_length=200)
    force: bool = False


async def _show_route(service: Service, request: Request) -> Response:
    return JSONResponse(_route_state(service))


async def _set_route(service: Service, request: Request) -> Response:
    _check_local(request)
    _check_token(service, request)
    order = parse(RouteOrder, await _json_body(service, request))
    try:
        service.router.switch(order.arm, order.weight, reason=order.reason, force=order.force)
    except ValueError as error:
        raise ApiError(400, str(error), param="arm") from None
    except RouteHeld as held:
        raise ApiError(
            409,
            f"{held}, or send force: true",
            kind="conflict_error",
            code="route_held",
            headers={"Retry-After": str(math.ceil(held.left_s))},
        ) from None
    return JSONResponse(_route_state(service))


class DrillOrder(BaseModel):
    """POST /workbench/drill, of a server in a drill: what an arm shall suffer from its next step
    on. seconds: of the slow ones. ttft_s: the rule until the next order, in place of the server's
    own. silence_s: of a process that has hung, from now on."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    arm: str
    fault: Literal["none", "crash", "nan", "slow_start", "slow_steps"] = "none"
    seconds: float = Field(0.0, ge=0.0)
    ttft_s: float | None = Field(None, gt=0.0)
    silence_s: float | None = Field(None, gt=0.0)


async def _drill(service: Service, request: Request) -> Response:
    _check_local(request)
    _check_token(service, request)
    order = parse(DrillOrder, await _json_body(service, request))
    if order.arm not in service.processes:
        names = ", ".join(service.processes)
        raise ApiError(400, f"arm {order.arm!r}; allowed: {names}", param="arm")
    arm = service.processes[order.arm]
    arm.inject(order.fault, order.seconds)
    arm.silence_s = order.silence_s or arm.silence_s
    own = service.router.own_rule
    quick = RollbackRule(ttft_s=order.ttft_s)
    service.router.judge_by(own if order.ttft_s is None else quick)
    return JSONResponse({"arm": order.arm, "fault": order.fault})


def _route_state(service: Service) -> dict[str, Any]:
    router = service.router
    canary = {"canary": service.canary.report()} if service.canary else {}
    return {
        "arm": router.route.arm,
        "weight": router.route.weight,
        "fallback": router.fallback,
        "arms": list(router.arms),
        "switches": [asdict(switch) for switch in router.switches],
        **canary,
    }


def _check_local(request: Request) -> None:
    """Raise ApiError 403 unless this machine sends to itself by a name of its own.

    A page of another site can point that site's name at 127.0.0.1; its browser then takes this
    server for that site, but still says the name as Host.
    """
    client, host = request.client.host if request.client else "", request.headers.get("host", "")
    if not _is_loopback(client):
        message = "the route is changed from this machine only (over a loopback address)"
    elif not _names_loopback(host):
        message = f"Host {host!r}; allowed to change the route: 127.0.0.1, [::1] or localhost"
    else:
        return
    raise ApiError(403, message, kind="permission_error", code="not_local")


def _check_token(service: Service, request: Request) -> None:
    """A proxy before this server is this machine too, and may say any Host: the token tells who
    may order. Raises ApiError 403."""
    given = request.headers.get(TOKEN_HEADER, "").encode()
    if service.route_token and not hmac.compare_digest(given, service.route_token.encode()):
        message = (
            f"the route is changed with the server's token in {TOKEN_HEADER}; "
            "workbench route has it"
        )
        raise ApiError(403, message, kind="permission_error", code="no_token")


def _names_loopback(authority: str) -> bool:
    """authority: a Host header, ``name`` or ``name:port``."""
    try:
        host = urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return False
    return host == "localhost" or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _json_body(service: Service, request: Request) -> Any:
    """The decoded body. A browser page of another origin cannot send this content type
    without asking first, which guards the local door."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        got = kind or "none"
        message = f"content type {got}; allowed: application/json"
        raise ApiError(415, message, code="unsupported_media_type")
    usual = max(LEAST_BODY_BYTES, BYTES_A_TOKEN * service.context)
    body, most = bytearray(), service.max_body_bytes or usual
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            message = f"the body is longer than the {most / 2**20:g} MiB that are allowed here"
            raise ApiError(413, message, code="body_too_large", headers={"connection": "close"})
    return await service.beside_the_loop(_decoded, body)


def _decoded(body: bytearray) -> Any:
    """What the body's JSON says. Raises ApiError 400."""
    try:
        text = body.decode("utf-8-sig")
        fields = json.loads(text)
        if "\\ud" in text.lower():  # escapes may make halves of characters, which no text has
            json.dumps(fields, ensure_ascii=False).encode()
        return fields
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.start + 1]
        message = f"the body has half a character, {half!r}; allowed: \\ud800 to \\udfff in pairs"
        raise ApiError(400, message, code="invalid_json") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown path or wrong method, in the same form."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _api_error(
        request, ApiError(error.status_code, message, code=code, headers=dict(error.headers or {}))
    )


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _fault(request: Request, error: Exception) -> Response:
    """A bug: the log has the traceback, the client gets the form it knows."""
    message = f"fault of the server: {type(error).__name__}"
    fault = ApiError(500, message, kind="server_error", code="internal_error")
    return await _api_error(request, fault)
