"""A pilot beside a simulated PDU: its intervals hold what each arm drew."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


def metered_pilot():
    path = Path(__file__).with_name("metered_pilot.py")
    spec = importlib.util.spec_from_file_location("metered_pilot", path)
    module = sys.modules["metered_pilot"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.metered
@pytest.mark.timeout(1800)
def test_a_pilot_beside_a_pdu_has_joules_of_each_arm_that_hold_the_truth(tmp_path: Path) -> None:
    pilot = metered_pilot()
    records, truth = pilot.run(tmp_path)
    measured = records["measure_ab"]
    notes = " ".join(measured.notes)
    assert "csv pdu: lag" in notes and "averaging" in notes
    found = list(pilot.held(records, truth))
    assert len(found) == 3 * 3 + 2 + 1
    missed = []
    for name, of, metric, true in found:
        if of == "deployment" and metric.value is None:
            assert metric.reason  # its step test may not stand out of a busy machine's log
            continue
        assert metric is not None and metric.value is not None, (name, of, metric)
        if not metric.lo <= true <= metric.hi:
            missed.append((name, of, metric.lo, true, metric.hi))
        assert metric.value == pytest.approx(true, rel=0.15), (name, of)
    assert len(missed) <= 2, "of 12 intervals at 95 %, three miss in 2 of 100 runs"
    for record in (measured, records["train_qat"], records["deploy_rollback"]):
        parts = {
            part: record.metric("metered_energy_j", part=part).value
            for part in ("whole", "work", "idle", "unattributed")
        }
        whole = parts.pop("whole")
        assert sum(parts.values()) == pytest.approx(whole, rel=1e-3)
    for name in ("prefill_energy_j_per_token", "decode_energy_j_per_token"):
        assert measured.metric(name, arm="ternary", source="load").value > 0
