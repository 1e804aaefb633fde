"""One session of metering: sampling in the background, then the energy of any window of it.

Use::

    found, missing = find_meters(pilot.measure_ab.meters)
    with EnergySession(found, missing, section.max_gap_s, section.idle_s) as session:
        session.rest()                      # idle before
        start_s = session.now()
        ...                                 # the work
        end_s = session.now()
        session.rest()                      # idle after
        energy = session.energy(start_s, end_s)

Ask for energies after the last ``rest``: a window needs a sample behind its end. Without a
meter nothing sleeps, no thread starts and every energy is None with the reasons.

Where a wall meter is there, it alone is the figure, because it holds everything. Else the
figure is the sum of the parts that have a meter, and its scope says which: fans, disks and
losses are not in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.find import MissingMeter
from workbench.measure.meters.sample import Channel, Kind, Meter, Sample
from workbench.measure.meters.window import Reading, Reason, window_energy
from workbench.records.metric import Metric

INTERVAL_S = 0.1
CROSS_CHECK = 0.05
IDLE_DRIFT = 0.10


@dataclass(frozen=True)
class Energy:
    """Energy of a window.

    energy_j: gross. net_j: gross minus the mean idle power before and after times the window.
    scope: what the figure covers. kind: the weakest of its parts'.
    reason, text: why there is no gross figure. parts: one reading per channel, all of them.
    """

    energy_j: float | None
    length_s: float
    scope: str = ""
    kind: Kind = "measured"
    idle_before_w: float | None = None
    idle_after_w: float | None = None
    reason: Reason | None = None
    text: str = ""
    parts: tuple[Reading, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def net_j(self) -> float | None:
        """None without a gross figure or without idle on both sides."""
        if self.energy_j is None or self.idle_before_w is None or self.idle_after_w is None:
            return None
        return self.energy_j - (self.idle_before_w + self.idle_after_w) / 2 * self.length_s

    def metric(self, name: str, **labels: str) -> Metric:
        """The gross energy as a figure in J; without one, the reason."""
        if self.energy_j is None:
            return Metric.missing(name, "J", f"{self.reason}: {self.text}", **labels)
        how = "; ".join([f"gross, {self.scope}, {self.length_s:.1f} s", *self.warnings])
        return Metric(name, self.energy_j, "J", how, self.kind, n=1, labels=labels)


class EnergySession:
    """Samples ``meters`` every ``interval_s`` from entering to leaving.

    missing: the meters that were not found; their reasons stand in for figures.
    max_gap_s: a longer gap between two samples of a channel gives no figure.
    idle_s: length of each ``rest``.
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
    ) -> None:
        self.meters, self.missing = list(meters), list(missing)
        self.max_gap_s, self.idle_s, self.interval_s = max_gap_s, idle_s, interval_s
        self._sources = [meter.source for meter in self.meters]
        self.failures: list[tuple[float, str]] = []
        """(monotonic time, sentence) of every reading that a device did not answer."""
        self._samples: dict[Channel, list[Sample]] = {}
        self._idle: list[tuple[float, float]] = []
        self._lock = threading.Lock()
        self._clock = clock
        self._end_sampling: Callable[[], None] | None = None

    def __enter__(self) -> EnergySession:
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

    def rest(self) -> None:
        """Do nothing for ``idle_s`` and remember it as idle; returns at once without a meter."""
        if not self.meters:
            return
        start_s = self.now()
        self._clock.sleep(self.idle_s)
        self._idle.append((start_s, self.now()))

    def energy(self, start_s: float, end_s: float) -> Energy:
        """The energy from ``start_s`` to ``end_s`` (of :meth:`now`), or why there is none."""
        length_s = end_s - start_s
        if self.meters:
            self._read()
        readings = self._readings(start_s, end_s)
        if not readings:
            reasons = [f"{m.source}: {m.reason}" for m in self.missing]
            reasons += list(dict.fromkeys(text for _, text in self.failures))
            code: Reason = "device_missing" if self.failures else "no_meter"
            return Energy(None, length_s, reason=code, text="; ".join(reasons) or "none was asked")
        chosen = _chosen(readings)
        gross = _total(chosen, length_s)
        failed = [text for at_s, text in self.failures if start_s <= at_s <= end_s]
        if gross.energy_j is None and failed:
            gross = replace(gross, text=f"{gross.text}; {failed[0]}")
        channels = {reading.channel for reading in chosen}
        before = [w for w in self._idle if w[1] <= start_s]
        after = [w for w in self._idle if w[0] >= end_s]
        energy = replace(
            gross,
            parts=tuple(readings),
            idle_before_w=self._power(before[-1], channels) if before else None,
            idle_after_w=self._power(after[0], channels) if after else None,
        )
        heard = {reading.channel.source for reading in readings}
        silent = [f"{s}: gave no sample" for s in self._sources if s not in heard]
        return replace(energy, warnings=(*silent, *_warnings(energy)))

    def samples(self) -> pd.DataFrame:
        """All samples: monotonic_s, wall_s, source, scope, quantity, value, resolution, kind."""
        rows: list[dict[str, Any]] = []
        with self._lock:
            for channel, samples in self._samples.items():
                about = {
                    "source": channel.source,
                    "scope": channel.scope,
                    "quantity": channel.quantity,
                    "resolution": channel.resolution,
                    "kind": channel.kind,
                }
                rows += [
                    {"monotonic_s": s.monotonic_s, "wall_s": s.wall_s, **about, "value": s.value}
                    for s in samples
                ]
        columns = [
            "monotonic_s", "wall_s", "source", "scope", "quantity", "value", "resolution", "kind"
        ]  # fmt: skip
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype({"resolution": float, "value": float})

    def _read(self) -> None:
        with self._lock:
            for meter in self.meters:
                try:
                    samples = meter.read()
                except (OSError, ValueError) as error:
                    self.failures.append((self.now(), f"{meter.source}: {error}"))
                    continue
                for sample in samples:
                    self._samples.setdefault(sample.channel, []).append(sample)

    def _readings(self, start_s: float, end_s: float) -> list[Reading]:
        with self._lock:
            series = {
                channel: (
                    np.array([s.monotonic_s for s in samples]),
                    np.array([s.value for s in samples]),
                )
                for channel, samples in self._samples.items()
            }
        readings = []
        for channel, (times_s, values) in series.items():
            order = np.argsort(times_s, kind="stable")
            times_s, values = times_s[order], values[order]
            readings.append(window_energy(channel, times_s, values, start_s, end_s, self.max_gap_s))
        return readings

    def _power(self, window: tuple[float, float], channels: set[Channel]) -> float | None:
        """Mean power of ``channels`` over an idle window; None if one of them has no figure."""
        readings = [r for r in self._readings(*window) if r.channel in channels]
        total = _total(readings, window[1] - window[0])
        return None if total.energy_j is None else total.energy_j / total.length_s


