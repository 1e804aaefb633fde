"""One row of the CPU benchmark, and how it is shown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class CpuRow:
    """A figure of the benchmark.

    value: the median of ``n`` runs; lo, hi: their extremes (of five runs: a 94 % interval of
    the median). roofline_pct: of what the limit measured around each run allows, the median;
    None where there is none. limit: that limit in words, the median too.
    """

    name: str
    engine: str
    precision: str
    threads: int
    value: float
    lo: float
    hi: float
    unit: str
    n: int
    roofline_pct: float | None = None
    limit: str = ""

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps({k: _rounded(v) for k, v in asdict(self).items()})

    def as_text(self) -> str:
        """One line of the table."""
        roofline = "" if self.roofline_pct is None else f"{self.roofline_pct:5.0f} %"
        spread = f"{self.lo:.4g} to {self.hi:.4g}"
        return (
            f"{self.name:24} {self.engine:16} {self.precision:8} {self.threads:3} "
            f"{self.value:10.4g} {self.unit:10} {spread:20} {roofline:8} {self.limit}"
        )


HEADER = (
    f"{'what':24} {'engine':16} {'weights':8} {'thr':3} {'median':>10} {'unit':10} "
    f"{'from .. to':20} {'of limit':8} limit"
)


def row(
    name: str, engine: str, precision: str, threads: int, values: Iterable[float], unit: str
) -> CpuRow:
    """A row without a roofline."""
    values = sorted(values)
    middle = statistics.median(values)
    return CpuRow(
        name, engine, precision, threads, middle, values[0], values[-1], unit, len(values)
    )


def _rounded(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value
