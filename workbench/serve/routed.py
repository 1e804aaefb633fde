"""A request on its way to an arm: the arms, the route between them, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from workbench.engine.request import FinishReason, GenerationRequest

TokenOrEvent = int | bytes
"""Of an answer: a token of ours, or an event of an upstream, whose tokens are not known here."""


class NoArm(RuntimeError):
    """Every arm that may answer is out."""


class RouteHeld(Exception):
    """A larger share was asked for too soon after a rollback."""

    def __init__(self, left_s: float) -> None:
        super().__init__(f"the share was lowered lately; it may grow again in {left_s:.1f} s")
        self.left_s = left_s


class Submitted(Protocol):
    """A request in an arm: how it ended, once it has."""

    finish_reason: FinishReason | None
    error: str | None

    def cancel(self) -> None: ...


class TakesRequests(Protocol):
    """What runs an arm's requests: a process of its own, an upstream, or a scheduler. failed: why
    it takes no more. It calls ``on_token`` for each output token and ``on_done`` once, in order,
    and never within ``submit``; from the event loop where it has ``on_loop``."""

    failed: str | None

    def submit(
        self,
        request: Any,
        on_token: Callable[[Any], object],
        on_done: Callable[[Any], object],
    ) -> Submitted: ...


@dataclass(eq=False)
class ServedArm:
    """One precision. slots: requests it runs together. out: why it takes no more. spoke_s: when it
    gave the latest first token."""

    name: str
    scheduler: TakesRequests
    slots: int
    running: int = 0
    long: int = 0
    """Of those running, the ones that want many tokens."""
    out: str | None = None
    spoke_s: float = 0.0

    def submit(
        self,
        request: Any,
        on_token: Callable[[TokenOrEvent], object],
        on_done: Callable[[Submitted], object],
    ) -> Submitted:
        """Give it a request. Both are told on the event loop that this is called on."""
        if not getattr(self.scheduler, "on_loop", False):
            loop = asyncio.get_running_loop()
            on_token, on_done = _told_on(loop, on_token), _told_on(loop, on_done)
        return self.scheduler.submit(request, on_token, on_done)


def _told_on(
    loop: asyncio.AbstractEventLoop, told: Callable[[Any], object]
) -> Callable[[Any], object]:
    return lambda what: loop.call_soon_threadsafe(told, what)


@dataclass(frozen=True)
class Route:
    """``weight`` of the requests go to ``arm``, the others to the fallback."""

    arm: str
    weight: float = 1.0


Cause = Literal["order", "rule", "arm_out", "canary"]


@dataclass(frozen=True)
class Switch:
    """A change of the route. ``time_s``: ``time.monotonic()`` of this machine. reason: in words.
    cause: who changed it. held_s: for so long from now on the arm's share may not grow."""

    time_s: float
    from_arm: str
    to_arm: str
    weight: float
    reason: str
    cause: Cause = "order"
    held_s: float = 0.0


@dataclass(eq=False)
class RoutedRequest:
    """One request on its way through the router. Times are ``time.monotonic()`` seconds.

    position: in [0, 1); it goes to the route's arm when below its weight.
    pinned: an arm the client asked for, whatever the route. kind: of requests that are compared
    with each other. key: of a client that stays with an arm; returning: it was seen before.
    behind: no client waits for it. no_draw: another one of its body decided who answers it.
    arm: set when it starts.
    has_enough: it is ended before its last token, and was answered in full. overdue: its deadline
    passed. output: the pieces so far.
    submitted: the same request in its arm, once it has started.
    """

    request: GenerationRequest
    position: float
    pinned: str | None
    arrived_s: float
    kind: Hashable = None
    key: str | None = None
    returning: bool | None = None
    behind: bool = False
    no_draw: bool = False
    arm: str | None = None
    started_s: float | None = None
    long: bool = False
    first_token_s: float | None = None
    latest_token_s: float | None = None
    ended_s: float | None = None
    output: list[TokenOrEvent] = field(default_factory=list)
    has_enough: bool = False
    overdue: bool = False
    finish_reason: FinishReason | None = None
    error: str | None = None
    submitted: Submitted | None = None
    deadline: asyncio.TimerHandle | None = None
    events: asyncio.Queue[TokenOrEvent | None] = field(default_factory=asyncio.Queue)

    @property
    def output_tokens(self) -> tuple[int, ...]:
        """The output of an arm of ours; none of an upstream's."""
        return tuple(piece for piece in self.output if isinstance(piece, int))

    @property
    def tokens(self) -> int:
        return len(self.output)

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer; where another server counted them, its count."""
        return int(getattr(self.submitted, "answer_tokens", self.tokens))

    @property
    def at_limit(self) -> bool:
        """The answer ended because it was as long as it may be."""
        return self.finish_reason == "length"

    @property
    def not_finite(self) -> bool:
        """The answer holds numbers that are none."""
        return bool(getattr(self.submitted, "not_finite", False))

    @property
    def lost(self) -> bool:
        """Of several servers of its arm one went out before it had begun: another may answer."""
        return bool(getattr(self.submitted, "lost", False))

    def left(self) -> GenerationRequest:
        """What is still to be made, by an arm that has made none of it."""
        if not self.output:
            return self.request
        return replace(
            self.request,
            prompt_tokens=(*self.request.prompt_tokens, *self.output_tokens),
            max_tokens=self.request.max_tokens - self.tokens,
            min_tokens=max(0, self.request.min_tokens - self.tokens),
            given_output=self.request.given_output + self.tokens,
            prompt_logprobs=None,  # its client has them
        )

    async def stream(self) -> AsyncIterator[TokenOrEvent]:
        """The output as it comes; afterwards ``finish_reason`` is set."""
        while (piece := await self.events.get()) is not None:
            yield piece
