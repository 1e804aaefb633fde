"""A number, how it is known, and the rule that a result is as weak as its weakest input."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workbench.records.metric import MetricKind

STRENGTH: tuple[MetricKind, ...] = ("measured", "derived", "modelled", "assumed", "theoretical")
"""From the strongest to the weakest."""


@dataclass(frozen=True)
class Quantity:
    """value: in ``unit``. lo, hi: of a measured one its interval at 95 %, of an assumed one how far
    it may be off; None where nobody says. source: where it is from, for the reader."""

    value: float
    kind: MetricKind
    unit: str = ""
    source: str = ""
    lo: float | None = None
    hi: float | None = None


def weakest(kinds: Iterable[MetricKind]) -> MetricKind:
    """How a result of these is known; arithmetic on what was measured alone is ``derived``.

    >>> weakest(["measured", "assumed", "modelled"])
    'assumed'
    >>> weakest(["measured"])
    'derived'
    """
    return max(("derived", *kinds), key=STRENGTH.index)


def combined(kinds: Iterable[MetricKind]) -> MetricKind:
    """The weakest of parts of one measurement, which stays measured where each part is.

    >>> combined(["measured", "measured"]), combined(["measured", "modelled"])
    ('measured', 'modelled')
    """
    kinds = list(kinds)
    return "measured" if set(kinds) <= {"measured"} else weakest(kinds)
