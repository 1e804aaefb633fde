"""``transformers.Trainer`` with this project's batches, parameter groups and schedule.

Only public methods are overridden, but for two of a sharded model. What a step needs to know it
asks of the :class:`~workbench.train.schedule.Schedule`, so a resumed training differs in nothing
from one that was never stopped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from workbench.data.dataset import UNJUDGED
from workbench.errors import ConfigError
from workbench.machine.device import DeviceName
from workbench.pilot.problems import did_you_mean
from workbench.pilot.sections.train import Train
from workbench.train.distill import Teacher
from workbench.train.gradients import GradientNorms
from workbench.train.schedule import Schedule
from workbench.train.sharded import bare, save_shards
from workbench.train.trackers import require_trackers
from workbench.train.traffic import Traffic

KEPT_CHECKPOINTS = 2
"""The newest may be half written when the process is killed; the one before it is whole."""
LEARNED_SCALE = ".alpha"


def require_optimizer(name: str) -> None:
    """ConfigError unless ``transformers.Trainer`` knows an optimizer of that name."""
    known = sorted(optimizer.value for optimizer in OptimizerNames)
    if name not in known:
        raise ConfigError(f"train.optimizer {name}: unknown{did_you_mean(name, known)}")


class OneDevice(TrainingArguments):
    """A process trains on one device. Where it sees several GPUs, the Trainer would wrap the model
    in ``nn.DataParallel`` without being asked, and multiply the batch by their number."""

    @property
    def n_gpu(self) -> int:
        return min(1, super().n_gpu)


def training_arguments(
    train: Train, folder: Path, seed: int, device: DeviceName
) -> TrainingArguments:
    """The Trainer's settings: offline, silent, float32 or bfloat16, on ``device``.

    Apple's GPU is not used: the CPU is what the promise of equal bits was tested on.
    Of several processes each is given its own, and they join here (see
    :mod:`workbench.train.processes`).
    """
    require_optimizer(train.optimizer)
    require_trackers(train.trackers)
    on_cuda, launch = device == "cuda", train.launch
    sequences, batches = train.share
    return OneDevice(
        output_dir=str(folder),
        max_steps=train.steps,
        per_device_train_batch_size=sequences,
        gradient_accumulation_steps=batches,
        learning_rate=1.0,  # the schedule gives absolute rates
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        max_grad_norm=train.grad_clip,
        optim=train.optimizer,
        bf16=train.precision == "bfloat16",
        torch_compile=train.compile,
        save_strategy="steps",
        save_steps=train.save_every,
        save_total_limit=KEPT_CHECKPOINTS,
        save_only_model=launch.is_sharded,  # save_model takes the optimizer along then
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(train.trackers) or "none",
        run_name=folder.parent.name,
        disable_tqdm=True,
        seed=seed % 2**32,
        use_cpu=not on_cuda,
        dataloader_pin_memory=on_cuda,
        remove_unused_columns=False,
        ddp_backend="gloo" if not (launch.is_single or on_cuda) else None,
        ddp_find_unused_parameters=True,  # learned scales have no gradient before the threshold
    )


def sequences_a_step(arguments: TrainingArguments) -> int:
    """Of all devices and micro-batches."""
    batch = arguments.train_batch_size * arguments.world_size
    return batch * arguments.gradient_accumulation_steps


class ArmTrainer(Trainer):
    """Trains one arm, alone or as one of several processes, which then have equal figures.

    quantised: the parameters that become ternary; they have their own learning rate.
    teacher: what the arm is distilled from, None for none.
    loss_sum: next-token losses of the last step's batches, where a teacher changes the objective.
    tokens, batch_crc: tokens of the last optimizer step, and the CRC-32 of their ids, of all
    processes in the order of the data.
    gradients: norms of the last optimizer step, before clipping.
    traffic: of the last optimizer step, where the model is sharded.
    lr: rate of the first group in the last optimizer step, the guard's factor in it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        arguments: TrainingArguments,
        sequences: Dataset[dict[str, torch.Tensor]],
        schedule: Schedule,
        quantised: list[torch.nn.Parameter],
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(model=model, args=arguments, train_dataset=sequences)
        self.remove_callback(PrinterCallback)
        self.schedule = schedule
        self.is_sharded = self.is_distributed_loading_by_transformers
        self._quantised = {id(parameter) for parameter in quantised}
        self.teacher, self.traffic = teacher, Traffic()
        if self.is_sharded:
            self.traffic.count(model)
        if teacher:
            teacher.model.to(arguments.device)
        self.gradients: GradientNorms | None = None
        self.begin_step()

    def begin_step(self) -> None:
        """Start to count anew."""
        self.tokens, self.batch_crc = 0, 0
        self.loss_sum: torch.Tensor | float = 0.0
        self.traffic.reset()
        self.lr = self.optimizer.param_groups[0]["lr"] if self.optimizer is not None else 0.0
        if self.teacher:
            self.teacher.reset()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """To the trackers and the records, with the rate that the step was made with: the
        scheduler's own value, which ``transformers`` puts there, knows nothing of the guard. What
        ``transformers`` calls loss is the objective; beside a teacher the loss is another."""
        if "learning_rate" in logs:
            logs["learning_rate"] = self.lr
        if self.teacher and "loss" in logs:
            if self.args.world_size > 1:
                self._average_sums(self.teacher)
            is_summed = self.model_accepts_loss_kwargs  # else each batch has its own mean
            batches = self.teacher.batches
            logs["objective"] = logs["loss"]
            logs["loss"] = float(self.loss_sum) / (1 if is_summed else batches)
            logs["teacher_kl"] = float(self.teacher.kl) / batches
            logs["relations"] = float(self.teacher.relations) / batches
        super().log(logs, start_time)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The sequences in their own order, which is the training order."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups of what learns: quantised weights, other matrices, and norms, biases and learned
        scales, which do not decay."""
        if self.optimizer is None:
            cls, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if not {"params", "model", "optimizer_dict"}.isdisjoint(settings):
                raise ConfigError(
                    f"train.optimizer: {self.args.optim.value} chooses its parameters itself",
                    allowed="an optimizer that takes parameter groups, e.g. adamw_torch",
                )
            groups = [g for g in self._groups(model or self.model) if g["params"]]
            self.optimizer = cls(groups, **settings)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            rates = [_rate(self.schedule, g["quantised"]) for g in optimizer.param_groups]
            self.lr_scheduler = LambdaLR(optimizer, rates)
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Of a sharded model the state of the training, each process its part."""
        if not self.is_sharded:
            super().save_model(output_dir, _internal_call)
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_shards(self.model, bare(self.optimizer), self.lr_scheduler, folder)

    def _load_from_checkpoint(self, *given: Any, **named: Any) -> None:
        if not self.is_sharded:  # shards are loaded by a callback, which sees the optimizer too
            super()._load_from_checkpoint(*given, **named)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Until the last micro-batch only nodes with copies of a model wait for each other:
        gradients that are not reduced at once would be whole."""
        self.model.set_requires_all_reduce(False)
        try:
            yield
        finally:
            self.model.set_requires_all_reduce(True)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        ids = self.accelerator.gather(inputs["input_ids"])
        self.tokens += ids.numel()
        self.batch_crc = zlib.crc32(ids.cpu().numpy().tobytes(), self.batch_crc)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.gradients = GradientNorms.of(self.model)
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's own loss, mixed with the teacher's where there is one.

        The model divides its loss by the judged tokens of all micro-batches
        (``num_items_in_batch``). Where all are judged the batches are equally long, so the mean
        over one, divided by their number, is the same; else each counts by its judged tokens.
        """
        if self.teacher is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self.teacher.watching(self.model) as states:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.loss_sum = self.loss_sum + loss.detach()
        judged_BT, share = self._judged(inputs["labels"], num_items_in_batch)
        with self.accelerator.autocast():
            extra = self.teacher.extra_loss(
                inputs["input_ids"], outputs.logits, states, judged_BT, share
            )
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            extra = extra / self.current_gradient_accumulation_steps
        loss = (1 - self.teacher.section.alpha) * loss + extra
        return (loss, outputs) if return_outputs else loss

    def _judged(
        self, labels_BT: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | float]:
        """(which labels count, None for all; how much the batch's mean over them counts for, over
        an equal share of all batches of the step)."""
        if getattr(self.train_dataset, "judged", None) is None:
            return None, 1.0
        judged_BT = labels_BT != UNJUDGED
        if num_items_in_batch is None or not self.model_accepts_loss_kwargs:
            return judged_BT, 1.0
        batches = self.current_gradient_accumulation_steps * self.args.world_size
        return judged_BT, judged_BT[:, 1:].sum() * batches / num_items_in_batch

    def _average_sums(self, teacher: Teacher) -> None:
        """What each process has summed over its own batches becomes the mean over all of them."""
        own = [float(value) for value in (self.loss_sum, teacher.kl, teacher.relations)]
        sums = torch.tensor(own, dtype=torch.float64, device=self.args.device)
        self.loss_sum, teacher.kl, teacher.relations = self.accelerator.reduce(sums, "mean")

    def _groups(self, model: torch.nn.Module) -> list[dict[str, Any]]:
        quantised, matrices, small = [], [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if id(parameter) in self._quantised:
                quantised.append(parameter)
            elif parameter.ndim < 2 or name.endswith(LEARNED_SCALE):
                small.append(parameter)
            else:
                matrices.append(parameter)
        return [
            {"params": quantised, "quantised": True, "decays": True},
            {"params": matrices, "quantised": False, "decays": True},
            {"params": small, "quantised": False, "decays": False, "weight_decay": 0.0},
        ]


def _rate(schedule: Schedule, quantised: bool) -> Callable[[int], float]:
    def rate(step: int) -> float:
        settings = schedule.at(step)
        return settings.quantised_lr if quantised else settings.lr

    return rate
