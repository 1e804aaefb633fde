"""The hybrid that is trained with its plan in place, for ``hybrid_plan.when: before_training``.

A layer raised after the training lost quality in every run: the network had learned to live with
its ternary weights. So here the plan comes first: what each layer of the model *before* its
training (the checkpoint as it came) loses in each precision, the plan of least loss within the
budget as an integer program, and then a training like the ternary arm's, token for token, with the
plan's precise layers left precise.

Losses before a training say little about losses after it, since ternary layers win back most of
theirs; so the budgets are of size, time and energy, and what the hybrid loses is measured after its
training. Beside it stands the patched one: the same plan, its layers raised in ``train_qat``'s
ternary arm.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.data.dataset import judged_of, parts_of, write_tokens
from workbench.errors import StageError
from workbench.hybrid.base import Assignment, Base, units_of
from workbench.hybrid.evaluator import PlanEvaluator
from workbench.hybrid.plan import Option
from workbench.hybrid.program import Budget, LayerPlan, best_plan, coarsest
from workbench.hybrid.sensitivity import measure_options
from workbench.measure.paired_bootstrap import PairedBootstrap
from workbench.model.checkpoint import load_checkpoint
from workbench.pilot.sections.model import Policy
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.stages.hybrid_plan_budgets import plan_budgets, plan_comes_first
from workbench.stages.train_qat_sweep import TABLE as RATE_SWEEP
from workbench.stages.train_qat_untrained import fresh_model
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.manifest import Manifest
from workbench.ternary.packed import save_packed
from workbench.ternary.packed_layers import pack_layer
from workbench.ternary.policy import PLANNED, Precision
from workbench.ternary.post_training import CALIBRATION_SEQUENCES, ternarize_post_training
from workbench.train.arm import train_arm
from workbench.train.distill import as_teacher
from workbench.train.preflight import has_new_norms
from workbench.train.quiet import quiet_transformers
from workbench.train.rate_sweep import with_best_rate
from workbench.train.setup import TrainingSetup

ARM = "hybrid_arm"
RATIO = "trained_hybrid_over_patched_gap"
BUDGET_OF = {"seconds": "time", "energy_j": "energy"}
UNIT_OF = {"seconds": "s", "energy_j": "J"}


@dataclass(frozen=True)
class TrainedHybrid:
    """options, plan: of the model before its training. size_ratio: of the plan's layers.
    budgets: of time and energy, as far as the pilot has them."""

    options: list[Option]
    plan: LayerPlan
    size_ratio: float
    budgets: list[Budget]


def plans_first(context: StageContext, trained: StageRecord) -> bool:
    """Whether the hybrid is trained with its plan; never without master weights to compare with."""
    return "ternary_master" in trained.artefacts and plan_comes_first(context.pilot)


def train_hybrid(
    context: StageContext,
    trained: StageRecord,
    tokenizer: PreTrainedTokenizerBase,
    choosing: pd.DataFrame,
    evaluator: PlanEvaluator,
) -> TrainedHybrid | None:
    """Plan, train with it, and pack the model as the artefact ``hybrid``. None where the budget is
    kept without a ternary layer: then there is nothing to train."""
    setup = _setup(context, trained, tokenizer, choosing)
    planned = _plan(context, trained, setup, evaluator)
    gc.collect()
    if "ternary" not in planned.plan.assignment.values():
        context.note(
            "the budget is kept without a ternary layer, so there is nothing to train with the "
            "plan: layers are exchanged after the training, by quality and size alone; for a plan "
            "with ternary layers lower hybrid_plan.max_size_ratio"
        )
        return None
    _train(context, trained, setup, planned.plan.assignment)
    return planned


def _setup(
    context: StageContext, trained: StageRecord, tokenizer: PreTrainedTokenizerBase,
    excerpts: pd.DataFrame,
) -> TrainingSetup:  # fmt: skip
    """The tokens of ``train_qat``, as its folder keeps them."""
    pilot, path = context.pilot, trained.folder / "tokens.npy"
    if not path.exists():
        raise StageError(
            f"{path} is gone: the hybrid is to be trained on the same tokens",
            next_step="run train_qat again (--from train_qat --force), or set "
            "hybrid_plan.when: after_training",
        )
    setup = TrainingSetup(
        train=pilot.train,
        seed=pilot.seed,
        tokens=write_tokens(path, tokenizer, ()),
        judged=judged_of(path),
        parts=parts_of(path, pilot.data),
        sequence_length=pilot.data.sequence_length,
        tokenizer=tokenizer,
        excerpts=excerpts,
        new_norms=has_new_norms(pilot),
        device=context.device.name,
    )
    if RATE_SWEEP in trained.tables:  # the rate that the ternary arm was trained at
        setup = with_best_rate(setup, trained.table(RATE_SWEEP))
    return setup


def _plan(
    context: StageContext, trained: StageRecord, setup: TrainingSetup, evaluator: PlanEvaluator
) -> TrainedHybrid:
    """What each layer loses before any training, and the plan of least loss within the budget."""
    section, progress = context.pilot.hybrid_plan, context.progress
    base = _base(context, trained, setup)
    budgets = plan_budgets(context, base)
    options = measure_options(base, evaluator, section.precisions, progress)
    bf16 = sum(base.size_bytes(unit, "high_precision") for unit in base.units)
    plan = best_plan(options, section.max_size_ratio * bf16, budgets=budgets)
    if plan is None:
        plan = coarsest(options)
        names = " and ".join(["size", *(BUDGET_OF[budget.name] for budget in budgets)])
        context.note(f"no plan keeps the budget of {names}: the coarsest is taken")
    facts = {
        "model": "the checkpoint as it came" if "checkpoint" in trained.artefacts else
        "the trained full-precision arm",
        "predicted_loss": plan.loss, "bound": plan.bound, "size_bytes": plan.size_bytes,
    }  # fmt: skip
    for budget in budgets:
        taken = budget.taken(plan.assignment)
        facts |= {budget.name: taken, f"budget_{budget.name}": budget.limit}
        context.note(
            f"the plan's products take {taken:.3g} {UNIT_OF[budget.name]} a token of the "
            f"{budget.limit:.3g} allowed ({BUDGET_OF[budget.name]})"
        )
    context.record.facts["plan_before_training"] = facts
    return TrainedHybrid(options, plan, base.size_ratio(plan.assignment), budgets)


def _base(context: StageContext, trained: StageRecord, setup: TrainingSetup) -> Base:
    """The model as it came, and what post-training makes of its layers."""
    name = "checkpoint" if "checkpoint" in trained.artefacts else "full_precision"
    layers = Manifest.read(trained.artefact("ternary")).named("ternary")
    section, activations = context.pilot.model, context.pilot.model.activations
    with quiet_transformers():
        model = load_checkpoint(str(trained.artefact(name))).to(setup.device)
    lowered = copy.deepcopy(model)
    ids_BT = setup.first_sequences(CALIBRATION_SEQUENCES).to(model.device)
    report = ternarize_post_training(
        lowered, section.policy, activations=activations, calibration=ids_BT.split(4)
    )

    def form(layer: str, precision: Precision) -> nn.Module:
        if precision == "ternary":
            return pack_layer(lowered.get_submodule(layer), precision, report.threshold)
        return pack_layer(model.get_submodule(layer), precision, report.threshold, activations)

    units = units_of(layers, context.pilot.hybrid_plan.granularity)
    return Base("checkpoint", model, "high_precision", units, form, report.threshold)


def policy_of(policy: Policy, layers: dict[str, Precision]) -> Policy:
    """The pilot's policy with the plan's layers named one by one; patterns stay for the rest. INT8
    and INT4 layers are trained precise and rounded when packed; no policy knows INT4, so here they
    are in high precision."""
    named = {
        precision: [layer for layer, its in layers.items() if its == precision]
        for precision in PLANNED
    }
    return Policy(
        ternary=named["ternary"],
        int8=[*policy.int8, *named["int8"]],
        high_precision=[*policy.high_precision, *named["high_precision"], *named["int4"]],
    )


def _train(
    context: StageContext, trained: StageRecord, setup: TrainingSetup, assignment: Assignment
) -> None:
    """Like the ternary arm, with the plan's layers in their precision; packed as ``hybrid``."""
    section, record = context.pilot.model, context.record
    units = units_of(
        Manifest.read(trained.artefact("ternary")).named("ternary"),
        context.pilot.hybrid_plan.granularity,
    )
    layers = {name: p for unit, p in assignment.items() for name in units[unit]}
    model = fresh_model(context, section, setup, "hybrid")
    threshold = ThresholdVersion.from_section(section.threshold)
    policy = policy_of(section.policy, layers)
    report = to_ternary(model, policy, threshold, section.activations, section.sub_norm)
    context.progress.note(str(report))
    teacher = _teacher(context, trained, setup)
    evaluator = train_arm("ternary", model, setup, context.folder / ARM, context.progress, teacher)
    losses = evaluator.telemetry.frame("loss")
    record.save_table("hybrid_loss", losses.assign(arm="hybrid"))
    tokens = int(losses["tokens"].iloc[-1])
    record.facts["hybrid_training"] = {
        "tokens": tokens, "seconds": float(losses["seconds"].sum()),
        "equal_to_ternary_arm": _as_many(trained, tokens),
    }  # fmt: skip
    save_packed(
        model, context.folder / "hybrid", report.precisions | layers, threshold, setup.tokenizer
    )
    record.artefacts["hybrid"] = "hybrid"


