"""The phases: where they begin and end, what each ramp and rate is at its ends."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from pydantic import ValidationError

from workbench.pilot.sections.train import (
    Finetune,
    SecondStage,
    SubNormWarmup,
    ThresholdOn,
    Train,
    Warmup,
)
from workbench.train.schedule import Schedule, epoch_steps


def plan(arm: str = "ternary", **fields: object) -> Schedule:
    phases = {"warmup": Warmup(share=0.2), "threshold": ThresholdOn(share=0.2)}
    return Schedule(Train(**{"steps": 100, "lr_schedule": "constant"} | phases | fields), arm)


def test_phases_cover_all_steps_in_their_shares() -> None:
    schedule = plan(warmup=Warmup(share=0.25), threshold=ThresholdOn(share=0.35))
    phases = [schedule.at(step).phase for step in range(100)]
    assert [phases.count(p) for p in ("warmup", "threshold", "finetune")] == [25, 35, 40]
    assert phases == sorted(phases, key=["warmup", "threshold", "finetune"].index)


@pytest.mark.parametrize("ramp", ["linear", "exponential", "sigmoid"])
def test_a_ramp_rises_from_above_zero_to_exactly_one(ramp: str) -> None:
    schedule = plan(threshold=ThresholdOn(share=0.4, ramp=ramp))
    strengths = [schedule.at(step).strength for step in range(100)]
    inside = strengths[20:60]
    assert strengths[:20] == [0.0] * 20 and strengths[60:] == [1.0] * 40
    assert all(0 < a < b <= 1 for a, b in pairwise(inside))
    assert inside[-1] == pytest.approx(1.0, abs=1e-12) and inside[-1] <= 1.0
    middle = {"linear": 0.5, "sigmoid": 0.5, "exponential": 1 / (1 + math.exp(2.5))}
    assert inside[19] == pytest.approx(middle[ramp])


def test_no_ramp_and_no_phase_switch_on_at_once() -> None:
    assert plan(threshold=ThresholdOn(share=0.4, ramp="none")).at(20).strength == 1.0
    assert plan(threshold=ThresholdOn(share=0.0)).at(20).strength == 1.0
    everything = plan(warmup=Warmup(share=0.0), threshold=ThresholdOn(share=0.0))
    assert everything.at(0).phase == "finetune" and everything.at(0).strength == 1.0


def test_rates_and_decay_are_those_of_the_phase_and_the_arm() -> None:
    fields = {
        "lr": 1e-3,
        "ternary_lr": 4e-3,
        "lr_warmup_share": 0.0,
        "weight_decay": 0.05,
        "warmup": Warmup(share=0.2, lr_factor=0.5, weight_decay=0.2),
        "threshold": ThresholdOn(share=0.2, quantised_lr_factor=3.0, weight_decay=0.1),
        "finetune": Finetune(lr_factor=0.25, quantised_lr_factor=2.0),
    }
    ternary = plan(**fields)
    rates = [(m.lr, m.quantised_lr, m.weight_decay) for m in (ternary.at(s) for s in (0, 30, 99))]
    assert rates == [
        pytest.approx((2e-3, 2e-3, 0.2)),
        pytest.approx((4e-3, 12e-3, 0.1)),
        pytest.approx((1e-3, 2e-3, 0.0)),
    ]
    baseline = plan("full_precision", **fields)
    assert {baseline.at(step) for step in range(100)} == {baseline.at(0)}
    assert (baseline.at(0).lr, baseline.at(0).strength) == (1e-3, 0.0)
    assert (baseline.at(0).phase, baseline.at(0).weight_decay) == ("full_precision", 0.05)


def test_a_second_stage_has_its_own_peak_and_no_decay_across_the_phases() -> None:
    fields = {
        "lr": 1e-3,
        "lr_schedule": "linear",
        "lr_warmup_share": 0.0,
        "finetune": Finetune(lr_factor=0.5, weight_decay=0.3),
        "second_stage": SecondStage(lr=4e-4, from_share=0.6),
    }
    two, one = plan(**fields), plan(**fields | {"second_stage": SecondStage()})
    assert [two.at(step) for step in range(60)] == [one.at(step) for step in range(60)]
    assert {one.at(step).weight_decay for step in range(60, 100)} == {0.3}
    for step in range(60, 100):
        assert two.at(step).lr == pytest.approx(0.4 * one.at(step).lr)
        assert two.at(step).weight_decay == 0.0
    baseline = plan("full_precision", **fields)
    assert baseline.at(99) == plan("full_precision", **fields | {"second_stage": {}}).at(99)


def test_new_norms_get_a_phase_before_all_others() -> None:
    fields = {
        "lr_warmup_share": 0.0,
        "sub_norm_warmup": SubNormWarmup(share=0.3, lr_factor=0.2, weight_decay=0.7),
    }
    schedule = Schedule(plan(**fields).train, "ternary", new_norms=True)
    phases = [schedule.at(step).phase for step in range(100)]
    lengths = {name: phases.count(name) for name in dict.fromkeys(phases)}
    assert list(lengths.items()) == [
        ("sub_norm", 30),
        ("warmup", 20),
        ("threshold", 20),
        ("finetune", 30),
    ]
    first = schedule.at(29)
    assert (first.strength, first.weight_decay) == (0.0, 0.7)
    assert first.lr == first.quantised_lr == pytest.approx(0.2 * schedule.peak_lr)
    assert "sub_norm" not in {plan(**fields).at(step).phase for step in range(100)}


@pytest.mark.parametrize("down", ["cosine", "linear"])
def test_the_rate_warms_up_and_comes_down_to_its_final_share(down: str) -> None:
    schedule = plan(lr_schedule=down, lr_warmup_share=0.1, lr_final_factor=0.2)
    shapes = [schedule.shape(step) for step in range(100)]
    assert shapes[0] == pytest.approx(0.1) and shapes[9] == shapes[10] == 1.0
    assert all(a > b for a, b in pairwise(shapes[10:]))
    assert 0.2 < shapes[-1] < 0.22


def test_evaluations_are_evenly_spread_and_end_with_the_last_step() -> None:
    assert plan(evaluations=4).evaluation_steps == [25, 50, 75, 100]
    assert plan(steps=3, evaluations=9).evaluation_steps == [1, 2, 3]


def test_passes_over_the_corpus_are_evaluated_where_they_end() -> None:
    assert epoch_steps(steps=10, batch=4, per_pass=12, most=9) == [3, 6, 9]
    assert epoch_steps(steps=10, batch=4, per_pass=10, most=9) == [3, 5, 8, 10]
    assert epoch_steps(steps=10, batch=4, per_pass=41, most=9) == []
    assert epoch_steps(steps=100, batch=1, per_pass=10, most=4) == [30, 60, 90]


def test_phases_that_fill_all_steps_end_fully_on() -> None:
    halves = {"warmup": Warmup(share=0.5), "threshold": ThresholdOn(share=0.5)}
    for steps in range(2, 12):
        assert plan(steps=steps, **halves).at(steps - 1).strength == pytest.approx(1.0), steps


def test_shares_beyond_the_whole_are_refused() -> None:
    with pytest.raises(ValidationError, match="must not exceed 1"):
        Train(warmup=Warmup(share=0.7), threshold=ThresholdOn(share=0.4))
