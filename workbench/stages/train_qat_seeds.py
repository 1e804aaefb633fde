"""``train.seeds``: both arms trained again with other seeds, for the luck that one training has.

A seed decides the initial weights (not of a checkpoint) and the order of the batches. The corpus,
the tokenizer and the judged text stay, and so do the models that later stages serve: those of the
pilot's own seed. Of the others the losses are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd
from transformers import PreTrainedModel

from workbench.data.tokenizer import vocabulary_size
from workbench.measure.quality import documents_of
from workbench.measure.statistics import (
    bits_per_byte_difference,
    bits_per_byte_difference_over_seeds,
)
from workbench.model.build import build_model
from workbench.model.checkpoint import load_checkpoint
from workbench.stages.context import StageContext
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.train.arm import train_arm
from workbench.train.distill import as_teacher
from workbench.train.int8_gradients import set_int8_gradients
from workbench.train.quiet import quiet_transformers
from workbench.train.setup import TrainingSetup

Losses = dict[str, pd.DataFrame]
"""By arm, full_precision and ternary: columns id, nats, bytes, a row for each excerpt."""


def train_other_seeds(context: StageContext, setup: TrainingSetup, first: Losses) -> None:
    """Train the arms with ``train.seeds`` - 1 more seeds and record how far their gaps lie apart.

    first: the losses of the pilot's own seed. Each finished arm stays in ``seed_N/`` and is
    loaded by a later attempt.
    """
    if setup.train.seeds == 1:
        return
    by_seed = {setup.seed: first, **dict(_others(context, setup))}
    kept = [
        losses[arm][["id", "nats", "bytes"]].assign(seed=seed, arm=arm)
        for seed, losses in by_seed.items()
        for arm in ("full_precision", "ternary")
    ]
    context.record.save_table("seeds", pd.concat(kept, ignore_index=True))
    _record(context, by_seed)


def _others(context: StageContext, setup: TrainingSetup) -> Iterator[tuple[int, Losses]]:
    for place in range(1, setup.train.seeds):
        own = replace(setup, seed=setup.seed + place)
        context.progress.note(f"both arms again, seed {own.seed}")
        yield own.seed, _train_both(context, own)


def _train_both(context: StageContext, setup: TrainingSetup) -> Losses:
    section, progress = context.pilot.model, context.progress
    folder = context.folder / f"seed_{setup.seed}"
    taught_by = setup.train.distillation.teacher
    model = _start(context, setup)
    evaluator = train_arm("full_precision", model, setup, folder / "full_precision_arm", progress)
    losses = {"full_precision": evaluator.losses(model, "master")}
    teacher = as_teacher(model, setup) if taught_by == "full_precision" else None

    model = _start(context, setup)
    threshold = ThresholdVersion.from_section(section.threshold)
    to_ternary(model, section.policy, threshold, section.activations, section.sub_norm)
    set_int8_gradients(model, setup.train.int8_gradients)
    if taught_by == "checkpoint":
        with quiet_transformers():
            teacher = as_teacher(load_checkpoint(str(section.checkpoint)), setup)
    evaluator = train_arm("ternary", model, setup, folder / "ternary_arm", progress, teacher)
    losses["ternary"] = evaluator.losses(model, "ternary")
    return losses


def _start(context: StageContext, setup: TrainingSetup) -> PreTrainedModel:
    rows, length = vocabulary_size(setup.tokenizer), setup.sequence_length
    with quiet_transformers():
        return build_model(context.pilot.model, rows, length, setup.seed, setup.device)


def _record(context: StageContext, by_seed: dict[int, Losses]) -> None:
    record, unit = context.record, "bits/byte"
    pairs = [(losses["full_precision"], losses["ternary"]) for losses in by_seed.values()]
    sizes, documents = pairs[0][0]["bytes"], documents_of(pairs[0][0]["id"])
    how = "ternary less full precision on the same held-out excerpts, after the last step"
    for seed, (baseline, ternary) in zip(by_seed, pairs, strict=True):
        gap = bits_per_byte_difference(baseline["nats"], ternary["nats"], sizes, groups=documents)
        record.add(gap.metric("seed_gap_bits_per_byte", unit, how, seed=str(seed)))
    over = bits_per_byte_difference_over_seeds(
        [baseline["nats"] for baseline, _ in pairs],
        [ternary["nats"] for _, ternary in pairs],
        sizes,
        groups=documents,
    )
    record.add(over.metric("gap_over_seeds_bits_per_byte", unit, how))
