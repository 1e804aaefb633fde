"""The rule that goes back by itself: its errors over a whole life, and what it compares."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.measure.anytime import ExcessBets
from workbench.serve.monitors import MOST_PENDING, BadShare
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.rollback_simulation import LIMITS, Life, simulate

NEEDED = float(np.log(20))


def test_capital_never_grows_on_average_at_the_limit() -> None:
    """All 2^12 sequences, each with its probability: the mean capital is 1, to rounding."""
    runs = 2**12
    bets = ExcessBets(0.3, runs)
    probability = np.ones(runs)
    for number in range(12):
        bad = (np.arange(runs) >> number) & 1
        probability = probability * np.where(bad, 0.3, 0.7)
        bets.take(bad)
    assert (probability * np.exp(bets.log_capital)).sum() == pytest.approx(1.0)


def test_false_alarms_and_what_is_found_of_every_monitor() -> None:
    """The old rule went back in 61 % of lives at 2 % of errors; its limit was 5 % too."""
    keep = (
        Life("errors", 0.02, weight=1.0), Life("errors", 0.02, 0.02, burst=0.6),
        Life("ttft", times=1.1), Life("ttft", times=1.0, weight=0.05, burst=5.0),
        Life("short", times=0.85), Life("long", times=1.2),
    )  # fmt: skip
    break_it = (
        Life("errors", 0.5, weight=1.0), Life("errors", 1.0, weight=0.05), Life("nan", 0.1),
        Life("errors", 1.0, weight=1.0, breaks_at=5000), Life("ttft", times=2.0),
        Life("tpot", times=2.0), Life("e2e", times=2.0), Life("short", times=0.1),
        Life("long", times=10.0), Life("returning", 0.5), Life("disagreement", 0.95),
        Life("unlikely", 0.5),
    )  # fmt: skip
    outcomes = simulate((*keep, *break_it), runs=40)
    kept, broken, together = outcomes[: len(keep)], outcomes[len(keep) : -1], outcomes[-1]
    assert {each.monitor for each in broken} == set(LIMITS)
    for each in kept:
        assert each.false_alarms is not None and each.false_alarms <= 0.05, each
    for each in broken:
        assert each.found == 1.0 and each.median_delay <= 500, each
    assert together.false_alarms <= 0.1, "each exactly at its limit; 2 of 40 at most, on average"


def test_one_error_among_the_first_ten_takes_nothing_back() -> None:
    monitor = RollbackRule().monitor()
    for number in range(10):
        monitor.arrived(number, True, 1.0)
        monitor.known("errors", number, number == 0)
        assert monitor.verdict() is None


def test_failures_that_come_before_the_answers_are_not_taken_for_all() -> None:
    """Of 200 requests under way at once 2 % fail at once; the others take their time."""
    monitor = RollbackRule().monitor()
    for number in range(200):
        monitor.arrived(number, True, 1.0)
    for number in range(0, 200, 50):
        monitor.known("errors", number, True)
        assert monitor.verdict() is None
    for number in range(200):
        monitor.known("errors", number, False)
    assert monitor.verdict() is None


def test_what_both_arms_suffer_takes_nothing_back() -> None:
    monitor = RollbackRule().monitor()
    for number in range(400):
        monitor.arrived(number, number % 2 == 0, 0.5)
        monitor.known("errors", number, number % 10 < 6)
        assert monitor.verdict() is None
    for number in range(400, 500):
        monitor.arrived(number, number % 2 == 0, 0.5)
        monitor.known("errors", number, number % 2 == 0)
    verdict = monitor.verdict()
    assert verdict and "of the other arm's; the share may be at most 0.05 more" in verdict


def test_evidence_waits_for_the_other_arm_s_answers_alone() -> None:
    share = BadShare("failed", 0.05)
    share.arrived("waits", False, 0.5)
    for number in range(20):
        share.arrived(number, True, 0.5)
        share.known(number, True)
    assert share.log_capital() < NEEDED
    share.known("waits", False)
    assert share.log_capital() >= NEEDED


def test_requests_that_hang_are_not_remembered_for_ever() -> None:
    share = BadShare("failed", 0.05)
    for number in range(3 * MOST_PENDING):
        share.arrived(number, True, 1.0)
    assert len(share._pending) <= MOST_PENDING


def test_every_monitor_finds_what_it_is_for_and_says_it() -> None:
    """The candidate answers half of the requests; all that is bad about it is one thing."""
    says = {
        "errors": "requests failed",
        "nan": "gave no finite numbers",
        "ttft": "had no first token within 1.5 times what is usual",
        "tpot": "took longer for a token than 0.2 s",
        "e2e": "had no whole answer within",
        "short": "less than half of what is usual",
        "long": "more than twice what is usual, or up to their limit",
    }
    for name, words in says.items():
        monitor = RollbackRule(tpot_s=0.2).monitor(compares=True, pairs=True)
        assert set(monitor.report()) == set(LIMITS)
        for number in range(200):
            candidate = number % 2 == 0
            monitor.arrived(number, candidate, 0.5)
            for each in monitor.shares:
                monitor.known(each, number, candidate and each == name)
            if verdict := monitor.verdict():
                break
        assert verdict and words in verdict and number < 80
    for name, words in (("disagreement", "0.9 of the answers differs"), ("unlikely", "1 nats")):
        monitor = RollbackRule().monitor(compares=True, pairs=True)
        for _ in range(60):
            monitor.compared(name, 0.9)
        assert words in str(monitor.verdict())


def test_a_monitor_alone_and_all_together_take_the_same_capital_to_go_back() -> None:
    """Ten monitors share the capital; what one of them makes of a tenth has to be ten times as
    much."""
    alone, among = RollbackRule().monitor(), RollbackRule().monitor(compares=True, pairs=True)
    taken = {}
    for name, monitor in (("alone", alone), ("among", among)):
        for number in range(20):
            monitor.arrived(number, True, 1.0)
            monitor.known("errors", number, True)
            if monitor.verdict():
                break
        taken[name] = number + 1
    assert taken["alone"] < taken["among"] <= taken["alone"] + 3
