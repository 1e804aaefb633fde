"""One arm from its first step, or its last whole checkpoint, to its final weights.

``folder`` keeps all that a later attempt needs: ``checkpoints/``, the rows of ``telemetry/``
and, once the arm is done, ``final.safetensors``, after which the checkpoints are removed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch.nn import Parameter
from transformers import PreTrainedModel

from workbench.data.dataset import PackedSequences
from workbench.files import replacing
from workbench.machine.heap import freed_memory_kept
from workbench.records.events import Progress
from workbench.ternary import bit_linears, set_reuse, set_strength
from workbench.train.callbacks import (
    CheckpointCallback,
    JoinEvaluationCallback,
    PhaseCallback,
    RecordCallback,
)
from workbench.train.checkpoints import last_whole
from workbench.train.compensated_start import START, start_compensated
from workbench.train.disk_space import reporting_full_disk, require_disk_space
from workbench.train.distill import Teacher
from workbench.train.evaluator import Evaluator
from workbench.train.guard import StabilityGuard
from workbench.train.layers import LayerStatistics
from workbench.train.processes import require_devices, train_in_processes
from workbench.train.quiet import quiet_transformers
from workbench.train.regularisation import Regularisation, RegularisationCallback
from workbench.train.schedule import Schedule, TrainedArm
from workbench.train.setup import TrainingSetup
from workbench.train.sharded import (
    LoadShards,
    mesh_of,
    require_same_strategy,
    shard,
    whole_state,
)
from workbench.train.telemetry import Telemetry
from workbench.train.trackers import end_run, keep_tensorboard_in
from workbench.train.trainer import ArmTrainer, sequences_a_step, training_arguments

FINAL = "final.safetensors"


@dataclass(frozen=True)
class Training:
    """All that a process needs to train one arm.

    start: the checkpoint to go on from and its step, None for none. folder: the arm's.
    """

    arm: TrainedArm
    model: PreTrainedModel
    setup: TrainingSetup
    evaluator: Evaluator
    start: tuple[Path, int] | None
    folder: Path
    teacher: PreTrainedModel | None


def train_arm(
    arm: TrainedArm,
    model: PreTrainedModel,
    setup: TrainingSetup,
    folder: Path,
    progress: Progress,
    teacher: PreTrainedModel | None = None,
) -> Evaluator:
    """Train ``model`` in place; its strength afterwards is 1 (the baseline has none).

    teacher: what ``train.distillation`` distils from; it is frozen, and None means no teacher.
    Processes of a ``train.launch`` are beside this one, which waits for them.
    Returns the evaluator, whose telemetry holds the tables loss, evaluations, layers, histograms
    and guard. Raises ConfigError for more processes than GPUs; StageError for a loss that is not
    finite, for a full disk, where the guard stops and where a process ends; the last whole
    checkpoint stays, and the next call with the same folder goes on from it.
    """
    require_devices(setup.train, setup.device)
    final, checkpoints = folder / FINAL, folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    start = last_whole(checkpoints)
    done = setup.train.steps if final.exists() else start[1] if start else 0
    evaluator = _evaluator(arm, model, setup, Telemetry(folder / "telemetry", done))
    if final.exists():
        safetensors.torch.load_model(model, final)
    else:
        if start:
            require_same_strategy(start[0], setup.train.launch)
            progress.note(f"{arm}: goes on from step {done} of {setup.train.steps}")
        elif arm == "ternary":
            start_compensated(model, setup, folder, progress)
        training = Training(arm, model, setup, evaluator, start, folder, teacher)
        with quiet_transformers(), reporting_full_disk(folder):
            if not setup.train.launch.is_single:
                require_disk_space(model, folder, handed_over=(model, teacher))
                train_in_processes(training, progress)
                safetensors.torch.load_model(model, final)
            else:
                require_disk_space(model, folder)
                run_training(training, progress)
    shutil.rmtree(checkpoints)
    (folder / START).unlink(missing_ok=True)
    set_strength(model, 1.0)
    return evaluator


def _evaluator(
    arm: TrainedArm, model: PreTrainedModel, setup: TrainingSetup, telemetry: Telemetry
) -> Evaluator:
    weights = ("ternary", "master") if arm == "ternary" else ("master",)
    if arm == "ternary" and not _quantised(model):
        weights = ("ternary",)  # adapters: they correct these, and say nothing beside the others
    return Evaluator(
        tokenizer=setup.tokenizer,
        excerpts=setup.excerpts,
        context=setup.sequence_length,
        telemetry=telemetry,
        weights=weights,
        layers=LayerStatistics() if arm == "ternary" else None,
    )


def _quantised(model: PreTrainedModel) -> list[Parameter]:
    """The weights that learn to be ternary; none in a frozen base."""
    return [layer.weight for _, layer in bit_linears(model) if layer.weight.requires_grad]


def run_training(training: Training, progress: Progress) -> None:
    """Train in this process, alone or as one of several; the first writes what is kept."""
    setup, model, evaluator = training.setup, training.model, training.evaluator
    train, schedule = setup.train, Schedule(setup.train, training.arm, setup.new_norms)
    checkpoints = training.folder / "checkpoints"
    arguments = training_arguments(train, checkpoints, setup.seed, setup.device)
    batch = sequences_a_step(arguments)
    sequences = PackedSequences(
        setup.tokens, setup.sequence_length, train.steps * batch, setup.seed, batch, setup.judged,
        setup.parts,
    )  # fmt: skip
    sharded = train.launch.is_sharded
    if sharded:
        shard(model, mesh_of(train.launch, arguments.device.type))
    if train.gradient_checkpointing:
        _recompute_activations(model)
    quantised = _quantised(model)
    several_passes = arguments.gradient_accumulation_steps > 1 or train.gradient_checkpointing
    set_reuse(model, not sharded and (several_passes or not quantised))
    teacher = None if training.teacher is None else Teacher(training.teacher, train.distillation)
    trainer = ArmTrainer(model, arguments, sequences, schedule, quantised, teacher)
    guard = StabilityGuard(train.guard, training.arm, evaluator.telemetry, progress, checkpoints)
    is_first = arguments.process_index == 0
    trainer.add_callback(PhaseCallback(trainer, guard))
    if is_first:
        trainer.add_callback(RecordCallback(trainer, evaluator, guard, progress))
    elif sharded:
        trainer.add_callback(JoinEvaluationCallback(trainer, evaluator))
    start = training.start
    if sharded and start:
        trainer.add_callback(LoadShards(start[0]))
    regularisation = _regularisation(training, is_first)
    if regularisation:
        if start:
            regularisation.load(start[0])
        trainer.add_callback(RegularisationCallback(regularisation))
    trainer.add_callback(CheckpointCallback(trainer, evaluator, regularisation))
    if start and evaluator.layers:
        evaluator.layers.load(start[0])
    keep_tensorboard_in(trainer, training.folder / "tensorboard")
    try:
        with freed_memory_kept():
            trainer.train(resume_from_checkpoint=str(start[0]) if start else None)
    finally:
        end_run(train.trackers)
    state = whole_state(model) if sharded else None
    if is_first:
        with replacing(training.folder / FINAL) as partial:
            if state is None:
                safetensors.torch.save_model(model, str(partial))
            else:
                safetensors.torch.save_file(state, str(partial))


def _regularisation(training: Training, is_first: bool) -> Regularisation | None:
    """Of the weights that learn to be ternary, where the pilot asks for it."""
    train = training.setup.train
    layers = [(n, layer) for n, layer in bit_linears(training.model) if layer.weight.requires_grad]
    if train.regularisation == "none" or training.arm != "ternary" or not layers:
        return None
    telemetry = training.evaluator.telemetry if is_first else None
    return Regularisation(train.regularisation, train.regularisation_strength, layers, telemetry)


def _recompute_activations(model: PreTrainedModel) -> None:
    """``transformers`` 5.20 gave the method a new name and warns at the old one."""
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)()
