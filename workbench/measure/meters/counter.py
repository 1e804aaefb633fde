"""The energy of a window by a counter, which may be late.

A counter is renewed at intervals: every 0.1 s or less by a GPU's driver, every time a Prometheus
scrapes its exporter, each 0.1 kWh by a PDU. Between renewals it stands still, and a sample then
tells what was counted a while ago. So of a fine counter whose meter does not declare that it is
fresh only the samples at which it moved are taken (:func:`moved`), and what a renewal may have
waited to be seen is part of the error. What an exporter or a device holds back before that is a
lag, the same for all samples: the step test learns it (:func:`learn_lag`), the counter is moved
back by it, and what is left open is part of the error too::

    E = C(end + lag) - C(start + lag)

A counter in coarse steps is not moved: a step of 1 Wh is 9 s of 400 W, longer than its lag, and
its error is the step.
"""

from __future__ import annotations

import numpy as np

from workbench.measure.meters.reading import NoReading
from workbench.measure.meters.response import LONGEST_S, ROUNDS, STEPS, TOLERANCE, Response
from workbench.measure.meters.sample import Channel

FEWEST_UPDATES = 10
"""A counter must have been renewed this often within a window: 1 s for a GPU's 0.1 s."""
FEWEST_RENEWALS = 3
"""Within a window, where the lag is learned."""
PLAUSIBLE_W = 5000.0
"""A counter that went back is a wrap only if the step forward would be less than this; a
reset from a random place would nearly always be more, over a gap of seconds."""
MOST_ROWS = 500
WITHIN_STEP = 0.1
"""A load draws more in one part of its cycle than in another, so that where within a step of the
counter it began is known no better than to this share of the step."""
CLEAR = 10.0
"""The load must stand out of the counter's steps by so many standard errors."""


