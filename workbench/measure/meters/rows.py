"""Energies of windows as rows of a table: one a basis, or one that says why there is none."""

from __future__ import annotations

from typing import Any

from workbench.measure.meters.basis import BasisEnergy
from workbench.measure.meters.session import EnergySession

WINDOW_COLUMNS = [
    "start_s", "end_s", "basis", "covers", "kind", "energy_j", "idle_w",
    "idle_error_w", "error_j", "bias_j", "how",
]  # fmt: skip
"""start_s, end_s: Unix times, by which a power log can be held against a window later. energy_j:
gross; less idle_w, of the rests around, times the length it is net of idle. idle_error_w: half
width of that. error_j, bias_j: see :class:`~.window.Reading`."""


def energy_rows(
    meters: EnergySession, at: dict[str, Any], start_s: float, end_s: float, apart: bool = False
) -> list[dict[str, Any]]:
    """Rows with ``at`` and ``WINDOW_COLUMNS``, the widest basis first; where there is none, one row
    with basis "" that says why. apart: see :meth:`~.session.EnergySession.energies`."""
    at = at | {"start_s": meters.unix_s(start_s), "end_s": meters.unix_s(end_s)}
    found = meters.energies(start_s, end_s, apart)
    if not found:
        return [no_window(f"no_meter: {meters.why_none()}") | at]
    idle = [meters.idle_w(start_s, end_s, one.basis.text) for one in found]
    return [at | _row(one, power) for one, power in zip(found, idle, strict=True)]


def no_window(why: str) -> dict[str, Any]:
    """Columns of a window that was not metered."""
    none = dict.fromkeys(("start_s", "end_s", "kind", "energy_j", "idle_w"))
    return none | {
        "basis": "",
        "covers": "",
        "idle_error_w": 0.0,
        "error_j": 0.0,
        "bias_j": 0.0,
        "how": why,
    }


def _row(energy: BasisEnergy, idle: tuple[float, float] | None) -> dict[str, Any]:
    idle_w, idle_error_w = idle or (None, 0.0)
    return {
        "basis": energy.basis.name,
        "covers": energy.basis.text,
        "kind": energy.basis.kind,
        "energy_j": energy.energy_j,
        "idle_w": idle_w,
        "idle_error_w": idle_error_w,
        "error_j": energy.error_j,
        "bias_j": energy.bias_j,
        "how": "gross" if energy.energy_j is not None else f"{energy.reason}: {energy.text}",
    }
