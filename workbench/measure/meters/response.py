"""How late and how averaged a meter is, learned by a step test: idle, load, idle.

A wall meter shows the mean of the last seconds, and shows it late. Arms that take turns are then
smeared into one another, the same way in every block, so that no interval over blocks tells. Here a
load whose beginning and end are known is seen through the meter as a trapezoid: it is moved by the
lag and its ramps are as long as the averaging. Every pair of the two that fits the log as well as
the best one is kept, so that a log with a row a second says by how much it leaves them open. A
logger whose clock is ahead seems the later by that, one whose clock is behind may have a negative
lag: either way the step test puts its rows where they belong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LONGEST_S = 120.0
"""Lags and averages beyond this are not looked for."""
STEPS = 61
"""Of the grid along either axis, in each of ``ROUNDS``, each finer than the one before."""
ROUNDS = 3
FEWEST_ROWS, MOST_ROWS = 8, 500
CLEAREST = 4.0
"""The load must stand out of the rows' scatter around it by this factor, or nothing is learned."""
TOLERANCE = 9.0
"""Pairs fit while their squared error is within this many variances of the best one's: three
standard deviations, of the one parameter that is asked for."""


@dataclass(frozen=True)
class Response:
    """The value at time t is the mean over ``averaging_s`` up to ``t - lag_s``.

    lag_error_s, averaging_error_s: half of what the step test leaves open.
    """

    lag_s: float = 0.0
    averaging_s: float = 0.0
    lag_error_s: float = 0.0
    averaging_error_s: float = 0.0

    @property
    def text(self) -> str:
        """Of a counter, which has no averaging, the lag alone."""
        said = f"lag {self.lag_s:.1f} ± {self.lag_error_s:.1f} s"
        if self.averaging_s or self.averaging_error_s:
            said += f", averaging {self.averaging_s:.1f} ± {self.averaging_error_s:.1f} s"
        return said

    @property
    def shift_s(self) -> float:
        """From the middle of what a row is the mean of to the row's own time."""
        return self.lag_s + self.averaging_s / 2

    @property
    def edge_s(self) -> float:
        """How far from a change of the load the meter may still show both sides of it, in times
        moved by ``shift_s``."""
        return self.averaging_s / 2 + self.lag_error_s + self.averaging_error_s

    @property
    def shortest_turn_s(self) -> float:
        """Ten times the lag and ten times the averaging: what is smeared is then a tenth."""
        return 10.0 * max(abs(self.lag_s), self.averaging_s)


EXACT = Response()


def learn_response(
    times_s: np.ndarray, watts: np.ndarray, load: tuple[float, float]
) -> Response | None:
    """From rows around one ``load`` (beginning and end), idle on both sides, or None where they do
    not tell: too few rows, or a load that does not stand out.

    times_s: ascending. watts: power of the rows.
    """
    if len(times_s) < FEWEST_ROWS:
        return None
    every = -(-len(times_s) // MOST_ROWS)
    times_s, watts = times_s[::every], watts[::every]
    longest_s = min(LONGEST_S, load[1] - load[0], times_s[-1] - times_s[0])
    lags, averages = (-longest_s / 2, longest_s), (0.0, longest_s)
    for _ in range(ROUNDS):
        lag_axis = np.linspace(*lags, STEPS)
        averaging_axis = np.linspace(*averages, STEPS)
        squares, clearest = _squares(times_s, watts, load, lag_axis, averaging_axis)
        best = float(squares.min())
        variance = best / (len(times_s) - 4)
        # Rows are written in whole steps, so that even a perfect fit is not better known than this.
        variance = max(variance, (1e-3 * clearest) ** 2)
        fits = squares <= best + TOLERANCE * variance
        lag, averaging = (
            _range(axis, np.asarray(fits.any(axis=1 - at)))
            for at, axis in enumerate((lag_axis, averaging_axis))
        )
        lags, averages = lag, (max(0.0, averaging[0]), averaging[1])
    if clearest < CLEAREST * np.sqrt(variance):
        return None
    return Response(
        lag_s=sum(lags) / 2,
        averaging_s=sum(averages) / 2,
        lag_error_s=(lags[1] - lags[0]) / 2,
        averaging_error_s=(averages[1] - averages[0]) / 2,
    )


def _squares(
    times_s: np.ndarray,
    watts: np.ndarray,
    load: tuple[float, float],
    lags: np.ndarray,
    averages: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Squared errors ``[lags, averages]`` of the best idle and load powers for each pair, and the
    step of the best pair in W."""
    after_begin, after_end = times_s - load[0], times_s - load[1]
    shape = _share(after_begin, lags, averages) - _share(after_end, lags, averages)
    centred = shape - shape.mean(axis=2, keepdims=True)
    deviation = watts - watts.mean()
    spread = (centred**2).sum(axis=2)
    together = (centred * deviation).sum(axis=2)
    step_w = np.divide(together, spread, out=np.zeros_like(spread), where=spread > 1e-9)
    squares = np.maximum((deviation**2).sum() - step_w * together, 0.0)
    return squares, abs(float(step_w.flat[squares.argmin()]))


def _share(after_s: np.ndarray, lags: np.ndarray, averages: np.ndarray) -> np.ndarray:
    """How much of what a row is the mean of lies behind the change; ``[lags, averages, rows]``."""
    behind = after_s[None, None, :] - lags[:, None, None]
    return np.clip(behind / np.maximum(averages, 1e-9)[None, :, None], 0.0, 1.0)


def _range(axis: np.ndarray, fits: np.ndarray) -> tuple[float, float]:
    """Of the values that fit, one step wider on each side."""
    where, step = np.flatnonzero(fits), axis[1] - axis[0]
    return float(axis[where[0]] - step), float(axis[where[-1]] + step)
