"""One session of metering: sampling in the background, then the energy of any window of it.

Use::

    found, missing = find_meters(pilot.measure_ab.meters)
    with EnergySession(found, missing, section.max_gap_s, section.idle_s) as session:
        session.learn(load)                 # where a meter does not say how late it is
        session.rest()                      # idle before
        start_s = session.now()
        ...                                 # the work
        end_s = session.now()
        session.rest()                      # idle after
        energy = session.energy(start_s, end_s)

Ask for energies after the last ``rest``: a window needs a sample behind its end. Without a
meter nothing sleeps, no thread starts and every energy is None with the reasons.

The figure is of the widest basis that has one (:mod:`.basis`), and its scope says what that is: of
a board's energy, fans, disks and losses are no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from workbench.measure.meters.balance import Balance, Stretches, balance
from workbench.measure.meters.basis import BasisEnergy, EnergyBasis, bases, basis_energies
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.energy import Energy, cross_checks, with_warnings
from workbench.measure.meters.find import MissingMeter
from workbench.measure.meters.pulse import IdlePower, guard_s, pulse_energy
from workbench.measure.meters.reading import Reading, Reason
from workbench.measure.meters.response import EXACT, Response
from workbench.measure.meters.sample import Channel, Meter
from workbench.measure.meters.sampled import Samples
from workbench.measure.meters.step_test import learned_by_steps, said_of
from workbench.measure.meters.window import FEWEST_POWER_SAMPLES, window_energy

INTERVAL_S = 0.1
AHEAD_S = 0.5
"""A row dated further ahead than this comes from a clock that is not this machine's."""
IDLE_ROWS = 10
"""Of a slow log in a rest, at least: what is net of idle is known no better than the idle power."""
ROWS_WANTED = 20
"""Of a turn between its guard times: a request has a cycle of its own, and few rows may meet the
same part of it again and again (aliasing)."""


