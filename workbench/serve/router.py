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
- Gathering: an arm with free slots may let requests wait up to ``batch_wait_s`` for others, to
  start them together: prompts that start together share the passes over the weights. 0, the
  default, starts each at once.
- An arm whose engine has failed is out: the route goes to the fallback, requests that have no
  token yet are answered by an arm that works, and those in the middle of an answer end with an
  error. It stays out until the server is started again.
- Everything runs on one event loop; schedulers call in from their threads through
  ``call_soon_threadsafe``. A freed slot therefore waits for the loop, at most a step of the
  other requests; the alternative, a lock held across calls into a scheduler, can deadlock.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from workbench.engine.request import FinishReason, GenerationRequest
from workbench.engine.scheduler import QueueFull, Scheduler, SubmittedRequest
from workbench.serve.rollback_rule import RollbackRule

GOLDEN = (5**0.5 - 1) / 2
TICK_S = 1e-3
"""asyncio's timers may be early by the clock's resolution."""


class NoArm(RuntimeError):
    """Every arm that may answer is out."""


class RouteHeld(Exception):
    """A larger share was asked for too soon after a rollback."""

    def __init__(self, left_s: float) -> None:
        super().__init__(f"the share was lowered lately; it may grow again in {left_s:.1f} s")
        self.left_s = left_s


