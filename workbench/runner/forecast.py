"""What a pilot will need, before it starts: time of each stage, memory and disk.

The times are counted in :mod:`.stage_times` from a training step that is timed here. All of it is
an estimate and says so; what a run of the same pilot took here before is said by :mod:`.time_left`
once it runs.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from workbench.data.tokenizer import load_tokenizer, tokenizer_name, vocabulary_size
from workbench.files import digest_json
from workbench.machine.device import Device, choose_device
from workbench.model.build import empty_model, preset_config
from workbench.model.checkpoint import checkpoint_config
from workbench.paths import runs_root, shown
from workbench.pilot.spec import Pilot
from workbench.records.terminal import clock
from workbench.runner.stage_times import (
    PACKED_BYTES,
    Speeds,
    arm_bytes,
    asked_in_own_terms,
    decode_s,
    stage_times,
    told,
    trains_a_hybrid,
)
from workbench.train.disk_space import checkpoint_bytes
from workbench.train.memory_plan import USABLE, memory_plans
from workbench.train.timed_step import step_time

GB = 1e9
PROCESS_BYTES = 0.6e9
"""Of main memory: Python with torch, before any model."""
COMMAND_BYTES = 0.5e9
"""Of the command that waits while a notebook's kernel works, less what it shares with that."""
FREED_KEPT = 1.2
"""A training on a CPU keeps what it frees (:mod:`workbench.machine.heap`), at most a fifth more."""
MEASURING = "measuring all arms"
FLOAT32 = 4
HYBRID_BYTES = 1.1
"""A parameter of the packed hybrid, at most: all of it INT8."""
PAGES_BYTES = 7e6
"""The report and the executed notebooks."""
TAKEN_IN_BYTES = 12
"""A parameter where nothing is trained: float32 weights, those being rounded, and what is saved."""


@dataclass(frozen=True)
class Forecast:
    """stages_s: stage -> seconds (least, most). how: stage -> what its time is made of, where
    there is something to say. fullest: when the memory is. kept_bytes: of the disk, at the end."""

    device: Device
    stages_s: dict[str, tuple[float, float]]
    memory_bytes: float
    memory_free_bytes: int
    disk_bytes: float
    disk_free_bytes: int
    folder: Path
    how: dict[str, str]
    fullest: str = "training"
    kept_bytes: float = 0.0

    def problems(self) -> list[str]:
        """What stands in the way, in sentences; empty where nothing is known to."""
        found = []
        if self.memory_bytes > USABLE * self.memory_free_bytes:
            cure = "take a smaller model, train.batch_size or data.sequence_length"
            if self.fullest == MEASURING:
                cure = "take a smaller model, or leave an arm out of measure_ab.arms"
            found.append(
                f"{self.fullest} needs about {_gb(self.memory_bytes)} of memory, and "
                f"{_gb(self.memory_free_bytes)} are free: {cure}"
            )
        if self.disk_bytes > self.disk_free_bytes:
            found.append(
                f"the run needs about {_gb(self.disk_bytes)} in {shown(self.folder)}, and "
                f"{_gb(self.disk_free_bytes)} are free: free some, or set WORKBENCH_RUNS"
            )
        return found

    def whole_s(self) -> tuple[float, float]:
        """Of all stages, (least, most) seconds: not every one of them takes its least, or its most,
        so the half spans add up as independent errors do."""
        middle = sum((least + most) / 2 for least, most in self.stages_s.values())
        half = math.hypot(*((most - least) / 2 for least, most in self.stages_s.values()))
        return middle - half, middle + half

    def lines(self) -> Iterator[str]:
        """For a person: the whole time and that of each stage, memory, disk."""
        yield f"time:   {_span(*self.whole_s())} in all, an estimate"
        for name, ends in self.stages_s.items():
            how = f" ({self.how[name]})" if name in self.how else ""
            yield f"        {name}: {_span(*ends)}{how}"
        of = "the GPU" if self.device.name == "cuda" else "main memory"
        yield (
            f"memory: about {_gb(self.memory_bytes)} of {of} at the fullest, {self.fullest}; "
            f"{_gb(self.memory_free_bytes)} free"
        )
        yield (
            f"disk:   about {_gb(self.disk_bytes)} in {shown(self.folder)} at the fullest, "
            f"{_gb(self.kept_bytes)} kept; {_gb(self.disk_free_bytes)} free"
        )


