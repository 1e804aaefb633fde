"""Which precision answers a request, and how to change that without losing one.

All arms are warm: each has an engine, a scheduler and a KV cache of its own, nothing is shared
between precisions. There is one queue, here, and not one in each arm: a request is given to an
arm only when that arm has a free slot. So a switch takes effect for everything that has not
started, the queue is kept, and what has started finishes on its own weights.

- A route is an arm and its share of the requests; the rest goes to the fallback. Which share a
  request falls into follows a golden-ratio sequence for each kind of request, so every stretch
  has the right mixture, not only the long run; or its client, where that is to stay with an arm.
- Hysteresis: the way back is always open at once; a larger share for a candidate is refused
  for ``hold_s`` after its share was lowered, so two rules cannot swing against each other.
- Short and long requests share an arm's slots fairly, and may wait for each other to start
  together: :mod:`.slots`.
- An arm whose process has ended, hung or failed is out: the route goes to the fallback, requests
  that have no token yet are answered by an arm that works, and those in the middle of an answer
  end with an error, or are continued by that arm from their tokens (``on_lost_stream``). An arm
  that is back takes requests again where the route or a client asks for it; the route stays.
- A request that has no answer within ``deadline_s`` ends with an error, whatever its arm does.
- Everything runs on one event loop, arms in processes of their own and upstreams included. A
  scheduler calls from its thread, and through ``call_soon_threadsafe``: a lock held across calls
  into it could deadlock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Container, Hashable, Iterable
from functools import partial
from typing import Literal

from workbench.engine.request import FinishReason, GenerationRequest, QueueFull
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import (
    Cause,
    NoArm,
    Route,
    RoutedRequest,
    RouteHeld,
    ServedArm,
    Submitted,
    Switch,
    TokenOrEvent,
)
from workbench.serve.shares import Positions, kind_of
from workbench.serve.slots import Slots
from workbench.serve.trial import TICK_S, Trial

KEPT_SWITCHES = 1000
"""Changes of the route that are remembered; the log has all."""


class Router:
    """Use it from one event loop only.

    arms: all warm. fallback: where the way back leads. route: where requests go at first.
    queue: requests that may wait. batch_wait_s, short_tokens, kept_slots: see :mod:`.slots`.
    deadline_s, on_lost_stream: see above. held_s: what is left of a hold, from before a restart.
    clock: the loop's own, in seconds. on_finished, on_switch: told of each, in the loop; on_gap: of
    the time between two tokens.
    """

    def __init__(
        self,
        arms: Iterable[ServedArm],
        *,
        fallback: str,
        route: Route,
        queue: int = 256,
        hold_s: float = 30.0,
        held_s: float = 0.0,
        batch_wait_s: float = 0.0,
        rule: RollbackRule | None = None,
        short_tokens: int | None = None,
        kept_slots: int = 0,
        deadline_s: float | None = None,
        on_lost_stream: Literal["end", "continue"] = "end",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.arms = {arm.name: arm for arm in arms}
        for name in (fallback, route.arm):
            if name not in self.arms:
                raise ValueError(f"arm {name!r}; allowed: {', '.join(self.arms)}")
        self.fallback, self.route, self.queue, self.hold_s = fallback, route, queue, hold_s
        self.deadline_s, self.on_lost_stream = deadline_s, on_lost_stream
        self.switches: list[Switch] = []
        self.saved = 0
        """Requests that another arm, or another replica of theirs, answered, because their own was
        out."""
        self.continued = 0
        """Of those, the ones that had some of their answer."""
        self.on_finished: Callable[[RoutedRequest], None] = lambda routed: None
        self.on_switch: Callable[[Switch], None] = lambda switch: None
        self.on_gap: Callable[[RoutedRequest, float], None] = lambda routed, seconds: None
        self.own_rule = rule
        self._clock = clock
        self.trial = Trial(rule, self, self._back)
        """What the rule knows of the candidate."""
        self._waiting: deque[RoutedRequest] = deque()
        self._running: set[RoutedRequest] = set()
        self._behind: list[RoutedRequest] = []
        """Those that no client waits for, whether they have started or not."""
        self._positions = Positions()
        self.since_s = 0.0
        """When the route became what it is."""
        self._held_until = clock() + held_s
        self._slots = Slots(batch_wait_s, short_tokens, kept_slots)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(arm.running for arm in self.arms.values())

    def held_tokens(self) -> dict[str, int]:
        """By arm: prompt and output of what runs there."""
        held = dict.fromkeys(self.arms, 0)
        for routed in self._running:
            if routed.arm:
                held[routed.arm] += len(routed.request.prompt_tokens) + routed.tokens
        return held

    def submit(
        self,
        request: GenerationRequest,
        pinned: str | None = None,
        *,
        key: str | None = None,
        kind: Hashable = None,
        beside: RoutedRequest | None = None,
    ) -> RoutedRequest:
        """Start a request, or let it wait. key: of a client that is to stay with one arm. kind: of
        requests that are compared with each other; None takes its lengths.
        beside: it is of one body with this one, and goes where that went.
        Raises QueueFull; NoArm where none can answer."""
        kind = kind or kind_of(len(request.prompt_tokens), request.max_tokens)
        position = self._positions.next(kind, key) if beside is None else beside.position
        routed = RoutedRequest(request, position, pinned, self._clock(), kind, key)
        routed.long = self._slots.is_long(request)
        arm = self.arm_for(routed)
        if arm.out:
            raise NoArm(f"arm {arm.name} is out: {arm.out}")
        if not self._slots.has_one(arm, routed) and self.waiting >= self.queue:
            raise QueueFull(self.waiting, self._slots.time_to_drain_s(self.waiting, arm))
        if self.deadline_s is not None:
            loop = asyncio.get_running_loop()
            routed.deadline = loop.call_later(self.deadline_s, self._overdue, routed)
        self._waiting.append(routed)
        routed.no_draw = beside is not None
        self.trial.put_on(routed)
        self._dispatch()
        return routed

    def submit_behind(self, request: GenerationRequest, arm: str) -> RoutedRequest:
        """One that no client waits for: it takes a slot when nobody else wants one of this arm, and
        leaves it, cancelled, when somebody does. Nothing counts it."""
        routed = RoutedRequest(request, 0.0, arm, self._clock(), behind=True)
        self._behind.append(routed)
        self._dispatch()
        return routed

    def cancel(self, routed: RoutedRequest) -> None:
        """The client is gone. A slot is free when the scheduler says so."""
        if routed in self._waiting:
            self._waiting.remove(routed)
            self._finish(routed, "cancelled", None)
        elif routed.submitted and not routed.finish_reason:
            routed.submitted.cancel()
        elif routed.behind and not routed.finish_reason:
            self._finish(routed, "cancelled", None)

    def stop(self, routed: RoutedRequest) -> None:
        """The answer is complete with what came so far: an end like the model's own."""
        routed.has_enough = True
        self.cancel(routed)

    def switch(
        self,
        arm: str,
        weight: float = 1.0,
        *,
        reason: str = "ordered",
        cause: Cause = "order",
        force: bool = False,
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
        grows = self._grows(target)
        if grows:
            if now < self._held_until and not force:
                raise RouteHeld(self._held_until - now)
        else:
            self._held_until = now + self.hold_s
        held_s = 0.0 if grows else self.hold_s
        switch = Switch(now, self.route.arm, target.arm, target.weight, reason, cause, held_s)
        another = target.arm != self.route.arm
        self.route, self.since_s = target, now
        if another or (target.weight < 1 and not self.trial.compares):
            self.trial.begin(self.trial.rule)
        for routed in self._waiting:
            self.trial.put_on(routed)
        self.switches.append(switch)
        del self.switches[:-KEPT_SWITCHES]
        self.on_switch(switch)
        self._dispatch()
        return switch

    def judge_by(self, rule: RollbackRule | None) -> None:
        """Another rule from now on, with an empty window."""
        self.trial.begin(rule)

    def put_out(self, name: str, why: str) -> None:
        """The arm answers nothing more: what is routed to it goes to the fallback."""
        arm = self.arms[name]
        if arm.out:
            return
        arm.out = why
        self._leave_what_is_out()

    def bring_back(self, name: str) -> None:
        """The arm can answer again; the route stays as it is."""
        self.arms[name].out = None
        self._leave_what_is_out()

    def _leave_what_is_out(self) -> None:
        """The route goes back from an arm that is out, where the fallback is not out as well."""
        routed_to = self.arms[self.route.arm]
        if routed_to.out and not self.arms[self.fallback].out:
            why = f"arm {routed_to.name} is out: {routed_to.out}"
            self.switch(self.fallback, reason=why, cause="arm_out")
        self._dispatch()

    def _grows(self, target: Route) -> bool:
        if target.arm == self.fallback:
            return False
        return target.arm != self.route.arm or target.weight > self.route.weight

    def arm_for(self, routed: RoutedRequest) -> ServedArm:
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
        gathering = self._gathering(requests)
        for routed in requests:
            arm = self.arm_for(routed)
            if arm.out:
                routed.arm = arm.name
                why = f"the arm is out: {arm.out}"
                asyncio.get_running_loop().call_soon(self._finish, routed, "error", why)
            elif self._slots.has_one(arm, routed) and arm.name not in gathering:
                self._start(routed, arm)
            else:
                kept.append(routed)
        if self._behind:
            self._dispatch_behind({self.arm_for(routed).name for routed in kept})

    def _dispatch_behind(self, wanted: set[str]) -> None:
        """Start what no client waits for, or end it where one does. wanted: arms."""
        for routed in list(self._behind):
            arm = self.arms[routed.pinned or self.fallback]
            if routed.started_s is not None:
                if arm.name in wanted and routed.submitted:
                    routed.submitted.cancel()
            elif arm.out:
                self._finish(routed, "error", f"the arm is out: {arm.out}")
            elif arm.name not in wanted and arm.running < arm.slots:
                self._start(routed, arm)

    def _gathering(self, requests: Iterable[RoutedRequest]) -> Container[str]:
        """The arms that wait for more requests. Looks again when they have waited."""
        waiting = ((self.arm_for(routed), routed) for routed in requests)
        found = self._slots.gathering(waiting, self._clock())
        for left_s in found.values():
            asyncio.get_running_loop().call_later(left_s + TICK_S, self._dispatch)
        return found

    def _start(self, routed: RoutedRequest, arm: ServedArm) -> None:
        routed.arm, routed.started_s = arm.name, self._clock()
        arm.running += 1
        arm.long += routed.long
        self._running.add(routed)
        try:
            routed.submitted = arm.submit(
                routed.left(), partial(self._token, routed), partial(self._done, routed, arm)
            )
        except (ValueError, RuntimeError) as error:
            # Later, because an end may change the route while the queue is being walked.
            why = f"{type(error).__name__}: {error}"
            asyncio.get_running_loop().call_soon(self._ended, routed, arm, "error", why)

    def _token(self, routed: RoutedRequest, piece: TokenOrEvent) -> None:
        if routed.finish_reason:
            return  # its deadline has passed
        routed.output.append(piece)
        now = self._clock()
        if routed.latest_token_s is not None and not routed.behind:
            self.on_gap(routed, now - routed.latest_token_s)
        routed.latest_token_s = now
        if routed.first_token_s is None:
            routed.first_token_s = now
            if routed.arm and not routed.behind:
                self.arms[routed.arm].spoke_s = routed.first_token_s
            self.trial.first_token(routed)
        routed.events.put_nowait(piece)

    def _done(self, routed: RoutedRequest, arm: ServedArm, submitted: Submitted) -> None:
        self._ended(routed, arm, submitted.finish_reason or "error", submitted.error)

    def _ended(
        self, routed: RoutedRequest, arm: ServedArm, reason: FinishReason, error: str | None
    ) -> None:
        """Its slot is free; what its client hears depends on whether another arm can answer."""
        arm.running -= 1
        arm.long -= routed.long
        if arm.scheduler.failed and not arm.out:
            self.put_out(arm.name, arm.scheduler.failed)
        if routed.finish_reason:
            pass  # its client has heard of an end already
        elif reason == "error" and 0 < routed.request.max_tokens <= routed.tokens:
            self._finish(routed, "length", None)  # it had ended, and only that was not said
        elif (arm.out or routed.lost) and reason == "error" and self._can_be_saved(routed):
            self._running.discard(routed)
            routed.submitted = routed.arm = routed.started_s = None
            self.saved += 1
            self.continued += bool(routed.tokens)
            self._waiting.appendleft(routed)
        else:
            self._finish(routed, reason, error)
        self._dispatch()

    def _can_be_saved(self, routed: RoutedRequest) -> bool:
        """Whether another arm may give its answer, or the rest of it."""
        if routed.behind or (routed.tokens and self.on_lost_stream == "end"):
            return False
        return not self.arm_for(routed).out

    def _overdue(self, routed: RoutedRequest) -> None:
        if routed.finish_reason:
            return
        if routed in self._waiting:
            self._waiting.remove(routed)
        elif routed.submitted:
            routed.submitted.cancel()  # its slot is free when the arm says so
        routed.overdue = True
        self._finish(routed, "error", f"no whole answer within {self.deadline_s:g} s")

    def _finish(self, routed: RoutedRequest, reason: FinishReason, error: str | None) -> None:
        if reason == "cancelled" and routed.has_enough:
            reason = "stop"
        routed.finish_reason, routed.error = reason, error
        if routed.deadline:
            routed.deadline.cancel()
        routed.ended_s = self._clock()
        self._running.discard(routed)
        if routed.behind:
            self._behind.remove(routed)
            routed.events.put_nowait(None)
            return
        routed.events.put_nowait(None)
        if reason != "cancelled" and routed.started_s is not None:
            self._slots.took(routed.ended_s - routed.started_s)
        self.trial.ended(routed)
        self.on_finished(routed)

    def now(self) -> float:
        """Of the router's clock, s."""
        return self._clock()

    def _back(self, why: str) -> None:
        self.switch(self.fallback, reason=why, cause="rule")
