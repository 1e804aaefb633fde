"""What happens around a step: the phase set, the step recorded and judged, the checkpoint sealed.

The Trainer calls ``on_step_begin`` before the first forward pass of a step, ``on_log`` after
it (``logging_steps`` is 1) and only then saves, so every row of a step is on disk before the
step's checkpoint, and a step whose loss is not finite raises before it can be saved.

Of several processes all set the phase and wait for a checkpoint to be whole; the first alone
records and judges, and the others have the guard's factor from it.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from workbench.errors import StageError
from workbench.records.events import Progress
from workbench.ternary import forget_quantised, set_strength
from workbench.train.checkpoints import last_whole, mark_whole
from workbench.train.evaluator import Evaluator
from workbench.train.guard import StabilityGuard
from workbench.train.layers import LayerRows
from workbench.train.regularisation import Regularisation
from workbench.train.schedule import StepSettings, epoch_steps
from workbench.train.trainer import ArmTrainer, sequences_a_step


class PhaseCallback(TrainerCallback):
    """Sets the threshold's strength and the weight decay of the step about to be made, and puts
    the guard's factor on the learning rate that the scheduler has just set for it.

    The quantised weights are made once a step: kept for its micro-batches, then forgotten.
    """

    def __init__(self, trainer: ArmTrainer, guard: StabilityGuard) -> None:
        self.trainer, self.guard = trainer, guard

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **parts: Any,
    ) -> None:
        settings = self.trainer.schedule.at(state.global_step)
        set_strength(parts["model"], settings.strength)
        forget_quantised(parts["model"])
        if args.world_size > 1:
            factor = torch.tensor(self.guard.factor, dtype=torch.float64, device=args.device)
            self.guard.factor = float(broadcast(factor, from_process=0))
        for group in parts["optimizer"].param_groups:
            group["lr"] *= self.guard.factor
            if group["decays"]:
                group["weight_decay"] = settings.weight_decay
        self.trainer.begin_step()


class RecordCallback(TrainerCallback):
    """Writes a row a step, reports progress, stops at a loss that is not finite, and has the
    model judged after the steps that are to be evaluated and where a pass over the corpus ends.

    Row: step, tokens (so far), phase, strength, lr, loss (nats per token), grad_norm (before
    clipping), seconds (of the step, evaluation and saving not counted), batch (CRC-32 of the
    token ids). A distilled arm has also objective (what was minimised; loss stays the next-token
    loss, as in the other arm), teacher_kl, relations (nats; 0 where they have no weight),
    teacher_tokens and teacher_seconds (null on a GPU); a sharded one gathered_bytes and
    reduced_bytes of the first process (:mod:`workbench.train.traffic`).
    """

    def __init__(
        self, trainer: ArmTrainer, evaluator: Evaluator, guard: StabilityGuard, progress: Progress
    ) -> None:
        self.trainer, self.evaluator, self.guard, self.progress = (
            trainer,
            evaluator,
            guard,
            progress,
        )
        self.schedule, self.watched = trainer.schedule, guard.section.action != "off"
        self._per_pass = trainer.train_dataset.per_pass
        self._batch = sequences_a_step(trainer.args)
        self._evaluated = evaluated_steps(trainer)
        last = evaluator.telemetry.last("loss")
        self._tokens = last["tokens"] if last else 0
        self._began = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        self._began = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **parts: Any,
    ) -> None:
        if "loss" not in logs:  # the summary after the last step
            return
        seconds = time.perf_counter() - self._began
        settings = self.schedule.at(state.global_step - 1)
        loss, grad_norm = logs["loss"], logs["grad_norm"]
        objective = logs.get("objective", loss)
        if not (math.isfinite(objective) and math.isfinite(grad_norm)):
            raise self._not_finite(
                state.global_step, objective, grad_norm, settings, Path(args.output_dir)
            )
        self._tokens += self.trainer.tokens
        row = {
            "step": state.global_step,
            "tokens": self._tokens,
            "phase": settings.phase,
            "strength": settings.strength,
            "lr": settings.lr * self.guard.factor,
            "loss": loss,
            "grad_norm": grad_norm,
            "seconds": seconds,
            "batch": self.trainer.batch_crc,
        }
        if teacher := self.trainer.teacher:
            row |= {name: logs[name] for name in ("objective", "teacher_kl", "relations")}
            row["teacher_tokens"] = teacher.tokens * self.trainer.args.world_size
            row["teacher_seconds"] = teacher.seconds
        if self.trainer.is_sharded:
            row |= vars(self.trainer.traffic)
        self.evaluator.telemetry.add("loss", [row])
        if self.watched:
            self.guard.after_step(row)
        text = f"{settings.phase}, loss {row['loss']:.3f}"
        self.progress.step(
            f"train {self.schedule.arm}",
            state.global_step,
            args.max_steps,
            "steps",
            text,
            loss=row["loss"],
        )
        if state.global_step in self._evaluated:
            epoch = state.global_step * self._batch / self._per_pass
            gradients = self.trainer.gradients.by_name()
            layers = self.evaluator(parts["model"], state.global_step, epoch, gradients)
            self._tell_flips(state.global_step, layers)
            if self.watched and settings.strength == 1.0:
                self.guard.after_evaluation(state.global_step, layers)

    def _tell_flips(self, step: int, layers: LayerRows) -> None:
        """For a live view: the mean share of weights that changed their ternary value."""
        rates = [row["flip_rate"] for row in layers if row.get("flip_rate") is not None]
        if rates:
            share = sum(rates) / len(rates)
            text = f"step {step}: {100 * share:.2g} % of the ternary weights changed"
            self.progress.event("note", text=text, step=step, flip_rate=share)

    def _not_finite(
        self, step: int, loss: float, grad_norm: float, settings: StepSettings, checkpoints: Path
    ) -> StageError:
        arm = self.schedule.arm
        field = "train.ternary_lr" if arm == "ternary" else "train.lr"
        kept, named = last_whole(checkpoints), self.trainer.gradients.not_finite()
        is_bf16 = self.schedule.train.precision == "bfloat16"
        return StageError(
            f"training of {arm} broke at step {step}, phase {settings.phase} "
            f"(strength {settings.strength:.2f}, "
            f"learning rate {settings.lr * self.guard.factor:.2e}): "
            f"loss {loss}, gradient norm {grad_norm}{'; ' if named else ''}{named}",
            allowed="a finite loss and gradient norm",
            next_step=f"lower {field} (now {self.schedule.peak_lr:g}) or train.grad_clip, lengthen "
            "train.lr_warmup_share or train.threshold.share"
            + ("; train.precision: float32 also helps" if is_bf16 else "")
            + f". Kept: {kept[0] if kept else 'nothing, no checkpoint was due yet'}",
        )


def evaluated_steps(trainer: ArmTrainer) -> set[int]:
    """Steps after which the model is judged, the ends of passes over the corpus among them."""
    train, batch = trainer.schedule.train, sequences_a_step(trainer.args)
    ends = epoch_steps(train.steps, batch, trainer.train_dataset.per_pass, train.evaluations)
    return {*trainer.schedule.evaluation_steps, *ends}


class JoinEvaluationCallback(TrainerCallback):
    """On every process but the first, where the model lies in shards: nobody can judge it alone."""

    def __init__(self, trainer: ArmTrainer, evaluator: Evaluator) -> None:
        self.evaluator, self._evaluated = evaluator, evaluated_steps(trainer)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **parts: Any,
    ) -> None:
        if "loss" in logs and state.global_step in self._evaluated:
            self.evaluator.join(parts["model"])


class CheckpointCallback(TrainerCallback):
    """Adds to a checkpoint what the Trainer does not know of, and then the marker, once every
    process has written its own part."""

    def __init__(
        self,
        trainer: ArmTrainer,
        evaluator: Evaluator,
        regularisation: Regularisation | None = None,
    ) -> None:
        self.trainer, self.evaluator = trainer, evaluator
        self.regularisation = regularisation

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        self.trainer.accelerator.wait_for_everyone()
        if args.process_index > 0:
            return
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if self.evaluator.layers:
            self.evaluator.layers.save(folder)
        if self.regularisation:
            self.regularisation.save(folder)
        self.evaluator.telemetry.sync()
        mark_whole(folder)
