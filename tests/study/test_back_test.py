"""The back-test of the forecast: its committed rows are what the law says of its curves."""

from __future__ import annotations

from workbench.json_lines import read_rows
from workbench.study import back_test


def test_the_committed_rows_are_of_the_committed_curves() -> None:
    rows = read_rows(back_test.RESULTS)
    curves = back_test.trained_curves(rows)
    assert len(curves) >= 8
    again = list(back_test.tried_on_trained(curves))
    kept = [row for row in rows if row["name"] == "forecast_covered"]
    assert again == [row for row in kept if "simulated" not in row["of"]]
    whole = next(row for row in rows if row.get("of", "").startswith("second half, all"))
    assert again[-1] == whole and whole["value"] > 0.85


def test_simulated_curves_in_small() -> None:
    rows = list(back_test.simulated("in all tokens, threshold on from a tenth", False, 20))
    assert [row["n"] for row in rows] == [240, 20]
    assert all(row["value"] > 0.8 for row in rows)
