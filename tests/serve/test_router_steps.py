"""The rule, the canary and the queue of a router, on a loop whose clock steps from one timer to the
next: nothing is waited for, and what else a machine does changes no time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from workbench.engine.request import GenerationRequest
from workbench.serve.canary import Canary, CanaryPlan
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import Route, ServedArm
from workbench.serve.router import QueueFull, Router

Result = TypeVar("Result")
ARMS = ("full_precision", "hybrid")


class SilentScheduler:
    """Takes requests and never gives a token. hangs: it does not end cancelled ones either."""

    failed = None

    def __init__(self, *, hangs: bool) -> None:
        self.hangs, self.taken = hangs, 0

    def submit(self, request, on_token, on_done):
        self.taken += 1
        submitted = SimpleNamespace(finish_reason=None, error=None)

        def cancel() -> None:
            if not self.hangs and submitted.finish_reason is None:
                submitted.finish_reason = "cancelled"
                on_done(submitted)

        submitted.cancel, submitted.on_done = cancel, on_done
        return submitted

    def end(self, submitted) -> None:
        submitted.finish_reason = "length"
        submitted.on_done(submitted)


class SteppedLoop(asyncio.SelectorEventLoop):
    """Its clock stands still while there is work and jumps to the next timer when there is none,
    so that nobody waits, and a busy machine is as quick as a quiet one."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._ready_now, self._selector.select = self._selector.select, self._step

    def time(self) -> float:
        return self.now_s

    def _step(self, timeout: float | None) -> list:
        self.now_s += timeout or 0.0
        return self._ready_now(0.0)


def at_once(work: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=SteppedLoop) as runner:
        return runner.run(work)


def silent_router(*, hangs: bool, slots: int = 4) -> Router:
    """Within the loop that it is used in."""
    clock = asyncio.get_running_loop().time
    arms = [ServedArm(name, SilentScheduler(hangs=hangs), slots) for name in ARMS]
    rule = RollbackRule(ttft_s=0.05)
    route = Route("hybrid")
    return Router(arms, fallback="full_precision", route=route, rule=rule, clock=clock)


REQUEST = GenerationRequest((5,), max_tokens=1)


GONE_BACK = "had no first token within 0.05 s"


@pytest.mark.parametrize("hangs", [False, True])
def test_the_rule_sees_clients_that_give_up(hangs: bool) -> None:
    async def load() -> Router:
        router = silent_router(hangs=hangs)
        for _ in range(40):
            routed = router.submit(REQUEST)
            asyncio.get_running_loop().call_later(0.06, router.cancel, routed)
            await asyncio.sleep(0.005)
        return router

    router = at_once(load())
    (switch,) = router.switches
    assert switch.to_arm == "full_precision" and GONE_BACK in switch.reason


def test_the_rule_sees_a_hung_arm_whose_clients_wait_for_ever() -> None:
    """Nothing ends and nothing more arrives; the queue goes to the fallback."""

    async def load() -> Router:
        router = silent_router(hangs=True)
        for _ in range(20):
            router.submit(REQUEST)
        await asyncio.sleep(0.2)
        return router

    router = at_once(load())
    (switch,) = router.switches
    late, seen = map(int, re.findall(r"(\d+) of (\d+)", switch.reason)[0])
    assert 3 <= late == seen <= 20 and GONE_BACK in switch.reason
    assert router.arms["full_precision"].running == 4


def test_clients_that_leave_early_are_not_held_against_an_arm() -> None:
    async def load() -> Router:
        router = silent_router(hangs=False)
        for _ in range(40):
            routed = router.submit(REQUEST)
            asyncio.get_running_loop().call_later(0.001, router.cancel, routed)
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.1)
        return router

    assert at_once(load()).switches == []


def test_waiting_for_the_other_arm_is_not_held_against_a_candidate() -> None:
    async def load() -> list[int]:
        router = silent_router(hangs=False, slots=20)
        router.arms["full_precision"].slots = 0
        router.switch("full_precision")
        requests = [router.submit(REQUEST) for _ in range(20)]
        await asyncio.sleep(0.1)
        router.switch("hybrid", force=True)
        switches = [len(router.switches)]
        router.cancel(requests[0])
        await asyncio.sleep(0.01)
        switches.append(len(router.switches))
        await asyncio.sleep(0.1)
        return [*switches, len(router.switches)]

    assert at_once(load()) == [2, 2, 3]


