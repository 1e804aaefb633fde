"""Units in which devices tell power and energy, in watts and joules."""

from __future__ import annotations

from typing import Literal

from workbench.measure.meters.sample import Channel, Scope
from workbench.pilot.sections.meters import ENERGY_UNITS, NetworkMeter

TO_SI = {
    "W": 1.0, "kW": 1e3, "mW": 1e-3, "J": 1.0, "kJ": 1e3, "mJ": 1e-3, "Wh": 3600.0, "kWh": 3.6e6,
}  # fmt: skip


def quantity(unit: str) -> Literal["power", "energy"]:
    return "energy" if unit in ENERGY_UNITS else "power"


def declared_channel(
    reader: str,
    section: NetworkMeter,
    place: str,
    unit: str,
    scale: float,
    scope: Scope,
    bits: int | None = None,
) -> Channel:
    """The channel of a value that comes in ``scale`` times ``unit``, as whole numbers.

    bits: of a counter that starts again from 0.
    """
    step = scale * TO_SI[unit]
    return Channel(
        reader,
        place,
        scope,
        quantity(unit),
        contains=tuple(section.contains),
        period_s=section.period_s,
        averaging_s=section.averaging_s,
        lag_s=section.lag_s,
        resolution=step,
        wraps_at_j=2.0**bits * step if bits else None,
    )
