"""One arm from its first step, or its last whole checkpoint, to its final weights.

``folder`` keeps all that a later attempt needs: ``checkpoints/``, the rows of ``telemetry/``
and, once the arm is done, ``final.safetensors``, after which the checkpoints are removed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
from torch.nn import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.data.dataset import PackedSequences
from workbench.pilot.sections.train import Train
from workbench.records.events import Progress
from workbench.records.files import replacing
from workbench.ternary import bit_linears, set_reuse, set_strength
from workbench.train.callbacks import CheckpointCallback, PhaseCallback, RecordCallback
from workbench.train.checkpoints import last_whole
from workbench.train.distill import Teacher
from workbench.train.guard import Guard
from workbench.train.judge import Judge
from workbench.train.layers import LayerWatch
from workbench.train.quiet import quiet_transformers
from workbench.train.schedule import Arm, Schedule
from workbench.train.space import disk_full_is_said, require_space
from workbench.train.telemetry import Telemetry
from workbench.train.trackers import end_run, keep_apart
from workbench.train.trainer import ArmTrainer, sequences_a_step, training_arguments

FINAL = "final.safetensors"


@dataclass(frozen=True)
class Lesson:
    """What both arms have in common.

    tokens: all training tokens, one dimension. sequence_length: of the training sequences and
    of the windows that judge. excerpts: held-out text, columns id, source, text.
    new_norms: the ternary arm has untrained norms in pretrained layers; see the schedule.
    """

    train: Train
    seed: int
    tokens: np.ndarray
    sequence_length: int
    tokenizer: PreTrainedTokenizerBase
    excerpts: pd.DataFrame
    new_norms: bool = False


def train_arm(
    arm: Arm,
    model: PreTrainedModel,
    lesson: Lesson,
    folder: Path,
    progress: Progress,
    teacher: PreTrainedModel | None = None,
) -> Judge:
    """Train ``model`` in place; its strength afterwards is 1 (the baseline has none).

    teacher: what ``train.distillation`` distils from; it is frozen, and None means no teacher.
    Returns the judge, whose telemetry holds the tables loss, evaluations, layers, histograms
    and guard. Raises StageError for a loss that is not finite, for a full disk and where the guard
    stops; the last whole checkpoint stays, and the next call with the same folder goes on from it.
    """
    final, checkpoints = folder / FINAL, folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    start = last_whole(checkpoints)
    done = lesson.train.steps if final.exists() else start[1] if start else 0
    judge = _judge(arm, model, lesson, Telemetry(folder / "telemetry", done))
    if final.exists():
        safetensors.torch.load_model(model, final)
    else:
        if start:
            progress.note(f"{arm}: goes on from step {done} of {lesson.train.steps}")
        with quiet_transformers(), disk_full_is_said(folder):
            require_space(model, folder)
            _run(arm, model, lesson, judge, start, checkpoints, progress, teacher)
            with replacing(final) as partial:
                safetensors.torch.save_model(model, str(partial))
    shutil.rmtree(checkpoints)
    set_strength(model, 1.0)
    return judge


def _judge(arm: Arm, model: PreTrainedModel, lesson: Lesson, telemetry: Telemetry) -> Judge:
    weights = ("ternary", "master") if arm == "ternary" else ("master",)
    if arm == "ternary" and not _quantised(model):
        weights = ("ternary",)  # adapters: they correct these, and say nothing beside the others
    return Judge(
        tokenizer=lesson.tokenizer,
        excerpts=lesson.excerpts,
        context=lesson.sequence_length,
        telemetry=telemetry,
        weights=weights,
        layers=LayerWatch() if arm == "ternary" else None,
    )


def _quantised(model: PreTrainedModel) -> list[Parameter]:
    """The weights that learn to be ternary; none in a frozen base."""
    return [layer.weight for _, layer in bit_linears(model) if layer.weight.requires_grad]


def _run(
    arm: Arm,
    model: PreTrainedModel,
    lesson: Lesson,
    judge: Judge,
    start: tuple[Path, int] | None,
    checkpoints: Path,
    progress: Progress,
    teacher: PreTrainedModel | None,
) -> None:
    train, schedule = lesson.train, Schedule(lesson.train, arm, lesson.new_norms)
    arguments = training_arguments(train, checkpoints, lesson.seed)
    batch = sequences_a_step(arguments)
    sequences = PackedSequences(
        lesson.tokens, lesson.sequence_length, train.steps * batch, lesson.seed, at_least=batch
    )
    if train.gradient_checkpointing:
        _recompute_activations(model)
    quantised = _quantised(model)
    several_passes = train.gradient_accumulation > 1 or train.gradient_checkpointing
    set_reuse(model, several_passes or not quantised)
    taught = None if teacher is None else Teacher(teacher, train.distillation)
    trainer = ArmTrainer(model, arguments, sequences, schedule, quantised, taught)
    guard = Guard(train.guard, arm, judge.telemetry, progress, checkpoints)
    trainer.add_callback(PhaseCallback(schedule, guard))
    trainer.add_callback(RecordCallback(trainer, judge, guard, progress))
    trainer.add_callback(CheckpointCallback(judge))
    if start and judge.layers:
        judge.layers.load(start[0])
    keep_apart(trainer, checkpoints.with_name("tensorboard"))
    try:
        trainer.train(resume_from_checkpoint=str(start[0]) if start else None)
    finally:
        end_run(train.trackers)


def _recompute_activations(model: PreTrainedModel) -> None:
    """``transformers`` 5.20 gave the method a new name and warns at the old one."""
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)()