def forecast(pilot: Pilot, known: dict[str, Speeds] | None = None) -> Forecast:
    """Of a pilot that was checked; times a training step of its model here, which takes seconds.

    known: speeds that were measured for other pilots, which those of the same model share; takes
    this one's. Raises ConfigError for a model or a tokenizer that cannot be read.
    """
    device, config = choose_device(pilot.readiness.device), _config(pilot)
    parameters = sum(p.numel() for p in empty_model(pilot.model, config).parameters())
    known = {} if known is None else known
    model, train = pilot.model.model_dump(mode="json"), pilot.train
    like = [pilot.data.sequence_length, train.share[0], train.precision, pilot.readiness.threads]
    same = digest_json([model, config.to_dict(), device.name, *like])
    if same not in known:
        known[same] = _speeds(pilot, config, parameters, device.name)
    speeds, asked = known[same], asked_in_own_terms(pilot)
    fullest, memory_bytes = _memory_bytes(pilot, config, parameters)
    folder, kept = runs_root(), _kept_bytes(pilot, parameters)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return Forecast(
        device=device,
        stages_s=stage_times(pilot, config, parameters, speeds, asked),
        memory_bytes=memory_bytes,
        memory_free_bytes=device.free_bytes,
        disk_bytes=kept + _training_bytes(pilot, parameters),
        disk_free_bytes=shutil.disk_usage(there).free,
        folder=folder,
        how=told(pilot, speeds, asked),
        fullest=fullest,
        kept_bytes=kept,
    )


def _speeds(pilot: Pilot, config: PretrainedConfig, parameters: int, device: str) -> Speeds:
    sequence, train = pilot.data.sequence_length, pilot.train
    step = step_time(
        pilot.model, config, train.share[0], sequence, device, train.precision == "bfloat16"
    )
    return Speeds(step, train.share[0] * sequence, decode_s(pilot, config, parameters, device))


def _config(pilot: Pilot) -> PretrainedConfig:
    if pilot.model.checkpoint is not None:
        config = checkpoint_config(pilot.model.checkpoint, ask_hub=True)
        assert config is not None  # asked, the hub answers or raises
        return config
    name = tokenizer_name(pilot.data, pilot.model.checkpoint)
    rows = vocabulary_size(load_tokenizer(name)) if name else pilot.data.vocab_size
    return preset_config(pilot.model, rows, pilot.data.sequence_length)


def _memory_bytes(pilot: Pilot, config: PretrainedConfig, parameters: int) -> tuple[str, float]:
    """When memory is fullest, and the bytes then: in training, or while all arms are measured."""
    section = pilot.measure_ab
    served = 2 if pilot.measure_ab.load.blocks else 1  # the server has them once more
    measuring = served * sum(
        arm_bytes(section.model_of(arm), parameters) for arm in section.own_arms
    )
    if pilot.model.ternary is not None:
        training = float(TAKEN_IN_BYTES * parameters)
    else:
        plans = memory_plans(config, pilot.model, pilot.train, pilot.data.sequence_length)
        training = max(plan.total_bytes for plan in plans)
    if choose_device(pilot.readiness.device).name == "cpu":
        shared = pilot.train.launch.processes if pilot.model.ternary is None else 1
        training *= FREED_KEPT if pilot.model.ternary is None else 1.0
        training = shared * (training + PROCESS_BYTES) + COMMAND_BYTES
        measuring += served * PROCESS_BYTES + COMMAND_BYTES
    taken = "taking both models in" if pilot.model.ternary is not None else "training"
    return max((training, taken), (measuring, MEASURING))[::-1]


def _kept_bytes(pilot: Pilot, parameters: int) -> float:
    """Of the run's folder when all is done: the models, the tokens of the text, the pages."""
    model = pilot.model
    packed = sum(PACKED_BYTES.values()) + HYBRID_BYTES
    beside = pilot.data.max_bytes + PAGES_BYTES
    if model.ternary is not None:
        return (FLOAT32 + packed) * parameters + beside
    # full_precision and the masters; both arms' folders, of each seed; a checkpoint as it came.
    whole = 2 + 2 * pilot.train.seeds + (model.checkpoint is not None) + trains_a_hybrid(pilot)
    return (FLOAT32 * whole + packed) * parameters + beside


def _training_bytes(pilot: Pilot, parameters: int) -> float:
    """Of the checkpoints while it trains."""
    return checkpoint_bytes(parameters) if pilot.model.ternary is None else 0.0


def _span(least: float, most: float) -> str:
    low, high = clock(least), clock(most)
    return f"about {low}" if low == high else f"{low} to {high}"


def _gb(size: float) -> str:
    return f"{size / GB:.2g} GB" if size < 100 * GB else f"{size / GB:,.0f} GB"
