"""How many accelerators carry the same load."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.records.stage_record import StageRecord
from workbench.report.fleet import FLUID, WHOLE, fleet_metrics


def measured(folder: Path, **ratio_of_batch: float) -> dict[str, StageRecord]:
    record = StageRecord("measure_ab", folder)
    for batch, ratio in ratio_of_batch.items():
        record.measured(
            "throughput_ratio", ratio, "x", "blocks", n=4, lo=ratio - 0.5, hi=ratio + 0.5,
            arm="ternary", batch=batch.removeprefix("b"), source="trained",
        )  # fmt: skip
    return {"measure_ab": record}


def test_the_largest_batch_decides_and_whole_ones_round_up(tmp_path: Path) -> None:
    fluid, whole = fleet_metrics(measured(tmp_path, b1=9.0, b8=2.0, b32=3.0), 8)
    assert fluid.name == FLUID
    assert fluid.value == pytest.approx(8 / 3)
    assert (fluid.lo, fluid.hi) == (pytest.approx(8 / 3.5), pytest.approx(8 / 2.5))
    assert (whole.name, whole.value, whole.lo, whole.hi) == (WHOLE, 3, 3, 4)
    assert whole.kind == "derived"
    assert whole.labels == {"arm": "ternary", "batch": "32", "source": "trained"}


def test_thirty_percent_of_eight_is_no_whole_node_saved(tmp_path: Path) -> None:
    fluid, whole = fleet_metrics(measured(tmp_path, b8=1.05), 8)
    assert fluid.value < 8
    assert whole.value == 8


def test_without_a_fleet_nothing_and_without_a_ratio_a_reason(tmp_path: Path) -> None:
    assert fleet_metrics(measured(tmp_path, b8=2.0), None) == []
    assert {m.reason for m in fleet_metrics({}, 8)} == {"no throughput ratio was measured"}
