"""Trains one arm of a study, or loads it where it was trained before.

What is kept of an arm is what the comparisons read: the loss on every held-out excerpt, the
loss of every step, and what the arm weighs. The full-precision arm is made ternary without
training as well: that costs nothing, and its row belongs into every table. So is a checkpoint,
which is judged as it came.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from safetensors.torch import load_file, load_model
from transformers import PreTrainedModel

from workbench.data.tokenizer import vocabulary_size
from workbench.model.build import build_model
from workbench.model.checkpoint import load_checkpoint
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.study.arm import StudyArm
from workbench.study.setup import training_setup
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.convert import ConversionReport
from workbench.ternary.packed import WEIGHTS, save_packed
from workbench.ternary.policy import resolve
from workbench.train.arm import FINAL, train_arm
from workbench.train.distill import as_teacher
from workbench.train.evaluator import Evaluator
from workbench.train.quality import document_losses
from workbench.train.quiet import quiet_transformers
from workbench.train.rate_sweep import best_rate, sweep_rates, why_no_sweep, with_best_rate
from workbench.train.setup import TrainingSetup
from workbench.train.untrained import ternarize_untrained

BF16_BYTES = 2


class Sizes(NamedTuple):
    """Bytes of all tensors, and of the layers that are ternary in the ternary arms."""

    model: int
    linear: int


def arm_folder(root: Path, arm: StudyArm) -> Path:
    """Where the result of ``arm`` lies; the same for every study that has the arm."""
    return root / "arms" / arm.key


def data_folder(root: Path, arm: StudyArm) -> Path:
    """Where the text of ``arm`` lies, tokenised; the same for every arm on that text."""
    return root / "data" / arm.data_key


def finished_arm(root: Path, arm: StudyArm) -> StageRecord | None:
    return StageRecord.load(arm_folder(root, arm))


def train_study_arm(root: Path, arm: StudyArm, progress: Progress) -> StageRecord:
    """The record of ``arm``, trained only if it is not there yet.

    Tables: ``excerpts`` (weights: trained or post_training; id, source, nats, bytes) and
    ``loss``. Facts: parameters, linear_parameters (the ones that can be ternary),
    training_tokens, seconds, per weights ``sizes`` (model and linear bytes), of a distilled arm
    teacher_tokens and teacher_seconds, which are part of ``seconds``, and where its rate was swept
    ``rate`` and sweep_seconds, which are not. A checkpoint as it came has an empty ``loss``.
    """
    if record := finished_arm(root, arm):
        return record
    folder = arm_folder(root, arm)
    record = StageRecord("study_arm", folder, arm.key, time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    setup = training_setup(arm, data_folder(root, arm), progress)
    build = _builder(arm, setup)
    model = build()
    record.facts["parameters"] = sum(p.numel() for p in model.parameters())
    record.facts["linear_parameters"] = _linear_parameters(model, arm)
    if arm.kind == "checkpoint":
        losses, sizes = _untrained(arm, model, setup, folder, progress)
        rows = pd.DataFrame(columns=["step", "tokens", "loss", "seconds"])
    else:
        teacher = _teacher(root, arm, setup)
        if arm.kind == "full_precision":
            evaluator, losses, sizes = _precise(arm, model, setup, folder, progress)
        else:
            if why := why_no_sweep(setup.train):
                progress.note(f"{arm.label}: {why}")
            elif setup.train.rate_sweep.rates:
                del model
                setup = _at_best_rate(arm, build, setup, record, progress, teacher)
                model = build()
            evaluator, losses, sizes = _ternary(arm, model, setup, folder, progress, teacher)
        rows = evaluator.telemetry.frame("loss")
    if "teacher_seconds" in rows:
        record.facts["teacher_seconds"] = float(rows["teacher_seconds"].sum())
        record.facts["teacher_tokens"] = int(rows["teacher_tokens"].sum())
    record.facts["training_tokens"] = int(rows["tokens"].iloc[-1]) if len(rows) else 0
    record.facts["seconds"] = float(rows["seconds"].sum())
    record.facts["sizes"] = {weights: size._asdict() for weights, size in sizes.items()}
    record.save_table("loss", rows)
    frames = [frame.assign(weights=weights) for weights, frame in losses.items()]
    record.save_table("excerpts", pd.concat(frames, ignore_index=True))
    record.save()
    if arm.kind == "ternary":
        (folder / FINAL).unlink()  # what is compared is in the tables; a teacher is kept
    return record


LossesAndSizes = tuple[dict[str, pd.DataFrame], dict[str, Sizes]]
"""By weights: the losses of every excerpt, and what they weigh."""
Finished = tuple[Evaluator, *LossesAndSizes]


def _builder(arm: StudyArm, setup: TrainingSetup) -> Callable[[], PreTrainedModel]:
    """Makes the model that the arm starts from, the same one every time."""

    def build() -> PreTrainedModel:
        rows = vocabulary_size(setup.tokenizer)
        with quiet_transformers():
            return build_model(arm.pilot.model, rows, setup.sequence_length, arm.seed, setup.device)

    return build


def _at_best_rate(
    arm: StudyArm,
    build: Callable[[], PreTrainedModel],
    setup: TrainingSetup,
    record: StageRecord,
    progress: Progress,
    teacher: PreTrainedModel | None,
) -> TrainingSetup:
    """The rate that the arm's own sweep finds; the rates tried become its table ``rate_sweep``."""

    def fresh() -> PreTrainedModel:
        model = build()
        _to_ternary(arm, model)
        return model

    found = sweep_rates(fresh, setup, record.folder / "rate_sweep", progress, teacher)
    record.save_table("rate_sweep", found)
    rate, text = best_rate(found)
    record.facts["rate"], record.facts["sweep_seconds"] = rate, float(found["seconds"].sum())
    progress.note(f"{arm.label}: {text}")
    return with_best_rate(setup, found)


