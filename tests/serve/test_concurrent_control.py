"""A candidate is compared with the other arm at the same time: what is usual there, which requests
are comparable, and what counts as one draw."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from stepped_loop import ARMS, REQUEST, SilentScheduler, SteadyScheduler, at_once

from workbench.engine.request import GenerationRequest
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import Route, ServedArm
from workbench.serve.router import Router


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
