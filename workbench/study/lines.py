"""A study's figures as JSON lines, and the file that keeps them beside where they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.files import write_text
from workbench.machine.provenance import provenance
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord

DIGITS = 6


def json_lines(record: StageRecord) -> list[str]:
    """One line a figure: name, labels, value, lo, hi, unit, n, how; the headline last."""
    return [json.dumps(_line(metric), ensure_ascii=False) for metric in record.metrics]


def write_lines(path: Path, record: StageRecord) -> None:
    """The same lines, each with the commit, the machine and the date of the measurement."""
    where = {
        **provenance(record.facts.get("device", "auto")),
        "date": record.started[:10],
        "corpus": Path(record.facts["corpus"]).name,
    }
    rows = [{**_line(metric), **where} for metric in record.metrics]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _line(metric: Metric) -> dict[str, Any]:
    how = metric.how if metric.value is not None else f"not measured: {metric.reason}"
    return {
        "name": metric.name,
        **metric.labels,
        "value": _rounded(metric.value),
        "lo": _rounded(metric.lo),
        "hi": _rounded(metric.hi),
        "unit": metric.unit,
        "n": metric.n,
        "how": how,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")
