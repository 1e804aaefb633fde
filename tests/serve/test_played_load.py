"""A session under load, seen through a wall log that is late and averaged: what comes out must hold
what went in. ``make energy`` plays many more."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def played():
    path = Path(__file__).with_name("played_load.py")
    spec = importlib.util.spec_from_file_location("played_load", path)
    module = sys.modules["played_load"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("at", [0, 2, 3], ids=["ideal", "late", "ahead"])
def test_served_traffic_has_its_energy_through_a_late_and_averaged_log(
    played, tmp_path, at
) -> None:
    one = played.play(tmp_path, played.SITUATIONS[at], 1)
    for (name, arm), true in played.truths([one]).items():
        metric = one.figures[name, arm]
        assert played.covered(metric, true), (name, arm, metric.lo, true, metric.hi)
        assert metric.value == pytest.approx(true, rel=0.03), (name, arm)
    apart_j = (one.energies["energy_j"] - one.energies["true_j"]).abs()
    assert (apart_j <= one.energies["error_j"]).mean() > 0.9
    net = one.figures["energy_net_ratio", "ternary"]
    assert played.covered(net, 1 / (played.QUICKER * played.THRIFTIER))


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 2, 3], ids=["ideal", "late", "ahead"])
def test_the_intervals_hold_the_long_run_in_95_of_100_sessions(played, tmp_path, at) -> None:
    of = played.SITUATIONS[at]
    sessions = [played.play(tmp_path / str(seed), of, seed) for seed in range(100)]
    for (name, arm), true in played.truths(sessions).items():
        held = sum(played.covered(one.figures[name, arm], true) for one in sessions)
        assert held >= 93, (name, arm, held)