class SteadyScheduler(SilentScheduler):
    """One token after ``takes_s``, as many requests at a time as it is given."""

    def __init__(self, takes_s: float) -> None:
        super().__init__(hangs=False)
        self.takes_s = takes_s

    def submit(self, request, on_token, on_done):
        submitted = super().submit(request, on_token, on_done)

        def end() -> None:
            on_token(7)
            self.end(submitted)

        asyncio.get_running_loop().call_later(self.takes_s, end)
        return submitted


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_burst_that_queues_is_not_blamed_on_the_candidate(weight: float) -> None:
    """200 requests at once for 2 slots: nearly all wait longer than the 0.1 s that are allowed;
    one that takes 0.2 s itself is taken back."""

    async def load(takes_s: float) -> list[str]:
        clock = asyncio.get_running_loop().time
        arms = [
            ServedArm("full_precision", SteadyScheduler(0.01), 2),
            ServedArm("hybrid", SteadyScheduler(takes_s), 2),
        ]
        rule, route = RollbackRule(ttft_s=0.1), Route("hybrid", weight)
        router = Router(arms, fallback="full_precision", route=route, rule=rule, clock=clock)
        routed = [router.submit(REQUEST) for _ in range(200)]
        await asyncio.sleep(5.0)
        waits = sorted(each.first_token_s - each.arrived_s for each in routed)
        assert waits[100] > 0.1
        return [switch.reason for switch in router.switches]

    assert at_once(load(0.01)) == []
    if weight == 1.0:
        (reason,) = at_once(load(0.2))
        assert "had no first token within 0.1 s" in reason


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


def test_requests_gather_until_the_slots_are_full_or_the_oldest_has_waited() -> None:
    """Two slots: one request alone waits its time, two start at once, the next two as well."""

    async def load() -> None:
        scheduler = SilentScheduler(hangs=False)
        arm = ServedArm("only", scheduler, slots=2)
        clock, route = asyncio.get_running_loop().time, Route("only")
        router = Router([arm], fallback="only", route=route, batch_wait_s=0.1, clock=clock)
        first = router.submit(REQUEST)
        await asyncio.sleep(0.03)
        assert (scheduler.taken, router.waiting) == (0, 1)
        await asyncio.sleep(0.15)
        assert (scheduler.taken, router.waiting) == (1, 0)
        assert first.started_s - first.arrived_s >= 0.1
        second = router.submit(REQUEST)
        assert scheduler.taken == 2, "it fills the last free slot"
        router.cancel(first)
        router.cancel(second)
        await asyncio.sleep(0.01)
        for _ in range(2):
            third = router.submit(REQUEST)
        assert scheduler.taken == 4 and third.started_s - third.arrived_s < 0.1

    at_once(load())


def test_a_refused_request_is_told_when_the_queue_will_be_empty_and_is_counted(serve) -> None:
    """Requests take 14 s and 8 of them wait for 8 slots; the hour before them does not count."""

    async def load() -> float:
        router = silent_router(hangs=False, slots=8)
        router.queue = 8
        for _ in range(2):
            first = router.submit(REQUEST)
            await asyncio.sleep(14.0)
            router.arms["hybrid"].scheduler.end(first.submitted)
            await asyncio.sleep(3600.0)
        for _ in range(16):
            router.submit(REQUEST)
        with pytest.raises(QueueFull) as full:
            router.submit(REQUEST)
        return full.value.retry_after_s

    assert at_once(load()) == pytest.approx(14.0, rel=0.01)
    served = serve(slots=1, queue=0)
    served.schedulers["hybrid"].gate.clear()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(served.complete, max_tokens=1)
        served.until(lambda: served.service.router.running == 1)
        assert served.complete(max_tokens=1).status_code == 429
        served.schedulers["hybrid"].gate.set()
        assert taken.result().status_code == 200
    text = served.client.get("/metrics").text
    assert 'workbench_http_responses_total{path="/v1/completions",status="429"} 1.0' in text


