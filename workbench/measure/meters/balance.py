"""Conservation: what a metering session's energy went into adds up to the session's.

The session is cut at the edges of its windows (work) and rests (idle); what lies between them is
unattributed. On a running sum of the energy the pieces must add up to the whole within
``TOLERANCE``, and what the figures of windows and rests say must not exceed the whole by more than
their errors. Where it does not, two windows counted one joule twice, a counter was read wrongly, or
a log is no longer as late as the step test found it: then no figure of the session may be believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from workbench.measure.meters.basis import BasisEnergy, EnergyBasis
from workbench.measure.meters.sample import Channel
from workbench.measure.meters.window import window_energy

TOLERANCE = 1e-3
"""Of the whole session's energy."""
Stretch = tuple[float, float]


@dataclass(frozen=True)
class Stretches:
    """Of a session, in s on its clock. work, rests: inside it, in any order."""

    start_s: float
    end_s: float
    work: tuple[Stretch, ...]
    rests: tuple[Stretch, ...]

    def within(self, start_s: float, end_s: float) -> Stretches:
        """What of it lies between two moments."""

        def cut(stretches: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
            return tuple(
                (max(a, start_s), min(b, end_s)) for a, b in stretches if a < end_s and start_s < b
            )

        begin, end = max(self.start_s, start_s), min(self.end_s, end_s)
        return Stretches(begin, end, cut(self.work), cut(self.rests))

    def between(self) -> tuple[Stretch, ...]:
        """What is neither work nor rest."""
        found, at_s = [], self.start_s
        for begin_s, end_s in sorted((*self.work, *self.rests)):
            if begin_s > at_s:
                found.append((at_s, begin_s))
            at_s = max(at_s, end_s)
        if at_s < self.end_s:
            found.append((at_s, self.end_s))
        return tuple(found)


@dataclass(frozen=True)
class Balance:
    """Of one basis, in J; all None with ``reason`` where the session has no figure.

    whole_j: from the stretches' start to their end. work_j, idle_j: sums of the windows' and the
    rests' own figures; error_j: half width of the two. unattributed_j: the rest of the whole, also
    what of windows without a figure (``unmetered`` of them). problem: why it does not add up; empty
    where it does.
    """

    basis: EnergyBasis
    stretches: Stretches
    whole_j: float | None = None
    work_j: float | None = None
    idle_j: float | None = None
    unattributed_j: float | None = None
    error_j: float = 0.0
    unmetered: int = 0
    reason: str = ""
    problem: str = ""


def balance(
    basis: EnergyBasis,
    series: Mapping[Channel, tuple[np.ndarray, np.ndarray]],
    stretches: Stretches,
    max_gap_s: float,
    figure: Callable[[float, float], BasisEnergy],
) -> Balance:
    """series: times, moved back by what the log is late, and values of every channel of the basis.
    stretches: of the session; what the samples do not reach is left out. figure: of a window or a
    rest.
    """
    if any(len(times_s) < 2 for times_s, _ in series.values()):
        return Balance(basis, stretches, reason="device_missing: too few samples")
    first_s = max(float(times_s[0]) for times_s, _ in series.values())
    last_s = min(float(times_s[-1]) for times_s, _ in series.values())
    stretches = stretches.within(first_s, last_s)
    if stretches.end_s <= stretches.start_s:
        return Balance(basis, stretches, reason="not_bracketed: no sample within the session")
    whole_j = 0.0
    for channel, (times_s, values) in series.items():
        reading = window_energy(
            channel, times_s, values, stretches.start_s, stretches.end_s, max_gap_s
        )
        if reading.energy_j is None:
            return Balance(basis, stretches, reason=f"{reading.reason}: {reading.text}")
        whole_j += reading.energy_j

    def figures(of: tuple[Stretch, ...]) -> tuple[float, float, float, int]:
        found = [figure(*span) for span in of]
        known = [one for one in found if one.energy_j is not None]
        scatter = sum(max(0.0, one.error_j**2 - one.bias_j**2) for one in known)
        joules = sum(one.energy_j for one in known if one.energy_j is not None)
        return joules, scatter, sum(one.bias_j for one in known), len(found) - len(known)

    work_j, work_scatter, work_bias_j, unmetered = figures(stretches.work)
    idle_j, idle_scatter, idle_bias_j, _ = figures(stretches.rests)
    error_j = float(np.hypot(np.sqrt(work_scatter + idle_scatter), work_bias_j + idle_bias_j))
    pieces = (*stretches.work, *stretches.rests, *stretches.between())
    summed_j = sum(_integral(*series[c], c, pieces) for c in basis.channels)
    problem = ""
    if abs(summed_j - whole_j) > TOLERANCE * abs(whole_j):
        problem = (
            f"windows, idle and unattributed time are {summed_j:.6g} J together, the session "
            f"{whole_j:.6g} J"
        )
    elif work_j + idle_j > (1 + TOLERANCE) * whole_j + error_j:
        problem = (
            f"the figures of windows and idle time are {work_j + idle_j:.6g} J together (error "
            f"{error_j:.3g} J), more than the session's {whole_j:.6g} J"
        )
    return Balance(
        basis,
        stretches,
        whole_j,
        work_j,
        idle_j,
        whole_j - work_j - idle_j,
        error_j,
        unmetered,
        problem=problem,
    )


def _integral(
    times_s: np.ndarray, values: np.ndarray, channel: Channel, pieces: tuple[Stretch, ...]
) -> float:
    """Energy of all ``pieces`` on the running sum of one channel."""
    if channel.quantity == "energy":
        steps_j = np.diff(values)
        steps_j[steps_j < 0] += channel.wraps_at_j or 0.0
        grown_j = np.concatenate([[0.0], np.cumsum(steps_j)])
        return sum(float(np.diff(np.interp(piece, times_s, grown_j))[0]) for piece in pieces)
    # Between two samples the power is a line, so that its running sum is a parabola: summed up at
    # the pieces' edges too.
    edges_s = np.array(pieces).ravel()
    at_s = np.union1d(times_s, edges_s)
    watts = np.interp(at_s, times_s, values)
    steps_j = (watts[1:] + watts[:-1]) / 2 * np.diff(at_s)
    grown_j = np.concatenate([[0.0], np.cumsum(steps_j)])
    return sum(float(np.diff(np.interp(piece, at_s, grown_j))[0]) for piece in pieces)
