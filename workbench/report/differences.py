"""Which of the differences that a report shows may be called significant.

With fifteen comparisons and all arms equal, at least one interval excludes "no difference" in
half of all sessions. So the comparisons that are shown together are corrected together, by
Holm's method: the chance of any false one among them is at most 5 %. Gates are not among them;
each was fixed before the run and is judged by its own interval.
"""

from __future__ import annotations

from collections.abc import Mapping

from workbench.measure.statistics import holm
from workbench.records.stage_record import StageRecord
from workbench.wording.labels import label_text

FigureKey = tuple[str, str, str]
"""Stage, name and labels of a figure."""


def significant(records: Mapping[str, StageRecord]) -> dict[FigureKey, bool]:
    """Every comparison of the run -> whether it differs after the correction for all of them."""
    compared = {
        (stage, metric.name, label_text(metric.labels)): metric.p_value
        for stage, record in records.items()
        for metric in record.metrics
        if metric.p_value is not None and metric.lo is not None
    }
    return dict(zip(compared, holm(list(compared.values())), strict=True))
