"""What a window of one channel comes to: an energy with its error, or a reason code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.measure.meters.sample import Channel

Reason = Literal[
    "no_meter",
    "device_missing",
    "not_bracketed",
    "gap",
    "repeated",
    "clock_ahead",
    "not_conserved",
    "counter_reset",
    "counter_stuck",
    "too_short",
]


@dataclass(frozen=True)
class Reading:
    """energy_j: over the window; None with a reason code and a sentence.

    error_j: half width, about two standard errors. bias_j: the part of it that is the same in every
    window of its sort, so that no scatter over many windows shows it.
    """

    channel: Channel
    energy_j: float | None
    samples: int
    reason: Reason | None = None
    text: str = ""
    error_j: float = 0.0
    bias_j: float = 0.0


class NoReading(Exception):
    """Raised on the way to a figure: a reason code and a sentence in its place."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason
