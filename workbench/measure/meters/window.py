"""The energy of one channel over one window, or the reason why there is none.

Power is integrated by trapezoid, a counter is differenced; both are interpolated linearly at
the window's edges. A window fails closed: without a sample on both sides of it, with a gap in
it, or with a counter that went back, there is no figure at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.measure.meters.sample import Channel

Reason = Literal[
    "no_meter",
    "device_missing",
    "not_bracketed",
    "gap",
    "counter_reset",
    "counter_stuck",
    "too_short",
]
FEWEST_UPDATES = 10
"""A counter must have been renewed this often within a window: 1 s for a GPU's 0.1 s."""
FEWEST_POWER_SAMPLES = 3
PLAUSIBLE_W = 5000.0
"""A counter that went back is a wrap only if the step forward would be less than this; a
reset from a random place would nearly always be more, over a gap of seconds."""


@dataclass(frozen=True)
class Reading:
    """energy_j: over the window; None with a reason code and a sentence."""

    channel: Channel
    energy_j: float | None
    samples: int
    reason: Reason | None = None
    text: str = ""


def window_energy(
    channel: Channel,
    times_s: np.ndarray,
    values: np.ndarray,
    start_s: float,
    end_s: float,
    max_gap_s: float,
) -> Reading:
    """Energy of ``channel`` from ``start_s`` to ``end_s``.

    times_s: ascending, on the clock of the window. values: J of a counter or W, as sampled.
    """

    def none(reason: Reason, text: str) -> Reading:
        return Reading(channel, None, inside, reason, f"{channel.source} {channel.scope}: {text}")

    inside = int(np.count_nonzero((times_s >= start_s) & (times_s <= end_s)))
    first = int(np.searchsorted(times_s, start_s, side="right")) - 1
    last = int(np.searchsorted(times_s, end_s, side="left"))
    if not len(times_s):
        return none("device_missing", "it gave no sample")
    if first < 0:
        return none("not_bracketed", f"first sample {times_s[0] - start_s:.2f} s after the start")
    if last >= len(times_s):
        return none("not_bracketed", f"last sample {end_s - times_s[-1]:.2f} s before the end")
    times_s, values = times_s[first : last + 1], values[first : last + 1]
    longest_s = float(np.diff(times_s).max(initial=0.0))
    if longest_s > max_gap_s:
        return none("gap", f"no sample for {longest_s:.2f} s, allowed: {max_gap_s:g} s")
    length_s = end_s - start_s

    if channel.quantity == "power":
        if inside < FEWEST_POWER_SAMPLES:
            return none("too_short", f"{inside} samples in {length_s:.3f} s")
        edges_w = np.interp([start_s, end_s], times_s, values)
        within = (times_s > start_s) & (times_s < end_s)
        at_s = np.concatenate([[start_s], times_s[within], [end_s]])
        power_w = np.concatenate([edges_w[:1], values[within], edges_w[1:]])
        return Reading(channel, float(np.trapezoid(power_w, at_s)), inside)

    if channel.update_s and length_s < FEWEST_UPDATES * channel.update_s:
        return none(
            "too_short",
            f"{length_s:.3f} s; the counter is renewed every {channel.update_s:g} s",
        )
    steps_j = np.diff(values)
    back = steps_j < 0
    if back.any():
        wrapped_j = steps_j[back] + (channel.wraps_at_j or 0.0)
        implied_w = wrapped_j / np.diff(times_s)[back]
        if channel.wraps_at_j is None or (implied_w < 0).any() or (implied_w > PLAUSIBLE_W).any():
            return none("counter_reset", f"the counter went back by {-steps_j[back][0]:.6g} J")
        steps_j[back] = wrapped_j
    grown_j = np.concatenate([[0.0], np.cumsum(steps_j)])
    begin_j, finish_j = np.interp([start_s, end_s], times_s, grown_j)
    if finish_j <= begin_j:
        return none("counter_stuck", f"the counter did not move in {length_s:.2f} s")
    return Reading(channel, float(finish_j - begin_j), inside)
