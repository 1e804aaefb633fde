"""Differences called significant are corrected for all that are shown together."""

from __future__ import annotations

from pathlib import Path

from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report import views
from workbench.report.differences import significant
from workbench.wording.text import Texts


def ratio(p_value: float | None, batch: str) -> Metric:
    return Metric(
        "throughput_ratio", 1.04, "x", "blocks", n=9, lo=1.01, hi=1.07, p_value=p_value,
        labels={"arm": "ternary", "batch": batch},
    )  # fmt: skip


def test_of_four_borderline_comparisons_none_is_called_a_difference() -> None:
    record = StageRecord("measure_ab", Path("nowhere"))
    record.metrics = [ratio(0.03, str(batch)) for batch in (1, 4, 8, 16)]
    assert set(significant({"measure_ab": record}).values()) == {False}
    record.metrics[0] = ratio(0.001, "1")
    record.metrics.append(ratio(None, "32"))
    found = significant({"measure_ab": record})
    assert [labels for (_, _, labels), differs in found.items() if differs] == [
        "arm=ternary batch=1"
    ]
    assert len(found) == 4, "what compares nothing is not among them"


def test_the_results_mark_what_differs_and_what_may_be_chance() -> None:
    record = StageRecord("measure_ab", Path("nowhere"))
    record.metrics = [ratio(0.001, "1"), ratio(0.2, "4"), ratio(None, "8")]
    (table,) = views.result_tables({"measure_ab": record}, Texts())
    assert [row.differs for row in table.groups[0].rows] == [True, False, None]
