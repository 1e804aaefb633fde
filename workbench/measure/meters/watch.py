"""Meters as a table: what can be read here (``workbench meter list``), and live (``watch``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table

from workbench.errors import reason_of
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.faults import MeterFaults
from workbench.measure.meters.find import MissingMeter
from workbench.measure.meters.sample import Channel, Meter, MeterFault, Sample

FIRST_LOOK_S = 3.0
"""A log's first rows may take so long; what comes later is not listed."""
REMEMBERED = 64
"""Latest samples of a channel, from which its rate and a counter's power are told."""


@dataclass
class WatchedChannel:
    """The latest of one channel. came_s: when its samples came, newest last."""

    channel: Channel
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    came_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def age_s(self, now_s: float) -> float:
        return now_s - self.samples[-1].monotonic_s

    @property
    def rate_per_s(self) -> float | None:
        """Samples a second; None with fewer than two."""
        first, last = self.samples[0].monotonic_s, self.samples[-1].monotonic_s
        return (len(self.samples) - 1) / (last - first) if last > first else None

    @property
    def watts(self) -> float | None:
        """Of a power its value, of a counter its mean over what is remembered; None after a
        counter went back."""
        if self.channel.quantity == "power":
            return self.samples[-1].value
        first, last = self.samples[0], self.samples[-1]
        grown_j, length_s = last.value - first.value, last.monotonic_s - first.monotonic_s
        return grown_j / length_s if length_s > 0 and grown_j >= 0 else None


class Watch:
    """Reads meters again and again and knows the latest of each channel."""

    def __init__(
        self, meters: Sequence[Meter], missing: Sequence[MissingMeter], clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.meters, self.missing = list(meters), list(missing)
        self._clock = clock
        self.channels: dict[Channel, WatchedChannel] = {}
        self.faults = {meter.reader: MeterFaults() for meter in self.meters}

    def read(self) -> None:
        for meter in self.meters:
            try:
                found = meter.read()
            except (OSError, ValueError) as error:
                found = [MeterFault(reason_of(error))]
            for one in found:
                now_s = self._clock.monotonic_s()
                if isinstance(one, MeterFault):
                    self.faults[meter.reader].add(now_s, one.text)
                    continue
                seen = self.channels.setdefault(one.channel, WatchedChannel(one.channel))
                seen.samples.append(one)
                seen.came_s.append(now_s)

    def look(self, longest_s: float = FIRST_LOOK_S) -> None:
        """Read until every reader gave a sample, or ``longest_s`` are over."""
        until_s = self._clock.monotonic_s() + longest_s
        self.read()
        while self._silent() and self._clock.monotonic_s() < until_s:
            self._clock.sleep(0.1)
            self.read()

    def _silent(self) -> set[str]:
        heard = {channel.reader for channel in self.channels}
        return {meter.reader for meter in self.meters} - heard

    def close(self) -> None:
        for meter in self.meters:
            meter.close()

    def without_channels(self) -> list[tuple[str, str]]:
        """(reader, why there is nothing of it)."""
        found = [(one.source, one.reason) for one in self.missing]
        for reader in sorted(self._silent()):
            found.append((reader, self.faults[reader].text() or "gave no sample yet"))
        return found

    def live_table(self) -> Table:
        """Of ``workbench meter watch``."""
        now_s = self._clock.monotonic_s()
        table = Table("reader", "place", "scope", "value", "power", "rate", "age", "faults")
        for seen in self.channels.values():
            channel = seen.channel
            faults = self.faults[channel.reader]
            table.add_row(
                channel.reader,
                channel.place,
                channel.scope,
                f"{seen.samples[-1].value:.6g} {channel.unit}",
                _with_unit(seen.watts, "W"),
                _with_unit(seen.rate_per_s, "/s"),
                f"{seen.age_s(now_s):.1f} s",
                f"{len(faults)}" if len(faults) else "",
            )
        for reader, why in self.without_channels():
            table.add_row(reader, "", "", "-", "-", "-", "-", why)
        return table


def channel_fields(channel: Channel) -> dict[str, str]:
    """Every declaration of a channel in words; ``?`` where nobody says."""
    return {
        "reader": channel.reader,
        "place": channel.place,
        "quantity": channel.quantity,
        "unit": channel.unit,
        "scope": channel.scope,
        "contains": ", ".join(channel.contains),
        "period": _with_unit(channel.period_s, "s"),
        "averaging": _with_unit(channel.averaging_s, "s"),
        "lag": _with_unit(channel.lag_s, "s"),
        "resolution": _with_unit(channel.resolution, channel.unit),
        "kind": channel.kind,
    }


def listing(watch: Watch) -> Table:
    """Of ``workbench meter list``: a row a channel, then each missing reader and its reason."""
    table = Table(*channel_fields(Channel("", "", "node", "power")))
    for channel in watch.channels:
        table.add_row(*channel_fields(channel).values())
    return table


def _with_unit(value: float | None, unit: str) -> str:
    if value is None:
        return "?"
    return f"{value:.4g}{unit}" if unit.startswith("/") else f"{value:.4g} {unit}"