def _chosen(readings: list[Reading]) -> list[Reading]:
    """The channels whose sum is the figure: the wall's, else each part's counter or power."""
    wall = [r for r in readings if r.channel.scope.startswith("wall:")]
    if wall:
        return wall
    counted = {r.channel.scope for r in readings if r.channel.quantity == "energy"}
    return [r for r in readings if r.channel.quantity == "energy" or r.channel.scope not in counted]


def _total(readings: list[Reading], length_s: float) -> Energy:
    failed = [r for r in readings if r.energy_j is None]
    if failed:
        return Energy(None, length_s, reason=failed[0].reason, text=failed[0].text)
    kinds = {r.channel.kind for r in readings}
    weakest: Kind = next(k for k in ("assumed", "modelled", "measured") if k in kinds)
    scope = " + ".join(f"{r.channel.source} {r.channel.scope}" for r in readings)
    return Energy(sum(r.energy_j for r in readings if r.energy_j), length_s, scope, weakest)


def _warnings(energy: Energy) -> tuple[str, ...]:
    warnings = []
    by_scope: dict[str, dict[str, float]] = {}
    for part in energy.parts:
        if part.energy_j is not None:
            by_scope.setdefault(part.channel.scope, {})[part.channel.quantity] = part.energy_j
    for scope, found in by_scope.items():
        if len(found) == 2 and abs(found["power"] / found["energy"] - 1) > CROSS_CHECK:
            warnings.append(
                f"{scope}: the counter says {found['energy']:.4g} J, "
                f"polled power {found['power']:.4g} J"
            )
    before, after = energy.idle_before_w, energy.idle_after_w
    if before and after and abs(before - after) > IDLE_DRIFT * (before + after) / 2:
        warnings.append(f"idle power was {before:.4g} W before and {after:.4g} W after")
    return tuple(warnings)
