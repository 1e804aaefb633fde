"""The energy of one channel over one window, or the reason why there is none.

Power is integrated by trapezoid, a counter is differenced (:mod:`.counter`); both are interpolated
linearly at the window's edges. A window fails closed: without a sample on both sides of it, with a
gap in it, with several samples at one time, or with a counter that went back, there is no figure at
all.

A power that is late or averaged (:class:`~.response.Response`) is moved back to where it belongs.
What it shows near an edge of the window is partly of before or after, so a guard time at either
edge is left out, and the power of the part between them stands for the whole window: right where
the work is the same throughout, as in a turn, and how far it is not is part of the error.
"""

from __future__ import annotations

import numpy as np

from workbench.measure.meters.counter import counter_energy, edges_j
from workbench.measure.meters.reading import NoReading, Reading, Reason
from workbench.measure.meters.response import EXACT, Response
from workbench.measure.meters.sample import Channel
from workbench.wording.counts import number_of

FEWEST_POWER_SAMPLES = 3
TOGETHER = 0.02
"""Samples closer than this share of the usual gap came at one time."""


def window_energy(
    channel: Channel,
    times_s: np.ndarray,
    values: np.ndarray,
    start_s: float,
    end_s: float,
    max_gap_s: float,
    response: Response = EXACT,
) -> Reading:
    """Energy of ``channel`` from ``start_s`` to ``end_s``.

    times_s: ascending, on the clock of the window. values: J of a counter or W, as sampled.
    response: of a power that is late or averaged, or a counter that is late.
    """

    def none(reason: Reason, text: str) -> Reading:
        return Reading(channel, None, inside, reason, f"{channel.name}: {text}")

    if response != EXACT:
        times_s = times_s - response.shift_s
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
    if (together := samples_together(times_s)) > 1:
        return none("repeated", several_under_one_name(together))
    longest_s = float(np.diff(times_s).max(initial=0.0))
    if longest_s > max_gap_s:
        return none("gap", f"no sample for {longest_s:.2f} s, allowed: {max_gap_s:g} s")
    length_s = end_s - start_s

    if channel.quantity == "power":
        if inside < FEWEST_POWER_SAMPLES:
            return none("too_short", _too_few(channel, inside, times_s, length_s))
        if response == EXACT:
            energy_j = trapezoid(times_s, values, start_s, end_s)
            scatter_w, bias_w = _errors_w(channel, times_s, values, response, 0.0)
            error_j = float(np.hypot(scatter_w, bias_w)) * length_s
            error_j += edges_j(times_s, values[1:], start_s, end_s)
            return Reading(channel, energy_j, inside, None, "", error_j, bias_w * length_s)
        # Between two samples the power is drawn as a line, which smears it by one more gap.
        guard_s = response.edge_s + longest_s
        begin_s, finish_s = start_s + guard_s, end_s - guard_s
        between = (times_s >= begin_s) & (times_s <= finish_s)
        if np.count_nonzero(between) < FEWEST_POWER_SAMPLES:
            return none(
                "too_short",
                f"{length_s:.1f} s, of which {guard_s:.1f} s at either edge are guard time: lag "
                f"{response.lag_s:.1f} s, averaging {response.averaging_s:.1f} s, a row every "
                f"{longest_s:.1f} s; with this meter it must last "
                f"{2 * guard_s + (FEWEST_POWER_SAMPLES + 1) * longest_s:.2g} s at least",
            )
        mean_w = trapezoid(times_s, values, begin_s, finish_s) / (finish_s - begin_s)
        left_out = 2 * guard_s / length_s
        scatter_w, bias_w = _errors_w(
            channel, times_s[between], values[between], response, left_out
        )
        error_j = float(np.hypot(scatter_w, bias_w)) * length_s
        return Reading(channel, mean_w * length_s, inside, None, "", error_j, bias_w * length_s)

    try:
        energy_j, error_j, bias_j = counter_energy(
            channel, times_s, values, start_s, end_s, response
        )
    except NoReading as lacking:
        return none(lacking.reason, str(lacking))
    return Reading(channel, energy_j, inside, None, "", error_j, bias_j)


def _too_few(channel: Channel, inside: int, times_s: np.ndarray, length_s: float) -> str:
    """Why so few samples are no figure, and how long it must last: by the longest gap around it,
    one more row for that the first may come late."""
    period_s = channel.period_s or float(np.diff(times_s).max(initial=0.0))
    least_s = (FEWEST_POWER_SAMPLES + 1) * period_s
    needs = f"; with a sample every {period_s:.2g} s it must last {least_s:.2g} s at least"
    return f"{number_of(inside, 'sample')} in {length_s:.3f} s" + (needs if period_s else "")


def samples_together(times_s: np.ndarray) -> int:
    """How many samples come at one time, or nearly, again and again; 1 where each has its own.

    times_s: ascending.
    """
    if len(times_s) < 2:
        return 1
    gaps_s = np.diff(times_s)
    usual_s = float(np.quantile(gaps_s, 0.95))
    starts = np.flatnonzero(np.concatenate([[True], gaps_s > TOGETHER * usual_s]))
    sizes = np.diff(np.append(starts, len(times_s)))
    # A row that is late now and then is no second thing; one that is there twice is.
    if (gaps_s > 0).all() and len(times_s) < 1.5 * len(sizes):
        return 1
    return int(np.median(sizes[sizes > 1])) if (sizes > 1).any() else 1


def several_under_one_name(together: int) -> str:
    return (
        f"{number_of(together, 'row')} at one time: they may be as many things under one name, to "
        "be summed, or one row written again; give each thing its own source"
    )


def trapezoid(times_s: np.ndarray, watts: np.ndarray, start_s: float, end_s: float) -> float:
    """Energy in J of samples that lie on both sides of the window."""
    edges_w = np.interp([start_s, end_s], times_s, watts)
    within = (times_s > start_s) & (times_s < end_s)
    at_s = np.concatenate([[start_s], times_s[within], [end_s]])
    power_w = np.concatenate([edges_w[:1], watts[within], edges_w[1:]])
    return float(np.trapezoid(power_w, at_s))


def _errors_w(
    channel: Channel,
    times_s: np.ndarray,
    watts: np.ndarray,
    response: Response,
    left_out: float,
) -> tuple[float, float]:
    """Half widths of the mean power: of its scatter, which holds what a slow log misses of a quick
    change (aliasing), and of what is left to assumption. Rows of one average tell the same twice,
    so they count by the averaging; a drift of the power goes on in the guard times. A power that
    stays the same is rounded the same way each time."""
    length_s = float(times_s[-1] - times_s[0])
    n = min(len(watts), length_s / response.averaging_s) if response.averaging_s else len(watts)
    around_w = watts - watts.mean()
    alike = float((around_w[1:] * around_w[:-1]).sum() / max(float((around_w**2).sum()), 1e-12))
    # Rows a second apart that meet a cycle of about a second drift through it slowly.
    n = min(n, len(watts) * (1 - alike) / (1 + alike)) if alike > 0 else n
    scatter_w = 2.0 * float(watts.std(ddof=1)) / np.sqrt(max(n, 1.0))
    half = len(watts) // 2
    drift_w = abs(float(watts[-half:].mean() - watts[:half].mean()))
    rounded_w = (channel.resolution or 0.0) / 2
    return scatter_w, float(np.hypot(left_out * drift_w, rounded_w))
