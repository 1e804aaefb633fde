"""The way back under load: nothing is lost, everything finishes on its own weights."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from workbench.engine.request import GenerationRequest
from workbench.load.piece import PlannedRequest
from workbench.serve.replay import load_client
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import Route, RoutedRequest

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


def test_a_scheduler_that_refuses_fails_that_request_alone(serve) -> None:
    served = serve(slots=1)

    def refuse(request, on_token, on_done):
        raise RuntimeError("the scheduler is closed")

    served.schedulers["hybrid"].submit = refuse
    assert served.complete().status_code == 500
    assert served.complete(model="full_precision").status_code == 200
    assert served.service.router.running == 0


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
