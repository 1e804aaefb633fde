"""What a meter shows and is no measurement: NaN, marks for "not supported", another unit.

Devices say that they do not know in many ways: -1, 0 W for a machine that runs, the largest number
there is. Each of them would be a sample like any other, so it is taken out before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from workbench.measure.meters.sample import Channel, FaultCode, MeterFault, Sample

MOST_W = 1e9
"""More than any site; what exceeds it is a mark, such as 2**31 - 16 or 2**63 - 16 of DCGM."""
NEVER_ZERO = ("node", "rack", "it", "facility")
"""Scopes that hold the machine that asks, so that they draw something."""
OTHER_UNIT = 300.0
"""A power that is so many times what it was is in another unit: kilowatts are 1,000 times watts,
while a busy board draws 70 times what it draws asleep."""
REMEMBERED = 5
MOST_COUNTED_W = 1e8
"""A counter that grows faster has changed its unit: none counts 100 MW."""


class ValueCheck:
    """Puts a fault in the place of each sample that is no measurement."""

    def __init__(self) -> None:
        self._before: dict[Channel, deque[Sample]] = {}

    def __call__(self, found: Iterable[Sample | MeterFault]) -> list[Sample | MeterFault]:
        return [self._checked(one) if isinstance(one, Sample) else one for one in found]

    def _checked(self, sample: Sample) -> Sample | MeterFault:
        channel, value = sample.channel, sample.value
        before = self._before.setdefault(channel, deque(maxlen=REMEMBERED))

        def fault(code: FaultCode, text: str) -> MeterFault:
            return MeterFault(f"{channel.place} {channel.quantity}: {text}", code, channel)

        if not math.isfinite(value):
            return fault("not_a_number", f"{value} is no number")
        if value < 0 or (channel.quantity == "power" and value > MOST_W):
            return fault("unsupported", f"{value:g} {channel.unit} stands for: not supported")
        if channel.quantity == "power":
            if value == 0 and channel.scope in NEVER_ZERO:
                return fault("unsupported", "0 W is no measurement of what runs")
            usual_w = median(s.value for s in before) if before else 0.0
            if value and usual_w and not 1 / OTHER_UNIT < value / usual_w < OTHER_UNIT:
                text = f"it went from {usual_w:g} W to {value:g} W: in another unit?"
                return fault("unit_change", text)
        elif before and value > before[-1].value:
            passed_s = max(sample.monotonic_s - before[-1].monotonic_s, 1e-3)
            if (value - before[-1].value) / passed_s > MOST_COUNTED_W:
                text = f"it went from {before[-1].value:g} J to {value:g} J: in another unit?"
                return fault("unit_change", text)
        before.append(sample)
        return sample
