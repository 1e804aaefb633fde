"""The integer program against every plan there is, in small."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from workbench.hybrid.plan import Option
from workbench.hybrid.program import Budget, best_plan, front

SIZES = {"high_precision": 16, "int8": 8, "ternary": 2}


def options_of(seed: int, units: int = 5) -> list[Option]:
    random = np.random.default_rng(seed)
    made = []
    for unit in range(units):
        width = int(random.integers(1, 6))
        ternary = float(random.exponential(0.05))
        losses = {"high_precision": 0.0, "int8": 0.1 * ternary, "ternary": ternary}
        made += [Option(f"u{unit}", p, losses[p], width * SIZES[p]) for p in SIZES]
    return made


def every_plan(options: list[Option]):
    units = {o.unit: [x for x in options if x.unit == o.unit] for o in options}
    for chosen in itertools.product(*units.values()):
        yield sum(o.quality_loss for o in chosen), sum(o.size_bytes for o in chosen), chosen


@pytest.mark.parametrize("seed", range(4))
def test_no_plan_within_the_budget_loses_less(seed: int) -> None:
    options = options_of(seed)
    whole = sum(o.size_bytes for o in options if o.precision == "high_precision")
    for share in (0.15, 0.3, 0.6, 1.0):
        plan = best_plan(options, share * whole)
        least = min(loss for loss, size, _ in every_plan(options) if size <= share * whole)
        assert plan.loss == pytest.approx(least, abs=1e-7)
        assert plan.size_bytes <= share * whole and plan.bound <= plan.loss + 1e-9
        assert plan.bound == pytest.approx(least, abs=1e-6), "proved to be the best"


def test_a_budget_that_nothing_fits_has_no_plan() -> None:
    assert best_plan(options_of(0), 1.0) is None


@pytest.mark.parametrize("name", ["seconds", "energy_j"])
def test_time_and_energy_are_budgets_too(name: str) -> None:
    options = options_of(1)
    of = {(o.unit, o.precision): o.size_bytes * (1.0 if o.precision != "int8" else 0.1)
          for o in options}  # fmt: skip
    most = sum(value for (_, p), value in of.items() if p == "high_precision")
    budget = Budget(name, of, 0.2 * most)
    plan = best_plan(options, 1e9, budgets=[budget])
    assert budget.taken(plan.assignment) <= 0.2 * most
    within = [
        loss for loss, _, chosen in every_plan(options)
        if sum(of[o.unit, o.precision] for o in chosen) <= 0.2 * most
    ]  # fmt: skip
    assert plan.loss == pytest.approx(min(within), abs=1e-7)


def test_all_budgets_hold_at_once() -> None:
    options = options_of(3)
    whole = sum(o.size_bytes for o in options if o.precision == "high_precision")
    random = np.random.default_rng(5)
    budgets = []
    for name in ("seconds", "energy_j"):
        of = {(o.unit, o.precision): o.size_bytes * float(random.uniform(0.3, 1)) for o in options}
        most = sum(value for (_, p), value in of.items() if p == "high_precision")
        budgets.append(Budget(name, of, 0.5 * most))
    plan = best_plan(options, 0.6 * whole, budgets=budgets)
    assert plan.size_bytes <= 0.6 * whole
    within = []
    for loss, size, chosen in every_plan(options):
        assignment = {o.unit: o.precision for o in chosen}
        if size <= 0.6 * whole and all(b.taken(assignment) <= b.limit for b in budgets):
            within.append(loss)
    assert plan.loss == pytest.approx(min(within), abs=1e-7)
    assert all(b.taken(plan.assignment) <= b.limit for b in budgets)


def test_the_front_goes_from_precise_to_all_ternary_and_no_plan_beats_it() -> None:
    options = options_of(2)
    plans = front(options, base_is_precise=True)
    assert set(plans[0].assignment.values()) == {"high_precision"}
    assert set(plans[-1].assignment.values()) == {"ternary"}
    losses, sizes = [p.loss for p in plans], [p.size_bytes for p in plans]
    assert losses == sorted(losses) and sizes == sorted(sizes, reverse=True)
    for loss, size, _ in every_plan(options):
        assert not any(loss < p.loss - 1e-7 and size <= p.size_bytes for p in plans)


def test_a_gain_of_a_precise_base_is_noise() -> None:
    options = [Option("a", "high_precision", 0.0, 16), Option("a", "ternary", -0.5, 2),
               Option("b", "high_precision", 0.0, 16), Option("b", "ternary", 0.2, 2)]  # fmt: skip
    plan = best_plan(options, 20)
    assert plan.assignment == {"a": "ternary", "b": "high_precision"} and plan.bound >= 0