def test_a_request_ends_at_its_deadline_whatever_its_arm_does() -> None:
    async def load() -> tuple[Router, list, SilentScheduler]:
        arm = SilentScheduler(hangs=True)
        arms = [ServedArm("full_precision", arm, 1)]
        clock = asyncio.get_running_loop().time
        only = Route("full_precision")
        router = Router(arms, fallback="full_precision", route=only, deadline_s=2.0, clock=clock)
        given = [router.submit(REQUEST) for _ in range(2)]
        await asyncio.sleep(3.0)
        return router, given, arm

    router, given, arm = at_once(load())
    assert [routed.finish_reason for routed in given] == ["error", "error"]
    assert all(routed.overdue and routed.ended_s == 2.0 for routed in given)
    assert router.waiting == 0 and router.running == 1, "the hung arm still has its slot"
    assert arm.taken == 1


def test_a_short_request_does_not_wait_for_the_end_of_long_ones() -> None:
    """Ten long ones come first; of eight slots two are for short ones alone. Long ones still take
    turns."""

    async def load() -> None:
        scheduler = SilentScheduler(hangs=True)
        arm = ServedArm("full_precision", scheduler, 8)
        router = Router(
            [arm],
            fallback="full_precision",
            route=Route("full_precision"),
            short_tokens=64,
            kept_slots=2,
            clock=asyncio.get_running_loop().time,
        )
        long = [router.submit(GenerationRequest((5,), max_tokens=500)) for _ in range(10)]
        short = [router.submit(GenerationRequest((5,), max_tokens=2)) for _ in range(3)]
        assert [routed.started_s is not None for routed in long] == [True] * 6 + [False] * 4
        assert [routed.started_s is not None for routed in short] == [True, True, False]
        scheduler.end(long[0].submitted)
        await asyncio.sleep(0.01)
        assert long[6].started_s is not None and short[2].started_s is None
        scheduler.end(short[0].submitted)
        await asyncio.sleep(0.01)
        assert short[2].started_s is not None and arm.long == 6 and arm.running == 8

    at_once(load())


def compared(
    weight: float,
    candidate: Callable[[int], tuple[float, int]],
    *,
    key: Callable[[int], str | None] = lambda number: None,
    rule: RollbackRule | None = None,
) -> Router:
    """600 requests, 100 a second. The candidate's n-th answer begins after so many seconds and
    has so many tokens, 10 ms apart; the other arm's after 20 ms, with 10."""

    class Timed(SilentScheduler):
        def __init__(self, answer: Callable[[int], tuple[float, int]]) -> None:
            super().__init__(hangs=False)
            self.answer = answer

        def submit(self, request, on_token, on_done):
            submitted = super().submit(request, on_token, on_done)
            loop, (first_s, tokens) = asyncio.get_running_loop(), self.answer(self.taken)
            for number in range(tokens):
                loop.call_later(first_s + 0.01 * number, on_token, 7)

            def end() -> None:
                submitted.finish_reason = "stop"
                on_done(submitted)

            loop.call_later(first_s + 0.01 * tokens, end)
            return submitted

    async def load() -> Router:
        arms = [
            ServedArm("full_precision", Timed(lambda number: (0.02, 10)), 64),
            ServedArm("hybrid", Timed(candidate), 64),
        ]
        clock = asyncio.get_running_loop().time
        route, rules = Route("hybrid", weight), rule or RollbackRule()
        router = Router(arms, fallback="full_precision", route=route, rule=rules, clock=clock)
        asked = GenerationRequest((5,), max_tokens=100)
        for number in range(600):
            router.submit(asked, key=key(number))
            await asyncio.sleep(0.01)
        return router

    return at_once(load())


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((0.05, 10), "had no first token within 1.5 times what is usual"),
        ((0.02, 4), "less than half of what is usual"),
        ((0.02, 30), "more than twice what is usual"),
    ],
)
def test_a_candidate_is_compared_with_what_is_usual_of_the_other_arm(answer, says: str) -> None:
    """Nobody gave a limit; the same answers as the other arm's take nothing back."""
    router = compared(0.5, lambda number: answer, rule=RollbackRule(e2e_s=10.0))
    (switch,) = router.switches
    assert says in switch.reason and switch.time_s < 3.0
    assert compared(0.5, lambda number: (0.021, 11)).switches == []


