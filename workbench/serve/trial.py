"""The candidate before its rule: which requests count, what is held against it, and when to look.

The router tells it of every request; a request counts unless its client chose the arm or one arm
is out. What a request waited before the latest change of the route is another route's fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench.serve.rollback_rule import LEAST_OTHER_SHARE, RollbackRule
from workbench.serve.routed import RoutedRequest

if TYPE_CHECKING:
    from workbench.serve.router import Router

TICK_S = 1e-3
"""asyncio's timers may be early by the clock's resolution."""


class Trial:
    """A rule at work on a router's requests.

    rule: None judges nothing. go_back: called with the reason, once the rule says so.
    """

    def __init__(
        self, rule: RollbackRule | None, router: Router, go_back: Callable[[str], object]
    ) -> None:
        self.rule, self._router, self._go_back = rule, router, go_back
        self._monitor = rule.monitor() if rule else None

    def begin(self, rule: RollbackRule | None) -> None:
        """With nothing seen, so that old sins do not count."""
        self.rule = rule
        self._monitor = rule.monitor() if rule else None

    def evidence(self) -> float:
        """Against the candidate, as a share of what takes it back; 0 without a rule."""
        return self._monitor.evidence() if self._monitor else 0.0

    def put_on(self, routed: RoutedRequest) -> None:
        """A request that has not started counts for the arm that the route gives it to."""
        route, arms = self._router.route, self._router.arms
        if not self._monitor or routed.pinned or route.arm == self._router.fallback:
            return
        self._monitor.forget(routed)
        if not (arms[route.arm].out or arms[self._router.fallback].out):
            candidate = routed.position < route.weight
            self._monitor.arrived(routed, candidate, route.weight)

    def first_token(self, routed: RoutedRequest) -> None:
        if self._monitor and routed.first_token_s is not None:
            self._monitor.first_token(routed, self._is_late(routed, routed.first_token_s))
            self.look_when_late()

    def ended(self, routed: RoutedRequest) -> None:
        """A client that left early says nothing; one that left because it waited does."""
        if not self._monitor or routed.ended_s is None:
            return
        if routed.first_token_s is None and self._is_late(routed, routed.ended_s):
            self._monitor.first_token(routed, late=True)
        if routed.finish_reason == "cancelled":
            self._monitor.forget(routed)
        else:
            self._monitor.ended(routed, failed=routed.finish_reason == "error")
        self.look()

    def look(self) -> None:
        """Go back if the rule says so."""
        if not self._monitor or self._router.route.arm == self._router.fallback:
            return
        now = self._router.now()
        for routed in self._router.open_requests():
            if routed.first_token_s is None and self._is_late(routed, now):
                self._monitor.first_token(routed, late=True)
        if verdict := self._monitor.verdict():
            self._go_back(verdict)

    def look_when_late(self) -> None:
        """Look again when what waits now is late: a hung arm gives no other occasion."""
        if self.rule and self.rule.ttft_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self.rule.ttft_s + TICK_S, self.look)

    def _is_late(self, routed: RoutedRequest, until: float) -> bool:
        if self.rule is None or self.rule.ttft_s is None:
            return False
        return until - self._waits_since_s(routed) > self.rule.ttft_s

    def _waits_since_s(self, routed: RoutedRequest) -> float:
        """From when on a missing first token is held against its arm: its arrival, or the latest
        change of the route, since what another one did is not this one's fault. Where no other arm
        answers for comparison, waiting behind others is a burst's doing as long as the arm gives
        first tokens: then from its start."""
        since = max(routed.arrived_s, self._router.since_s)
        if 1 - self._router.route.weight >= LEAST_OTHER_SHARE:
            return since
        if routed.started_s is not None:
            return max(since, routed.started_s)
        return max(since, self._router.arm_for(routed).spoke_s)
