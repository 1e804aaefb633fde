"""A metering session of the past: the windows of a finished run against a log that came later.

The same session as a live one (:class:`~.session.EnergySession`), whose samples are there already:
windows, bases, guard times and reason codes are its own. What a live session learns by a step test
is learned here from the turns themselves. The mean power of each kind of turn is unknown, but when
it began and ended is not, and a lag and an averaging are right when the log is best explained by
constant powers within the turns. Every pair that explains it as well as the best one is kept, so
that the error of the figure holds what the log leaves open. A log that does not show the turns
gives no figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.measure.meters.clock import Clock
from workbench.measure.meters.counter import moved
from workbench.measure.meters.reading import Reading
from workbench.measure.meters.response import LONGEST_S, TOLERANCE, Response
from workbench.measure.meters.sample import Channel
from workbench.measure.meters.sampled import Samples
from workbench.measure.meters.session import EnergySession

STEPS = 25
WIDER = (2, 2, 1)
"""Steps that the next, finer grid is wider than what fits, in each round and in the result."""
MOST_ROWS = 800
CLEAREST = 8.0
"""The turns must explain so many times what they would of a log that has nothing to do with
them."""


class PastClock:
    """Stands still: a past session is over, and its windows are given in Unix time."""

    def __init__(self, at_s: float) -> None:
        self._at_s = at_s

    def monotonic_s(self) -> float:
        return self._at_s

    def wall_s(self) -> float:
        return self._at_s

    def sleep(self, seconds: float) -> None:
        raise AssertionError("a past session waits for nothing")

    def every(self, interval_s: float, call: object) -> object:
        raise AssertionError("a past session reads nothing")


class PastSamples(Samples):
    """Those of a log that is read already. series: channel -> (times ascending, values)."""

    def __init__(self, series: Mapping[Channel, tuple[np.ndarray, np.ndarray]], clock: Clock):
        super().__init__([], clock)
        self._past = {channel: moved(channel, *of) for channel, of in series.items()}
        self.youngest_s = dict.fromkeys(series, 0.0)

    def channels(self) -> list[Channel]:
        return list(self._past)

    def series(self, channel: Channel) -> tuple[np.ndarray, np.ndarray]:
        return self._past[channel]


class PastSession(EnergySession):
    """series: channel -> (Unix times ascending, values). responses: of every power that does not
    declare its own; None where nothing tells, so that it gives no figure. rests: Unix times."""

    def __init__(
        self,
        series: Mapping[Channel, tuple[np.ndarray, np.ndarray]],
        responses: Mapping[Channel, Response | None],
        max_gap_s: float,
        rests: Sequence[tuple[float, float]] = (),
    ) -> None:
        latest_s = max(float(times_s[-1]) for times_s, _ in series.values() if len(times_s))
        clock: Clock = PastClock(latest_s)  # type: ignore[assignment]
        super().__init__([], (), max_gap_s, clock=clock)
        self._sampled = PastSamples(series, clock)
        self.responses = dict(responses)
        self._idle = sorted(rests)

    def _reading(
        self, channel: Channel, start_s: float, end_s: float, apart: bool = False
    ) -> Reading:
        if channel in self.responses and self.responses[channel] is None:
            text = f"{channel.name}: it does not show the turns, so how late it is remains unknown"
            return Reading(channel, None, 0, "too_short", text)
        return super()._reading(channel, start_s, end_s, apart)


@dataclass(frozen=True)
class MeteredTurn:
    """start_s, end_s: Unix times. sort: turns of one sort have one power."""

    start_s: float
    end_s: float
    sort: str


def response_from_turns(
    times_s: np.ndarray, watts: np.ndarray, turns: Sequence[MeteredTurn]
) -> Response | None:
    """Lag and averaging of a log, from turns whose beginnings and ends are known; None where the
    log does not show them.

    times_s: ascending, on the clock of the turns. A logger whose clock is ahead seems the later by
    that, one whose clock is behind may have a negative lag.
    """
    length_s = float(np.median([turn.end_s - turn.start_s for turn in turns]))
    longest_s = min(LONGEST_S, 2.0 * length_s)
    near = times_s >= min(turn.start_s for turn in turns) - longest_s
    near &= times_s <= max(turn.end_s for turn in turns) + longest_s
    times_s, watts = times_s[near], watts[near]
    every = max(1, -(-len(times_s) // MOST_ROWS))
    times_s, watts = times_s[::every], watts[::every]
    sorts = sorted({turn.sort for turn in turns})
    freedom = len(times_s) - len(sorts) - 4
    if freedom < len(sorts) + 4 or float(watts.std()) == 0.0:
        return None
    work = [_Work([t for t in turns if t.sort == sort]) for sort in sorts]
    # The middle of what a row is the mean of is known far better than where it begins and ends.
    middles, averages = (-longest_s / 2, 1.5 * longest_s), (0.0, longest_s)
    for wider in WIDER:
        middle_axis, averaging_axis = np.linspace(*middles, STEPS), np.linspace(*averages, STEPS)
        squares = np.array(
            [
                [_unexplained(times_s, watts, work, middle, average) for average in averaging_axis]
                for middle in middle_axis
            ]
        )
        best = float(squares.min())
        at = np.unravel_index(int(squares.argmin()), squares.shape)
        residual = _residual(times_s, watts, work, middle_axis[at[0]], averaging_axis[at[1]])
        variance = max(best / freedom * _inflation(residual), 1e-9 * float(watts.var()))
        fits = squares <= best + TOLERANCE * variance
        middles = _range(middle_axis, np.asarray(fits.any(axis=1)), wider)
        averages = _range(averaging_axis, np.asarray(fits.any(axis=0)), wider)
        averages = (max(0.0, averages[0]), averages[1])
    explained = float(((watts - watts.mean()) ** 2).sum()) - best
    averaging_s, averaging_error_s = sum(averages) / 2, (averages[1] - averages[0]) / 2
    middle_s, middle_error_s = sum(middles) / 2, (middles[1] - middles[0]) / 2
    if explained <= CLEAREST * len(sorts) * variance or middle_error_s >= length_s / 2:
        return None
    return Response(middle_s - averaging_s / 2, averaging_s, middle_error_s, averaging_error_s)


def lag_from_turns(
    times_s: np.ndarray, joules: np.ndarray, turns: Sequence[MeteredTurn]
) -> Response | None:
    """Of a counter, whose steps are powers: each the mean since the renewal before. So it is late
    by what the middles of its steps are."""
    at = np.flatnonzero(np.diff(joules) != 0) + 1
    times_s, steps_j = times_s[at], np.diff(joules[at])
    if len(at) < 2:
        return None
    lengths_s = np.diff(times_s)
    grew = steps_j > 0
    middles_s, watts = (times_s[1:] - lengths_s / 2)[grew], (steps_j / lengths_s)[grew]
    found = response_from_turns(middles_s, watts, turns)
    return Response(found.shift_s, lag_error_s=found.lag_error_s) if found else None


class _Work:
    """How long work of one sort went on, up to any moment."""

    def __init__(self, turns: Sequence[MeteredTurn]) -> None:
        ordered = sorted(turns, key=lambda turn: turn.start_s)
        edges = np.array([edge for turn in ordered for edge in (turn.start_s, turn.end_s)])
        lengths = np.array([[0.0, turn.end_s - turn.start_s] for turn in ordered])
        self._edges_s = edges
        self._done_s = np.cumsum(lengths.ravel())

    def share(self, times_s: np.ndarray, middle_s: float, averaging_s: float) -> np.ndarray:
        """Of what a row is the mean of: ``averaging_s`` around ``middle_s`` before its time."""
        span_s = max(averaging_s, 1e-3)
        until, since = (
            np.interp(times_s - middle_s + side * span_s, self._edges_s, self._done_s)
            for side in (0.5, -0.5)
        )
        return (until - since) / span_s


def _residual(
    times_s: np.ndarray,
    watts: np.ndarray,
    work: Sequence[_Work],
    middle_s: float,
    averaging_s: float,
) -> np.ndarray:
    """What constant powers within the turns, and another one between them, leave of the log."""
    shares = np.column_stack(
        [np.ones(len(times_s)), *(one.share(times_s, middle_s, averaging_s) for one in work)]
    )
    normal = shares.T @ shares
    normal[np.diag_indices_from(normal)] += 1e-9 * len(times_s)
    return watts - shares @ np.linalg.solve(normal, shares.T @ watts)


def _unexplained(
    times_s: np.ndarray,
    watts: np.ndarray,
    work: Sequence[_Work],
    middle_s: float,
    averaging_s: float,
) -> float:
    return float((_residual(times_s, watts, work, middle_s, averaging_s) ** 2).sum())


def _inflation(residual: np.ndarray) -> float:
    """Rows that are alike tell less than as many that are not."""
    squares = max(float((residual**2).sum()), 1e-12)
    alike = float((residual[1:] * residual[:-1]).sum()) / squares
    alike = min(0.95, max(0.0, alike))
    return (1 + alike) / (1 - alike)


def _range(axis: np.ndarray, fits: np.ndarray, wider: int) -> tuple[float, float]:
    """Of the values that fit, ``wider`` steps wider on each side."""
    where, margin = np.flatnonzero(fits), wider * (axis[1] - axis[0])
    return float(axis[where[0]] - margin), float(axis[where[-1]] + margin)
