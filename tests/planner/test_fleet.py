"""A fleet keeps its targets with as few replicas as it needs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from workbench.economics.replicas import rate_carried, replicas_needed
from workbench.pilot.sections.profile_load import Slo
from workbench.planner import costs as costs_module
from workbench.planner import fleet as fleet_module
from workbench.planner.costs import (
    ReplicaCosts,
    ServedReplay,
    agreement,
    fitted_costs,
    turn_costs,
)
from workbench.planner.fleet import RequestMix, largest_rate, planned, seen_by_clients
from workbench.planner.rates import replica_rate
from workbench.planner.simulation import StepCosts

LOAD = RequestMix(
    pd.DataFrame({"prompt_tokens": [40, 120, 400], "output_tokens": [60, 20, 90]}), 1.3
)
COSTS = ReplicaCosts("ternary", StepCosts((1, 8), (0.010, 0.024), 0.0004), slots=8, chunk=64)
SLO = Slo(ttft_ms=800.0, tpot_ms=60.0)


@pytest.fixture(autouse=True)
def _short_simulations(monkeypatch):
    monkeypatch.setattr(fleet_module, "REQUESTS", 800)


def test_the_draw_has_the_load_s_rate_scatter_and_pairs():
    drawn = LOAD.arrivals(5.0, 40_000, seed=1)
    gaps = np.diff(drawn.start_s)
    assert 1 / gaps.mean() == pytest.approx(5.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.3, rel=0.03)
    assert set(zip(drawn.prompt, drawn.output, strict=True)) == {(40, 60), (120, 20), (400, 90)}


def test_replicas_are_the_fewest_that_keep_the_targets():
    rate = replica_rate(COSTS, LOAD, SLO)
    most = rate.per_s
    assert seen_by_clients(COSTS, LOAD, 4 * most, 4).keeps(SLO)
    assert not seen_by_clients(COSTS, LOAD, 4 * 1.05 * most, 4).keeps(SLO)

    def replicas(at: float) -> int:
        found = planned(COSTS, LOAD, at, most, rate.cells)
        assert found.seen.keeps(SLO), at
        return found.replicas

    assert replicas(90 * most) == 90
    large = planned(COSTS, LOAD, 1e9 / 86_400, most, rate.cells)
    assert large.replicas == pytest.approx(1e9 / 86_400 / most, abs=1)
    # One alone evens out less than one of four, so it carries less: a small fleet needs one more.
    alone, pair = rate.cells[:2]
    assert 0.3 < alone < pair < 1.0 and rate.cells[-1] == 1.0
    assert not seen_by_clients(COSTS, LOAD, 1.02 * alone * most, 1).keeps(SLO)
    assert replicas(0.99 * alone * most) == 1 and replicas(1.01 * alone * most) == 2
    assert replicas(2 * 0.99 * pair * most) == 2 and replicas(2 * 1.01 * pair * most) == 3


def test_a_fleet_and_what_it_carries_are_one_function_read_both_ways():
    cells = (0.6, 0.8, 0.95, 1.0)
    rates = np.linspace(0.1, 40.0, 200)
    count = replicas_needed(rates, 3.0, cells)
    assert rate_carried(count, 3.0, cells) == pytest.approx(rates)
    assert (np.diff(count) > 0).all()
    assert replicas_needed(1.8, 3.0, cells) == pytest.approx(1.0)
    assert replicas_needed(30.0, 3.0, cells) == pytest.approx(10.0)


def test_a_target_that_a_request_alone_misses_has_no_fleet():
    slo = Slo(tpot_ms=5.0)
    assert replica_rate(COSTS, LOAD, slo).per_s == 0.0
    found = planned(COSTS, LOAD, 100.0, 0.0, ())
    assert found.replicas is None and found.seen is None


def test_a_rate_is_as_sure_as_the_replay_s_blocks_are_alike():
    """Blocks that take 1.0 and 1.2 times as long in turn: the rate's interval is theirs."""
    served = ServedReplay.of(replay_of(COSTS, 8), "ternary")
    served.e2e[::2] = [1.2 * block for block in served.e2e[::2]]
    slower = served.measured_over_simulated(COSTS)
    assert slower.value == pytest.approx(1.2**0.5)
    rate = replica_rate(COSTS, LOAD, SLO, replay=served)
    assert rate.hi / rate.lo == pytest.approx(slower.hi / slower.lo)
    assert rate.lo < rate.per_s < rate.hi < 1.2 * rate.per_s
    few = replica_rate(COSTS, LOAD, SLO, replay=ServedReplay.of(replay_of(COSTS, 4), "ternary"))
    assert few.lo is None and few.per_s == rate.per_s


