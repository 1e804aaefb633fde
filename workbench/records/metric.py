"""One figure and everything needed to trust it.

A metric says how it was obtained (``kind`` and ``how``), over how many observations, and
with which interval. What could not be measured is a metric whose value is None and whose
``reason`` says why; it is never left out and never zero.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

MetricKind = Literal["measured", "derived", "modelled", "assumed", "theoretical", "not measured"]
"""measured: read in this run. derived: arithmetic on measured values of this run.
modelled: a model of something measured elsewhere. assumed: declared by the user,
or a default.
theoretical: from a paper or a count of operations. not measured: value is None."""
Basis = Literal["sample", "count", "exact"]
"""Where a figure's uncertainty comes from. sample: an estimate from observations, which decides
nothing without an interval. count: ``value`` of ``n`` (lost requests), with an exact interval.
exact: bytes that were counted, a declared value; repeated, it would be the same."""


@dataclass(frozen=True)
class Metric:
    """A named figure.

    name: snake_case with the unit at the end where it has one (``latency_ms``).
    labels: what it is a figure of, e.g. ``{"arm": "ternary", "class": "interactive_1"}``;
        the label ``source`` is ``trained`` or ``probe`` where both exist.
    lo, hi: the interval at ``level`` (0.95), in the same unit.
    reason: why there is no value, or no interval.
    basis: what a gate may decide by: see :data:`Basis`.
    p_value: of a comparison, two-sided, that there is no difference; None elsewhere.

    Raises ValueError for a value that is not finite, and for a missing one without a reason.

    >>> from workbench.api import Metric
    >>> Metric("speedup", 2.4, "", "geometric mean of ratios", n=12, lo=2.2, hi=2.6).value
    2.4
    >>> Metric.missing("energy_j_per_token", "J", "no meter here", arm="ternary").reason
    'no meter here'
    """

    name: str
    value: float | None
    unit: str
    how: str
    kind: MetricKind = "measured"
    n: int | None = None
    lo: float | None = None
    hi: float | None = None
    level: float = 0.95
    reason: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    basis: Basis = "sample"
    p_value: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(MetricKind):
            raise ValueError(
                f"metric {self.name}: kind {self.kind!r}, allowed: {get_args(MetricKind)}"
            )
        if self.basis not in get_args(Basis):
            raise ValueError(f"metric {self.name}: basis {self.basis!r}, of {get_args(Basis)}")
        if (self.value is None) != (self.kind == "not measured"):
            raise ValueError(f"metric {self.name}: value None goes with kind 'not measured' only")
        if self.value is None and not self.reason:
            raise ValueError(f"metric {self.name}: a missing value needs a reason")
        for bound in (self.value, self.lo, self.hi):
            if bound is not None and not math.isfinite(bound):
                raise ValueError(f"metric {self.name}: {bound} is not finite; record it as missing")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Metric:
        return cls(**fields)

    @classmethod
    def missing(cls, name: str, unit: str, reason: str, **labels: str) -> Metric:
        """A figure that this run could not measure, and why."""
        return cls(name, None, unit, how="", kind="not measured", reason=reason, labels=labels)

    def scaled(self, factor: float, said: str) -> Metric:
        """The figure and its interval times ``factor``, which is above 0. said: behind ``how``."""
        value, lo, hi = (
            None if end is None else end * factor for end in (self.value, self.lo, self.hi)
        )
        return replace(self, value=value, lo=lo, hi=hi, how=self.how + said)

    def matches(self, name: str, labels: dict[str, str]) -> bool:
        return self.name == name and all(self.labels.get(k) == v for k, v in labels.items())
