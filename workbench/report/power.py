"""What a machine draws under the load and idle, on one basis for all arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from workbench.economics.quantity import Quantity
from workbench.measure.statistics import mean
from workbench.pilot.sections.cost import Cost
from workbench.records.stage_record import StageRecord
from workbench.report.demand import Use


@dataclass(frozen=True)
class ArmPower:
    """load: of the machine in the arm's turns, W. idle_share: power of the idle machine over it.
    how: for the reader."""

    load: Quantity
    idle_share: Quantity
    how: str


def arm_powers(
    measured: StageRecord, uses: Mapping[str, Use], cost: Cost
) -> dict[str, ArmPower] | str:
    """Of every arm, all metered on one basis or all declared; or why there is none."""
    turns = {arm: turn_powers(measured, arm, use) for arm, use in uses.items()}
    bases = {basis for _, basis in turns.values()}
    if len(bases) == 1 and all(len(rows) for rows, _ in turns.values()):
        return {arm: _metered(rows, basis, cost) for arm, (rows, basis) in turns.items()}
    if cost.assumed_power_w is not None:
        return {arm: _assumed(cost) for arm in uses}
    return (
        "the power of the arms was not metered in the turns that carry the load, and none is "
        "declared (report.cost.assumed_power_w)"
    )


def turn_powers(measured: StageRecord, arm: str, use: Use) -> tuple[pd.DataFrame, str]:
    """(power_w and idle_w of the arm's turns at this batch by block, the basis it is of)."""
    basis = measured.facts.get("energy_basis", {}).get(use.load_class, "")
    if not basis or "energies" not in measured.tables:
        return pd.DataFrame(columns=["power_w", "idle_w"]), ""
    rows = measured.table("energies")
    own = rows[(rows["arm"] == arm) & (rows["class"] == use.load_class) & (rows["basis"] == basis)]
    own = own.dropna(subset=["energy_j"])
    own = own.assign(length_s=own["end_s"] - own["start_s"])
    if "idle_w" not in own:
        own = own.assign(idle_w=float("nan"))  # a record of before
    sums = own.groupby("block")[["energy_j", "length_s"]].sum()
    idle = own.groupby("block")["idle_w"].mean()
    return pd.DataFrame({"power_w": sums["energy_j"] / sums["length_s"], "idle_w": idle}), basis


def _metered(rows: pd.DataFrame, basis: str, cost: Cost) -> ArmPower:
    found = mean(rows["power_w"])
    kind, factor, how = "measured", 1.0, f"metered, {basis}"
    if basis != "node" and cost.board_share is not None:
        kind, factor = "assumed", 1 / cost.board_share
        how = f"metered at {basis} alone, extended by the declared share {cost.board_share:g}"
    elif basis != "node":
        how = f"metered at {basis} alone: fans, power supplies and disks are not in it"
    ends = [None if end is None else end * factor for end in (found.value, found.lo, found.hi)]
    assert ends[0] is not None
    load = Quantity(ends[0], kind, "W", how, ends[1], ends[2])  # type: ignore[arg-type]
    idle = rows["idle_w"].dropna()
    if len(idle) and 0 < idle.mean() < rows["power_w"].mean():
        share = float(idle.mean() / rows["power_w"].mean())
        return ArmPower(load, Quantity(share, "measured", "", "metered rests"), how)
    return ArmPower(load, _declared_idle(cost), f"{how}; idle power declared")


def _assumed(cost: Cost) -> ArmPower:
    assert cost.assumed_power_w is not None
    load = Quantity(cost.assumed_power_w, "assumed", "W", "report.cost.assumed_power_w")
    return ArmPower(load, _declared_idle(cost), f"declared: {cost.assumed_power_w:g} W under load")


def _declared_idle(cost: Cost) -> Quantity:
    return Quantity(cost.fleet.idle_share, "assumed", "", "report.cost.fleet.idle_share")
