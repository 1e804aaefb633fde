"""Continuous batching: the same tokens as alone, whatever else runs; queue, cancel, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ternary_kernels.core import NotFiniteError
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.engine.scheduler import QueueFull, Scheduler

CONFIG = LlamaConfig(
    vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=96, eos_token_id=5,
)  # fmt: skip


@pytest.fixture
def engine() -> Iterator[Engine]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG)
    with torch.no_grad():
        model.lm_head.weight.mul_(20.0)
    with Engine.from_model(model, slots=3, kv_dtype="float32", threads=1) as made:
        yield made


def make_request(seed: int, **fields) -> GenerationRequest:
    prompt = torch.randint(6, 67, (1 + 7 * seed % 40,), generator=torch.manual_seed(seed))
    defaults = {"max_tokens": 4 + seed % 9, "ignore_eos": True, "seed": seed}
    return GenerationRequest(tuple(prompt.tolist()), **{**defaults, **fields})


def test_many_requests_on_few_slots_give_what_each_gives_alone(engine: Engine) -> None:
    requests = [make_request(seed, temperature=0.8 * (seed % 2), top_p=0.9) for seed in range(11)]
    alone = [engine.generate(request).tokens for request in requests]
    streamed: dict[int, list[int]] = {i: [] for i in range(len(requests))}
    ended = []
    with Scheduler(engine, prefill_chunk=5) as scheduler:
        submitted = [
            scheduler.submit(request, streamed[i].append, ended.append)
            for i, request in enumerate(requests)
        ]
        assert all(request.wait(30) for request in submitted)
    assert [request.tokens for request in submitted] == alone == list(streamed.values())
    assert sorted(map(id, ended)) == sorted(map(id, submitted))
    for request in submitted:
        assert request.finish_reason == "length"
        times = (
            request.submitted_s, request.started_s, request.first_token_s,
            request.last_token_s, request.finished_s,
        )  # fmt: skip
        assert list(times) == sorted(times)


def test_a_long_prompt_does_not_stall_the_others(engine: Engine) -> None:
    """While 60 prompt tokens go in by pieces of 4, the running request goes on: 15 tokens."""
    order = []
    with Scheduler(engine, prefill_chunk=4) as scheduler:
        started = threading.Event()

        def first_token(token: int) -> None:
            order.append("short")
            started.set()
            # Until the long prompt is queued the short request must not run away.
            queued.wait(10)

        queued = threading.Event()
        short = scheduler.submit(make_request(1, max_tokens=40), first_token)
        assert started.wait(10)
        long = scheduler.submit(
            GenerationRequest(tuple(range(6, 66)), max_tokens=1), lambda _: order.append("long")
        )
        queued.set()
        assert short.wait(30) and long.wait(30)
    assert 14 <= order.index("long") <= 17


def test_stop_tokens_and_least_tokens(engine: Engine) -> None:
    free = engine.generate(make_request(3, max_tokens=8)).tokens
    stop = free[3]
    first = free.index(stop)
    with Scheduler(engine) as scheduler:
        stopped = scheduler.submit(make_request(3, max_tokens=8, stop_tokens=(stop,)))
        forced = scheduler.submit(make_request(3, max_tokens=8, stop_tokens=(stop,), min_tokens=8))
        assert stopped.wait(10) and forced.wait(10)
    assert (stopped.tokens, stopped.finish_reason) == (free[:first], "stop")
    assert len(forced.tokens) == 8 and stop not in forced.tokens


def test_the_end_token_ends_unless_it_is_ignored(engine: Engine) -> None:
    with torch.inference_mode():
        never = engine.generate(make_request(2, max_tokens=20, ignore_eos=True))
    engine.eos_tokens = frozenset(never.tokens[2:3])
    ended = engine.generate(make_request(2, max_tokens=20, ignore_eos=False))
    assert ended.finish_reason == "stop"
    assert ended.tokens == never.tokens[: never.tokens.index(never.tokens[2])]
    assert engine.generate(make_request(2, max_tokens=20)).tokens == never.tokens


def test_a_full_queue_refuses_and_a_cancelled_request_frees_its_slot(engine: Engine) -> None:
    submitted, hold = threading.Event(), threading.Event()

    def hold_once_all_run(token: int) -> None:
        submitted.wait(10)
        if scheduler.running == 3:
            hold.wait(10)

    with Scheduler(engine, queue_limit=2) as scheduler:
        running = [
            scheduler.submit(make_request(i, max_tokens=50), hold_once_all_run) for i in range(3)
        ]
        submitted.set()
        while scheduler.running < 3:
            time.sleep(0.001)
        waiting = [scheduler.submit(make_request(i)) for i in range(2)]
        with pytest.raises(QueueFull, match="2 requests wait already"):
            scheduler.submit(make_request(9))
        waiting[0].cancel()
        running[0].cancel()
        hold.set()
        assert all(request.wait(30) for request in (*running, *waiting))
    assert [request.finish_reason for request in running] == ["cancelled", "length", "length"]
    assert [request.finish_reason for request in waiting] == ["cancelled", "length"]
    assert not engine.core.filled.any()


def test_a_listener_that_fails_ends_its_own_request_only(engine: Engine) -> None:
    def broken(token: int) -> None:
        raise OSError("the client went away")

    with Scheduler(engine) as scheduler:
        lost = scheduler.submit(make_request(1), broken)
        other = scheduler.submit(make_request(2))
        assert lost.wait(10) and other.wait(10)
    assert (lost.finish_reason, lost.error) == (
        "error", "on_token failed: OSError: the client went away"
    )  # fmt: skip
    assert other.finish_reason == "length"


def test_a_failing_step_ends_its_requests_and_the_next_ones_run(engine: Engine) -> None:
    forward, calls = engine.core.forward, []

    def fail_once(*rows):
        calls.append(rows)
        if len(calls) == 2:
            raise ValueError("activations hold NaN")
        return forward(*rows)

    engine.core.forward = fail_once
    with Scheduler(engine) as scheduler:
        failed = scheduler.submit(make_request(1))
        assert failed.wait(10)
        assert (failed.finish_reason, failed.error) == ("error", "ValueError: activations hold NaN")
        assert scheduler.submit(make_request(2)).wait(10)


@pytest.mark.parametrize("error", [KeyError("gone"), NotFiniteError("the head")], ids=str)
def test_an_error_that_nobody_foresaw_ends_every_request_at_once(
    engine: Engine, error: Exception
) -> None:
    all_are_there = threading.Event()

    def fail(*rows):
        all_are_there.wait(10)
        raise error

    engine.core.forward = fail
    with Scheduler(engine) as scheduler:
        submitted = [scheduler.submit(make_request(i)) for i in range(5)]
        all_are_there.set()
        assert all(request.wait(10) for request in submitted)
        assert {request.finish_reason for request in submitted} == {"error"}
        assert type(error).__name__ in scheduler.failed
        with pytest.raises(RuntimeError, match="the engine has failed"):
            scheduler.submit(make_request(1))


def test_logits_that_are_not_finite_are_no_answer(engine: Engine) -> None:
    forward = engine.core.forward

    all_are_there = threading.Event()

    def spoil(*rows):
        all_are_there.wait(10)
        logits = forward(*rows)
        logits[-1, 5] = np.nan
        return logits

    engine.core.forward = spoil
    with Scheduler(engine) as scheduler:
        submitted = [scheduler.submit(make_request(i)) for i in range(3)]
        all_are_there.set()
        assert all(request.wait(10) for request in submitted)
    assert {request.finish_reason for request in submitted} == {"error"}
    assert not any(request.tokens for request in submitted)
    assert "NaN or Inf" in scheduler.failed


def test_close_drains_or_cancels(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    submitted = [scheduler.submit(make_request(i)) for i in range(5)]
    scheduler.close(drain=True)
    assert [request.finish_reason for request in submitted] == ["length"] * 5
    with pytest.raises(RuntimeError, match="closed"):
        scheduler.submit(make_request(1))