class EnergySession:
    """Samples ``meters`` every ``interval_s`` from entering to leaving.

    missing: the meters that were not found; their reasons stand in for figures.
    max_gap_s: a longer gap between two samples of a channel gives no figure.
    idle_s: length of each ``rest``, at least; a slow log needs longer.
    for_later: rest without a meter too, for a log that is attached to the run afterwards.
    clock: the one that the meters were made with.
    """

    def __init__(
        self,
        meters: Sequence[Meter],
        missing: Sequence[MissingMeter] = (),
        max_gap_s: float = 3.0,
        idle_s: float = 3.0,
        interval_s: float = INTERVAL_S,
        clock: Clock = SYSTEM_CLOCK,
        for_later: bool = False,
    ) -> None:
        self.rests = bool(meters) or for_later
        """Whether :meth:`rest` takes time."""
        self.meters, self.missing = list(meters), list(missing)
        self.max_gap_s, self.idle_s, self.interval_s = max_gap_s, idle_s, interval_s
        self._sampled = Samples(meters, clock)
        self.faults = self._sampled.faults
        """Reader -> every reading that the device did not answer and every row that was none."""
        self.responses: dict[Channel, Response | None] = {}
        """What the step test learned; None where it saw no step."""
        self._idle: list[tuple[float, float]] = []
        self._idle_w: dict[tuple[tuple[float, float], str], tuple[float, float]] = {}
        self._work: list[tuple[float, float]] = []
        self._work_apart: set[tuple[float, float]] = set()
        self._entered_s = clock.monotonic_s()
        self._read_at_s = -math.inf
        self._clock = clock
        self._end_sampling: Callable[[], None] | None = None

    def __enter__(self) -> EnergySession:
        self._entered_s = self.now()
        if self.meters:
            self._read()
            self._end_sampling = self._clock.every(self.interval_s, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        if self._end_sampling:
            self._end_sampling()
            self._read()
        for meter in self.meters:
            meter.close()
        self.meters = []

    def now(self) -> float:
        """The clock of windows, in seconds; it never goes back."""
        return self._clock.monotonic_s()

    def unix_s(self, at_s: float) -> float:
        """The Unix time of a moment of :meth:`now`."""
        return at_s + self._clock.wall_s() - self._clock.monotonic_s()

    def rest(self) -> None:
        """Do nothing for ``idle_s``, or as long as a slow log needs, and remember it as idle;
        returns at once where nothing meters and nothing will."""
        if not self.rests:
            return
        start_s = self.now()
        rows_s = IDLE_ROWS * max(map(self._sampled.period_s, self._slow()), default=0.0)
        self._clock.sleep(max(self.idle_s, self.shortest_window_s() + rows_s))
        self._idle.append((start_s, self.now()))
        self.settle()

    def rested(self) -> list[tuple[float, float]]:
        """Every rest so far, in Unix time: a log that comes later tells their idle power."""
        return [(self.unix_s(start_s), self.unix_s(end_s)) for start_s, end_s in self._idle]

    def worked(self, start_s: float, end_s: float, apart: bool = False) -> None:
        """Remember a window as work, for :meth:`conserved`; apart: between two pauses.

        Raises ValueError where it overlaps with another or with a rest: its energy would be counted
        twice."""
        for other_s, until_s in (*self._work, *self._idle):
            if start_s < until_s and other_s < end_s:
                raise ValueError(
                    f"the window {start_s:.3f} to {end_s:.3f} s overlaps with {other_s:.3f} to "
                    f"{until_s:.3f} s"
                )
        self._work.append((start_s, end_s))
        if apart:
            self._work_apart.add((start_s, end_s))

    def settle(self) -> None:
        """Wait until the figures of slow logs hold all that happened up to now."""
        if self.meters and (behind_s := self._behind_s()):
            self._clock.sleep(behind_s)

    def pause(self) -> None:
        """Do nothing for so long that a slow log tells the work before from the work after; returns
        at once where every meter is exact. Work between two pauses is asked for with ``apart``."""
        if apart_s := self.apart_s():
            self._clock.sleep(apart_s)

    def apart_s(self) -> float:
        """Length of a pause; 0 where every meter is exact."""
        return max(
            (
                2.2 * guard_s(r, self._sampled.period_s(channel))
                for channel, r in self._slow().items()
                if channel.quantity == "power"
            ),
            default=0.0,
        )

    def sleep_until(self, at_s: float) -> None:
        """Until a moment of :meth:`now`."""
        self._clock.sleep(max(0.0, at_s - self.now()))

    def learn(self, load: Callable[[], object]) -> list[str]:
        """The step test: idle, ``load`` again and again, idle; what it learned, as sentences.

        Only of powers and fine counters that do not say how late they are, of powers also how
        averaged, and that a figure may need. ``load`` is a piece of the work, shorter than the
        test. Repeated with a load thrice as long while what it finds is not small beside it.
        """
        if self._sampled.silent():
            # A log's first rows; what takes longer than this has gaps and no figure.
            self._clock.sleep(self.max_gap_s)
        self._read()
        wanted = self._unknown()
        if not wanted:
            return []
        found = learned_by_steps(load, wanted, self._sampled, self._clock, self._read)
        self.responses |= found
        return [said_of(c, found[c], self._sampled, AHEAD_S) for c in wanted]

    def shortest_window_s(self) -> float:
        """Below this a log that needs guard times has no figure; 0 where none does."""
        return max(
            (
                2 * (r.edge_s + self._sampled.period_s(channel))
                + (FEWEST_POWER_SAMPLES + 1) * self._sampled.period_s(channel)
                for channel, r in self._slow().items()
            ),
            default=0.0,
        )

    def wanted_turn_s(self) -> float:
        """As long as a turn should be for what the step test found; 0 where it found nothing."""
        return max(
            (
                max(
                    response.shortest_turn_s,
                    2 * response.edge_s + ROWS_WANTED * self._sampled.period_s(channel),
                )
                for channel, response in self._slow().items()
            ),
            default=0.0,
        )

    def energies(self, start_s: float, end_s: float, apart: bool = False) -> list[BasisEnergy]:
        """The energy from ``start_s`` to ``end_s`` (of :meth:`now`) on every basis, the widest
        first; those without a figure say why. apart: there was a pause on either side."""
        self._read_past(end_s)
        readings = {r.channel: r for r in self._readings(start_s, end_s, apart)}
        found = basis_energies(bases(list(readings)), readings.__getitem__)
        return [self._complete(one) for one in found]

    def idle_w(self, start_s: float, end_s: float, covers: str) -> tuple[float, float] | None:
        """Mean power, of the basis with that text, in the rests next before and next after a
        window, and its half width, which holds half of what they differ by; of one where there is
        one alone."""
        around = [
            self._power(window, basis)
            for basis in bases(self._sampled.channels())
            for window in self._rests_around(start_s, end_s)
            if basis.text == covers
        ]
        known = [power for power in around if power is not None]
        if not known:
            return None
        watts, errors_w = zip(*known, strict=True)
        own_w = float(np.hypot.reduce(errors_w)) / len(known)
        return sum(watts) / len(known), float(np.hypot(own_w, (max(watts) - min(watts)) / 2))

    def energy(self, start_s: float, end_s: float) -> Energy:
        """The energy from ``start_s`` to ``end_s`` on the widest basis that has one, or why none
        has."""
        length_s = end_s - start_s
        found = self.energies(start_s, end_s)
        readings = self._readings(start_s, end_s)
        if not found:
            return Energy(None, length_s, reason=self._lacking(), text=self.why_none())
        chosen = next((one for one in found if one.energy_j is not None), found[0])
        text = chosen.text
        failed = [f for faults in self.faults.values() if (f := faults.text(start_s, end_s))]
        if chosen.energy_j is None and failed:
            text = f"{text}; {'; '.join(failed)}"
        before, after = self._rest_before(start_s), self._rest_after(end_s)
        energy = Energy(
            chosen.energy_j,
            length_s,
            chosen.basis.text,
            chosen.basis.kind,
            chosen.basis.name,
            chosen.error_j,
            self._mean_w(before, chosen.basis),
            self._mean_w(after, chosen.basis),
            chosen.reason,
            text,
            tuple(readings),
        )
        return with_warnings(energy, [*self._sampled.silent(), *cross_checks(chosen, found)])

    def conserved(self, from_s: float | None = None, until_s: float | None = None) -> list[Balance]:
        """Where the session's energy went, on every basis: windows, rests, and what is neither;
        each with whether it adds up (:mod:`.balance`). from_s, until_s: entering and now."""
        self._read_past(self.now() if until_s is None else until_s)
        begin_s = self._entered_s if from_s is None else from_s
        end_s = self.now() if until_s is None else until_s
        stretches = Stretches(begin_s, end_s, tuple(self._work), tuple(self._idle)).within(
            begin_s, end_s
        )
        return [self._balance(basis, stretches) for basis in bases(self._sampled.channels())]

    def reaches_s(self) -> float:
        """The latest moment of :meth:`now` that the figures of slow logs hold already."""
        return self.now() - self._behind_s()

    def forget(self, before_s: float) -> None:
        """Drop the samples of before, which no window that is still to be asked for needs; what
        was idle power in the rests is kept."""
        for basis in bases(self._sampled.channels()):
            for window in self._idle:
                self._power(window, basis)
        self._sampled.forget(before_s - self._behind_s() - self.max_gap_s)

    def why_none(self) -> str:
        """Why there is no meter, or none that gave a sample."""
        reasons = [f"{m.source}: {m.reason}" for m in self.missing]
        reasons += [text for faults in self.faults.values() if (text := faults.text())]
        return "; ".join(reasons) or "none was asked"

    def samples(self) -> pd.DataFrame:
        """All samples: monotonic_s, wall_s, reader, place, scope, quantity, value, resolution,
        kind."""
        return self._sampled.table()

    def _read_past(self, end_s: float) -> None:
        """Read unless that was done after ``end_s`` and just now: a hundred windows that are asked
        for at once need no hundred samples of one moment."""
        stale_s = self.now() - self._read_at_s
        if self.meters and (self._read_at_s < end_s or stale_s > self.interval_s / 2):
            self._read()

    def _read(self) -> None:
        self._read_at_s = self.now()
        self._sampled.read(self.meters)

    def _unknown(self) -> list[Channel]:
        needed = {c for basis in bases(self._sampled.channels()) for c in basis.channels}
        return [
            c
            for c in self._sampled.channels()
            if c in needed and c not in self.responses and c.lag_unknown
        ]

    def _slow(self) -> dict[Channel, Response]:
        return {
            c: r
            for c in self._sampled.channels()
            if (r := self._response(c)) is not None and r != EXACT
        }

    def _response(self, channel: Channel) -> Response | None:
        """Learned, else declared; None where the step test saw no step."""
        if channel in self.responses:
            return self.responses[channel]
        if channel.quantity == "energy":
            return EXACT if channel.coarse else Response(channel.lag_s or 0.0)
        return Response(channel.lag_s or 0.0, channel.averaging_s or 0.0)

    def _rest_before(self, start_s: float) -> tuple[float, float] | None:
        return next((w for w in reversed(self._idle) if w[1] <= start_s), None)

    def _rest_after(self, end_s: float) -> tuple[float, float] | None:
        return next((w for w in self._idle if w[0] >= end_s), None)

    def _rests_around(self, start_s: float, end_s: float) -> list[tuple[float, float]]:
        return [w for w in (self._rest_before(start_s), self._rest_after(end_s)) if w]

    def _idle_power(self, channel: Channel, start_s: float, end_s: float) -> IdlePower | None:
        """Of a slow channel in the rests around a window; None where it has none."""
        means_w, scatters_w, rows = [], [], 0
        for window in self._rests_around(start_s, end_s):
            reading = self._reading(channel, *window)
            if reading.energy_j is None:
                continue
            means_w.append(reading.energy_j / (window[1] - window[0]))
            times_s, watts = self._sampled.series(channel)
            response = self._response(channel) or EXACT
            times_s = times_s - response.shift_s
            edge_s = guard_s(response, self._sampled.period_s(channel))
            own = (times_s > window[0] + edge_s) & (times_s < window[1] - edge_s)
            scatters_w.append(float(watts[own].std(ddof=1)) if own.sum() > 1 else 0.0)
            rows += int(own.sum())
        if not means_w:
            return None
        scatter_w = max((channel.resolution or 0.0) / np.sqrt(12), *scatters_w)
        drift_w = (max(means_w) - min(means_w)) / 2
        error_w = float(np.hypot(drift_w, 2 * scatter_w / np.sqrt(max(rows, 1))))
        return IdlePower(sum(means_w) / len(means_w), error_w, scatter_w)

    def _readings(self, start_s: float, end_s: float, apart: bool = False) -> list[Reading]:
        return [
            self._reading(channel, start_s, end_s, apart) for channel in self._sampled.channels()
        ]

    def _reading(
        self, channel: Channel, start_s: float, end_s: float, apart: bool = False
    ) -> Reading:
        response = self._response(channel)
        ahead_s = -self._sampled.youngest_s[channel]
        if response is None:
            return Reading(
                channel, None, 0, "too_short", f"{channel.name}: the step test saw no step in it"
            )
        if ahead_s > AHEAD_S and channel not in self.responses:
            return Reading(
                channel,
                None,
                0,
                "clock_ahead",
                f"{channel.name}: rows are dated {ahead_s:.1f} s ahead of this machine's clock",
            )
        times_s, values = self._sampled.series(channel)
        late = response != EXACT and channel.quantity == "power"
        if apart and late and (idle := self._idle_power(channel, start_s, end_s)):
            return pulse_energy(
                channel, times_s, values, start_s, end_s, self.max_gap_s, response, idle
            )
        return window_energy(channel, times_s, values, start_s, end_s, self.max_gap_s, response)

    def _behind_s(self) -> float:
        """How long until the slowest log holds what happens now; 0 where every meter is exact."""
        each = (
            r.shift_s + 2 * self._sampled.period_s(channel) for channel, r in self._slow().items()
        )
        return max(0.0, max(each, default=0.0))

    def _balance(self, basis: EnergyBasis, stretches: Stretches) -> Balance:
        series = {}
        for channel in basis.channels:
            times_s, values = self._sampled.series(channel)
            series[channel] = (times_s - (self._response(channel) or EXACT).shift_s, values)

        def figure(start_s: float, end_s: float) -> BasisEnergy:
            apart = (start_s, end_s) in self._work_apart
            (energy,) = basis_energies(
                [basis], lambda channel: self._reading(channel, start_s, end_s, apart)
            )
            return energy

        return balance(basis, series, stretches, self.max_gap_s, figure)

    def _complete(self, energy: BasisEnergy) -> BasisEnergy:
        """Without a figure where a meter that the pilot gives for this basis did not answer: the
        other feeds alone would be too little."""
        basis = energy.basis
        covered = {(channel.reader, channel.scope) for channel in basis.channels}
        lost = [m for m in self.missing if (m.source, m.scope) in covered]
        if not lost:
            return energy
        text = f"one of its meters did not answer: {lost[0].reason}"
        return BasisEnergy(basis, None, reason="device_missing", text=text)

    def _mean_w(self, window: tuple[float, float] | None, basis: EnergyBasis) -> float | None:
        power = self._power(window, basis) if window else None
        return None if power is None else power[0]

    def _power(self, window: tuple[float, float], basis: EnergyBasis) -> tuple[float, float] | None:
        """Mean power of a basis over an idle window and its half width; None without a figure."""
        at = (window, basis.text)
        if at not in self._idle_w:
            (energy,) = basis_energies([basis], lambda channel: self._reading(channel, *window))
            if energy.energy_j is None:
                return None
            length_s = window[1] - window[0]
            self._idle_w[at] = (energy.energy_j / length_s, energy.error_j / length_s)
        return self._idle_w[at]

    def _lacking(self) -> Reason:
        return "device_missing" if any(len(f) for f in self.faults.values()) else "no_meter"
