"""A candidate's share grows by steps while the rollback rule has nothing against it.

A step is over when it has lasted, and enough requests of the candidate's have ended in it and
been compared; then
the next share is ordered. It waits longer once the rule's evidence is more than a third of what
would take the candidate back, until it is less than a sixth. Going back is the rule's own:
then the ascent is over, and begins again by order alone. A share that somebody else orders is
where it goes on from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import ConfigError
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from workbench.serve.comparison import Comparisons
    from workbench.serve.routed import RoutedRequest, Switch
    from workbench.serve.router import Router

STEPS = (0.01, 0.05, 0.25, 0.5, 1.0)
HOLD_AT, GO_ON_AT = 1 / 3, 1 / 6
"""Of the evidence that takes a candidate back: it waits from there on, until there is so little."""
STEP_PAIRS = 25
"""Pairs of answers that a step takes at least, where any are compared: so many show one that says
something else altogether."""
Ascent = Literal["ascending", "holding", "arrived", "taken back"]


@dataclass(frozen=True)
class CanaryPlan:
    """steps: shares of the requests, growing. step_s: a step lasts at least so long.
    step_requests: of the candidate's that end in a step, at least. compared_share: of the requests
    that both arms answer; probe_s: so often a prompt of the pilot's is compared as well."""

    steps: tuple[float, ...] = STEPS
    step_s: float = 300.0
    step_requests: int = 100
    compared_share: float = 0.02
    probe_s: float = 60.0

    @classmethod
    def parsed(cls, steps: str, step_s: float, step_requests: int, **more: float) -> CanaryPlan:
        """From ``--canary 0.05,0.25,1``. Raises ConfigError."""
        try:
            shares = tuple(float(each) for each in steps.split(",") if each.strip())
        except ValueError:
            shares = ()
        if not shares or list(shares) != sorted({s for s in shares if 0 < s <= 1}):
            raise ConfigError(
                f"--canary {steps}",
                allowed="growing shares above 0, at most 1, with commas: "
                + ",".join(f"{step:g}" for step in STEPS),
            )
        return cls(shares, step_s, step_requests, **more)

    def next_after(self, weight: float) -> float | None:
        """The first step above a share; None where there is none."""
        return next((step for step in self.steps if step > weight), None)


class Canary:
    """The plan at work on a router: tell it of every finished request and every switch.

    candidate: None takes the route's arm.
    """

    def __init__(
        self,
        plan: CanaryPlan,
        router: Router,
        comparisons: Comparisons | None = None,
        *,
        candidate: str | None = None,
    ) -> None:
        self._plan, self._router, self._comparisons = plan, router, comparisons
        self._candidate = candidate or router.route.arm
        self._holds = False
        self._begin()

    def finished(self, routed: RoutedRequest) -> None:
        """Count it, and go on if the step is over."""
        if self._comparisons:
            self._comparisons.finished(routed)
        if routed.arm != self._candidate or routed.pinned:
            return
        if routed.started_s is not None and routed.started_s >= self._since_s:
            self._requests += 1
        if self.state != "ascending":
            return
        step_s = self._router.now() - self._since_s
        enough = self._requests >= self._plan.step_requests and self._pairs >= self._least_pairs
        if step_s >= self._plan.step_s and enough:
            weight = self._plan.next_after(self._router.route.weight)
            assert weight is not None, "it has not arrived"
            said = (
                f"canary: {number_of(self._requests, 'request')} in {step_s:.0f} s and nothing "
                "against it"
            )
            self._router.switch(self._candidate, weight, reason=said, cause="canary", force=True)

    def switched(self, switch: Switch) -> None:
        """Whoever ordered it: a step begins."""
        self._begin()

    @property
    def state(self) -> Ascent:
        route = self._router.route
        if route.arm != self._candidate:
            return "taken back"
        if self._plan.next_after(route.weight) is None:
            return "arrived"
        self._holds = self._router.trial.evidence() > (GO_ON_AT if self._holds else HOLD_AT)
        return "holding" if self._holds else "ascending"

    def report(self) -> dict[str, Any]:
        """For ``/workbench/route``."""
        return {
            "state": self.state,
            "steps": list(self._plan.steps),
            "step_requests": self._requests,
            "step_s": self._router.now() - self._since_s,
            "pairs": self._pairs,
            "evidence_against": self._router.trial.evidence(),
            "log_capital": self._router.trial.report(),
            "counted": self._router.trial.said(),
        }

    def _begin(self) -> None:
        self._since_s, self._requests = self._router.now(), 0
        self._pairs_before = self._comparisons.count if self._comparisons else 0

    @property
    def _pairs(self) -> int:
        """Of answers that were compared in this step."""
        return self._comparisons.count - self._pairs_before if self._comparisons else 0

    @property
    def _least_pairs(self) -> int:
        return STEP_PAIRS if self._comparisons else 0
