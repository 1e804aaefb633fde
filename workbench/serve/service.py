"""What all endpoints share: the router, what a request may have, and how one is given to it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
from starlette.requests import ClientDisconnect, Request

from workbench.engine.request import QueueFull
from workbench.serve import access
from workbench.serve.metrics import Metrics
from workbench.serve.routed import NoArm, RoutedRequest
from workbench.serve.router import Router
from workbench.serve.wire import ApiError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.serve.arm import ArmProcess
    from workbench.serve.canary import Canary

Result = TypeVar("Result")
STICKY_HEADER = "x-workbench-session"
"""Requests with the same value go to the same arm."""


@dataclass
class Service:
    """What the endpoints work on.

    tokenizer: of all arms; None where they are upstreams, and texts go through. model: the name
    under which the route answers; an arm's own name, as ``model``, pins a request to that arm.
    context: tokens a request may have, prompt and output together. route_token: what an order to
    change the route must carry; None asks for none. processes: arm -> the process that runs it,
    where it has one. faults: whether orders to fail are taken, in a drill. canary: what lets the
    candidate's share grow. sticky_user: a request's ``user`` stays with an arm. draining: it is
    about to stop. api_key: what clients must send; None
    asks for none. max_body_bytes: None takes what a request of ``context`` tokens needs.
    """

    router: Router
    tokenizer: PreTrainedTokenizerBase | None
    model: str
    context: int
    vocab_size: int
    route_token: str | None = None
    processes: Mapping[str, ArmProcess] = field(default_factory=dict)
    faults: bool = False
    canary: Canary | None = None
    sticky_user: bool = False
    draining: bool = False
    api_key: str | None = None
    max_body_bytes: int | None = None

    def __post_init__(self) -> None:
        self.metrics = Metrics(
            self.router,
            self.model,
            context=0 if self.tokenizer is None else self.context,
            restarts=lambda: {name: each.restarts for name, each in self.processes.items()},
            resident_bytes=self.resident_bytes,
            speculation=lambda: {
                name: each.speculation
                for name, each in self.processes.items()
                if each.speculation is not None
            },
        )
        if self.tokenizer is not None:
            from workbench.engine.grammar import Grammars
            from workbench.serve.logprobs import TokenTexts
            from workbench.serve.prompts import PromptLimit

            self.limit = PromptLimit.of(self.tokenizer, self.context)
            tokenizer = self.tokenizer
            self.grammars = Grammars(lambda: tokenizer, self.vocab_size)
            self.token_texts = TokenTexts(tokenizer)
        # One thread, because encoding sets the tokenizer's options: texts and chats differ.
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="prompts")

    async def beside_the_loop(self, work: Callable[..., Result], *given: Any) -> Result:
        """What ``work(*given)`` gives, while the other requests' tokens go on."""
        return await asyncio.get_running_loop().run_in_executor(self._beside, work, *given)

    def resident_bytes(self) -> dict[str, int]:
        """Of this process (``front``) and those of its arms; shared pages count in each."""
        pids = {name: each.pid for name, each in self.processes.items() if each.pid}
        found = {}
        for name, pid in ({"front": None} | pids).items():
            with suppress(psutil.Error):  # it has just ended
                found[name] = psutil.Process(pid).memory_info().rss
        return found

    def key(self, request: Request, body: Any) -> str | None:
        """Of a client that stays with one arm while the weight does: by its header, or by its
        ``user`` where the server was told so. None: each request for itself."""
        if given := request.headers.get(STICKY_HEADER):
            return given
        user = body.get("user") if self.sticky_user and isinstance(body, dict) else None
        return user if isinstance(user, str) and user else None

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


def routed_request(
    service: Service,
    wanted: Any,
    pinned: str | None,
    key: str | None = None,
    kind: Hashable = None,
    beside: RoutedRequest | None = None,
) -> RoutedRequest:
    """Give a request to the router. key: of a client that stays with an arm. kind, beside: see
    :meth:`Router.submit`. Raises ApiError where it has no place or no arm for it."""
    try:
        routed = service.router.submit(wanted, pinned, key=key, kind=kind, beside=beside)
        access.note(routed)
        return routed
    except QueueFull as full:
        raise ApiError(
            429,
            f"{full}; try again later",
            kind="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(max(1, math.ceil(full.retry_after_s or 1.0)))},
        ) from None
    except NoArm as error:
        again = {"Retry-After": "1"}  # it is being started
        message, kind = str(error), "server_error"
        raise ApiError(503, message, kind=kind, code="arm_out", headers=again) from None


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
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
