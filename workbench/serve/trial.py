"""The candidate before its rule: which requests count, what is held against it, and when to look.

The router tells it of every request; a request counts unless its client chose the arm or one arm
is out. What a request waited before the latest change of the route is another route's fault.

What is late, short or long by comparison is fixed when a request arrives, from the other arm's
latest answers to requests of the same kind: so neither arm can move its own limit. Times are
compared while the candidate answers at most half of the requests; beyond, it carries more
of the load than what it would be compared with.

Clients that stay with one arm (a key of theirs decides, :mod:`.shares`) are no new draw with each
request: the first one of each counts for all monitors. Of the others the candidate's own share of
failures is asked about.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.serve.monitors import LEAST_OTHER_SHARE
from workbench.serve.rollback_rule import TIMES, RollbackRule
from workbench.serve.routed import RoutedRequest
from workbench.serve.usual import Usual

if TYPE_CHECKING:
    from workbench.serve.router import Router

TICK_S = 1e-3
"""asyncio's timers may be early by the clock's resolution."""
MOST_COMPARED_WEIGHT = 0.5
"""Up to which times are compared."""
MOST_KEYS = 100_000
"""Clients that are remembered as seen."""


@dataclass
class _Limits:
    """Of one request, fixed at its arrival. late_s: monitor -> seconds. usual_tokens: of an
    answer."""

    late_s: dict[str, float] = field(default_factory=dict)
    usual_tokens: float | None = None


class Trial:
    """A rule at work on a router's requests.

    rule: None judges nothing. go_back: called with the reason, once the rule says so.
    """

    def __init__(
        self, rule: RollbackRule | None, router: Router, go_back: Callable[[str], object]
    ) -> None:
        self.rule, self._router, self._go_back = rule, router, go_back
        self.pairs = False
        self._usual = Usual()
        self._begin()

    def begin(self, rule: RollbackRule | None) -> None:
        """With nothing seen, so that old sins do not count."""
        self.rule = rule
        self._begin()

    def with_pairs(self) -> None:
        """Some requests are answered by both arms from now on; it begins anew."""
        self.pairs = True
        self._begin()

    def _begin(self) -> None:
        route = self._router.route
        self.compares = route.weight < 1 or self.pairs
        self._monitor = (
            self.rule.monitor(compares=self.compares, pairs=self.pairs) if self.rule else None
        )
        self._limits: dict[RoutedRequest, _Limits] = {}
        self._keys: OrderedDict[str, None] = OrderedDict()

    def evidence(self) -> float:
        """Against the candidate, as a share of what takes it back; 0 without a rule."""
        return self._monitor.evidence() if self._monitor else 0.0

    def report(self) -> dict[str, float]:
        """Monitor -> natural logarithm of its capital."""
        return self._monitor.report() if self._monitor else {}

    def kept(self) -> dict[str, Any] | None:
        """The evidence of the candidate that answers, as JSON holds it; None where none does."""
        if self._monitor is None or self._router.route.arm == self._router.fallback:
            return None
        return {"of": self._of(), "monitors": self._monitor.kept()}

    def go_on_from(self, kept: dict[str, Any]) -> bool:
        """With the evidence from before a restart, so that a candidate has one life and not one
        for each; whether it is of the same rule."""
        if self._monitor is None or kept.get("of") != self._of():
            return False
        try:
            self._monitor.go_on_from(kept["monitors"])
        except (KeyError, TypeError, ValueError):
            self._begin()
            return False
        return True

    def _of(self) -> dict[str, Any]:
        rule = asdict(self.rule) if self.rule else None
        return {"rule": rule, "compares": self.compares, "pairs": self.pairs}

    def said(self) -> dict[str, str]:
        """Monitor -> what it has counted, in words."""
        return self._monitor.said() if self._monitor else {}

    def put_on(self, routed: RoutedRequest) -> None:
        """A request that has not started counts for the arm that the route gives it to."""
        route, arms = self._router.route, self._router.arms
        if not self._monitor or routed.pinned or route.arm == self._router.fallback:
            return
        if routed.no_draw and route.weight < 1:
            return
        self._forget(routed)
        if arms[route.arm].out or arms[self._router.fallback].out:
            return
        candidate = routed.position < route.weight
        if routed.key is not None and routed.returning is None:
            routed.returning = not self._is_new(routed.key)
        if routed.returning:
            if candidate:
                self._limits[routed] = _Limits()
                self._monitor.arrived(routed, True, 1.0, ("returning",))
            return
        limits = self._limits[routed] = self._limits_of(routed)
        names = ["errors", "nan", *limits.late_s]
        if limits.usual_tokens is not None:
            names += ["short", "long"]
        self._monitor.arrived(routed, candidate, route.weight, tuple(names))
        for name in ("ttft", "e2e"):
            self._watch(routed, name)

    def first_token(self, routed: RoutedRequest) -> None:
        if self._monitor and routed.first_token_s is not None:
            late = self._is_late(routed, "ttft", routed.first_token_s)
            self._monitor.known("ttft", routed, late)
            if late:
                self.look()

    def ended(self, routed: RoutedRequest) -> None:
        """A client that left early says nothing; one that left because it waited does."""
        if not self._monitor or routed.ended_s is None:
            return
        limits = self._limits.get(routed)
        for name in ("ttft", "e2e"):
            if (routed.first_token_s is None or name == "e2e") and self._is_late(
                routed, name, routed.ended_s
            ):
                self._monitor.known(name, routed, True)
        if routed.finish_reason == "cancelled":
            self._forget(routed)
        else:
            failed = routed.finish_reason == "error"
            self._tell(routed, limits, failed)
            if routed.arm == self._router.fallback and not (failed or routed.pinned):
                self._usual.take(routed.kind, self._measured(routed))
        self._limits.pop(routed, None)
        self.look()

    def _tell(self, routed: RoutedRequest, limits: _Limits | None, failed: bool) -> None:
        assert self._monitor is not None
        for name in ("errors", "returning"):
            self._monitor.known(name, routed, failed)
        self._monitor.known("nan", routed, routed.not_finite)
        for name in ("ttft", "e2e"):  # it was not late, or that has been said
            self._monitor.known(name, routed, False)
        token_s = self._measured(routed).get("tpot", 0.0)
        late_s = limits.late_s.get("tpot") if limits else None
        self._monitor.known("tpot", routed, late_s is not None and token_s > late_s)
        usual = limits.usual_tokens if limits else None
        if usual is not None:
            tokens, whole = routed.answer_tokens, not failed
            cut = routed.at_limit
            self._monitor.known("short", routed, whole and not cut and tokens < usual / 2)
            self._monitor.known("long", routed, whole and (cut or tokens > 2 * usual))

    def compared(self, name: str, value: float) -> None:
        """What a pair of answers differs by; see :meth:`RollbackMonitor.compared`."""
        if self._monitor and self._router.route.arm != self._router.fallback:
            self._monitor.compared(name, value)
            self.look()

    def look(self) -> None:
        """Go back if the rule says so."""
        if not self._monitor or self._router.route.arm == self._router.fallback:
            return
        if verdict := self._monitor.verdict():
            self._go_back(verdict)

    def _watch(self, routed: RoutedRequest, name: str) -> None:
        """Look again when what it waits for is late: a hung arm gives no other occasion."""
        limits = self._limits.get(routed)
        late_s = limits.late_s.get(name) if limits else None
        if late_s is None or self._monitor is None or self._came(routed, name):
            return
        left_s = self._waits_since_s(routed) + late_s - self._router.now()
        if left_s < 0:
            self._monitor.known(name, routed, True)
            self.look()
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(left_s + TICK_S, self._watch, routed, name)

    @staticmethod
    def _came(routed: RoutedRequest, name: str) -> bool:
        return bool(routed.finish_reason) or (name == "ttft" and routed.first_token_s is not None)

    def _limits_of(self, routed: RoutedRequest) -> _Limits:
        assert self.rule is not None
        found = _Limits()
        compares = self.compares and self._router.route.weight <= MOST_COMPARED_WEIGHT
        for name in TIMES:
            limit_s = self.rule.limit_s(name)
            if limit_s is None and compares:
                usual_s = self._usual.of(routed.kind, name)
                limit_s = None if usual_s is None else self.rule.slower * usual_s
            if limit_s is not None:
                found.late_s[name] = limit_s
        if self.compares and 1 - self._router.route.weight >= LEAST_OTHER_SHARE:
            found.usual_tokens = self._usual.of(routed.kind, "tokens")
        return found

    def _measured(self, routed: RoutedRequest) -> dict[str, float]:
        """Of an answer that has ended: its times, s, and its tokens."""
        if routed.first_token_s is None or routed.ended_s is None:
            return {}
        since_s = self._waits_since_s(routed)
        found = {
            "ttft": routed.first_token_s - since_s,
            "e2e": routed.ended_s - since_s,
            "tokens": float(routed.answer_tokens),
        }
        if routed.tokens > 1:
            found["tpot"] = (routed.ended_s - routed.first_token_s) / (routed.tokens - 1)
        return found

    def _is_late(self, routed: RoutedRequest, name: str, until: float) -> bool:
        limits = self._limits.get(routed)
        late_s = limits.late_s.get(name) if limits else None
        return late_s is not None and until - self._waits_since_s(routed) > late_s

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

    def _is_new(self, key: str) -> bool:
        new = key not in self._keys
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > MOST_KEYS:
            self._keys.popitem(last=False)
        return new

    def _forget(self, routed: RoutedRequest) -> None:
        if self._monitor:
            self._monitor.forget(routed)
        self._limits.pop(routed, None)
