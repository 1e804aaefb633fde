"""The plan as an integer program: the least loss that a budget of bytes, time or energy allows.

    minimise    sum of loss[unit, precision] * x[unit, precision]
    so that     each unit has one precision, and
                sum of bytes[unit, precision] * x <= the budget (and the same of seconds, of J)

A multiple-choice knapsack, solved by HiGHS (:func:`scipy.optimize.milp`), which proves how near to
the best a plan is: ``bound`` is a loss that no plan within the budget can go below. Losses of
single units do not add up exactly; so they choose the plans, and the plans that matter are measured
as a whole (:func:`workbench.hybrid.plan.coarsest_within`). A precise base seems to gain from some
units made coarse: that is the noise of the text, and counts as nothing lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

if TYPE_CHECKING:
    from workbench.hybrid.plan import Option
    from workbench.ternary.policy import Precision

FRONT_POINTS = 33
"""Budgets at which the front is solved, from the smallest plan to the largest."""
TIE = 1e-9
"""Of two plans that lose alike the smaller: bits per byte for the whole range of sizes."""


@dataclass(frozen=True)
class Budget:
    """What a plan may take besides bytes. name: ``seconds`` or ``energy_j``. of: (unit, precision)
    -> what the unit's products take for one token. limit: of all units together, at most."""

    name: str
    of: Mapping[tuple[str, str], float]
    limit: float

    def taken(self, assignment: Mapping[str, str]) -> float:
        return sum(self.of[unit, precision] for unit, precision in assignment.items())


@dataclass(frozen=True)
class LayerPlan:
    """loss: the single losses added up, bits per byte. bound: none of that budget is below it."""

    assignment: dict[str, Precision]
    loss: float
    size_bytes: int
    bound: float


def best_plan(
    options: Sequence[Option],
    budget_bytes: float,
    *,
    base_is_precise: bool = True,
    budgets: Sequence[Budget] = (),
) -> LayerPlan | None:
    """The plan of least loss within all budgets; None where no plan keeps them."""
    losses = np.array([o.quality_loss for o in options])
    losses = np.maximum(losses, 0.0) if base_is_precise else losses
    sizes = np.array([float(o.size_bytes) for o in options])
    units = list(dict.fromkeys(o.unit for o in options))
    one_each = np.array([[o.unit == unit for o in options] for unit in units], float)
    limits = [LinearConstraint(one_each, 1, 1), _at_most(sizes, budget_bytes)]
    for budget in budgets:
        of_each = np.array([budget.of[o.unit, o.precision] for o in options])
        limits.append(_at_most(of_each, budget.limit))
    found = milp(
        losses + TIE * sizes / sizes.sum(),
        constraints=limits,
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    taken = np.flatnonzero(found.x > 0.5)
    bound = float(getattr(found, "mip_dual_bound", None) or found.fun)
    return LayerPlan(
        {options[k].unit: options[k].precision for k in taken},
        float(sum(options[k].quality_loss for k in taken)),
        int(sizes[taken].sum()),
        min(bound, float(losses[taken].sum())),
    )


def _at_most(values: np.ndarray, limit: float) -> LinearConstraint:
    """In units of the largest, so that bytes and seconds are alike to the solver."""
    return LinearConstraint(values[None] / values.max(), -np.inf, limit / values.max())


def coarsest(options: Sequence[Option]) -> LayerPlan:
    """Every unit at its smallest."""
    of = {o.unit: o for o in sorted(options, key=lambda o: -o.size_bytes)}
    loss, size = (sum(getattr(o, f) for o in of.values()) for f in ("quality_loss", "size_bytes"))
    return LayerPlan(
        {unit: o.precision for unit, o in of.items()}, float(loss), int(size), float(loss)
    )


def front(
    options: Iterable[Option], base_is_precise: bool, points: int = FRONT_POINTS
) -> list[LayerPlan]:
    """The best plans of budgets from the largest size to the smallest; no two alike."""
    known = list(options)
    by_unit: dict[str, list[int]] = {}
    for option in known:
        by_unit.setdefault(option.unit, []).append(option.size_bytes)
    least, most = (sum(pick(sizes) for sizes in by_unit.values()) for pick in (min, max))
    plans: list[LayerPlan] = []
    for budget in np.linspace(most, least, points):
        plan = best_plan(known, budget * (1 + 1e-12), base_is_precise=base_is_precise)
        if plan and (not plans or plan.assignment != plans[-1].assignment):
            plans.append(plan)
    return plans
