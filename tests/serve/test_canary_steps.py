"""A canary's share grows by steps, waits, and is taken back, on a loop whose clock steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from stepped_loop import REQUEST, SteadyScheduler, at_once

from workbench.serve.canary import Canary, CanaryPlan
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import Route, ServedArm
from workbench.serve.router import Router


def ascent(rate: float, fails: Callable[[int], bool] = lambda number: False) -> Router:
    """1,200 requests under a canary of two steps and the whole; the candidate fails some."""

    class Failing(SteadyScheduler):
        def submit(self, request, on_token, on_done):
            if fails(self.taken):
                self.taken += 1
                raise RuntimeError("wrong")
            return super().submit(request, on_token, on_done)

    async def load() -> Router:
        clock = asyncio.get_running_loop().time
        arms = [
            ServedArm("full_precision", SteadyScheduler(0.01), 8),
            ServedArm("hybrid", Failing(0.01), 8),
        ]
        plan = CanaryPlan((0.1, 0.5, 1.0), step_s=2.0, step_requests=20)
        route, rule = Route("hybrid", plan.steps[0]), RollbackRule()
        router = Router(arms, fallback="full_precision", route=route, rule=rule, clock=clock)
        canary = Canary(plan, router)
        router.on_finished, router.on_switch = canary.finished, canary.switched
        for _ in range(1200):
            router.submit(REQUEST)
            await asyncio.sleep(1 / rate)
        assert canary.report()["state"] == canary.state
        router.canary = canary
        return router

    return at_once(load())


def test_a_canary_grows_by_steps_that_last_and_have_requests() -> None:
    router = ascent(rate=100.0)
    assert [(s.to_arm, s.weight) for s in router.switches] == [("hybrid", 0.5), ("hybrid", 1.0)]
    first, second = (switch.time_s for switch in router.switches)
    assert 2.0 <= first <= 2.4 and 2.0 <= second - first <= 2.2, "20 of 10 % of 100/s take 2 s"
    assert "requests in 2 s and nothing against it" in router.switches[0].reason
    assert router.canary.state == "arrived"
    assert ascent(rate=50.0).switches[0].time_s >= 3.9, "20 of its requests take 4 s"


def test_a_canary_that_fails_is_taken_back_and_stays_there() -> None:
    router = ascent(100.0, fails=lambda number: number >= 30 and number % 2 == 0)
    assert router.switches[0].weight == 0.5 and router.switches[-1].to_arm == "full_precision"
    assert "requests failed" in router.switches[-1].reason
    assert router.canary.state == "taken back"


def test_a_canary_waits_while_there_is_evidence_against_it() -> None:
    """Some of the first requests fail, which is not enough to go back; it ascends later."""
    router = ascent(100.0, fails=lambda number: number in (12, 14, 15, 16, 18))
    assert router.switches[0].to_arm == "hybrid" and router.switches[0].time_s > 2.4
