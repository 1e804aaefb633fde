"""Which channels are summed for one figure: the bases, the widest first.

A basis holds every part once: all feeds of the node that one reader sees, or the boards and the
processors, or either of them alone. The widest that has a figure is the one to report, the others
check it. What holds other machines too (a rack, a room) is a check alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from workbench.measure.meters.reading import Reading, Reason
from workbench.measure.meters.sample import Channel, SampleKind

NODE, BOARDS_AND_PROCESSORS, BOARDS, PROCESSORS = "node", "gpu + cpu", "gpu", "cpu"
PARTS: dict[str, tuple[str, ...]] = {
    BOARDS_AND_PROCESSORS: ("gpu", "cpu"),
    BOARDS: ("gpu",),
    PROCESSORS: ("cpu",),
}
"""Basis -> the scopes that are summed for it."""
COVERS = {
    NODE: "the whole node",
    BOARDS_AND_PROCESSORS: "GPU boards and CPU packages alone",
    BOARDS: "GPU boards alone",
    PROCESSORS: "CPU packages alone",
}
"""What stands beside a figure: of fans, disks and losses only the node's inlet knows."""


@dataclass(frozen=True)
class EnergyBasis:
    """name: ``node``, ``gpu + cpu``, ``gpu`` or ``cpu``. channels: summed, each part once."""

    name: str
    reader: str
    channels: tuple[Channel, ...]

    @property
    def text(self) -> str:
        return f"{COVERS[self.name]} ({' + '.join(channel.name for channel in self.channels)})"

    @property
    def kind(self) -> SampleKind:
        """The weakest of its channels'."""
        kinds = {channel.kind for channel in self.channels}
        return next(k for k in ("assumed", "modelled", "measured") if k in kinds)


def bases(channels: Sequence[Channel]) -> list[EnergyBasis]:
    """Every basis that these channels make, the widest first; a counter stands for the power of
    its place, unless its steps are coarse: then the power stands and the counter checks it."""
    held = {(channel.scope, place) for channel in channels for place in channel.contains}
    each = [c for c in _one_a_place(channels) if (c.scope, c.place) not in held]
    found = []
    for reader in dict.fromkeys(c.reader for c in each if c.scope == "node"):
        feeds = [c for c in each if c.scope == "node" and c.reader == reader]
        found.append(EnergyBasis(NODE, reader, tuple(feeds)))
    for name, scopes in PARTS.items():
        # Two readers may see the same board, such as NVML and DCGM's exporter: never both in a sum.
        seen_by = [dict.fromkeys(c.reader for c in each if c.scope == scope) for scope in scopes]
        for readers in product(*seen_by):
            of = dict(zip(scopes, readers, strict=True))
            parts = [c for c in each if of.get(c.scope) == c.reader]
            found.append(EnergyBasis(name, " + ".join(dict.fromkeys(readers)), tuple(parts)))
    return found


def _one_a_place(channels: Sequence[Channel]) -> list[Channel]:
    """Of each place its counter or its power."""
    powers = {(c.reader, c.place) for c in channels if c.quantity == "power"}
    coarse = {(c.reader, c.place) for c in channels if c.quantity == "energy" and c.coarse}
    counted = {(c.reader, c.place) for c in channels if c.quantity == "energy"} - (coarse & powers)
    return [c for c in channels if (c.quantity == "energy") == ((c.reader, c.place) in counted)]


@dataclass(frozen=True)
class BasisEnergy:
    """The energy of one basis over a window. error_j, bias_j: see :class:`~.window.Reading`; those
    of the channels are added, for what is wrong with one feed's log is wrong with the other's."""

    basis: EnergyBasis
    energy_j: float | None
    error_j: float = 0.0
    bias_j: float = 0.0
    reason: Reason | None = None
    text: str = ""


def basis_energies(
    found: Sequence[EnergyBasis], reading: Callable[[Channel], Reading]
) -> list[BasisEnergy]:
    """One a basis, in their order."""
    energies = []
    for basis in found:
        readings = [reading(channel) for channel in basis.channels]
        failed = next((r for r in readings if r.energy_j is None), None)
        if failed:
            energies.append(BasisEnergy(basis, None, reason=failed.reason, text=failed.text))
        else:
            joules = sum(r.energy_j for r in readings if r.energy_j is not None)
            error_j, bias_j = sum(r.error_j for r in readings), sum(r.bias_j for r in readings)
            energies.append(BasisEnergy(basis, joules, error_j, bias_j))
    return energies
