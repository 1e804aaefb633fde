"""What a session's meters have shown: they are read now and then, and every sample is kept.

Reading may happen in a thread of its own, while others ask for what there is so far.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.measure.meters.clock import Clock
from workbench.measure.meters.counter import moved
from workbench.measure.meters.faults import MeterFaults
from workbench.measure.meters.sample import Channel, Meter, MeterFault, Sample

COLUMNS = [
    "monotonic_s", "wall_s", "reader", "place", "scope", "quantity", "value", "resolution", "kind",
]  # fmt: skip
ABOUT = ("reader", "place", "scope", "quantity", "resolution", "kind")


class Samples:
    """Of ``meters``, on ``clock``."""

    def __init__(self, meters: Sequence[Meter], clock: Clock) -> None:
        self._readers = [meter.reader for meter in meters]
        self.faults: dict[str, MeterFaults] = {reader: MeterFaults() for reader in self._readers}
        """Reader -> every reading that the device did not answer and every row that was none."""
        self.youngest_s: dict[Channel, float] = {}
        """How old the youngest sample was when it came; below 0 its clock is ahead."""
        self._kept: dict[Channel, list[Sample]] = {}
        self._clock = clock
        self._lock = threading.Lock()

    def read(self, meters: Sequence[Meter]) -> None:
        """Keep what is new."""
        with self._lock:
            for meter in meters:
                try:
                    found = meter.read()
                except (OSError, ValueError) as error:
                    found = [MeterFault(str(error), getattr(error, "code", "no_answer"))]
                if found:
                    self._keep(meter.reader, found)

    def _keep(self, reader: str, found: Sequence[Sample | MeterFault]) -> None:
        now_s = self._clock.monotonic_s()
        for one in found:
            if isinstance(one, MeterFault):
                self.faults[reader].add(now_s, f"{reader}: {one.code}: {one.text}")
                continue
            self._kept.setdefault(one.channel, []).append(one)
            age_s = now_s - one.monotonic_s
            self.youngest_s[one.channel] = min(age_s, self.youngest_s.get(one.channel, age_s))

    def channels(self) -> list[Channel]:
        """Those that gave a sample."""
        with self._lock:
            return list(self._kept)

    def silent(self) -> list[str]:
        """Readers that gave none, as sentences."""
        heard = {channel.reader for channel in self.channels()}
        return [f"{reader}: gave no sample" for reader in self._readers if reader not in heard]

    def series(self, channel: Channel) -> tuple[np.ndarray, np.ndarray]:
        """Times, ascending, and values; of a counter that may be late where it had moved."""
        with self._lock:
            samples = list(self._kept.get(channel, ()))
        times_s = np.array([s.monotonic_s for s in samples])
        order = np.argsort(times_s, kind="stable")
        return moved(channel, times_s[order], np.array([s.value for s in samples])[order])

    def period_s(self, channel: Channel) -> float:
        """Declared, or the usual gap between samples, of a counter between those that moved; no
        shorter than ours between readings where it is asked and writes no times of its own."""
        if channel.period_s is not None and not channel.lag_unknown:
            return channel.period_s
        times_s, _ = self.series(channel)
        gaps_s = np.diff(times_s[-200:])
        seen_s = float(np.median(gaps_s)) if len(gaps_s) else 0.0
        return max(seen_s, channel.period_s or 0.0)

    def forget(self, before_s: float) -> None:
        """Drop the samples of before."""
        with self._lock:
            for channel, samples in self._kept.items():
                self._kept[channel] = [one for one in samples if one.monotonic_s >= before_s]

    def table(self) -> pd.DataFrame:
        """All samples, with ``COLUMNS``."""
        rows: list[dict[str, Any]] = []
        with self._lock:
            for channel, samples in self._kept.items():
                about = {name: getattr(channel, name) for name in ABOUT}
                rows += [
                    {"monotonic_s": s.monotonic_s, "wall_s": s.wall_s, **about, "value": s.value}
                    for s in samples
                ]
        frame = pd.DataFrame(rows, columns=COLUMNS)
        return frame.astype({"resolution": float, "value": float})
