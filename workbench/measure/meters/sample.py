"""What every meter yields: samples that say where they come from and how far to trust them.

A meter is anything with ``source``, ``read()`` and ``close()``. Reading never blocks for
long and never invents: what the device does not answer is an OSError, and becomes a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["measured", "modelled", "assumed"]


@dataclass(frozen=True)
class Channel:
    """One quantity of one place.

    source: ``nvml``, ``rapl`` or ``csv``. scope: what the figure covers, e.g. ``gpu0``,
    ``package-0``, ``wall:feed-a``.
    quantity: ``energy`` is a counter that only grows, in J; ``power`` is in W.
    resolution: smallest step of the value, in its unit; None where nobody says.
    update_s: how often the device renews the value; None where nobody says.
    wraps_at_j: the counter starts again from 0 here; None where it does not.
    """

    source: str
    scope: str
    quantity: Literal["energy", "power"]
    kind: Kind
    resolution: float | None = None
    update_s: float | None = None
    wraps_at_j: float | None = None


@dataclass(frozen=True)
class Sample:
    """monotonic_s: of the session's clock. wall_s: Unix time."""

    channel: Channel
    monotonic_s: float
    wall_s: float
    value: float


class Meter(Protocol):
    """A source of samples."""

    source: str

    def read(self) -> list[Sample]:
        """What is new since the last call. Raises OSError when the device does not answer."""
        ...

    def close(self) -> None:
        """Give the device back."""
        ...
