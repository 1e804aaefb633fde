"""Counters that are late or renewed at intervals: what is left open is in the error."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.measure.meters import EnergySession
from workbench.measure.meters.clock import SteppedClock
from workbench.measure.meters.past import MeteredTurn, lag_from_turns
from workbench.measure.meters.sample import Channel
from workbench.measure.meters.window import window_energy
from workbench.measure.played import Machine, PlayedEngine, ScrapedCounter, Situation


def metered(lag_s, renewed_s, scraped_s, seed, learn=True, turn_s=40.0):
    """(What was learned, [(energy, its error, the truth)] of five turns of two powers)."""
    clock, random = SteppedClock(), np.random.default_rng(seed)
    machine = Machine(clock)
    clock.sleep(float(random.uniform(0, 1)))
    arms = [PlayedEngine(machine, random, 1.03, watts) for watts in (240.0, 200.0)]
    of = Situation(lag_s=lag_s, period_s=scraped_s)
    meter = ScrapedCounter(machine, of, random, renewed_s)
    with EnergySession([meter], max_gap_s=6.0, interval_s=0.5, clock=clock) as session:
        if learn:
            session.learn(lambda: arms[0].generate(None))
        session.rest()
        windows = []
        for turn in range(5):
            start_s = session.now()
            while session.now() < start_s + turn_s:
                arms[turn % 2].generate(None)
            windows.append((start_s, session.now()))
        session.rest()
        session.settle()
        found = [session.energies(*window)[0] for window in windows]
        true_j = [machine.mean_w(*window) * (window[1] - window[0]) for window in windows]
        assert not any(one.problem for one in session.conserved())
    learned = session.responses.get(meter.channel)
    return learned, [(e.energy_j, e.error_j, j) for e, j in zip(found, true_j, strict=True)]


@pytest.mark.parametrize(
    ("lag_s", "renewed_s", "scraped_s"),
    [(0.0, 0.1, 1.0), (1.5, 0.1, 1.0), (1.0, 1.0, 1.0), (0.5, 3.0, 1.0), (4.0, 2.0, 0.5)],
    ids=["fresh", "late", "beside the scrapes", "slower than they", "slow and late"],
)
def test_a_counter_s_lag_is_learned_and_its_error_holds_the_truth(lag_s, renewed_s, scraped_s):
    held, errors = [], []
    for seed in range(6):
        learned, found = metered(lag_s, renewed_s, scraped_s, seed)
        # Between two renewals it is, on the average, half of one older than its lag.
        assert abs(learned.lag_s - lag_s) < renewed_s + learned.lag_error_s + 0.1
        held += [abs(energy_j - true_j) <= error_j for energy_j, error_j, true_j in found]
        errors += [error_j / true_j for _, error_j, true_j in found]
    assert np.mean(held) >= 0.95
    assert np.median(errors) < 0.1


def test_taken_as_exact_a_late_counter_misses_the_truth():
    _, found = metered(4.0, 2.0, 0.5, 0, learn=False, turn_s=20.0)
    assert any(abs(energy_j - true_j) > error_j for energy_j, error_j, true_j in found)


def test_a_counter_that_shows_no_load_gives_no_figure():
    """It shows another machine, whose power stays the same."""
    clock = SteppedClock()
    elsewhere, here = Machine(clock), Machine(clock)
    engine = PlayedEngine(here, np.random.default_rng(0), 1.0, 240.0)
    meter = ScrapedCounter(elsewhere, Situation(), np.random.default_rng(1))
    with EnergySession([meter], interval_s=0.5, clock=clock) as session:
        said = session.learn(lambda: engine.generate(None))
        session.rest()
        clock.sleep(30.0)
        session.rest()
        (energy,) = session.energies(clock.now_s - 30.0, clock.now_s - 10.0)
    assert "saw no step between idle and load" in said[0]
    assert energy.energy_j is None and "saw no step" in energy.text


def test_a_coarse_counter_is_not_moved_and_its_step_is_its_error():
    coarse = Channel("snmp", "pdu", "node", "energy", resolution=3.6e5)
    assert coarse.coarse and not coarse.lag_unknown
    times_s = np.arange(0.0, 7200.0, 1.0)
    values = np.floor(400.0 * times_s / 3.6e5) * 3.6e5
    reading = window_energy(coarse, times_s, values, 100.0, 7000.0, 3.0)
    assert abs(reading.energy_j - 400.0 * 6900.0) <= reading.error_j
    assert reading.error_j >= 3.6e5


def test_the_lag_of_an_attached_counter_is_told_by_the_turns():
    powers = {"a": 400.0, "b": 300.0}
    turns = [MeteredTurn(30.0 * n, 30.0 * n + 29.0, "ab"[n % 2]) for n in range(12)]
    grid = np.arange(-30.0, 420.0, 0.01)
    watts = np.full(len(grid), 100.0)
    for turn in turns:
        watts[(grid >= turn.start_s) & (grid < turn.end_s)] = powers[turn.sort]
    joules = np.cumsum(watts) * 0.01
    times_s = np.arange(-20.0, 400.0, 1.0)
    found = lag_from_turns(times_s, np.interp(times_s - 2.5, grid, joules), turns)
    assert abs(found.lag_s - 2.5) <= found.lag_error_s
    assert found.lag_error_s < 0.5 and found.averaging_s == 0.0