def test_times_are_not_compared_where_the_candidate_carries_most_of_the_load() -> None:
    assert compared(0.8, lambda number: (0.05, 10)).switches == []
    given = compared(0.8, lambda number: (0.05, 10), rule=RollbackRule(ttft_s=0.04))
    assert "no first token within 0.04 s" in given.switches[0].reason


def test_a_client_stays_with_one_arm_and_counts_as_one_draw() -> None:
    """Forty clients, of which one fails always, whichever arm it has: that is not the arm's."""
    arms: dict[str, set[str]] = {}

    async def load(weight: float) -> None:
        clock = asyncio.get_running_loop().time
        given = [ServedArm(name, SteadyScheduler(0.001), 8) for name in ARMS]
        router = Router(
            given, fallback="full_precision", route=Route("hybrid", weight), clock=clock
        )
        for number in range(200):
            key = f"client {number % 40}"
            routed = router.submit(REQUEST, key=key)
            arms.setdefault(key, set()).add(routed.arm)
            await asyncio.sleep(0.01)

    at_once(load(0.5))
    assert all(len(of) == 1 for of in arms.values())
    share = sum(of == {"hybrid"} for of in arms.values()) / len(arms)
    assert 0.25 <= share <= 0.75
    before = {key for key, of in arms.items() if of == {"hybrid"}}
    arms.clear()
    at_once(load(0.75))
    assert before < {key for key, of in arms.items() if of == {"hybrid"}}

    class FailsFor(SteadyScheduler):
        def submit(self, request, on_token, on_done):
            if request.prompt_tokens == (99,):
                raise RuntimeError("whoever answers it")
            return super().submit(request, on_token, on_done)

    async def fails(keyed: bool) -> list[str]:
        clock = asyncio.get_running_loop().time
        given = [ServedArm(name, FailsFor(0.001), 8) for name in ARMS]
        router = Router(
            given,
            fallback="full_precision",
            route=Route("hybrid", 0.5),
            rule=RollbackRule(),
            clock=clock,
        )
        wrong = min(before)
        for number in range(1000):
            client = f"client {number % 40}"
            prompt = (99,) if client == wrong and number > 80 else (5,)
            router.submit(GenerationRequest(prompt, max_tokens=1), key=client if keyed else None)
            await asyncio.sleep(0.01)
        return [switch.reason for switch in router.switches]

    assert at_once(fails(True)) == at_once(fails(False)) == []


def test_every_kind_of_request_is_shared_out_evenly() -> None:
    """Long and short ones alternate, which one sequence for all would share out unevenly."""

    async def load() -> list[list[str]]:
        clock = asyncio.get_running_loop().time
        given = [ServedArm(name, SteadyScheduler(0.001), 64) for name in ARMS]
        route = Route("hybrid", 0.5)
        router = Router(given, fallback="full_precision", route=route, clock=clock)
        seen: list[list[str]] = [[], []]
        for number in range(80):
            kind = 0 if number % 5 in (0, 2) else 1  # near the golden ratio's own rhythm
            wanted = GenerationRequest((5,), max_tokens=(2, 500)[kind])
            seen[kind].append(router.submit(wanted).arm or "")
            await asyncio.sleep(0.01)
        return seen

    for arms in at_once(load()):
        for begin in range(0, len(arms) - 8, 8):
            assert arms[begin : begin + 8].count("hybrid") in (3, 4, 5)


def test_several_answers_of_one_body_are_one_draw() -> None:
    """Twenty of one body fail in the arm that its first went to: one bad request, not twenty."""

    class Failing(SteadyScheduler):
        def submit(self, request, on_token, on_done):
            raise RuntimeError("whoever answers it")

    async def load(of_one_body: bool) -> int:
        clock = asyncio.get_running_loop().time
        given = [
            ServedArm("full_precision", SteadyScheduler(0.001), 64),
            ServedArm("hybrid", Failing(0.001), 64),
        ]
        route, rule = Route("hybrid", 0.5), RollbackRule()
        router = Router(given, fallback="full_precision", route=route, rule=rule, clock=clock)
        first = router.submit(REQUEST)
        while first.arm != "hybrid":
            first = router.submit(REQUEST)
        for _ in range(60):
            router.submit(REQUEST, beside=first if of_one_body else None)
            await asyncio.sleep(0.01)
        return len(router.switches)

    assert at_once(load(True)) == 0
    assert at_once(load(False)) == 1
