"""A fleet keeps its targets with as few replicas as it needs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from workbench.pilot.sections.profile_load import Slo
from workbench.planner import costs as costs_module
from workbench.planner import fleet as fleet_module
from workbench.planner.costs import ReplicaCosts, agreement, fitted_costs, turn_costs
from workbench.planner.fleet import RequestMix, largest_rate, planned, seen_by_clients
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
    most = largest_rate(COSTS, LOAD, SLO)
    assert seen_by_clients(COSTS, LOAD, 4 * most, 4).keeps(SLO)
    assert not seen_by_clients(COSTS, LOAD, 4 * 1.05 * most, 4).keeps(SLO)
    for rate in (0.3 * most, 2.5 * most, 90 * most):
        found = planned(COSTS, LOAD, SLO, rate, most)
        assert found.replicas >= rate / most - 1e-9
        if found.replicas < 4:
            assert found.seen.keeps(SLO)
    assert planned(COSTS, LOAD, SLO, 90 * most, most).replicas == 90
    assert planned(COSTS, LOAD, SLO, 1e9 / 86_400, most).replicas == pytest.approx(
        1e9 / 86_400 / most, abs=1
    )


def test_a_target_that_a_request_alone_misses_has_no_fleet():
    slo = Slo(tpot_ms=5.0)
    assert largest_rate(COSTS, LOAD, slo) == 0.0
    found = planned(COSTS, LOAD, slo, 100.0, 0.0)
    assert found.replicas is None and found.seen is None


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
