"""The energy of work between two pauses, seen through a meter that is late or averaged.

Work of a changing power, such as requests that come in bursts, has no part that stands for the
whole, so the guard times of :mod:`.window` do not help. But averaging moves energy only as far as
it is long: with a pause on either side, all of it lies between the one pause and the other. So the
power is integrated from pause to pause and the idle power of the pauses is taken off::

    E = integral(start - guard, end + guard) - 2 guard x idle power

What is left open is in the error: the rows' own scatter, seen while idle; what rows that do not
cover the time evenly miss of a quick change (aliasing); and what the idle power is known to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.measure.meters.reading import Reading, Reason
from workbench.measure.meters.response import Response
from workbench.measure.meters.sample import Channel
from workbench.measure.meters.window import (
    FEWEST_POWER_SAMPLES,
    samples_together,
    several_under_one_name,
    trapezoid,
)
from workbench.wording.counts import number_of


@dataclass(frozen=True)
class IdlePower:
    """mean_w: of the pauses around. error_w: half width of it, their difference included.
    scatter_w: standard deviation of one row."""

    mean_w: float
    error_w: float
    scatter_w: float


def guard_s(response: Response, period_s: float) -> float:
    """How far from a change the meter may still show both sides of it; a line between two rows
    smears by one more row."""
    return response.edge_s + period_s


def pulse_energy(
    channel: Channel,
    times_s: np.ndarray,
    watts: np.ndarray,
    start_s: float,
    end_s: float,
    max_gap_s: float,
    response: Response,
    idle: IdlePower,
) -> Reading:
    """Energy of ``channel`` from ``start_s`` to ``end_s``, with idle time of twice
    :func:`guard_s` before and after.

    times_s: ascending, on the clock of the window. watts: power of the rows.
    """
    times_s = times_s - response.shift_s
    inside = (times_s >= start_s) & (times_s <= end_s)

    def none(reason: Reason, text: str) -> Reading:
        return Reading(channel, None, int(inside.sum()), reason, f"{channel.name}: {text}")

    if len(times_s) < 2:
        return none("device_missing", "it gave no sample")
    period_s = float(np.median(np.diff(times_s)))
    guard = guard_s(response, period_s)
    first = int(np.searchsorted(times_s, start_s - guard, side="right")) - 1
    last = int(np.searchsorted(times_s, end_s + guard, side="left"))
    if first < 0:
        return none(
            "not_bracketed", f"first sample {times_s[0] - start_s + guard:.2f} s after the start"
        )
    if last >= len(times_s):
        return none("not_bracketed", f"last sample {end_s + guard - times_s[-1]:.2f} s too early")
    near_s, near_w = times_s[first : last + 1], watts[first : last + 1]
    if (together := samples_together(near_s)) > 1:
        return none("repeated", several_under_one_name(together))
    longest_s = float(np.diff(near_s).max())
    if longest_s > max_gap_s:
        return none("gap", f"no sample for {longest_s:.2f} s, allowed: {max_gap_s:g} s")
    if (rows := int(inside.sum())) < FEWEST_POWER_SAMPLES:
        least_s = (FEWEST_POWER_SAMPLES + 1) * period_s
        return none(
            "too_short",
            f"{number_of(rows, 'sample')} in {end_s - start_s:.3f} s; with a sample every "
            f"{period_s:.2g} s it must last {least_s:.2g} s at least",
        )
    length_s = end_s - start_s
    whole_j = trapezoid(near_s, near_w, start_s - guard, end_s + guard)
    own_noise_j = idle.scatter_w * period_s * np.sqrt(len(near_s))
    uneven = uneven_time_s(response, period_s)
    missed_j = float(watts[inside].std(ddof=1)) * np.sqrt(uneven * length_s)
    bias_j = 2 * guard * idle.error_w
    error_j = float(np.hypot(2 * np.hypot(own_noise_j, missed_j), bias_j))
    energy_j = whole_j - 2 * guard * idle.mean_w
    return Reading(channel, energy_j, rows, None, "", error_j, bias_j)


def uneven_time_s(response: Response, period_s: float) -> float:
    """How unevenly rows that are means over ``averaging_s``, one every ``period_s``, cover time:
    0 where every moment is in equally many rows, ``period_s`` for rows that are moments.

    A row that covers k + f periods leaves a share 1 - f of the time to k rows and f to k + 1. Times
    the variance of the rows and the length of the window it is the variance of the energy, for a
    power that changes faster than the rows. As far as the averaging is known, the worst of it.
    """
    around = response.averaging_error_s
    averages = np.linspace(response.averaging_s - around, response.averaging_s + around, 21)
    averages = np.maximum(averages, 1e-3 * period_s)
    part = (averages / period_s) % 1.0
    return float(np.max(period_s**2 / averages * part * (1.0 - part)))
