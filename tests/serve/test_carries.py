"""Carries your load: yes, no, or not measured, and never more than the replay can say."""

from __future__ import annotations

import pytest

from workbench.measure.statistics import Estimate
from workbench.serve.carries import Capacity, Carries, carries
from workbench.serve.replay import Outcome

AMPLE = Capacity(90.0, 100.0)


def share(value: float, lo: float | None, hi: float | None) -> dict[str, Estimate]:
    return {"interactive": Estimate(value, lo, hi, 500, "")}


def asked(pace: float, met: dict[str, Estimate], capacity: Capacity = AMPLE, **more) -> Carries:
    return carries(pace, 10.0, capacity, met, **{"cut_share": 0.0, "wanted_share": 0.95} | more)


def test_only_a_replay_at_the_loads_own_rate_says_yes() -> None:
    good = share(0.99, 0.97, 1.0)
    assert asked(1.0, good) == Carries("yes", "met", 1.0)
    assert asked(0.31, good) == Carries("not_measured", "slower", 0.31)
    assert asked(1.0, good, cut_share=0.2) == Carries("not_measured", "cut", 1.0)
    assert asked(1.0, {}) == Carries("not_measured", "no_target", 1.0)


def test_a_late_client_measures_nothing() -> None:
    for met in (share(0.99, 0.97, 1.0), share(0.5, 0.4, 0.6)):
        assert asked(1.0, met, late=True) == Carries("not_measured", "late", 1.0)


def test_missed_targets_say_no_at_the_loads_rate_or_below_it() -> None:
    bad = share(0.5, 0.4, 0.6)
    assert asked(0.31, bad) == Carries("no", "missed", 0.31)
    assert asked(1.0, share(0.99, 0.97, 1.0) | {"batch": bad["interactive"]}).answer == "no"
    assert asked(3.0, bad) == Carries("not_measured", "open", 3.0), "three times the load"


@pytest.mark.parametrize("met", [share(0.96, 0.93, 0.98), share(1.0, None, None)])
def test_an_interval_that_crosses_or_is_missing_says_nothing(met) -> None:
    assert asked(1.0, met) == Carries("not_measured", "open", 1.0)


def test_an_arm_that_cannot_complete_the_mean_rate_does_not_carry_it() -> None:
    answer = asked(0.4, share(1.0, 0.97, 1.0), Capacity(5.0, 8.0))
    assert answer == Carries("no", "capacity", pytest.approx(0.8))
    assert asked(0.4, share(1.0, 0.97, 1.0), Capacity(8.0, 11.0)).answer == "not_measured"


def test_the_bound_of_a_burst_is_where_the_slots_stop_being_all_busy() -> None:
    """Two slots, six requests of 1 s and a last one of 5 s that runs alone: the full server did
    two a second, the burst looks like 0.78."""
    ends = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 8.0]
    outcomes = [
        Outcome(i, "batch", 0.0, 10.0, 8, 4, "hybrid", 10.5, 10 + end, 10 + end, 4, "ok")
        for i, end in enumerate(ends)
    ]
    capacity = Capacity.of(outcomes, took_s=9.0, slots=2)
    assert capacity.per_s == pytest.approx(7 / 9)
    assert capacity.at_most_per_s == pytest.approx(7 / 3)