def _as_many(trained: StageRecord, tokens: int) -> bool:
    of_ternary = trained.metric("training_tokens")
    return of_ternary is not None and of_ternary.value == tokens


def _teacher(
    context: StageContext, trained: StageRecord, setup: TrainingSetup
) -> PreTrainedModel | None:
    """The ternary arm's own."""
    kind = context.pilot.train.distillation.teacher
    if kind == "none":
        return None
    own = trained.artefact("full_precision")
    where = own if kind == "full_precision" else context.pilot.model.checkpoint
    with quiet_transformers():
        return as_teacher(load_checkpoint(str(where)), setup)


def compare_with_patched(record: StageRecord, losses: dict[str, pd.DataFrame]) -> None:
    """The figure ``trained_hybrid_over_patched_gap``, on text that chose nothing.

    losses: of ``full_precision``, ``patched`` and ``trained`` on the same pieces.
    """
    rows = pd.concat([frame.assign(arm=arm, seed=0) for arm, frame in losses.items()])
    record.save_table("hybrid_quality", rows[["id", "source", "arm", "nats", "bytes"]])

    def ratio(bits: dict[str, np.ndarray]) -> np.ndarray:
        gap, patched = (bits[arm] - bits["full_precision"] for arm in ("trained", "patched"))
        return np.divide(gap, patched, out=np.full_like(gap, np.nan), where=patched > 0)

    how = (
        "loss against full precision of the hybrid trained with its plan over that of the same "
        "plan patched into the ternary arm, equal tokens, fresh text"
    )
    found = PairedBootstrap(rows.reset_index(drop=True)).estimate(ratio)
    record.add(found.metric(RATIO, "ratio", how))
