"""How many accelerators carry the same load: the fluid number and whole ones.

The arithmetic is one division: today's accelerators over the throughput ratio that this run
measured between the arms at the largest batch. It holds where the load is bound by throughput,
and a saving is real only where a whole accelerator goes, so both numbers are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord

FLUID, WHOLE = "accelerators_needed_fluid", "accelerators_needed"


def fleet_metrics(records: Mapping[str, StageRecord], accelerators: int | None) -> list[Metric]:
    """For each other arm the accelerators that it would need instead of ``accelerators``.

    Nothing when the pilot names no fleet; missing with a reason when no ratio was measured.
    """
    if accelerators is None:
        return []
    ratios = _ratios(records.get("measure_ab"))
    if not ratios:
        reason = "no throughput ratio was measured"
        return [Metric.missing(name, "accelerators", reason) for name in (FLUID, WHOLE)]
    return [metric for ratio in ratios for metric in _needed(ratio, accelerators)]


def _needed(ratio: Metric, accelerators: int) -> tuple[Metric, Metric]:
    how = (
        f"{accelerators} accelerators over the throughput ratio at batch {ratio.labels['batch']}; "
        "holds where throughput bounds the load"
    )
    value = accelerators / ratio.value
    # The pessimistic end of the ratio gives the upper end of what is needed.
    ends = [accelerators / end if end and end > 0 else None for end in (ratio.hi, ratio.lo)]
    labels = {k: ratio.labels[k] for k in ("arm", "source", "batch") if k in ratio.labels}

    def figure(name: str, *values: float | None) -> Metric:
        number, lo, hi = values
        ends = {"lo": lo, "hi": hi, "reason": ratio.reason}
        return Metric(name, number, "accelerators", how, "derived", ratio.n, labels=labels, **ends)

    return figure(FLUID, value, *ends), figure(
        WHOLE, math.ceil(value), *(end and math.ceil(end) for end in ends)
    )


def _ratios(record: StageRecord | None) -> list[Metric]:
    """The throughput ratio of each arm at its largest batch."""
    largest: dict[str, Metric] = {}
    for metric in record.metrics if record else []:
        if metric.name == "throughput_ratio" and metric.value:
            best = largest.get(metric.labels["arm"])
            if best is None or int(metric.labels["batch"]) > int(best.labels["batch"]):
                largest[metric.labels["arm"]] = metric
    return list(largest.values())
