"""Which precision answers a request, and how to change that without losing one.

All arms are warm: each has an engine, a scheduler and a KV cache of its own, nothing is shared
between precisions. There is one queue, here, and not one in each arm: a request is given to an
arm only when that arm has a free slot. So a switch takes effect for everything that has not
started, the queue is kept, and what has started finishes on its own weights.

- A route is an arm and its share of the requests; the rest goes to the fallback. Which share a
  request falls into follows a golden-ratio sequence, so every stretch of requests has the
  right mixture, not only the long run.
- Hysteresis: the way back is always open at once; a larger share for a candidate is refused
  for ``hold_s`` after its share was lowered, so two rules cannot swing against each other.
- Everything runs on one event loop; schedulers call in from their threads through
  ``call_soon_threadsafe``. A freed slot therefore waits for the loop, at most a step of the
  other requests; the alternative, a lock held across calls into a scheduler, can deadlock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from workbench.engine.request import FinishReason, GenerationRequest
from workbench.serve.rollback_rule import RollbackRule

GOLDEN = (5**0.5 - 1) / 2
TICK_S = 1e-3
"""asyncio's timers may be early by the clock's resolution."""


class Handle(Protocol):
    """What a scheduler gives for a request; the last two are set when it has ended."""

    finish_reason: FinishReason | None
    error: str | None

    def cancel(self) -> None: ...


class Scheduler(Protocol):
    """The part of :class:`workbench.engine.scheduler.Scheduler` that the router needs."""

    def submit(
        self,
        request: GenerationRequest,
        on_token: Callable[[int], None] | None = None,
        on_done: Callable[[Handle], None] | None = None,
    ) -> Handle: ...


class QueueFull(Exception):
    """As many requests wait as may wait. ``retry_after_s``: when to try again."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} requests wait already, which is the limit")
        self.retry_after_s = retry_after_s


class RouteHeld(Exception):
    """A larger share was asked for too soon after a rollback."""

    def __init__(self, left_s: float) -> None:
        super().__init__(f"the share was lowered lately; it may grow again in {left_s:.1f} s")
        self.left_s = left_s


@dataclass(eq=False)
class Arm:
    """One precision. slots: requests its scheduler runs together."""

    name: str
    scheduler: Scheduler
    slots: int
    running: int = 0


@dataclass(frozen=True)
class Route:
    """``weight`` of the requests go to ``arm``, the others to the fallback."""

    arm: str
    weight: float = 1.0


@dataclass(frozen=True)
class Switch:
    """A change of the route. ``time_s``: ``time.monotonic()`` of this machine."""

    time_s: float
    from_arm: str
    to_arm: str
    weight: float
    reason: str


@dataclass(eq=False)
class Ticket:
    """One request on its way through the router. Times are ``time.monotonic()`` seconds.

    position: in [0, 1); it goes to the route's arm when below its weight.
    pinned: an arm the client asked for, whatever the route. arm: set when it starts.
    has_enough: it is ended before its last token, and was answered in full.
    """

    request: GenerationRequest
    position: float
    pinned: str | None
    arrived_s: float
    arm: str | None = None
    started_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    tokens: int = 0
    has_enough: bool = False
    finish_reason: FinishReason | None = None
    error: str | None = None
    handle: Handle | None = None
    events: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)

    async def stream(self) -> AsyncIterator[int]:
        """Output tokens as they come; afterwards ``finish_reason`` is set."""
        while (token := await self.events.get()) is not None:
            yield token


