"""The way back under load: nothing is lost, everything finishes on its own weights."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import pytest

from workbench.engine.request import GenerationRequest
from workbench.load.piece import PlannedRequest
from workbench.serve.canary import Canary, CanaryPlan
from workbench.serve.replay import load_client
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import Route, RoutedRequest, ServedArm
from workbench.serve.router import QueueFull, Router

Result = TypeVar("Result")
LETTER = {"full_precision": "A", "hybrid": "B"}


def route(served, **order) -> httpx.Response:
    return served.client.post("/workbench/route", json=order)


def test_an_arm_may_have_any_name(serve) -> None:
    name = "гибрид 100%"
    served = serve(texts={name: "C"}, route=Route(name))
    for stream in (False, True):
        assert served.complete(max_tokens=1, stream=stream).status_code == 200

    async def play():
        async with load_client(served.address) as client:
            return await client.replay([PlannedRequest(0, 0.0, 2, 3, "batch", False)], prompt)

    def prompt(planned: PlannedRequest) -> list[int]:
        return [5] * planned.prompt_tokens

    (outcome,) = asyncio.run(play())
    assert (outcome.status, outcome.arm) == ("ok", name)


def test_what_is_left_of_a_lost_answer_goes_on_from_its_tokens() -> None:
    """Penalties count them, and what its client has of the prompt is not read again."""
    request = GenerationRequest((5, 6), 10, min_tokens=3, prompt_logprobs=1, frequency_penalty=1.0)
    routed = RoutedRequest(request, 0.0, None, 0.0)
    assert routed.left() is request
    routed.output += [7, 8]
    left = routed.left()
    assert (left.prompt_tokens, left.given_output) == ((5, 6, 7, 8), 2)
    assert (left.max_tokens, left.min_tokens, left.prompt_logprobs) == (8, 1, None)
    assert left.frequency_penalty == 1.0


def test_in_flight_requests_finish_on_their_own_arm(serve) -> None:
    served = serve(slots=2)
    for scheduler in served.schedulers.values():
        scheduler.gate.clear()
    with ThreadPoolExecutor(5) as pool:
        early = [pool.submit(served.complete, max_tokens=20) for _ in range(2)]
        served.until(lambda: served.service.router.running == 2)
        waiting = [pool.submit(served.complete, max_tokens=20) for _ in range(2)]
        served.until(lambda: served.service.router.waiting == 2)
        assert route(served, arm="full_precision").status_code == 200
        # The queue is kept and goes to the arm that is routed to now, at once.
        assert served.service.router.waiting == 0
        assert served.service.router.arms["full_precision"].running == 2
        for scheduler in served.schedulers.values():
            scheduler.gate.set()
        assert {f.result().json()["choices"][0]["text"] for f in early} == {"B" * 20}
        assert {f.result().json()["choices"][0]["text"] for f in waiting} == {"A" * 20}


def test_switching_under_concurrent_load_loses_nothing(serve) -> None:
    served = serve(slots=3, step_s=0.001, hold_s=0.001, queue=1000)
    stop = threading.Event()

    def swing() -> None:
        arms = ["full_precision", "hybrid"]
        while not stop.wait(0.01):
            assert route(served, arm=arms[0], force=True).status_code == 200
            arms.reverse()

    async def load() -> list[tuple[str, str, str]]:
        async with httpx.AsyncClient(
            base_url=served.address, trust_env=False, timeout=30
        ) as client:

            async def one(number: int) -> tuple[str, str, str]:
                await asyncio.sleep(0.005 * number)
                body = {"prompt": "x", "max_tokens": 12, "stream": bool(number % 2)}
                answer = await client.post("/v1/completions", json=body)
                assert answer.status_code == 200
                if body["stream"]:
                    lines = answer.text.split("\n\n")
                    assert lines[-2] == "data: [DONE]"
                    parsed = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
                    text = "".join(chunk["choices"][0]["text"] for chunk in parsed)
                    says = {chunk["system_fingerprint"] for chunk in parsed}
                else:
                    text, says = (
                        answer.json()["choices"][0]["text"],
                        {answer.json()["system_fingerprint"]},
                    )
                assert says == {answer.headers["x-workbench-arm"]}
                return answer.headers["x-workbench-arm"], text, str(answer.status_code)

            return await asyncio.gather(*(one(i) for i in range(120)))

    swinging = threading.Thread(target=swing)
    swinging.start()
    answers = asyncio.run(load())
    stop.set()
    swinging.join()
    assert len(served.service.router.switches) > 10
    assert {arm for arm, _, _ in answers} == set(LETTER)
    assert all(text == LETTER[arm] * 12 for arm, text, _ in answers)
    assert served.service.router.running == served.service.router.waiting == 0


def test_a_full_queue_is_a_429_that_says_when_to_come_back(serve) -> None:
    served = serve(slots=1, queue=1)
    served.schedulers["hybrid"].gate.clear()
    with ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(served.complete, max_tokens=1) for _ in range(2)]
        served.until(lambda: served.service.router.waiting == 1)
        refused = served.complete(max_tokens=1, stream=True)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        served.schedulers["hybrid"].gate.set()
        assert [future.result().status_code for future in taken] == [200, 200]


def test_a_canary_gets_its_share_in_every_stretch(serve) -> None:
    served = serve(route=Route("full_precision"), slots=8)
    assert route(served, arm="hybrid", weight=0.25).status_code == 200
    arms = [served.complete(max_tokens=1).headers["x-workbench-arm"] for _ in range(40)]
    for begin in range(0, 40, 20):
        assert arms[begin : begin + 20].count("hybrid") in (4, 5, 6)


def test_growing_again_soon_after_a_rollback_is_refused(serve) -> None:
    served = serve(hold_s=60.0)
    assert route(served, arm="full_precision").status_code == 200
    held = route(served, arm="hybrid")
    assert held.status_code == 409
    assert 1 <= int(held.headers["retry-after"]) <= 60
    assert held.json()["error"]["code"] == "route_held"
    assert route(served, arm="hybrid", weight=0.1, force=True).status_code == 200
    assert route(served, arm="hybrid", weight=0.5).status_code == 409
    state = route(served, arm="full_precision").json()
    assert state["arm"] == "full_precision", "the way back is never held"
    assert [s["to_arm"] for s in state["switches"]] == ["full_precision", "hybrid"] * 1 + [
        "full_precision"
    ]


def test_the_same_route_again_is_no_switch(serve) -> None:
    served = serve()
    assert route(served, arm="hybrid").json()["switches"] == []


@pytest.mark.parametrize(
    "order",
    [
        {"arm": "ternary"},
        {"arm": "hybrid", "weight": 1.5},
        {"arm": "hybrid", "weight": "1"},
        {"weight": 0.5},
        {"arm": "hybrid", "wait": 1},
        {"arm": "hybrid", "force": 1},
    ],
)
def test_wrong_orders_change_nothing(plain, order: dict) -> None:
    answer = plain.client.post("/workbench/route", json=order)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    state = plain.client.get("/workbench/route").json()
    assert (state["arm"], state["switches"]) == ("hybrid", [])


def test_the_route_is_changed_from_this_machine_only(serve, monkeypatch) -> None:
    monkeypatch.setattr("workbench.serve.app._is_loopback", lambda host: False)
    answer = route(serve(), arm="full_precision")
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example:8127", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("[::1", 403),
        ("", 403),
        ("localhost:8127", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8127", 200),
    ],
)
def test_a_page_cannot_rebind_its_name_to_this_machine(plain, host: str, status: int) -> None:
    headers = {"host": host, "origin": f"http://{host}"}
    order = {"arm": "hybrid"}
    answer = plain.client.post("/workbench/route", json=order, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert "127.0.0.1, [::1] or localhost" in answer.json()["error"]["message"]


def test_a_client_that_leaves_frees_its_slot_and_its_place(serve) -> None:
    served = serve(slots=1, step_s=0.01)
    router = served.service.router
    with served.client.stream(
        "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 60, "stream": True}
    ) as streaming:
        lines = streaming.iter_lines()
        assert next(lines)
        with pytest.raises(httpx.ReadTimeout):  # leaves while it waits in the queue
            served.client.post(
                "/v1/completions", json={"prompt": "x", "max_tokens": 60}, timeout=0.1
            )
        served.until(lambda: router.waiting == 0)
        assert router.running == 1
    served.until(lambda: router.running == 0)
    (started,) = served.schedulers["hybrid"].seen
    assert started.finish_reason == "cancelled" and started.given < 60
    # One that is not streamed, while it runs.
    with pytest.raises(httpx.ReadTimeout):
        served.client.post("/v1/completions", json={"prompt": "x", "max_tokens": 60}, timeout=0.1)
    served.until(lambda: router.running == 0)
    assert served.schedulers["hybrid"].seen[-1].finish_reason == "cancelled"


def test_the_rule_goes_back_by_itself_and_stays_there(serve) -> None:
    served = serve(rule=RollbackRule(max_error_share=0.2))
    served.schedulers["hybrid"].broken = "wrong answer"
    statuses = [served.complete(max_tokens=1).status_code for _ in range(8)]
    assert statuses == [500] * 4 + [200] * 4
    (switch,) = served.service.router.switches
    assert switch.to_arm == "full_precision"
    assert switch.reason == "rule: 4 of 4 requests failed; the share may be at most 0.2"


def test_what_began_before_the_latest_switch_is_not_held_against_it(serve) -> None:
    served = serve(rule=RollbackRule(max_error_share=0.2), slots=12)
    hybrid = served.schedulers["hybrid"]
    hybrid.gate.clear()
    with ThreadPoolExecutor(12) as pool:
        old = [pool.submit(served.complete, max_tokens=1) for _ in range(12)]
        served.until(lambda: served.service.router.running == 12)
        assert route(served, arm="full_precision").status_code == 200
        assert route(served, arm="hybrid", force=True).status_code == 200
        hybrid.broken = "wrong answer"
        assert [future.result().status_code for future in old] == [500] * 12
    assert len(served.service.router.switches) == 2
    assert [served.complete().status_code for _ in range(5)] == [500] * 4 + [200]


def test_the_rule_and_the_metrics_take_a_stop_text_for_an_end(serve) -> None:
    """Ten good answers stand beside the failed ones, though the engine was cancelled in them."""
    served = serve(rule=RollbackRule(max_error_share=0.2))
    for _ in range(10):
        assert served.complete(max_tokens=40, stop="B").status_code == 200
    served.until(lambda: served.service.router.running == 0)
    served.schedulers["hybrid"].broken = "wrong answer"
    statuses = [served.complete().status_code for _ in range(8)]
    failed = statuses.index(200)
    assert statuses == [500] * failed + [200] * (8 - failed) and 4 <= failed <= 6
    (switch,) = served.service.router.switches
    assert f"rule: {failed} of {10 + failed} requests failed" in switch.reason
    text = served.client.get("/metrics").text
    assert 'workbench_requests_total{arm="hybrid",finish_reason="stop"} 10.0' in text
    ended = 'arm="hybrid",finished_reason="stop",model_name="pilot"'
    assert f"vllm:request_success_total{{{ended}}} 10.0" in text
    assert 'finish_reason="cancelled"} 0.0' in text


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
    arms = [ServedArm(name, SilentScheduler(hangs=hangs), slots) for name in LETTER]
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


def test_a_scheduler_that_refuses_fails_that_request_alone(serve) -> None:
    served = serve(slots=1)

    def refuse(request, on_token, on_done):
        raise RuntimeError("the scheduler is closed")

    served.schedulers["hybrid"].submit = refuse
    assert served.complete().status_code == 500
    assert served.complete(model="full_precision").status_code == 200
    assert served.service.router.running == 0


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


def test_an_arm_whose_engine_fails_is_out_and_its_requests_are_answered(serve) -> None:
    """Two requests have tokens and end with an error, four have none and are answered by the
    fallback; what comes later goes there too, and the server says so."""
    served = serve(slots=2, queue=100)
    hybrid = served.schedulers["hybrid"]
    hybrid.step_s = 0.001
    with ThreadPoolExecutor(6) as pool:
        started = [pool.submit(served.complete, max_tokens=40, stream=True) for _ in range(2)]
        served.until(lambda: all(r.given for r in hybrid.seen) and len(hybrid.seen) == 2)
        hybrid.gate.clear()
        waiting = [pool.submit(served.complete, max_tokens=3) for _ in range(4)]
        served.until(lambda: served.service.router.waiting == 4)
        hybrid.fail("KeyError: 'gone'")
        cut = [future.result() for future in started]
        saved = [future.result() for future in waiting]
    assert all("KeyError" in answer.text and "data: [DONE]" in answer.text for answer in cut)
    assert {answer.json()["choices"][0]["text"] for answer in saved} == {"AAA"}
    assert served.complete(max_tokens=1).json()["choices"][0]["text"] == "A"
    health = served.client.get("/health").json()
    assert (health["status"], health["out"]) == ("degraded", {"hybrid": "KeyError: 'gone'"})
    able = {"ready": True, "arms": ["full_precision"], "draining": False}
    assert served.client.get("/ready").json() == able
    (switch,) = served.service.router.switches
    assert switch.reason == "arm hybrid is out: KeyError: 'gone'"
    refused = route(served, arm="hybrid", force=True)
    assert refused.status_code == 400 and "is out" in refused.json()["error"]["message"]
    pinned = served.complete(max_tokens=1, model="hybrid")
    assert pinned.status_code == 503 and pinned.json()["error"]["code"] == "arm_out"
    assert 'workbench_arm_out{arm="hybrid"} 1.0' in served.client.get("/metrics").text


def test_requests_that_got_a_slot_but_no_token_are_answered_by_the_fallback(serve) -> None:
    served = serve(slots=4)
    served.schedulers["hybrid"].gate.clear()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(served.complete, max_tokens=2) for _ in range(4)]
        served.until(lambda: served.service.router.running == 4)
        served.schedulers["hybrid"].fail("the logits are not finite")
        answers = [future.result() for future in asked]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.headers["x-workbench-arm"] for answer in answers} == {"full_precision"}
    assert served.service.router.saved == 4
    assert served.service.router.running == served.service.router.waiting == 0


def test_where_every_arm_is_out_requests_are_told_so(serve) -> None:
    served = serve()
    for scheduler in served.schedulers.values():
        scheduler.fail("gone")
    assert [served.complete(max_tokens=1).status_code for _ in range(2)] == [500, 503]
    assert served.client.get("/ready").status_code == 503
    assert served.client.get("/health").json()["status"] == "failed"


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


def test_a_deadline_is_a_504(serve) -> None:
    served = serve(deadline_s=0.1)
    served.schedulers["hybrid"].gate.clear()
    for stream in (False, True):
        answer = served.complete(max_tokens=3, stream=stream)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
    served.until(lambda: served.service.router.running == 0)


def test_a_lost_stream_is_continued_by_the_fallback_where_that_is_wanted(serve) -> None:
    served = serve(on_lost_stream="continue", step_s=0.005)
    hybrid = served.schedulers["hybrid"]
    with served.client.stream(
        "POST", "/v1/completions", json={"prompt": "def", "max_tokens": 40, "stream": True}
    ) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        hybrid.fail("its process was killed by signal 9")
        rest = [line for line in lines if line.startswith("data: {")]
    chunks = [json.loads(line.removeprefix("data: ")) for line in (first, *rest)]
    assert not any("error" in chunk for chunk in chunks)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    kept = text.count("B")
    assert text == "B" * kept + "A" * (40 - kept) and 0 < kept < 40
    assert [chunk["system_fingerprint"] for chunk in chunks][-1] == "full_precision"
    (asked,) = served.schedulers["full_precision"].seen
    assert asked.request.max_tokens == 40 - kept
    whole = hybrid.seen[0].request.prompt_tokens
    assert asked.request.prompt_tokens == (*whole, *hybrid.script * kept)
    assert served.service.router.continued == 1


def test_an_arm_that_is_back_takes_requests_and_the_route_stays(serve) -> None:
    served = serve()
    router = served.service.router
    served.in_loop(router.put_out, "hybrid", "its process ended")
    assert served.complete(model="hybrid").status_code == 503
    assert served.complete().headers["x-workbench-arm"] == "full_precision"
    assert served.client.get("/ready").json()["arms"] == ["full_precision"]
    served.in_loop(router.bring_back, "hybrid")
    assert served.complete(model="hybrid").status_code == 200
    assert router.route == Route("full_precision")
    assert served.client.get("/health").json()["arms"]["hybrid"]["state"] == "up"


def test_readiness_ends_before_the_server_does(serve) -> None:
    served = serve()
    assert served.client.get("/ready").status_code == 200
    served.service.draining = True
    answer = served.client.get("/ready")
    assert answer.status_code == 503 and answer.json()["draining"]
    assert served.complete().status_code == 200, "what comes meanwhile is answered"


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
        given = [ServedArm(name, SteadyScheduler(0.001), 8) for name in LETTER]
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
        given = [ServedArm(name, FailsFor(0.001), 8) for name in LETTER]
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
        given = [ServedArm(name, SteadyScheduler(0.001), 64) for name in LETTER]
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
