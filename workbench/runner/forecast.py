"""What a pilot will need, before it starts: time of each stage, memory and disk of the training.

The training is counted from a step that is timed here; the measuring stages end by their budgets,
of which a busy machine may take twice. All of it is an estimate and says so; what a run of the
same pilot took here before is said by :mod:`.time_left` once it runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from workbench.data.tokenizer import load_tokenizer, tokenizer_name, vocabulary_size
from workbench.machine.device import Device, choose_device
from workbench.model.build import empty_model, preset_config
from workbench.model.checkpoint import checkpoint_config
from workbench.paths import runs_root, shown
from workbench.pilot.spec import Pilot
from workbench.records.terminal import clock
from workbench.train.disk_space import checkpoint_bytes
from workbench.train.memory_plan import USABLE, memory_plans
from workbench.train.timed_step import StepTime, step_time

GB = 1e9
FIXED_S = 10.0
"""Of a stage beside its budget: imports, models loaded, tables and figures."""
PROCESS_BYTES = 0.6e9
"""Of main memory: Python with torch, before any model."""
MODEL_BYTES = 2 * 4 + 2 + 1 + 1
"""A parameter: both arms' weights as float32, and the packed ones of later stages, at most."""
FORWARD_SHARE = 1 / 3
"""Of a training step: the backward pass takes twice a forward pass."""


@dataclass(frozen=True)
class Forecast:
    """stages_s: stage -> seconds (least, most). how: of the training's time."""

    device: Device
    stages_s: dict[str, tuple[float, float]]
    memory_bytes: float
    memory_free_bytes: int
    disk_bytes: float
    disk_free_bytes: int
    folder: Path
    how: str

    def problems(self) -> list[str]:
        """What stands in the way, in sentences; empty where nothing is known to."""
        found = []
        if self.memory_bytes > USABLE * self.memory_free_bytes:
            found.append(
                f"training needs about {_gb(self.memory_bytes)} of memory, and "
                f"{_gb(self.memory_free_bytes)} are free: take a smaller model, "
                "train.batch_size or data.sequence_length"
            )
        if self.disk_bytes > self.disk_free_bytes:
            found.append(
                f"the run needs about {_gb(self.disk_bytes)} in {shown(self.folder)}, and "
                f"{_gb(self.disk_free_bytes)} are free: free some, or set WORKBENCH_RUNS"
            )
        return found

    def lines(self) -> Iterator[str]:
        """For a person: the whole time and that of each stage, memory, disk."""
        least, most = (sum(ends) for ends in zip(*self.stages_s.values(), strict=True))
        yield f"time:   {_span(least, most)} in all, an estimate"
        for name, ends in self.stages_s.items():
            how = f" ({self.how})" if name == "train_qat" else ""
            yield f"        {name}: {_span(*ends)}{how}"
        of = "the GPU" if self.device.name == "cuda" else "main memory"
        yield (
            f"memory: about {_gb(self.memory_bytes)} of {of} at the fullest, in training; "
            f"{_gb(self.memory_free_bytes)} free"
        )
        yield (
            f"disk:   about {_gb(self.disk_bytes)} in {shown(self.folder)}; "
            f"{_gb(self.disk_free_bytes)} free"
        )


def forecast(pilot: Pilot) -> Forecast:
    """Of a pilot that was checked; times a training step of its model here, which takes seconds.

    Raises ConfigError for a model or a tokenizer that cannot be read.
    """
    device, config = choose_device(pilot.readiness.device), _config(pilot)
    sequence, train = pilot.data.sequence_length, pilot.train
    step = step_time(pilot.model, config, train.share[0], sequence, device.name)
    plans = memory_plans(config, pilot.model, train, sequence)
    training = max(plan.total_bytes for plan in plans)
    if device.name == "cpu":
        training = train.processes * (training + PROCESS_BYTES)
    parameters = sum(p.numel() for p in empty_model(pilot.model, config).parameters())
    folder = runs_root()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return Forecast(
        device=device,
        stages_s=_stages_s(pilot, config, step),
        memory_bytes=training,
        memory_free_bytes=device.free_bytes,
        disk_bytes=checkpoint_bytes(parameters) + MODEL_BYTES * parameters + pilot.data.max_bytes,
        disk_free_bytes=shutil.disk_usage(there).free,
        folder=folder,
        how=f"{step.full_precision_s + step.ternary_s:.2g} s a step of both arms, {step.how}",
    )


def _config(pilot: Pilot) -> PretrainedConfig:
    if pilot.model.checkpoint is not None:
        config = checkpoint_config(pilot.model.checkpoint, ask_hub=True)
        assert config is not None  # asked, the hub answers or raises
        return config
    name = tokenizer_name(pilot.data, pilot.model.checkpoint)
    rows = vocabulary_size(load_tokenizer(name)) if name else pilot.data.vocab_size
    return preset_config(pilot.model, rows, pilot.data.sequence_length)


def _stages_s(
    pilot: Pilot, config: PretrainedConfig, step: StepTime
) -> dict[str, tuple[float, float]]:
    probe, ab, deploy = pilot.readiness.probe, pilot.measure_ab, pilot.deploy_rollback
    budgets = {
        "readiness": probe.budget_s if probe.enabled else 0.0,
        "measure_ab": ab.budget_s + (ab.load.budget_s if ab.load.blocks else 0.0),
        "deploy_rollback": deploy.tuning.budget_s + deploy.drill.budget_s,
    }
    training = _training_s(pilot, step)
    layers = 7 * config.num_hidden_layers + 2
    batches = pilot.hybrid_plan.sequences / pilot.train.share[0]
    plan = 2 * layers * batches * FORWARD_SHARE * step.ternary_s
    return {
        "readiness": (FIXED_S, FIXED_S + budgets["readiness"]),
        "profile_load": (FIXED_S / 5, FIXED_S),
        "train_qat": (training, 1.5 * training + FIXED_S),
        "measure_ab": (budgets["measure_ab"] / 2, 2 * budgets["measure_ab"] + FIXED_S),
        "hybrid_plan": (plan / 2, 2 * plan + FIXED_S),
        "deploy_rollback": (
            deploy.duration_s,
            deploy.duration_s + 2 * budgets["deploy_rollback"] + 2 * FIXED_S,
        ),
        "report": (1.0, FIXED_S),
    }


def _training_s(pilot: Pilot, step: StepTime) -> float:
    train = pilot.train
    teacher = train.distillation.teacher != "none"
    each = step.full_precision_s + step.ternary_s
    each += FORWARD_SHARE * step.full_precision_s if teacher else 0.0
    evaluated = 2 * train.evaluations * train.eval_sequences / train.share[0] * FORWARD_SHARE
    steps = train.steps * train.share[1]
    return train.seeds * (steps * each + evaluated * (each / 2))


def _span(least: float, most: float) -> str:
    low, high = clock(least), clock(most)
    return f"about {low}" if low == high else f"{low} to {high}"


def _gb(size: float) -> str:
    return f"{size / GB:.2g} GB" if size < 100 * GB else f"{size / GB:,.0f} GB"
