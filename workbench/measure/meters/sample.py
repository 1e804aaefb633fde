"""What every meter yields: samples that say where they come from and how far to trust them.

A meter is anything with ``reader``, ``notes``, ``read()`` and ``close()``. Reading never blocks
for long and never invents: what the device does not answer is an OSError, a row that is no sample
a :class:`MeterFault`; both are counted, and what is missing becomes a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from workbench.pilot.sections.meters import Scope

SampleKind = Literal["measured", "modelled", "assumed"]

COARSE_J = 100.0
"""A counter in steps of more: a PDU's of 0.1 kWh moves once in twenty minutes at a kilowatt."""


@dataclass(frozen=True)
class Channel:
    """One quantity of one place, as its meter declares it.

    reader: ``nvml``, ``rapl``, ``csv``, ``snmp``, ``redfish``, ``ipmi``, ``modbus`` or
    ``prometheus``. place: which one, e.g. ``gpu0``, ``package-0``, ``feed-a``.
    contains: places of other channels that this one covers as well, so that they are not added to
    it; a node holds every gpu and cpu without naming them.
    quantity: ``energy`` is a counter that only grows, in J; ``power`` is in W.
    period_s: how often the device renews the value; None where nobody says: its samples tell.
    averaging_s, lag_s: the value is the mean over ``averaging_s`` up to ``lag_s`` before its
    time; None where nobody says: a step test tells (:mod:`.response`).
    resolution: smallest step of the value, in its unit; None where nobody says.
    wraps_at_j: the counter starts again from 0 here; None where it does not.
    """

    reader: str
    place: str
    scope: Scope
    quantity: Literal["energy", "power"]
    kind: SampleKind = "measured"
    contains: tuple[str, ...] = ()
    period_s: float | None = None
    averaging_s: float | None = None
    lag_s: float | None = None
    resolution: float | None = None
    wraps_at_j: float | None = None

    @property
    def name(self) -> str:
        return f"{self.reader} {self.place}"

    @property
    def coarse(self) -> bool:
        """Whether it is a counter whose steps are no measure of a window of seconds."""
        return self.quantity == "energy" and (self.resolution or 0.0) > COARSE_J

    @property
    def lag_unknown(self) -> bool:
        """Whether the step test must tell how late it is, of a power also how averaged; a coarse
        counter's lag is less than its step."""
        if self.quantity == "energy":
            return self.lag_s is None and not self.coarse
        return self.lag_s is None or self.averaging_s is None

    @property
    def unit(self) -> str:
        return "J" if self.quantity == "energy" else "W"


@dataclass(frozen=True)
class Sample:
    """monotonic_s: of the session's clock. wall_s: Unix time. value: in the channel's unit."""

    channel: Channel
    monotonic_s: float
    wall_s: float
    value: float


FaultCode = Literal[
    "no_answer",
    "timeout",
    "denied",
    "unknown_name",
    "wrong_type",
    "unsupported",
    "not_a_number",
    "unit_change",
    "bad_row",
]
"""Why a sample is missing: the device is not there, does not answer in time, refuses the password,
does not know what it is asked for, answers with something that is no number of the wanted sort,
with a mark for "not supported", with NaN, in another unit than before; a row of a log is none."""


@dataclass(frozen=True)
class MeterFault:
    """What stood where a sample should: a code and a sentence. channel: whose sample; None where
    all of the meter's are missing."""

    text: str
    code: FaultCode = "no_answer"
    channel: Channel | None = None


class MeterError(OSError):
    """A device that does not answer, with the code."""

    def __init__(self, text: str, code: FaultCode = "no_answer") -> None:
        super().__init__(text)
        self.code: FaultCode = code


class Meter(Protocol):
    """A source of samples. notes: what it leaves out and why, for a person."""

    reader: str
    notes: list[str]

    def read(self) -> list[Sample | MeterFault]:
        """What is new since the last call. Raises OSError when the device does not answer."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...
