"""Metering of long work: pieces, attempts that were killed, and what becomes of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.measure.meters import EnergySession, MissingMeter
from workbench.measure.meters.clock import SteppedClock
from workbench.measure.meters.metering import COLUMNS, SEGMENT_S, Metering, metering_of
from workbench.measure.meters.sample import Channel, Sample
from workbench.stages.metered import trusted
from workbench.stages.train_qat_energy import training_energies

IDLE_W, WORK_W = 50.0, 200.0


class Counter:
    """A counter of what ``watts`` adds up to on the clock."""

    notes, reader = (), "rapl"

    def __init__(self, clock) -> None:
        self.clock, self.watts, self.joules, self.at_s = clock, IDLE_W, 0.0, clock.monotonic_s()
        self.channel = Channel("rapl", "package-0", "cpu", "energy", period_s=0.001)

    def read(self):
        now_s = self.clock.monotonic_s()
        self.joules += self.watts * (now_s - self.at_s)
        self.at_s = now_s
        return [Sample(self.channel, now_s, self.clock.wall_s(), self.joules)]

    def work(self, seconds: float) -> None:
        self.read()
        self.watts = WORK_W
        self.clock.sleep(seconds)
        self.read()
        self.watts = IDLE_W

    def close(self) -> None:
        pass


def session_on(clock, meter) -> EnergySession:
    return EnergySession([meter], interval_s=0.5, idle_s=3.0, clock=clock)


def energies(rows: pd.DataFrame, **training_s: float):
    return training_energies(rows, training_s)


def test_hours_are_cut_into_pieces_that_add_up_and_their_samples_are_dropped(tmp_path):
    clock = SteppedClock()
    meter = Counter(clock)
    with session_on(clock, meter) as session, metering_of(session, tmp_path, clock) as metering:
        metering.rest()
        with metering.window("full_precision"):
            meter.work(3.2 * SEGMENT_S)
        assert len(session.samples()) < 2.2 * SEGMENT_S / 0.5
        clock.sleep(40.0)
        with metering.window("ternary"):
            meter.work(100.0)
        metering.rest()
    rows = metering.rows()
    assert len(rows[rows["window"] == "full_precision"]) == 4
    made = energies(rows, full_precision=1900.0, ternary=99.0)
    for arm, seconds in (("full_precision", 3.2 * SEGMENT_S), ("ternary", 100.0)):
        assert made[arm].value == pytest.approx(WORK_W * seconds, rel=1e-3)
        assert f"net of idle {(WORK_W - IDLE_W) * seconds:.4g} J" in made[arm].how
        assert made[arm].kind == "measured"
    assert all(one.problem == "" and one.reason == "" for one in metering.balances)
    whole_j = sum(one.whole_j for one in metering.balances)
    assert whole_j == pytest.approx(meter.joules, rel=1e-3)
    parts_j = sum(one.work_j + one.idle_j + one.unattributed_j for one in metering.balances)
    assert parts_j == pytest.approx(whole_j, rel=1e-3)
    unattributed_j = sum(one.unattributed_j for one in metering.balances)
    assert unattributed_j == pytest.approx(40.0 * IDLE_W, rel=0.02)


def test_a_killed_attempt_keeps_its_energy_but_for_the_last_seconds(tmp_path):
    clock = SteppedClock()
    meter = Counter(clock)
    with session_on(clock, meter) as session:
        killed = Metering(session, tmp_path, clock)
        killed.rest()
        killed._open = ("ternary", session.now())
        meter.work(55.0)
        killed._end_keeping()  # and nothing is closed after it
    again = Counter(clock)
    with session_on(clock, again) as session, metering_of(session, tmp_path, clock) as metering:
        metering.rest()
        with metering.window("ternary"):
            again.work(60.0)
        metering.rest()
    rows = metering.rows()
    assert rows.groupby("attempt")["whole"].first().tolist() == [False, True]
    (made,) = energies(rows, ternary=107.0).values()
    assert made.value == pytest.approx(WORK_W * (47.0 + 60.0), rel=0.01)
    assert "of killed attempts up to 2e+03 J more" in made.how
    assert made.lo is None and "one training" in made.reason
    (too_little,) = energies(rows, ternary=200.0).values()
    assert "of the 200 s of steps: an attempt had no meter" in too_little.reason


def test_both_arms_stand_on_one_basis_or_say_why_not(tmp_path):
    def row(arm, covers, joules, how="gross"):
        about = {"attempt": 0, "whole": True, "window": arm, "start_s": 0.0, "end_s": 10.0}
        about |= {"basis": "node", "covers": covers, "kind": "measured", "energy_j": joules}
        return about | {
            "idle_w": None,
            "idle_error_w": 0.0,
            "error_j": 1.0,
            "bias_j": 0.0,
            "how": how,
        }

    rows = pd.DataFrame(
        [
            row("full_precision", "the whole node", 900.0),
            row("full_precision", "boards", 500.0),
            row("ternary", "the whole node", None, "gap: no sample for 9 s"),
            row("ternary", "boards", 400.0),
        ],
        columns=COLUMNS,
    )
    made = energies(rows, full_precision=10.0, ternary=10.0)
    assert [one.value for one in made.values()] == [500.0, 400.0]
    assert "not the whole node: gap: no sample for 9 s" in made["ternary"].how
    none = energies(rows.assign(energy_j=np.nan), full_precision=10.0, ternary=10.0)
    assert {one.value for one in none.values()} == {None}


def test_without_a_meter_nothing_waits_and_the_reason_is_kept(tmp_path):
    clock = SteppedClock()
    missing = [MissingMeter("rapl", "no powercap")]
    session = EnergySession([], missing, clock=clock)
    with session, metering_of(session, tmp_path, clock) as metering:
        metering.rest()
        with metering.window("ternary"):
            pass
    assert clock.now_s == 0.0
    (made,) = energies(metering.rows(), ternary=5.0).values()
    assert made.reason == "no_meter: rapl: no powercap"


def test_energies_that_do_not_add_up_are_withheld(tmp_path):
    clock = SteppedClock()
    meter = Counter(clock)
    with session_on(clock, meter) as session, metering_of(session, tmp_path, clock) as metering:
        metering.rest()
        with metering.window("ternary"):
            meter.work(60.0)
        session._work.append((5.0, 30.0))  # what no public way allows: the same time again
        metering.rest()
    (found,) = metering.balances
    assert "windows, idle and unattributed time are" in found.problem
    kept = trusted(metering.rows(), metering.balances)
    assert kept["energy_j"].isna().all() and kept["how"].str.startswith("not_conserved").all()
