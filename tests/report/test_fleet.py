"""How many accelerators carry the same load."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.pilot.sections.profile_load import Slo
from workbench.planner.costs import ReplicaCosts
from workbench.planner.rates import ReplicaRate
from workbench.planner.simulation import StepCosts
from workbench.report.fleet import FLUID, WHOLE, fleet_metrics

SLO = Slo(tpot_ms=100.0)


PREFILL = {"full_precision": 0.5, "ternary": 0.45}
DECODE = {("full_precision", 8): 4.0, ("ternary", 8): 2.5}


def test_prefill_and_decode_count_by_the_load_s_mix(tmp_path: Path, timed_load) -> None:
    """Decode alone is 1.6 times as fast: 5.0 of 8. With the prompts of this load a request takes
    0.45 s + 0.25 s = 0.70 s for 0.5 s + 0.4 s = 0.90 s: 8 x 0.70 / 0.90 = 6.2, whole 7."""
    fluid, whole = fleet_metrics(timed_load(tmp_path, PREFILL, DECODE), 8, SLO)
    assert fluid.name == FLUID
    assert fluid.value == pytest.approx(8 * 0.70 / 0.90)
    assert (fluid.lo, fluid.hi) == pytest.approx((fluid.value, fluid.value))
    assert (whole.name, whole.value, whole.lo, whole.hi) == (WHOLE, 7, 7, 7)
    assert whole.kind == "derived"
    assert whole.labels == {"arm": "ternary", "batch": "8", "source": "trained"}
    assert "peak of 3 requests/s full_precision keeps 2.7 busy" in fluid.how


def rates_of(full: float, ternary: float, **ternary_ends: float) -> dict[str, ReplicaRate]:
    """What a replica of each carries, 1/s, each fitted to 300 requests."""
    steps = StepCosts((1.0,), (0.01,), 0.001)
    found = {
        "full_precision": ReplicaRate(
            ReplicaCosts("full_precision", steps, 4, 64, fitted=300), full, 0.98 * full,
            1.02 * full, (0.5, 0.7, 0.9, 1.0), 0.8,
        ),
        "ternary": ReplicaRate(
            ReplicaCosts("ternary", steps, 4, 64, fitted=300), ternary,
            cells=(0.6, 0.8, 0.9, 1.0), busy=0.8, **ternary_ends,
        ),
    }  # fmt: skip
    return found


def test_the_fleet_is_the_simulation_s_where_every_arm_was_replayed(
    tmp_path: Path, timed_load
) -> None:
    """Eight that carry 0.5 each carry 4; ternary carries 0.8: five of them. The rates' errors of
    2 % and 3 % together are sqrt(13) = 3.6 %."""
    records = timed_load(tmp_path, PREFILL, DECODE)
    rates = rates_of(0.5, 0.8, lo=0.8 / 1.03, hi=0.8 * 1.03)
    fluid, whole = fleet_metrics(records, 8, SLO, rates=rates)
    assert fluid.value == pytest.approx(5.0) and whole.value == 5
    assert (fluid.lo, fluid.hi) == (pytest.approx(4.82, abs=0.01), pytest.approx(5.18, abs=0.01))
    assert (fluid.kind, fluid.labels) == ("modelled", {"arm": "ternary", "source": "trained"})
    assert "a replica of ternary can carry 0.8 requests/s by simulation" in fluid.how
    # Of two of today a cell is not whole: 2 x 0.7 x 0.5 = 0.7 a second, 0.48 of which one carries.
    few, _ = fleet_metrics(records, 2, SLO, rates=rates_of(0.5, 0.8))
    assert few.value == pytest.approx(1 + (0.7 - 0.48) / (1.28 - 0.48))
    assert few.lo is None and "too few blocks" in few.reason


def test_an_arm_that_no_rate_suits_leaves_all_to_the_machine_time(
    tmp_path: Path, timed_load
) -> None:
    records = timed_load(tmp_path, PREFILL, DECODE)
    fluid, _ = fleet_metrics(records, 8, SLO, rates=rates_of(0.5, 0.0))
    assert fluid.value == pytest.approx(8 * 0.70 / 0.90)
    assert "not by simulation: ternary keeps the targets at p99 at no rate" in fluid.how
    rates = rates_of(0.5, 0.8)
    del rates["ternary"]
    fluid, _ = fleet_metrics(records, 8, SLO, rates=rates)
    assert "not by simulation: ternary has no replay of the load" in fluid.how


def test_each_arm_is_used_at_the_batch_that_its_slo_allows(tmp_path: Path, timed_load) -> None:
    """At batch 16 a token of full precision comes every 16 x 0.8 s / 100 = 128 ms, too late; of
    ternary every 16 x 0.6 s / 100 = 96 ms."""
    decode = DECODE | {("full_precision", 16): 3.0, ("ternary", 16): 1.5}
    fluid, _ = fleet_metrics(timed_load(tmp_path, PREFILL, decode), 8, SLO)
    assert fluid.labels["batch"] == "16"
    assert fluid.value == pytest.approx(8 * 0.60 / 0.90)
    assert "ternary (batch 16) over that of full_precision (batch 8)" in fluid.how


def test_an_arm_that_keeps_the_slo_at_no_batch_has_no_number(tmp_path: Path, timed_load) -> None:
    records = timed_load(tmp_path, PREFILL | {"ternary": 3.0}, DECODE)
    fluid, _ = fleet_metrics(records, 8, SLO)
    assert fluid.value is None and "100 ms a token at no measured batch" in fluid.reason
    (none, _) = fleet_metrics(records, 8, Slo(tpot_ms=1.0))
    assert none.reason.startswith("full_precision keeps 1 ms a token at no measured batch")


def test_thirty_percent_of_eight_is_no_whole_node_saved(tmp_path: Path, timed_load) -> None:
    records = timed_load(tmp_path, {"full_precision": 0.5, "ternary": 0.49}, DECODE | {
        ("ternary", 8): 3.8})  # fmt: skip
    fluid, whole = fleet_metrics(records, 8, SLO)
    assert fluid.value < 8
    assert whole.value == 8


def test_a_processor_says_nothing_of_accelerators(tmp_path: Path, timed_load) -> None:
    for metric in fleet_metrics(timed_load(tmp_path, PREFILL, DECODE, "cpu"), 4, SLO):
        assert metric.value is None and "says nothing of accelerators" in metric.reason


def test_more_than_today_s_accelerators_carry_is_said(tmp_path: Path, timed_load) -> None:
    fluid, _ = fleet_metrics(timed_load(tmp_path, PREFILL, DECODE), 2, SLO)
    assert "more than the 2 that are said to carry it" in fluid.how


def test_without_a_fleet_nothing_and_without_measurements_a_reason(
    tmp_path: Path, timed_load
) -> None:
    records = timed_load(tmp_path, PREFILL, DECODE)
    assert fleet_metrics(records, None, SLO) == []
    assert {m.reason for m in fleet_metrics({}, 8, SLO)} == {"no arms were measured"}
    del records["profile_load"]
    assert "no load profile" in fleet_metrics(records, 8, SLO)[0].reason
