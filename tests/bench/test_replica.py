"""The bench of a simulated replica beside real ones, with replicas whose costs are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workbench.bench import replica as bench
from workbench.bench.replica import (
    Measured,
    arrivals_of,
    bench_replica,
    block_of,
    rate_for,
    replay_of,
    timed_costs,
)
from workbench.errors import ConfigError
from workbench.planner.costs import ReplicaCosts, ServedReplay
from workbench.planner.simulation import StepCosts
from workbench.serve.replay import Outcome

ALONE = ReplicaCosts("replica", StepCosts((1, 4), (0.004, 0.007), 0.0005), slots=4, chunk=64)


def played(costs: ReplicaCosts, rate: float, seed: int, replicas: int) -> ServedReplay:
    """A block as replicas of exactly these costs answer it."""
    load = arrivals_of(block_of(rate, 60, seed))
    found = costs.serve(load, replicas)
    return ServedReplay([load], [found.ttft_s], [found.e2e_s])


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_replica_that_is_the_simulated_one_is_foretold(replicas):
    """It steps 1.3 times as slow as alone; a block is in one half only."""
    true = replace(ALONE, factor=1.3, intake_s=0.002, answer_s=0.004)
    rate = rate_for(true, replicas, 0.5)
    blocks = [played(true, rate, seed, replicas) for seed in range(8)]
    rows = Measured(ALONE, replicas, rate, blocks).rows()
    assert [row["name"] for row in rows] == [
        f"replica {latency} p{q}" for latency in ("ttft", "e2e") for q in (50, 90, 99)
    ]
    for row in rows:
        assert row["value"] == pytest.approx(1.0, abs=0.05), row
        assert row["lo"] <= row["value"] <= row["hi"] and row["requests"] == 240
        assert row["factor"] == pytest.approx(1.3, rel=0.05)
    assert {row["other_half"] for row in rows} != {1.0}


def test_halves_that_differ_are_said_to_and_missed():
    """Every second block is served by a replica half as quick."""
    rate = rate_for(ALONE, 1, 0.4)
    slow = replace(ALONE, factor=2.0)
    blocks = [played(slow if seed % 2 else ALONE, rate, seed, 1) for seed in range(8)]
    for row in Measured(ALONE, 1, rate, blocks).rows():
        assert row["value"] < 0.7 and row["other_half"] < 0.7 and row["hi"] < 0.9


def test_the_rate_keeps_a_replica_as_busy_as_it_is_asked_to():
    for replicas in (1, 2):
        rate = rate_for(ALONE, replicas, 0.5)
        found = ALONE.serve(arrivals_of(block_of(rate, 2000, 1)), replicas)
        assert found.busy_s / (replicas * found.span_s) == pytest.approx(0.5, abs=0.04)


def test_requests_are_as_the_server_counted_them():
    outcomes = [
        Outcome(
            1, "interactive", 0.5, 0.6, 30, 4, first_token_s=0.9, last_token_s=1.6,
            output_tokens=4, status="ok", counted_prompt_tokens=31,
        )
    ]  # fmt: skip
    found = replay_of(outcomes)
    assert (found.ttft[0][0], found.e2e[0][0]) == pytest.approx((0.3, 1.0))
    assert (found.loads[0].prompt[0], found.loads[0].output[0]) == (31, 4)


def test_steps_are_timed_at_each_number_of_rows(monkeypatch):
    """On a clock that each step turns by what it costs."""
    clock = [0.0]

    class Stepped:
        slots, vocab_size, prefill_rows = 4, 100, 256

        def prefill(self, slot, tokens):
            clock[0] += 0.0005 * len(tokens)

        def decode(self, slots, tokens):
            clock[0] += ALONE.steps.step_s(len(slots), 0)

        def release(self, slot):
            pass

    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    found = timed_costs(Stepped())
    assert found.steps.rows == (1.0, 2.0, 3.0, 4.0) and (found.slots, found.chunk) == (4, 64)
    assert np.array(found.steps.decode_s) == pytest.approx([0.004, 0.005, 0.006, 0.007])
    assert found.steps.prompt_s == pytest.approx(0.0005)


def test_too_few_requests_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="2 blocks of 10 requests"):
        bench_replica(tmp_path, blocks=2, requests=10)
