"""What a plan that is made before the training may take besides bytes: time, and metered energy.

Both are of the layers' products, one token at a time, against the same in bf16. They are measured
once and kept: a stage that was killed in its training goes on with the same plan.
"""

from __future__ import annotations

from functools import partial

import pandas as pd

from workbench.errors import StageError
from workbench.files import read_json, write_json
from workbench.hybrid.base import Base
from workbench.hybrid.energy import metered_products, unit_energies
from workbench.hybrid.latency import unit_seconds
from workbench.hybrid.program import Budget
from workbench.measure.meters import find_meters
from workbench.pilot.spec import Pilot
from workbench.stages.context import StageContext
from workbench.stages.metered import closed, stage_meters, step_load, trusted
from workbench.ternary.policy import Precision

ENERGIES = "plan_energies"
A_METER = "a power meter that answers here, found by measure_ab.meters"
CURE = (
    "`workbench meter list` says what answers; name a meter in measure_ab.meters (docs/energy.md), "
    "or leave hybrid_plan.max_energy_ratio out: max_latency_ratio needs none"
)


def plan_comes_first(pilot: Pilot) -> bool:
    """Whether the pilot has the plan made before the training: as it says, else where there is a
    checkpoint; never beside a ready model, which nothing is trained of."""
    if pilot.model.ternary is not None:
        return False
    asked = pilot.hybrid_plan.when
    return pilot.model.checkpoint is not None if asked is None else asked == "before_training"


def budget_problems(pilot: Pilot) -> list[str]:
    """Budgets that cannot be kept here: of a plan that comes last, of energy without a meter."""
    section, problems = pilot.hybrid_plan, []
    for name in ("max_latency_ratio", "max_energy_ratio"):
        value = getattr(section, name)
        if value is not None and not plan_comes_first(pilot):
            problems.append(
                f"hybrid_plan.{name}: {value:g}, but the hybrid's layers are exchanged after the "
                "training, by quality and size alone; allowed: with hybrid_plan.when: "
                "before_training; set that, or leave it out"
            )
    if section.max_energy_ratio is not None and not problems:
        found, missing = find_meters(pilot.measure_ab.meters)
        for meter in found:
            meter.close()
        if not found:
            lacking = "; ".join(f"{one.source}: {one.reason}" for one in missing)
            problems.append(
                f"hybrid_plan.max_energy_ratio: {section.max_energy_ratio:g}, but no meter answers "
                f"({lacking or 'none was asked'}); allowed: {A_METER}; {CURE}"
            )
    return problems


def plan_budgets(context: StageContext, base: Base) -> list[Budget]:
    """The pilot's budgets of time and energy, measured on ``base``. StageError for one of energy
    without a meter."""
    section = context.pilot.hybrid_plan
    precisions: list[Precision] = [*dict.fromkeys([*section.precisions, "high_precision"])]
    asked = (
        ("energy_j", section.max_energy_ratio, _energies),
        ("seconds", section.max_latency_ratio, _seconds),
    )
    budgets = []
    for name, ratio, measure in asked:
        if ratio is not None:
            of = measure(context, base, precisions)
            whole = sum(of[unit, "high_precision"] for unit in base.units)
            budgets.append(Budget(name, of, ratio * whole))
    return budgets


def _seconds(
    context: StageContext, base: Base, precisions: list[Precision]
) -> dict[tuple[str, str], float]:
    path = context.folder / "plan_seconds.json"
    if not path.exists():
        timed = unit_seconds(base, precisions)
        write_json(path, [[*key, value] for key, value in timed.items()])
    return {(unit, precision): value for unit, precision, value in read_json(path)}


def _energies(
    context: StageContext, base: Base, precisions: list[Precision]
) -> dict[tuple[str, str], float]:
    path = context.folder / f"{ENERGIES}.parquet"
    windows = pd.read_parquet(path) if path.exists() else _metered(context, base, precisions)
    joules, covers = unit_energies(base, precisions, windows)
    context.record.save_table(ENERGIES, windows)
    context.note(f"the plan's budget of energy is metered: gross, {covers}")
    return joules


def _metered(context: StageContext, base: Base, precisions: list[Precision]) -> pd.DataFrame:
    """In a session of its own."""
    with stage_meters(context) as meters:
        session = meters.session
        if not session.meters:
            raise StageError(
                f"hybrid_plan.max_energy_ratio: no meter answers ({session.why_none()})",
                allowed=A_METER,
                next_step=CURE,
            )
        for text in session.learn(step_load(context.device.name)):
            context.note(text)
        report = partial(context.progress.step, "energy of the products", unit="windows")
        windows = metered_products(base, precisions, session, report)
        closed(meters)
        return trusted(windows, meters.balances)
