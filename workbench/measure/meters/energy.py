"""The energy of a window as it is reported, with what the other meters say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workbench.measure.meters.basis import NODE, BasisEnergy
from workbench.measure.meters.reading import Reading, Reason
from workbench.measure.meters.sample import SampleKind
from workbench.records.metric import Metric

CROSS_CHECK = 0.05
IDLE_DRIFT = 0.10
PARTS_OVER_WHOLE = 1.02
"""Parts that sum to more than this times the whole are said."""


@dataclass(frozen=True)
class Energy:
    """Energy of a window.

    energy_j: gross. net_j: gross minus the mean idle power before and after times the window.
    scope: what the figure covers. kind: the weakest of its parts'. error_j: see ``Reading``.
    reason, text: why there is no gross figure. parts: one reading per channel, all of them.
    """

    energy_j: float | None
    length_s: float
    scope: str = ""
    kind: SampleKind = "measured"
    basis: str = ""
    error_j: float = 0.0
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


def cross_checks(chosen: BasisEnergy, found: Sequence[BasisEnergy]) -> list[str]:
    """What the other bases say of the chosen one."""
    said = []
    for other in found:
        if other is chosen or chosen.energy_j is None:
            continue
        if other.energy_j is None:
            if found.index(other) < found.index(chosen):
                said.append(f"not {other.basis.text}: {other.text}")
        elif other.energy_j > PARTS_OVER_WHOLE * chosen.energy_j and chosen.basis.name == NODE:
            said.append(
                f"{other.basis.text} show {other.energy_j:.4g} J, more than the node's "
                f"{chosen.energy_j:.4g} J"
            )
    return said


def with_warnings(energy: Energy, said: list[str]) -> Energy:
    by_place: dict[str, dict[str, float]] = {}
    for part in energy.parts:
        if part.energy_j is not None:
            by_place.setdefault(part.channel.place, {})[part.channel.quantity] = part.energy_j
    for place, found in by_place.items():
        if len(found) == 2 and abs(found["power"] / found["energy"] - 1) > CROSS_CHECK:
            said.append(
                f"{place}: the counter says {found['energy']:.4g} J, "
                f"polled power {found['power']:.4g} J"
            )
    before, after = energy.idle_before_w, energy.idle_after_w
    if before and after and abs(before - after) > IDLE_DRIFT * (before + after) / 2:
        said.append(f"idle power was {before:.4g} W before and {after:.4g} W after")
    return replace(energy, warnings=tuple(said))