def moved(
    channel: Channel, times_s: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of a counter whose lag is unknown the samples at which it had moved since the one before; all
    samples of others, and of one that stands still."""
    if channel.quantity == "power" or not channel.lag_unknown:
        return times_s, values
    at = np.flatnonzero(np.diff(values) != 0) + 1
    return (times_s[at], values[at]) if len(at) > 1 else (times_s, values)


def counter_energy(
    channel: Channel,
    times_s: np.ndarray,
    values: np.ndarray,
    start_s: float,
    end_s: float,
    response: Response,
) -> tuple[float, float, float]:
    """(energy, error, the part of it that is the same in every window), in J.

    times_s: ascending, moved back by the lag; the first and the last lie on either side of the
    window.
    Raises NoReading.
    """
    length_s = end_s - start_s
    if channel.period_s and length_s < FEWEST_UPDATES * channel.period_s:
        raise NoReading(
            "too_short",
            f"{length_s:.3f} s; the counter is renewed every {channel.period_s:g} s, so that it "
            f"must last {FEWEST_UPDATES * channel.period_s:g} s at least",
        )
    steps_j = _steps_j(channel, times_s, values)
    within = int(np.count_nonzero((times_s > start_s) & (times_s < end_s)))
    if channel.lag_unknown and within < FEWEST_RENEWALS:
        longest_s = float(np.diff(times_s).max())
        raise NoReading(
            "too_short",
            f"the counter was renewed {within} times in {length_s:.3f} s; renewed every "
            f"{longest_s:.2g} s it must last {(FEWEST_RENEWALS + 1) * longest_s:.2g} s at least",
        )
    grown_j = np.concatenate([[0.0], np.cumsum(steps_j)])
    begin_j, finish_j = np.interp([start_s, end_s], times_s, grown_j)
    if finish_j <= begin_j:
        raise NoReading("counter_stuck", f"the counter did not move in {length_s:.2f} s")
    watts = steps_j / np.diff(times_s)
    bias_j = response.lag_error_s * float(np.ptp(watts))
    error_j = (channel.resolution or 0.0) + bias_j + edges_j(times_s, watts, start_s, end_s)
    if channel.lag_unknown:
        error_j += _stale_j(times_s, steps_j, watts)
    elif not channel.coarse:
        # Between two renewals it seems to stand still, and then to count twice as fast.
        error_j += (channel.period_s or 0.0) * float(max(*watts[:2], *watts[-2:]))
    return float(finish_j - begin_j), error_j, bias_j


def _steps_j(channel: Channel, times_s: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What was counted from sample to sample. Raises NoReading for a counter that was reset."""
    steps_j = np.diff(values)
    back = steps_j < 0
    if back.any():
        wrapped_j = steps_j[back] + (channel.wraps_at_j or 0.0)
        implied_w = wrapped_j / np.diff(times_s)[back]
        if channel.wraps_at_j is None or (implied_w < 0).any() or (implied_w > PLAUSIBLE_W).any():
            raise NoReading("counter_reset", f"the counter went back by {-steps_j[back][0]:.6g} J")
        steps_j[back] = wrapped_j
    return steps_j


def _stale_j(times_s: np.ndarray, steps_j: np.ndarray, watts: np.ndarray) -> float:
    """What a renewal may have waited to be seen, at either edge: no longer than until the next one,
    and less where the steps scatter less; but it may also drift through all of that during a
    session, unseen where the power stays the same."""
    waited_s = np.diff(times_s)
    at_edges_s = float(max(waited_s[0], waited_s[-1]))
    stale_j = at_edges_s * float(max(watts[0], watts[-1]))
    if len(steps_j) > FEWEST_UPDATES:
        inner_s, inner_j = waited_s[1:-1], steps_j[1:-1]
        scatter_j = float(np.std(inner_j - inner_j.sum() / inner_s.sum() * inner_s, ddof=1))
        stale_j = min(stale_j, 3.0 * scatter_j)
    return stale_j + at_edges_s * float(np.ptp(watts))


def edges_j(times_s: np.ndarray, watts: np.ndarray, start_s: float, end_s: float) -> float:
    """What a line between two samples may miss of a step of the power in the gaps that hold the
    window's edges. watts: mean power of each gap."""
    if len(watts) < 2:
        return 0.0
    rise_j = abs(watts[1] - watts[0]) * (times_s[1] - start_s)
    fall_j = abs(watts[-1] - watts[-2]) * (end_s - times_s[-2])
    return float(rise_j + fall_j)


def learn_lag(
    times_s: np.ndarray, joules: np.ndarray, load: tuple[float, float]
) -> Response | None:
    """The lag of a counter from its steps around one ``load`` (beginning and end), idle on both
    sides, or None where they do not tell. As of a power in :mod:`.response`, but what a step is the
    mean of is known: the time since the renewal before.

    times_s: ascending, of :func:`moved`. joules: the counter.
    """
    every = max(1, -(-len(times_s) // MOST_ROWS))
    steps_j = np.diff(joules[::every])
    begins_s, ends_s = times_s[::every][:-1][steps_j > 0], times_s[::every][1:][steps_j > 0]
    steps_j = steps_j[steps_j > 0]
    if len(steps_j) < FEWEST_UPDATES:
        return None
    length_s = ends_s - begins_s
    longest_s = min(LONGEST_S, load[1] - load[0], times_s[-1] - times_s[0])
    lags = (-longest_s / 2, longest_s)
    for _ in range(ROUNDS):
        axis = np.linspace(*lags, STEPS)
        squares, explained = _unexplained(begins_s, ends_s, length_s, steps_j, load, axis)
        best = int(squares.argmin())
        variance = float(squares[best]) / (len(steps_j) - 3)
        # Even a perfect fit is not better known than this.
        variance = max(variance, (1e-3 * float(np.median(steps_j))) ** 2)
        where = np.flatnonzero(squares <= squares[best] + TOLERANCE * variance)
        step_s = axis[1] - axis[0]
        lags = (float(axis[where[0]] - step_s), float(axis[where[-1]] + step_s))
    if explained[best] < CLEAR**2 * variance:
        return None
    error_s = (lags[1] - lags[0]) / 2 + WITHIN_STEP * float(np.median(length_s))
    return Response(lag_s=sum(lags) / 2, lag_error_s=error_s)


def _unexplained(
    begins_s: np.ndarray,
    ends_s: np.ndarray,
    length_s: np.ndarray,
    steps_j: np.ndarray,
    load: tuple[float, float],
    lags: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each lag the squares that an idle power and a load's leave, and those that the load
    explains beyond the idle power."""
    until, since = (np.clip(at_s[None, :] - lags[:, None], *load) for at_s in (ends_s, begins_s))
    loaded_s = until - since
    idle = (length_s * steps_j).sum() / (length_s**2).sum()
    left_j = steps_j - idle * length_s
    # What of the loaded time is not in proportion to the steps' lengths.
    share = (loaded_s @ length_s) / (length_s**2).sum()
    own_s = loaded_s - share[:, None] * length_s
    spread = (own_s**2).sum(axis=1)
    together = own_s @ left_j
    step_w = np.divide(together, spread, out=np.zeros_like(spread), where=spread > 1e-9)
    explained = step_w * together
    return np.maximum((left_j**2).sum() - explained, 0.0), explained