def test_a_cheaper_step_needs_fewer_replicas_and_an_intake_holds_all_up():
    dense = dataclasses.replace(COSTS, steps=COSTS.steps.scaled(2.0))
    assert largest_rate(dense, LOAD, SLO) < 0.6 * largest_rate(COSTS, LOAD, SLO)
    slow = dataclasses.replace(COSTS, intake_s=1.0)
    assert largest_rate(slow, LOAD, SLO) < 1.0


def blocks_of(costs: StepCosts, arm: str = "ternary") -> pd.DataFrame:
    """As ``measure_ab`` times them."""
    rows = []
    for block in range(4):
        for batch in (1, 8):
            prompt, output = 100 * batch, 20 * batch
            decode_s = 20 * costs.step_s(batch, 0)
            for phase, seconds, tokens in (
                ("prefill", prompt * costs.prompt_s, prompt), ("decode", decode_s, output),
            ):  # fmt: skip
                rows.append((block, arm, f"batch_{batch}", phase, seconds, tokens))
    return pd.DataFrame(rows, columns=["block", "arm", "class", "phase", "seconds", "tokens"])


def replay_of(costs: ReplicaCosts, blocks: int = 4) -> pd.DataFrame:
    """As a replay leaves it, of a replica that is exactly this one."""
    rows = []
    for block in range(blocks):
        load = LOAD.arrivals(4.0, 60, seed=block)
        found = costs.serve(load)
        rows.append(pd.DataFrame({
            "arm": costs.arm, "block": block, "status": "ok", "sent_s": load.start_s,
            "first_token_s": found.first_s, "last_token_s": found.last_s,
            "prompt_tokens": load.prompt, "output_tokens": load.output,
        }))  # fmt: skip
    return pd.concat(rows)


def test_turns_give_the_costs_of_steps_again():
    found = turn_costs(blocks_of(COSTS.steps), "ternary", 8)
    assert found.steps.rows == (1.0, 8.0) and found.chunk == 64
    assert found.steps.decode_s == pytest.approx(COSTS.steps.decode_s)
    assert found.steps.prompt_s == pytest.approx(COSTS.steps.prompt_s)
    with pytest.raises(costs_module.ConfigError, match="int4: no turn of it was timed in batches"):
        turn_costs(blocks_of(COSTS.steps), "int4", 8)


def test_a_replay_tells_what_serving_adds_and_foretells_the_blocks_left_out():
    """The true replica steps 1.4 times as slow as alone, takes 4 ms in and 9 ms on the way."""
    true = dataclasses.replace(COSTS, factor=1.4, intake_s=0.004, answer_s=0.009)
    blocks, replay = blocks_of(COSTS.steps), replay_of(true)
    found = fitted_costs(blocks, replay, "ternary", 8)
    assert found.factor == pytest.approx(1.4, rel=0.03) and found.fitted == 240
    assert found.intake_s + found.answer_s == pytest.approx(0.013, abs=0.01)
    checks = agreement(blocks, replay, "ternary", 8)
    assert [(c.latency, c.quantile) for c in checks] == [
        (latency, q) for latency in ("ttft", "e2e") for q in (0.5, 0.9, 0.99)
    ]
    assert all(abs(check.off) < 0.05 for check in checks)
    assert agreement(blocks, replay[replay["block"] < 1], "ternary", 8) == []
    assert fitted_costs(blocks, replay.head(5), "ternary", 8).fitted == 0


def test_a_fit_never_takes_the_steps_for_nothing() -> None:
    """Requests whose latency is all on the way would promise a replica without limit."""
    true = dataclasses.replace(COSTS, factor=0.01, intake_s=0.05, answer_s=0.05)
    found = fitted_costs(blocks_of(COSTS.steps), replay_of(true), "ternary", 8)
    assert 0.5 <= found.factor < 1.0 and found.fitted > 0
