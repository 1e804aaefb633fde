"""Energy since the server started, as counters for /metrics: what each channel of a meter says.

A counter's steps are added up, over its wraps; a power is integrated between its samples, and not
over a gap longer than the pilot allows. Channels overlap (a node holds its processors), so they
are never added to each other here. A meter that fails costs its figures, not the server.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, Metric

from workbench.errors import WorkbenchError, reason_of
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.find import find_meters
from workbench.measure.meters.sample import Channel, Meter, MeterFault, Sample
from workbench.pilot.sections.meters import Meters

READ_S = 1.0
LABELS = ["reader", "place", "scope"]
log = logging.getLogger(__name__)


class EnergyCount:
    """Reads ``meters`` every second from entering to leaving.

    max_gap_s: between two samples of a power; over a longer one nothing is counted.
    """

    def __init__(
        self, meters: Sequence[Meter], max_gap_s: float, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._meters, self._max_gap_s, self._clock = list(meters), max_gap_s, clock
        self._joules: dict[Channel, float] = {}
        self._latest: dict[Channel, Sample] = {}
        self._faults = {meter.reader: 0 for meter in self._meters}
        self._lock = threading.Lock()
        self._end: Callable[[], None] = lambda: None

    def __enter__(self) -> EnergyCount:
        self.read()
        self._end = self._clock.every(READ_S, self.read)
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        for meter in self._meters:
            meter.close()

    def read(self) -> None:
        for meter in self._meters:
            try:
                found = meter.read()
            except (OSError, ValueError) as error:
                found = [MeterFault(reason_of(error))]
            with self._lock:
                for one in found:
                    if isinstance(one, MeterFault):
                        self._faults[meter.reader] += 1
                    else:
                        self._add(one)

    def families(self) -> Iterator[Metric]:
        """For a scrape."""
        with self._lock:
            joules, faults = dict(self._joules), dict(self._faults)
        counted = CounterMetricFamily(
            "workbench_energy_joules",
            "energy that a meter's channel counted; channels may hold each other",
            labels=LABELS,
        )
        for channel, energy_j in joules.items():
            counted.add_metric([channel.reader, channel.place, channel.scope], energy_j)
        yield counted
        failed = CounterMetricFamily(
            "workbench_meter_faults", "readings that a meter did not answer", labels=["reader"]
        )
        for reader, count in faults.items():
            failed.add_metric([reader], count)
        yield failed

    def _add(self, sample: Sample) -> None:
        channel = sample.channel
        before = self._latest.get(channel)
        self._latest[channel] = sample
        self._joules.setdefault(channel, 0.0)
        if before is None:
            return
        step_s = sample.monotonic_s - before.monotonic_s
        if channel.quantity == "energy":
            step_j = sample.value - before.value
            if step_j < 0:  # it began again: at its end, or for a reason of its own
                step_j += channel.wraps_at_j if channel.wraps_at_j else -step_j
            self._joules[channel] += step_j
        elif 0 < step_s <= self._max_gap_s:
            self._joules[channel] += step_s * (sample.value + before.value) / 2


def energy_count(section: dict[str, object] | None) -> EnergyCount:
    """Of the meters that answer; without any where ``section`` is None or names none that does."""
    if section is None:
        return EnergyCount([], 0.0)
    meters = Meters.model_validate(section)
    try:
        found, _ = find_meters(meters, gpus=None)
    except (WorkbenchError, OSError) as error:
        log.warning("energy is not counted: %s", error)
        found = []
    return EnergyCount(found, meters.max_gap_s)
