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
from workbench.files import replacing
from workbench.pilot.sections.train import Train
from workbench.records.events import Progress
from workbench.ternary import bit_linears, set_reuse, set_strength
from workbench.train.callbacks import CheckpointCallback, PhaseCallback, RecordCallback
from workbench.train.checkpoints import last_whole
from workbench.train.distill import Teacher
from workbench.train.guard import Guard
from workbench.train.judge import Judge
from workbench.train.layers import LayerWatch
from workbench.train.processes import require_devices, train_in_processes
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


@dataclass(frozen=True)
class Training:
    """All that a process needs to train one arm.

    start: the checkpoint to go on from and its step, None for none. folder: the arm's.
    """

    arm: Arm
    model: PreTrainedModel
    lesson: Lesson
    judge: Judge
    start: tuple[Path, int] | None
    folder: Path
    teacher: PreTrainedModel | None


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
    ``train.processes`` above 1 are processes beside this one, which waits for them.
    Returns the judge, whose telemetry holds the tables loss, evaluations, layers, histograms
    and guard. Raises ConfigError for more processes than GPUs; StageError for a loss that is not
    finite, for a full disk, where the guard stops and where a process ends; the last whole
    checkpoint stays, and the next call with the same folder goes on from it.
    """
    require_devices(lesson.train)
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
        training = Training(arm, model, lesson, judge, start, folder, teacher)
        with quiet_transformers(), disk_full_is_said(folder):
            if lesson.train.processes > 1:
                require_space(model, folder, handed_over=(model, teacher))
                train_in_processes(training, progress)
                safetensors.torch.load_model(model, final)
            else:
                require_space(model, folder)
                learn(training, progress)
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


def learn(training: Training, progress: Progress) -> None:
    """Train in this process, alone or as one of several; the first writes what is kept."""
    lesson, model, judge = training.lesson, training.model, training.judge
    train, schedule = lesson.train, Schedule(lesson.train, training.arm, lesson.new_norms)
    checkpoints = training.folder / "checkpoints"
    arguments = training_arguments(train, checkpoints, lesson.seed)
    batch = sequences_a_step(arguments)
    sequences = PackedSequences(
        lesson.tokens, lesson.sequence_length, train.steps * batch, lesson.seed, at_least=batch
    )
    if train.gradient_checkpointing:
        _recompute_activations(model)
    quantised = _quantised(model)
    several_passes = arguments.gradient_accumulation_steps > 1 or train.gradient_checkpointing
    set_reuse(model, several_passes or not quantised)
    teacher = training.teacher
    taught = None if teacher is None else Teacher(teacher, train.distillation)
    trainer = ArmTrainer(model, arguments, sequences, schedule, quantised, taught)
    guard = Guard(train.guard, training.arm, judge.telemetry, progress, checkpoints)
    is_first = arguments.process_index == 0
    trainer.add_callback(PhaseCallback(trainer, guard))
    if is_first:
        trainer.add_callback(RecordCallback(trainer, judge, guard, progress))
    trainer.add_callback(CheckpointCallback(trainer, judge))
    start = training.start
    if start and judge.layers:
        judge.layers.load(start[0])
    keep_apart(trainer, training.folder / "tensorboard")
    try:
        trainer.train(resume_from_checkpoint=str(start[0]) if start else None)
    finally:
        end_run(train.trackers)
    if is_first:
        with replacing(training.folder / FINAL) as partial:
            safetensors.torch.save_model(model, str(partial))


def _recompute_activations(model: PreTrainedModel) -> None:
    """``transformers`` 5.20 gave the method a new name and warns at the old one."""
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)()
