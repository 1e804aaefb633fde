"""The simulation takes the very steps that the engine's scheduler takes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from workbench.engine import scheduler as scheduler_module
from workbench.engine.request import GenerationRequest
from workbench.engine.scheduler import Scheduler
from workbench.planner.simulation import Arrivals, StepCosts, simulate

COSTS = StepCosts((1, 4, 8), (0.010, 0.016, 0.030), 0.0007, base_s=0.004)


class TimedEngine:
    """An engine whose steps compute nothing and take, on a clock of their own, what they cost."""

    eos_tokens = frozenset()

    def __init__(self, slots: int, costs: StepCosts) -> None:
        self.slots, self.costs, self.now_s, self.prefill_rows = slots, costs, 0.0, 256
        self._started: set[int] = set()

    def check_tokens(self, prompt, max_tokens) -> None:
        pass

    def release(self, slot: int) -> None:
        self._started.discard(slot)

    def step(self, tokens, slots, want) -> np.ndarray:
        decoding = sum(slot in self._started for slot in slots)
        self.now_s += self.costs.step_s(decoding, len(tokens) - decoding)
        self._started |= {slot for slot, wanted in zip(slots, want, strict=True) if wanted}
        return np.zeros((sum(want), 3), np.float32)


class SteppedScheduler(Scheduler):
    """The engine's scheduler, taken step by step instead of by a thread of its own."""

    def _loop(self) -> None:
        pass

    def round(self) -> None:
        self._admit()
        if self._running:
            self._step()


def by_the_scheduler(arrivals, costs, slots, chunk, replicas, monkeypatch):
    """First and last token of each request, s, with real schedulers in front of timed engines."""
    engines = [TimedEngine(slots, costs) for _ in range(replicas)]
    schedulers = [SteppedScheduler(e, queue_limit=10**6, prefill_chunk=chunk) for e in engines]
    monkeypatch.setattr(scheduler_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    clock, order = [0.0], list(range(replicas))
    submitted = []

    def run_until(place, until_s):
        engine, own = engines[place], schedulers[place]
        while (own.running or own.waiting) and engine.now_s < until_s:
            before = engine.now_s
            clock[0] = before + 0.0
            real_step = engine.step

            def step(tokens, slots, want, real_step=real_step, engine=engine):
                logits = real_step(tokens, slots, want)
                clock[0] = engine.now_s
                return logits

            engine.step = step
            own.round()
            engine.step = real_step

    for start, prompt, output in zip(
        arrivals.start_s, arrivals.prompt, arrivals.output, strict=True
    ):
        for place in range(replicas):
            run_until(place, start)
        place = min(order, key=lambda p: schedulers[p].running + schedulers[p].waiting)
        order.remove(place)
        order.append(place)  # as serve.replicas.Replicas has it
        if not schedulers[place].running + schedulers[place].waiting:
            engines[place].now_s = max(engines[place].now_s, float(start))
        request = GenerationRequest((1,) * int(prompt), max_tokens=int(output), ignore_eos=True)
        submitted.append(schedulers[place].submit(request))
    for place in range(replicas):
        run_until(place, np.inf)
    return (
        np.array([one.first_token_s for one in submitted]),
        np.array([one.last_token_s for one in submitted]),
    )


def some_load(count: int, rate_per_s: float, seed: int = 0) -> Arrivals:
    draw = np.random.default_rng(seed)
    return Arrivals(
        np.cumsum(draw.exponential(1 / rate_per_s, count)),
        draw.integers(1, 300, count),
        np.maximum(1, draw.geometric(1 / 30, count)),
    )


@pytest.mark.parametrize(
    ("slots", "chunk", "replicas", "rate"),
    [(1, 64, 1, 1.5), (4, 16, 1, 4.0), (8, 64, 1, 9.0), (4, 64, 2, 9.0), (4, 64, 3, 30.0)],
)
def test_every_token_comes_when_the_scheduler_gives_it(monkeypatch, slots, chunk, replicas, rate):
    load = some_load(150, rate, seed=slots + replicas)
    first, last = by_the_scheduler(load, COSTS, slots, chunk, replicas, monkeypatch)
    found = simulate(load, COSTS, slots=slots, chunk=chunk, replicas=replicas)
    assert found.first_s == pytest.approx(first, abs=1e-9)
    assert found.last_s == pytest.approx(last, abs=1e-9)


def test_a_lone_request_is_its_prompt_and_its_tokens():
    load = Arrivals(np.array([2.0]), np.array([600]), np.array([11]))
    found = simulate(load, COSTS, slots=4, chunk=64)
    # 600 tokens in pieces of 256, 256 and 88, each with the cost of a step in which none decodes
    assert found.ttft_s[0] == pytest.approx(600 * 0.0007 + 3 * 0.004)
    assert found.e2e_s[0] == pytest.approx(found.ttft_s[0] + 10 * 0.010)
    assert found.tpot_s[0] == pytest.approx(0.010)
    assert found.busy_s == pytest.approx(found.span_s) == pytest.approx(found.e2e_s[0])


def test_costs_are_straight_between_the_measured_batches_and_go_on_beyond():
    assert COSTS.step_s(2, 0) == pytest.approx(0.012)
    assert COSTS.step_s(12, 0) == pytest.approx(0.030 + 4 * 0.0035)
    assert COSTS.step_s(0, 100) == pytest.approx(0.074)
    assert COSTS.scaled(2.0).step_s(2, 10) == pytest.approx(2 * COSTS.step_s(2, 10))
    assert StepCosts((1,), (0.01,), 0.0).step_s(7, 0) == pytest.approx(0.01)


def test_a_queue_is_the_one_that_theory_knows():
    """One slot, constant service, Poisson arrivals: the mean wait of M/D/1, rho s / 2 (1 - rho)."""
    count, service_s, rho = 40_000, 0.1, 0.6
    draw = np.random.default_rng(1)
    start_s = np.cumsum(draw.exponential(service_s / rho, count))
    load = Arrivals(start_s, np.ones(count, int), np.ones(count, int))
    found = simulate(load, StepCosts((1,), (0.1,), service_s), slots=1, chunk=1)
    wait_s = (found.ttft_s - service_s)[1000:].mean()
    assert wait_s == pytest.approx(rho * service_s / (2 * (1 - rho)), rel=0.05)
    assert found.busy_s / found.span_s == pytest.approx(rho, rel=0.02)


def test_no_request_is_no_answer():
    none = np.array([])
    assert simulate(Arrivals(none, none, none), COSTS, slots=1, chunk=1).span_s == 0.0