def _precise(
    arm: StudyArm, model: PreTrainedModel, setup: TrainingSetup, folder: Path, progress: Progress
) -> Finished:
    evaluator = train_arm("full_precision", model, setup, folder, progress)
    return evaluator, *_untrained(arm, model, setup, folder, progress)


def _untrained(
    arm: StudyArm, model: PreTrainedModel, setup: TrainingSetup, folder: Path, progress: Progress
) -> LossesAndSizes:
    """The model as it is (``trained``), and made ternary without training; it is changed."""
    parameters = sum(p.numel() for p in model.parameters())
    linear = _linear_parameters(model, arm)

    def judged() -> pd.DataFrame:
        return document_losses(model, setup.tokenizer, setup.excerpts, setup.sequence_length)

    losses = {"trained": judged()}
    sizes = {"trained": Sizes(BF16_BYTES * parameters, BF16_BYTES * linear)}
    report = ternarize_untrained(model, arm.pilot.model, setup, progress)
    losses["post_training"] = judged()
    sizes["post_training"] = _packed_sizes(model, report, folder)
    return losses, sizes


def _ternary(
    arm: StudyArm,
    model: PreTrainedModel,
    setup: TrainingSetup,
    folder: Path,
    progress: Progress,
    teacher: PreTrainedModel | None,
) -> Finished:
    report = _to_ternary(arm, model)
    evaluator = train_arm("ternary", model, setup, folder, progress, teacher)
    losses = {"trained": evaluator.losses(model, "ternary")}
    return evaluator, losses, {"trained": _packed_sizes(model, report, folder)}


def _to_ternary(arm: StudyArm, model: PreTrainedModel) -> ConversionReport:
    section = arm.pilot.model
    threshold = ThresholdVersion.from_section(section.threshold)
    return to_ternary(model, section.policy, threshold, section.activations, section.sub_norm)


def _teacher(root: Path, arm: StudyArm, setup: TrainingSetup) -> PreTrainedModel | None:
    """The trained full-precision arm, or the checkpoint as it came."""
    if arm.kind == "ternary" and arm.pilot.train.distillation.teacher == "checkpoint":
        with quiet_transformers():
            return as_teacher(load_checkpoint(str(arm.pilot.model.checkpoint)), setup)
    if arm.teacher is None:
        return None
    model = _builder(arm.teacher, setup)()
    load_model(model, arm_folder(root, arm.teacher) / FINAL)
    return model


def _linear_parameters(model: PreTrainedModel, arm: StudyArm) -> int:
    precisions = resolve(arm.pilot.model.policy, model).precisions
    names = [name for name, precision in precisions.items() if precision == "ternary"]
    return sum(model.get_submodule(name).weight.numel() for name in names)


def _packed_sizes(model: PreTrainedModel, report: ConversionReport, folder: Path) -> Sizes:
    """Of the packed artefact, written to be counted."""
    packed = folder / "packed"
    save_packed(model, packed, report.precisions, report.threshold)
    ternary = tuple(f"{name}." for name in report.named("ternary"))
    bytes_of = {name: value.nbytes for name, value in load_file(packed / WEIGHTS).items()}
    shutil.rmtree(packed)
    linear = sum(size for name, size in bytes_of.items() if name.startswith(ternary))
    return Sizes(sum(bytes_of.values()), linear)