@dataclass(eq=False)
class ServedArm:
    """One precision. slots: requests its scheduler runs together. out: why it takes no more."""

    name: str
    scheduler: Scheduler
    slots: int
    running: int = 0
    out: str | None = None


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
class RoutedRequest:
    """One request on its way through the router. Times are ``time.monotonic()`` seconds.

    position: in [0, 1); it goes to the route's arm when below its weight.
    pinned: an arm the client asked for, whatever the route. arm: set when it starts.
    has_enough: it is ended before its last token, and was answered in full.
    submitted: the same request in its arm's scheduler, once it has started.
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
    submitted: SubmittedRequest | None = None
    events: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)

    async def stream(self) -> AsyncIterator[int]:
        """Output tokens as they come; afterwards ``finish_reason`` is set."""
        while (token := await self.events.get()) is not None:
            yield token


class Router:
    """Use it from one event loop only.

    arms: all warm. fallback: where the way back leads. route: where requests go at first.
    queue: requests that may wait. batch_wait_s: see above. clock: the loop's own, in seconds.
    on_finished, on_switch: told of each, in the loop.
    """

    def __init__(
        self,
        arms: Iterable[ServedArm],
        *,
        fallback: str,
        route: Route,
        queue: int = 256,
        hold_s: float = 30.0,
        batch_wait_s: float = 0.0,
        rule: RollbackRule | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.arms = {arm.name: arm for arm in arms}
        for name in (fallback, route.arm):
            if name not in self.arms:
                raise ValueError(f"arm {name!r}; allowed: {', '.join(self.arms)}")
        self.fallback, self.route, self.queue, self.hold_s = fallback, route, queue, hold_s
        self.batch_wait_s = batch_wait_s
        self.switches: list[Switch] = []
        self.saved = 0
        """Requests that another arm answered, because their own was out."""
        self.on_finished: Callable[[RoutedRequest], None] = lambda routed: None
        self.on_switch: Callable[[Switch], None] = lambda switch: None
        self._rule, self._clock = rule, clock
        self._monitor = rule.monitor() if rule else None
        self._waiting: deque[RoutedRequest] = deque()
        self._running: set[RoutedRequest] = set()
        self._position = 0.0
        self._since_s = 0.0
        """When the route became what it is; the rule judges what started under it."""
        self._held_until = 0.0
        self._took_s: deque[float] = deque(maxlen=32)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(arm.running for arm in self.arms.values())

    def submit(self, request: GenerationRequest, pinned: str | None = None) -> RoutedRequest:
        """Start a request, or let it wait. Raises QueueFull; NoArm where none can answer."""
        self._position = (self._position + GOLDEN) % 1.0
        routed = RoutedRequest(request, self._position, pinned, self._clock())
        arm = self._arm_for(routed)
        if arm.out:
            raise NoArm(f"arm {arm.name} is out: {arm.out}")
        if arm.running >= arm.slots and len(self._waiting) >= self.queue:
            raise QueueFull(len(self._waiting), self._time_to_drain_s(arm))
        self._waiting.append(routed)
        self._dispatch()
        self._look_when_late()
        return routed

    def cancel(self, routed: RoutedRequest) -> None:
        """The client is gone. A slot is free when the scheduler says so."""
        if routed in self._waiting:
            self._waiting.remove(routed)
            self._finish(routed, "cancelled", None)
        elif routed.submitted and not routed.finish_reason:
            routed.submitted.cancel()

    def stop(self, routed: RoutedRequest) -> None:
        """The answer is complete with what came so far: an end like the model's own."""
        routed.has_enough = True
        self.cancel(routed)

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
        if self.arms[arm].out:
            raise ValueError(f"arm {arm!r} is out: {self.arms[arm].out}")
        now = self._clock()
        if self._grows(target):
            if now < self._held_until and not force:
                raise RouteHeld(self._held_until - now)
        else:
            self._held_until = now + self.hold_s
        switch = Switch(now, self.route.arm, target.arm, target.weight, reason)
        self.route, self._since_s = target, now
        self._monitor = self._rule.monitor() if self._rule else None
        self.switches.append(switch)
        self.on_switch(switch)
        self._dispatch()
        self._look_when_late()
        return switch

    def _grows(self, target: Route) -> bool:
        if target.arm == self.fallback:
            return False
        return target.arm != self.route.arm or target.weight > self.route.weight

    def _arm_for(self, routed: RoutedRequest) -> ServedArm:
        """The route's arm or the fallback; another one where that is out."""
        if routed.pinned:
            return self.arms[routed.pinned]
        chosen = routed.position < self.route.weight
        wanted = self.arms[self.route.arm if chosen else self.fallback]
        if not wanted.out:
            return wanted
        others = (self.arms[self.fallback], *self.arms.values())
        return next((arm for arm in others if not arm.out), wanted)

    def _dispatch(self) -> None:
        """Start what can start, in order of arrival; nobody waits for another arm's slot."""
        kept: deque[RoutedRequest] = deque()
        requests, self._waiting = self._waiting, kept
        gathering = self._gathering(requests) if self.batch_wait_s else ()
        for routed in requests:
            arm = self._arm_for(routed)
            if arm.out:
                routed.arm = arm.name
                why = f"the arm is out: {arm.out}"
                asyncio.get_running_loop().call_soon(self._finish, routed, "error", why)
            elif arm.running < arm.slots and arm.name not in gathering:
                self._start(routed, arm)
            else:
                kept.append(routed)

    def _gathering(self, requests: Iterable[RoutedRequest]) -> set[str]:
        """The arms that wait for more requests: fewer wait than slots are free, and the oldest
        has not waited ``batch_wait_s`` yet. Looks again when it has."""
        waiting: dict[str, list[RoutedRequest]] = {}
        for routed in requests:
            waiting.setdefault(self._arm_for(routed).name, []).append(routed)
        found, now = set(), self._clock()
        for name, own in waiting.items():
            arm, left_s = self.arms[name], own[0].arrived_s + self.batch_wait_s - now
            if len(own) < arm.slots - arm.running and left_s > 0:
                found.add(name)
                asyncio.get_running_loop().call_later(left_s + TICK_S, self._dispatch)
        return found

    def _start(self, routed: RoutedRequest, arm: ServedArm) -> None:
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon_threadsafe
        routed.arm, routed.started_s = arm.name, self._clock()
        arm.running += 1
        self._running.add(routed)
        try:
            routed.submitted = arm.scheduler.submit(
                routed.request,
                partial(call_soon, self._token, routed),
                partial(call_soon, self._done, routed, arm),
            )
        except (ValueError, RuntimeError) as error:
            # Later, because an end may change the route while the queue is being walked.
            why = f"{type(error).__name__}: {error}"
            loop.call_soon(self._ended, routed, arm, "error", why)

    def _token(self, routed: RoutedRequest, token: int) -> None:
        routed.tokens += 1
        if routed.first_token_s is None:
            routed.first_token_s = self._clock()
        routed.events.put_nowait(token)

    def _done(self, routed: RoutedRequest, arm: ServedArm, submitted: SubmittedRequest) -> None:
        self._ended(routed, arm, submitted.finish_reason or "error", submitted.error)

    def _ended(
        self, routed: RoutedRequest, arm: ServedArm, reason: FinishReason, error: str | None
    ) -> None:
        """Its slot is free; what its client hears depends on whether another arm can answer."""
        arm.running -= 1
        if arm.scheduler.failed and not arm.out:
            self._put_out(arm, arm.scheduler.failed)
        if arm.out and reason == "error" and not routed.tokens and not self._arm_for(routed).out:
            self._running.discard(routed)
            routed.submitted = routed.arm = routed.started_s = None
            self.saved += 1
            self._waiting.appendleft(routed)
        else:
            self._finish(routed, reason, error)
        self._dispatch()

    def _put_out(self, arm: ServedArm, why: str) -> None:
        arm.out = why
        if self.route.arm == arm.name and self.fallback != arm.name:
            self.switch(self.fallback, reason=f"arm {arm.name} is out: {why}")

    def _finish(self, routed: RoutedRequest, reason: FinishReason, error: str | None) -> None:
        if reason == "cancelled" and routed.has_enough:
            reason = "stop"
        routed.finish_reason, routed.error = reason, error
        routed.ended_s = self._clock()
        self._running.discard(routed)
        routed.events.put_nowait(None)
        if reason != "cancelled" and routed.started_s is not None:
            self._took_s.append(routed.ended_s - routed.started_s)
        self.on_finished(routed)
        if self._monitor and self._on_trial(routed):
            # A client that left early says nothing; one that left because it waited does.
            if reason != "cancelled" or self._is_late(routed, routed.ended_s):
                first = routed.first_token_s
                ttft_s = None if first is None else self._waited_s(routed, first)
                self._monitor.observe(reason != "error", ttft_s)
            self._look()

    def _look(self) -> None:
        """Go back if the rule says so."""
        if not self._monitor or self.route.arm == self.fallback:
            return
        now, under_way = self._clock(), [*self._running, *self._waiting]
        late = sum(self._on_trial(routed) and self._is_late(routed, now) for routed in under_way)
        if verdict := self._monitor.verdict(late):
            self.switch(self.fallback, reason=verdict)

    def _look_when_late(self) -> None:
        """Look again when what waits now is late: a hung arm gives no other occasion."""
        if self._rule and self._rule.ttft_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self._rule.ttft_s + TICK_S, self._look)

    def _on_trial(self, routed: RoutedRequest) -> bool:
        """Whether it says something about the route: it is the candidate's, and did not start
        before the route became what it is."""
        arm = routed.arm or self._arm_for(routed).name
        chosen = arm == self.route.arm != self.fallback and not routed.pinned
        return chosen and (routed.started_s is None or routed.started_s >= self._since_s)

    def _is_late(self, routed: RoutedRequest, now: float) -> bool:
        if self._rule is None or self._rule.ttft_s is None:
            return False
        first = routed.first_token_s
        return self._waited_s(routed, now if first is None else first) > self._rule.ttft_s

    def _waited_s(self, routed: RoutedRequest, until: float) -> float:
        """Seconds that this route let a request wait; what another one did is not its fault."""
        return until - max(routed.arrived_s, self._since_s)

    def _time_to_drain_s(self, arm: ServedArm) -> float:
        """Seconds until the queue is empty if its requests take as long as the latest ones did,
        as many at a time as the arm has slots; 1 if unknown. What came before a pause counts."""
        if not self._took_s:
            return 1.0
        return len(self._waiting) * statistics.fmean(self._took_s) / max(arm.slots, 1)
