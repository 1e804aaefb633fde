"""Answers of both arms to the same requests: who is asked, when, and what is made of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from workbench.engine.request import GenerationRequest
from workbench.serve.comparison import Comparisons, differing, probe_requests, text_of
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import Route, ServedArm
from workbench.serve.router import Router
from workbench.serve.upstream import PassedRequest


class Says:
    """An arm whose whole answer is ``text(prompt)``; with ``holds`` it waits for :meth:`go`."""

    on_loop, failed = True, None

    def __init__(self, text: Callable[[str], str], holds: bool = False) -> None:
        self.text, self.holds = text, holds
        self.asked: list[str] = []
        self.cancelled = 0

    def submit(self, request, on_token, on_done):
        submitted = SimpleNamespace(finish_reason=None, error=None)

        def end(reason: str) -> None:
            if submitted.finish_reason is None:
                submitted.finish_reason = reason
                on_done(submitted)

        def answer() -> None:
            said = {"choices": [{"text": self.text(request.fields["prompt"])}]}
            on_token(json.dumps(said).encode())
            end("stop")

        def cancel() -> None:
            self.cancelled += 1
            asyncio.get_running_loop().call_soon(end, "cancelled")

        self.asked.append(request.fields["prompt"])
        submitted.cancel = cancel
        if not self.holds:
            asyncio.get_running_loop().call_soon(answer)
        return submitted


def router_of(today: Says, candidate: Says, slots: int = 4) -> Router:
    arms = [ServedArm("today", today, slots), ServedArm("candidate", candidate, slots)]
    route = Route("candidate", 0.5)
    return Router(arms, fallback="today", route=route, rule=RollbackRule())


def asking(prompt: str) -> PassedRequest:
    return PassedRequest("completions", {"prompt": prompt, "stream": True}, stream=False)


def test_a_share_of_the_requests_is_answered_by_both() -> None:
    async def load(share: float, candidate: Callable[[str], str]) -> tuple[Router, Comparisons]:
        router = router_of(Says(lambda prompt: f"yes to {prompt}"), Says(candidate))
        comparisons = Comparisons(router, share)
        router.on_finished = comparisons.finished
        running = asyncio.create_task(comparisons.run())
        for number in range(200):
            router.submit(asking(f"the question number {number}"))
            await asyncio.sleep(0.002)
        running.cancel()
        return router, comparisons

    router, comparisons = asyncio.run(load(0.1, lambda prompt: f"yes to {prompt}"))
    assert router.switches == [] and 10 <= comparisons.count <= 21
    assert router.trial.report()["disagreement"] <= 0
    wrong, comparisons = asyncio.run(load(0.5, lambda prompt: "something else altogether here"))
    assert "of the answers differs" in wrong.switches[0].reason
    assert comparisons.count <= 60 and comparisons.given_up == 0


def test_an_arm_that_differs_from_itself_may_differ_by_as_much() -> None:
    """Each answer is another draw, of both arms alike."""
    draws = iter(range(10**6))

    def drawn(prompt: str) -> str:
        return " ".join(f"word{(next(draws) * 7919) % 97}" for _ in range(10))

    async def load() -> Router:
        router = router_of(Says(drawn), Says(drawn))
        comparisons = Comparisons(router, 1.0)
        router.on_finished = comparisons.finished
        running = asyncio.create_task(comparisons.run())
        for number in range(150):
            router.submit(asking(f"question {number}"))
            await asyncio.sleep(0.002)
        running.cancel()
        assert comparisons.count > 100
        return router

    assert asyncio.run(load()).switches == []


def test_the_pilot_s_prompts_are_asked_at_intervals_where_nobody_else_asks() -> None:
    async def load() -> tuple[Says, Says]:
        today, candidate = Says(lambda prompt: "a"), Says(lambda prompt: "b")
        probes = probe_requests(("once", "twice"), None, 64)
        comparisons = Comparisons(router_of(today, candidate), 0.02, probes, probe_s=0.03)
        running = asyncio.create_task(comparisons.run())
        await asyncio.sleep(0.2)
        running.cancel()
        return today, candidate

    today, candidate = asyncio.run(load())
    assert candidate.asked[:3] == ["once", "twice", "once"] and len(candidate.asked) <= 7
    assert today.asked[:4] == ["once", "once", "twice", "twice"]


def test_no_client_waits_for_a_request_behind_it() -> None:
    async def load() -> None:
        today = Says(lambda prompt: "a", holds=True)
        router = router_of(today, Says(lambda prompt: "b"), slots=1)
        behind = router.submit_behind(asking("behind"), "today")
        assert behind.started_s is not None
        client = router.submit(asking("a client's"), pinned="today")
        await asyncio.sleep(0.01)
        assert behind.finish_reason == "cancelled" and today.cancelled == 1
        assert client.started_s is not None and today.asked == ["behind", "a client's"]
        later = router.submit_behind(asking("behind"), "today")
        await asyncio.sleep(0.01)
        assert later.started_s is None, "the slot is a client's"
        router.cancel(later)
        assert later.finish_reason == "cancelled" and router.running == 1

    asyncio.run(load())


def test_what_counts_of_an_upstream_s_answer() -> None:
    whole = [b'{"choices": [{"message": {"content": "one two"}}]}']
    stream = [
        b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "one "}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "two"}}]}\n\ndata: [DONE]\n\n',
    ]
    called = [b'{"choices": [{"message": {"tool_calls": [{"function": {"name": "f"}}]}}]}']
    assert text_of(whole) == text_of(stream) == ["one", "two"]
    assert "".join(text_of(called)).count("name") == 1
    assert text_of([b'{"choices": [{"text": "\xe6\x97\xa5\xe6\x9c\xac"}]}']) == ["日", "本"]
    assert text_of([b"no JSON", b'{"choices": []}', b"[]"]) == []
    assert differing(["a", "b"], ["a", "b"]) == 0.0 and differing(["a"], ["b"]) == 1.0
    assert differing(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == pytest.approx(0.25)


def test_probes_of_our_own_arms_fit_their_context(tokenizer) -> None:
    (request,) = probe_requests(("def f(x): return x " * 50,), tokenizer, 64)
    assert isinstance(request, GenerationRequest)
    assert len(request.prompt_tokens) == 32 and request.max_tokens == 32
    assert probe_requests((), tokenizer, 64) == []


def test_a_probe_may_be_a_conversation(tokenizer) -> None:
    turns = [{"role": "user", "content": "hi"}]
    (passed,) = probe_requests((turns,), None, 64)
    assert passed.path == "chat/completions" and passed.fields["messages"] == turns
    (request,) = probe_requests((turns,), tokenizer, 64)
    assert tokenizer.decode(request.prompt_tokens).endswith("user: hi\nassistant:")
    long = [{"role": "user", "content": "x y " * 100}]
    assert probe_requests((long,), tokenizer, 64) == [], "cut, it would end within a turn"