class Router:
    """Use it from one event loop only.

    arms: all warm. fallback: where the way back leads. route: where requests go at first.
    queue: requests that may wait. on_finished, on_switch: told of each, in the loop.
    """

    def __init__(
        self,
        arms: Iterable[Arm],
        *,
        fallback: str,
        route: Route,
        queue: int = 256,
        hold_s: float = 30.0,
        rule: RollbackRule | None = None,
    ) -> None:
        self.arms = {arm.name: arm for arm in arms}
        for name in (fallback, route.arm):
            if name not in self.arms:
                raise ValueError(f"arm {name!r}; allowed: {', '.join(self.arms)}")
        self.fallback, self.route, self.queue, self.hold_s = fallback, route, queue, hold_s
        self.switches: list[Switch] = []
        self.on_finished: Callable[[Ticket], None] = lambda ticket: None
        self.on_switch: Callable[[Switch], None] = lambda switch: None
        self._rule = rule
        self._judge = rule.judge() if rule else None
        self._waiting: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._position = 0.0
        self._since_s = 0.0
        """When the route became what it is; the rule judges what started under it."""
        self._held_until = 0.0
        self._ends_s: deque[float] = deque(maxlen=32)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(arm.running for arm in self.arms.values())

    def submit(self, request: GenerationRequest, pinned: str | None = None) -> Ticket:
        """Start a request, or let it wait. Raises QueueFull."""
        self._position = (self._position + GOLDEN) % 1.0
        ticket = Ticket(request, self._position, pinned, time.monotonic())
        arm = self._arm_for(ticket)
        if arm.running >= arm.slots and len(self._waiting) >= self.queue:
            raise QueueFull(len(self._waiting), self._time_to_drain_s())
        self._waiting.append(ticket)
        self._dispatch()
        self._judge_when_late()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """The client is gone. A slot is free when the scheduler says so."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._finish(ticket, "cancelled", None)
        elif ticket.handle and not ticket.finish_reason:
            ticket.handle.cancel()

    def stop(self, ticket: Ticket) -> None:
        """The answer is complete with what came so far: an end like the model's own."""
        ticket.has_enough = True
        self.cancel(ticket)

    def switch(
        self, arm: str, weight: float = 1.0, *, reason: str = "ordered", force: bool = False
    ) -> Switch | None:
        """Change the route; None when it is so already.

        force: although the arm's share was lowered less than ``hold_s`` ago.
        Raises ValueError for an unknown arm or weight, RouteHeld when it is too soon.
        """
        if arm not in self.arms:
            raise ValueError(f"arm {arm!r}; allowed: {', '.join(self.arms)}")
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"weight {weight}; allowed: 0 to 1")
        target = Route(arm, 1.0 if arm == self.fallback else weight)
        if target == self.route:
            return None
        now = time.monotonic()
        if self._grows(target):
            if now < self._held_until and not force:
                raise RouteHeld(self._held_until - now)
        else:
            self._held_until = now + self.hold_s
        switch = Switch(now, self.route.arm, target.arm, target.weight, reason)
        self.route, self._since_s = target, now
        self._judge = self._rule.judge() if self._rule else None
        self.switches.append(switch)
        self.on_switch(switch)
        self._dispatch()
        self._judge_when_late()
        return switch

    def _grows(self, target: Route) -> bool:
        if target.arm == self.fallback:
            return False
        return target.arm != self.route.arm or target.weight > self.route.weight

    def _arm_for(self, ticket: Ticket) -> Arm:
        if ticket.pinned:
            return self.arms[ticket.pinned]
        chosen = ticket.position < self.route.weight
        return self.arms[self.route.arm if chosen else self.fallback]

    def _dispatch(self) -> None:
        """Start what can start, in order of arrival; nobody waits for another arm's slot."""
        kept: deque[Ticket] = deque()
        tickets, self._waiting = self._waiting, kept
        for ticket in tickets:
            arm = self._arm_for(ticket)
            if arm.running < arm.slots:
                self._start(ticket, arm)
            else:
                kept.append(ticket)

    def _start(self, ticket: Ticket, arm: Arm) -> None:
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon_threadsafe
        ticket.arm, ticket.started_s = arm.name, time.monotonic()
        arm.running += 1
        self._running.add(ticket)
        try:
            ticket.handle = arm.scheduler.submit(
                ticket.request,
                partial(call_soon, self._token, ticket),
                partial(call_soon, self._done, ticket, arm),
            )
        except (ValueError, RuntimeError) as error:
            arm.running -= 1
            # Later, because an end may change the route while the queue is being walked.
            loop.call_soon(self._finish, ticket, "error", f"{type(error).__name__}: {error}")

    def _token(self, ticket: Ticket, token: int) -> None:
        ticket.tokens += 1
        if ticket.first_token_s is None:
            ticket.first_token_s = time.monotonic()
        ticket.events.put_nowait(token)

    def _done(self, ticket: Ticket, arm: Arm, handle: Handle) -> None:
        arm.running -= 1
        self._finish(ticket, handle.finish_reason or "error", handle.error)
        self._dispatch()

    def _finish(self, ticket: Ticket, reason: FinishReason, error: str | None) -> None:
        if reason == "cancelled" and ticket.has_enough:
            reason = "stop"
        ticket.finish_reason, ticket.error = reason, error
        ticket.ended_s = time.monotonic()
        self._running.discard(ticket)
        ticket.events.put_nowait(None)
        if reason != "cancelled":
            self._ends_s.append(ticket.ended_s)
        self.on_finished(ticket)
        if self._judge and self._on_trial(ticket):
            # A client that left early says nothing; one that left because it waited does.
            if reason != "cancelled" or self._is_late(ticket, ticket.ended_s):
                first = ticket.first_token_s
                ttft_s = None if first is None else self._waited_s(ticket, first)
                self._judge.observe(reason != "error", ttft_s)
            self._look()

    def _look(self) -> None:
        """Go back if the rule says so."""
        if not self._judge or self.route.arm == self.fallback:
            return
        now, under_way = time.monotonic(), [*self._running, *self._waiting]
        late = sum(self._on_trial(ticket) and self._is_late(ticket, now) for ticket in under_way)
        if verdict := self._judge.verdict(late):
            self.switch(self.fallback, reason=verdict)

    def _judge_when_late(self) -> None:
        """Look again when what waits now is late: a hung arm gives no other occasion."""
        if self._rule and self._rule.ttft_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self._rule.ttft_s + TICK_S, self._look)

    def _on_trial(self, ticket: Ticket) -> bool:
        """Whether it says something about the route: it is the candidate's, and did not start
        before the route became what it is."""
        arm = ticket.arm or self._arm_for(ticket).name
        chosen = arm == self.route.arm != self.fallback and not ticket.pinned
        return chosen and (ticket.started_s is None or ticket.started_s >= self._since_s)

    def _is_late(self, ticket: Ticket, now: float) -> bool:
        if self._rule is None or self._rule.ttft_s is None:
            return False
        first = ticket.first_token_s
        return self._waited_s(ticket, now if first is None else first) > self._rule.ttft_s

    def _waited_s(self, ticket: Ticket, until: float) -> float:
        """Seconds that this route let a ticket wait; what another one did is not its fault."""
        return until - max(ticket.arrived_s, self._since_s)

    def _time_to_drain_s(self) -> float:
        """Seconds until the queue is empty at the rate of the latest ends; 1 if unknown."""
        if len(self._ends_s) < 2:
            return 1.0
        rate = (len(self._ends_s) - 1) / max(self._ends_s[-1] - self._ends_s[0], 1e-3)
        return len(self._waiting) / rate
