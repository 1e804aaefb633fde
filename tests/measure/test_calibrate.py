"""The calibration in small: the same simulations with fixed seeds and few runs."""

from __future__ import annotations

import json

import pytest

from workbench.measure import calibrate
from workbench.measure.calibrate import Row, judged, table
from workbench.measure.statistics import Estimate
from workbench.paths import PROJECT


@pytest.mark.parametrize(
    ("part", "runs"), [("blocks", 48), ("counts", 40), ("rates", 40)], ids=lambda it: str(it)
)
def test_every_figure_of_a_small_calibration_keeps_its_bound(part: str, runs: int) -> None:
    rows = list(getattr(calibrate, part)(runs))
    assert rows and not [row for row in rows if not row.keeps]


def test_documents_and_queues_in_a_few_runs() -> None:
    gaps = [calibrate._gap(random, 0.1 * random.lognormal(-0.5, 1, 64)) for random in seeds(60)]
    rows = judged("documents", "lognormal", 64, 0.1, gaps)
    assert all(row.keeps for row in rows) and rows[0].given == 1.0
    busy = calibrate.latencies(next(seeds(1)), 20, 300, 0.9, 2, 100)
    given = [calibrate.quantile_over_time(each, 0.5).lo for each in busy]
    assert given.count(None) >= 18, "a busy queue tells nothing in 300 requests"


def seeds(count: int):
    return (calibrate.np.random.default_rng(seed) for seed in range(count))


def test_an_interval_that_misses_on_one_side_is_a_wrong_go() -> None:
    made = [Estimate(1.0, 0.9, 1.1, 9, "")] * 8 + [Estimate(0.8, 0.7, 0.9, 9, "")]
    made += [Estimate(1.0, None, None, 9, "")]
    rows = {row.name: row for row in judged("any", "any", 9, 1.0, made)}
    assert rows["false_go"].value == pytest.approx(0.1), "of all runs"
    assert rows["coverage"].value == pytest.approx(8 / 9), "of those with an interval"
    assert rows["coverage"].given == pytest.approx(0.9)


def test_a_figure_beyond_its_bound_is_told_from_the_noise_of_the_simulation() -> None:
    assert Row("false_go", "m", "s", 9, 0.025, 0.03, 1000, 1.0).keeps
    assert not Row("false_go", "m", "s", 9, 0.025, 0.06, 1000, 1.0).keeps
    assert not Row("coverage", "m", "s", 9, 0.92, 0.85, 1000, 1.0).keeps
    assert "| m | s | 9 | 100 % |  | 3.0 % |  |" in table(
        [Row("false_go", "m", "s", 9, 0.025, 0.03, 1000, 1.0)]
    )


def test_the_written_calibration_keeps_its_bounds() -> None:
    lines = (PROJECT / "docs" / "results" / "calibration.jsonl").read_text().splitlines()
    rows = [Row(**json.loads(line)) for line in lines]
    assert {row.name for row in rows} == {"false_go", "false_no_go", "coverage", "power"}
    assert not [row for row in rows if not row.keeps]
    page = (PROJECT / "docs" / "measuring.md").read_text()
    assert table(rows) in page, "the table is that of the results"
