"""What a machine draws under the load and idle, on one basis for all arms.

Three bases, the strongest that every arm has: the **served load**, whose energy net of idle and
whose idle power were metered in the replay; the **turns** in fixed shapes at the batch that carries
the load, metered power times measured machine time; **declared** watts times measured machine time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from workbench.economics.quantity import Quantity
from workbench.measure.statistics import mean
from workbench.pilot.sections.cost import Cost
from workbench.records.metric import MetricKind
from workbench.records.stage_record import StageRecord
from workbench.report.demand import Demand, Use
from workbench.report.served import ServedEnergy, served_energies

PowerBasis = Literal["served", "turns", "declared"]


@dataclass(frozen=True)
class ArmPower:
    """numbers: of the case, by name without the arm: ``work_j`` (of a request, above idle) and
    ``idle_w``, or ``power_w`` (under load) and ``idle_share`` (idle power over it). common: those
    of them that are one number for all arms, and are turned or drawn together. how: for the reader.
    prefill_share: of the energy that prompt tokens take, where it was split."""

    numbers: dict[str, Quantity]
    how: str
    prefill_share: float | None = None
    common: frozenset[str] = frozenset()

    def named(self, arm: str) -> dict[str, Quantity]:
        """By their names in the case."""
        return {n if n in self.common else f"{n}.{arm}": of for n, of in self.numbers.items()}


@dataclass(frozen=True)
class Powers:
    """arms: of all arms, on ``basis``. passed_over: stronger bases, and why each was not taken.
    covers: what the meter is of, where that is not the node nor extended to it."""

    basis: PowerBasis
    arms: dict[str, ArmPower]
    passed_over: tuple[tuple[str, str], ...] = ()
    covers: str = ""

    @property
    def texts(self) -> list[str]:
        """The basis, and what was passed over for it."""
        hows = list(dict.fromkeys(power.how for power in self.arms.values()))
        if len(hows) == 1:
            said = [f"energy of all arms: {hows[0]}"]
        else:
            said = [f"energy of {arm}: {power.how}" for arm, power in self.arms.items()]
        return said + [f"not by {text}" for text in _passed(self.passed_over)]


def arm_powers(
    measured: StageRecord, uses: Mapping[str, Use], demand: Demand, cost: Cost
) -> Powers | str:
    """Of every arm, all on one basis; or why there is none."""
    served = served_energies(measured, list(uses), demand, cost)
    if not isinstance(served, str):
        basis = measured.facts["load_energy_basis"][next(iter(uses))]
        found = {arm: _served(own) for arm, own in served.items()}
        return Powers("served", found, covers=_covers(basis, cost))
    passed = [("the served load", served)]
    turns = {arm: turn_powers(measured, arm, use) for arm, use in uses.items()}
    bases = {basis for _, basis in turns.values()}
    if len(bases) == 1 and all(len(rows) for rows, _ in turns.values()):
        found = {arm: _metered(rows, basis, cost) for arm, (rows, basis) in turns.items()}
        return Powers("turns", found, tuple(passed), _covers(next(iter(bases)), cost))
    passed.append(("the turns in fixed shapes", _why_no_turns(measured, uses)))
    if cost.assumed_power_w is not None:
        return Powers("declared", {arm: _assumed(cost) for arm in uses}, tuple(passed))
    why = "; ".join(_passed(passed))
    return f"{why}; and no power is declared (report.cost.assumed_power_w)"


def _passed(over: Sequence[tuple[str, str]]) -> list[str]:
    """Bases of one reason together."""
    whys: dict[str, list[str]] = {}
    for basis, why in over:
        whys.setdefault(why, []).append(basis)
    return [f"{' and '.join(bases)}: {why}" for why, bases in whys.items()]


def _why_no_turns(measured: StageRecord, uses: Mapping[str, Use]) -> str:
    """The reason that the figures of an unmetered arm have, if one has."""
    reasons = [
        m.reason for m in measured.metrics
        if m.matches("energy_j_per_request", {"source": "trained"}) and m.reason
        and m.value is None and m.labels.get("arm") in uses
    ]  # fmt: skip
    return reasons[0] if reasons else "the batch that carries the load was not metered in every arm"


def turn_powers(measured: StageRecord, arm: str, use: Use) -> tuple[pd.DataFrame, str]:
    """(power_w, idle_w and kind of the arm's turns at this batch by block, the basis it is of)."""
    basis = measured.facts.get("energy_basis", {}).get(use.load_class, "")
    if not basis or "energies" not in measured.tables:
        return pd.DataFrame(columns=["power_w", "idle_w", "kind"]), ""
    rows = measured.table("energies")
    own = rows[(rows["arm"] == arm) & (rows["class"] == use.load_class) & (rows["basis"] == basis)]
    own = own.dropna(subset=["energy_j"])
    own = own.assign(length_s=own["end_s"] - own["start_s"])
    if "idle_w" not in own:
        own = own.assign(idle_w=float("nan"))  # a record of before
    sums = own.groupby("block")[["energy_j", "length_s"]].sum()
    idle = own.groupby("block")["idle_w"].mean()
    power_w = sums["energy_j"] / sums["length_s"]
    return pd.DataFrame({"power_w": power_w, "idle_w": idle, "kind": metered_kind(own)}), basis


def metered_kind(rows: pd.DataFrame) -> MetricKind:
    """Of windows: a meter that models, as RAPL does on some processors, measures nothing."""
    return "modelled" if "modelled" in set(rows["kind"]) else "measured"


def _covers(basis: str, cost: Cost) -> str:
    return "" if basis == "node" or cost.board_share is not None else basis


def _served(own: ServedEnergy) -> ArmPower:
    numbers = {"work_j": own.work_j, "idle_w": own.idle_w}
    return ArmPower(numbers, own.how, own.prefill_share, frozenset({"idle_w"}))


def _metered(rows: pd.DataFrame, basis: str, cost: Cost) -> ArmPower:
    found = mean(rows["power_w"])
    kind = metered_kind(rows)
    factor, how = 1.0, f"turns in fixed shapes, metered, {basis}"
    if basis != "node" and cost.board_share is not None:
        kind, factor = "assumed", 1 / cost.board_share
        how = f"turns in fixed shapes, metered at {basis} alone, extended to the node by the "
        how += f"declared share {cost.board_share:g}"
    elif basis != "node":
        how = (
            f"turns in fixed shapes, metered at {basis} alone: fans, power supplies and disks are "
            "not in it"
        )
    ends = [None if end is None else end * factor for end in (found.value, found.lo, found.hi)]
    assert ends[0] is not None
    load = Quantity(ends[0], kind, "W", how, ends[1], ends[2])
    idle = rows["idle_w"].dropna()
    if len(idle) and 0 < idle.mean() < rows["power_w"].mean():
        share = float(idle.mean() / rows["power_w"].mean())
        own_share = Quantity(share, "measured", "", "metered rests")
        return ArmPower({"power_w": load, "idle_share": own_share}, how)
    return ArmPower(
        {"power_w": load, "idle_share": _declared_idle(cost)},
        f"{how}; idle power by report.cost.fleet.idle_share",
        common=frozenset({"idle_share"}),
    )  # fmt: skip


def _assumed(cost: Cost) -> ArmPower:
    assert cost.assumed_power_w is not None
    load = Quantity(cost.assumed_power_w, "assumed", "W", "report.cost.assumed_power_w")
    return ArmPower(
        {"power_w": load, "idle_share": _declared_idle(cost)},
        f"declared {cost.assumed_power_w:g} W under load, the same for all, x measured time",
        common=frozenset({"power_w", "idle_share"}),
    )


def _declared_idle(cost: Cost) -> Quantity:
    source = cost.source_of("fleet.idle_share")
    return Quantity(cost.fleet.idle_share, "assumed", "", source)
