"""Conservation: windows, idle and unattributed time of a session add up, or it is said loudly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.measure.meters import EnergySession
from workbench.measure.meters.balance import TOLERANCE, Stretches, balance
from workbench.measure.meters.basis import BasisEnergy, bases
from workbench.measure.meters.clock import SteppedClock
from workbench.measure.meters.pulse import IdlePower, pulse_energy, uneven_time_s
from workbench.measure.meters.response import Response
from workbench.measure.meters.sample import Channel, Sample
from workbench.measure.meters.window import window_energy

POWER = Channel("csv", "a", "node", "power")
COUNTER = Channel("rapl", "package-0", "cpu", "energy", period_s=0.001, wraps_at_j=2000.0)


def figure_of(channel, times_s, values):
    def figure(start_s, end_s):
        reading = window_energy(channel, times_s, values, start_s, end_s, 3.0)
        (basis,) = bases([channel])
        return BasisEnergy(basis, reading.energy_j, reading.error_j, reading.bias_j)

    return figure


def balanced(channel, times_s, values, work, rests):
    stretches = Stretches(float(times_s[0]), float(times_s[-1]), tuple(work), tuple(rests))
    (basis,) = bases([channel])
    figure = figure_of(channel, times_s, values)
    return balance(basis, {channel: (times_s, values)}, stretches, 3.0, figure)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rate_hz=st.sampled_from([0.7, 1.0, 5.0, 50.0]),
    pieces=st.integers(1, 12),
    counter=st.booleans(),
)
def test_windows_idle_and_the_rest_are_the_session_within_a_thousandth(
    seed, rate_hz, pieces, counter
):
    random = np.random.default_rng(seed)
    times_s = np.cumsum(random.uniform(0.5, 1.5, 400) / rate_hz)
    watts = random.uniform(50, 500, 400)
    grown_j = np.concatenate([[0.0], np.cumsum((watts[1:] + watts[:-1]) / 2 * np.diff(times_s))])
    channel, values = (COUNTER, grown_j % 2000.0) if counter else (POWER, watts)
    edges_s = np.sort(random.uniform(times_s[0], times_s[-1], 2 * pieces)).reshape(-1, 2)
    kinds = random.random(pieces) < 0.5
    work = [tuple(edge) for edge, is_work in zip(edges_s, kinds, strict=True) if is_work]
    rests = [tuple(edge) for edge, is_work in zip(edges_s, kinds, strict=True) if not is_work]
    found = balanced(channel, times_s, values, work, rests)
    if found.reason:
        assert found.reason.startswith(("gap", "counter_reset"))
        return
    assert found.problem == ""
    parts = found.work_j + found.idle_j + found.unattributed_j
    assert parts == pytest.approx(found.whole_j, rel=TOLERANCE)
    assert found.whole_j == pytest.approx(grown_j[-1], rel=TOLERANCE)
    assert found.work_j + found.idle_j <= found.whole_j * (1 + TOLERANCE)


def test_a_joule_that_is_counted_twice_is_found():
    times_s = np.arange(0.0, 100.0)
    watts = np.full(100, 200.0)
    twice = balanced(POWER, times_s, watts, [(10, 40), (30, 60)], [])
    assert "are 21800 J together, the session 19800 J" in twice.problem
    # A log that has become later than the step test found it: its windows show what was before.
    (basis,) = bases([POWER])
    stretches = Stretches(0.0, 99.0, ((10.0, 90.0),), ())
    series = {POWER: (times_s, watts)}
    more = balance(basis, series, stretches, 3.0, lambda *_: BasisEnergy(basis, 25_000.0, 100.0))
    assert "are 25000 J together (error 100 J), more than the session's 19800 J" in more.problem


def test_windows_that_overlap_are_refused_at_once():
    session = EnergySession([], clock=SteppedClock())
    session.worked(1.0, 2.0)
    session.worked(2.0, 3.0)
    with pytest.raises(ValueError, match=r"2\.500 to 4\.000 s overlaps with 2\.000 to 3\.000 s"):
        session.worked(2.5, 4.0)


class Steps:
    """A log of ``watts`` by the clock: mean of the second that ended ``lag_s`` ago, each second."""

    reader, notes = "csv", ()

    def __init__(self, clock, lag_s=0.0):
        self.clock, self.lag_s, self.changes, self.next_s = clock, lag_s, [(-100.0, 100.0)], 0.0
        self.channel = Channel("csv", "pdu", "node", "power")

    def draw(self, watts):
        self.changes.append((self.clock.monotonic_s(), watts))

    def joules(self, until_s):
        ends_s = [at_s for at_s, _ in self.changes[1:]] + [np.inf]
        return sum(
            watts * (min(end_s, until_s) - at_s)
            for (at_s, watts), end_s in zip(self.changes, ends_s, strict=True)
            if at_s < until_s
        )

    def read(self):
        found = []
        while self.next_s <= self.clock.monotonic_s():
            to_s = self.next_s - self.lag_s
            watts = self.joules(to_s) - self.joules(to_s - 1.0)
            found.append(Sample(self.channel, self.next_s, self.next_s, watts))
            self.next_s += 1.0
        return found

    def close(self):
        pass


def test_bursts_between_two_pauses_have_their_energy_through_a_late_and_averaged_log():
    clock = SteppedClock()
    log = Steps(clock, lag_s=2.0)
    with EnergySession([log], clock=clock) as session:

        def load():
            log.draw(250.0)
            clock.sleep(0.5)
            log.draw(100.0)

        session.learn(load)
        session.rest()
        session.pause()
        start_s = session.now()
        for seconds, watts in (
            (0.3, 400.0),
            (2.2, 100.0),
            (0.9, 350.0),
            (2.6, 120.0),
            (1.0, 420.0),
        ):
            log.draw(watts)
            clock.sleep(seconds)
        log.draw(100.0)
        end_s = session.now()
        session.worked(start_s, end_s, apart=True)
        session.pause()
        session.rest()
        (apart,) = session.energies(start_s, end_s, apart=True)
        (as_a_turn,) = session.energies(start_s, end_s)
        (kept,) = session.conserved()
    true_j = log.joules(end_s) - log.joules(start_s)
    assert apart.energy_j == pytest.approx(true_j, abs=apart.error_j)
    assert apart.energy_j == pytest.approx(true_j, rel=0.01)
    # A row a second leaves the averaging open by about as much; were it short, bursts were missed.
    assert apart.error_j < 0.4 * true_j
    assert abs(apart.energy_j - true_j) < abs((as_a_turn.energy_j or 0.0) - true_j)
    assert kept.problem == kept.reason == ""
    assert kept.work_j == apart.energy_j
    assert kept.unattributed_j > 0


def test_rows_that_cover_the_time_evenly_miss_nothing():
    assert uneven_time_s(Response(0, 3.0), 1.0) == pytest.approx(0.0, abs=1e-12)
    assert uneven_time_s(Response(0, 0.0), 2.0) == pytest.approx(2.0, rel=0.01)
    assert uneven_time_s(Response(0, 0.5), 1.0) == pytest.approx(0.5)
    assert uneven_time_s(Response(0, 3.0, 0, 0.5), 1.0) == pytest.approx(0.25 / 2.5, rel=0.1)


def test_a_pulse_without_pauses_in_the_log_has_no_number():
    idle = IdlePower(100.0, 1.0, 1.0)
    times_s = np.arange(20.0)

    def pulse(start_s, end_s, times_s=times_s):
        watts = np.full(len(times_s), 100.0)
        return pulse_energy(POWER, times_s, watts, start_s, end_s, 3.0, Response(0, 2.0), idle)

    assert pulse(5.0, 12.0).energy_j == pytest.approx(700.0)
    assert pulse(0.5, 12.0).reason == pulse(5.0, 18.0).reason == "not_bracketed"
    assert pulse(5.0, 6.2).reason == "too_short" and "at least" in pulse(5.0, 6.2).text
    assert pulse(3.0, 12.0, np.delete(times_s, [7, 8, 9, 10])).reason == "gap"
    assert pulse(5.0, 12.0, np.sort(np.concatenate([times_s, times_s]))).reason == "repeated"
