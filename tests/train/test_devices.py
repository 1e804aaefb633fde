"""Which devices a training uses: one, unless the pilot asks for more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from workbench.errors import ConfigError
from workbench.machine import device
from workbench.pilot.sections.train import Train
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.train import preflight
from workbench.train.arm import train_arm
from workbench.train.trainer import training_arguments


def test_a_process_that_sees_eight_gpus_trains_on_one_as_the_pilot_says(
    small: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = []
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 8))
    monkeypatch.setattr(torch.nn.DataParallel, "__init__", lambda *_: wrapped.append(1))
    setup = small.make_setup(steps=2, evaluations=1)
    model = small.make_model("ternary", setup)
    progress = Progress(tmp_path / "events.jsonl", "train_qat")
    rows = train_arm("ternary", model, setup, tmp_path, progress).telemetry.frame("loss")
    assert rows["tokens"].tolist() == [2 * 16, 4 * 16] and not wrapped


@pytest.mark.parametrize(
    ("visible", "used", "device", "note"),
    [
        (8, 1, "cuda", "8 GPUs are visible and the training uses 1"),
        (8, 8, "cuda", None),
        (1, 1, "cuda", None),
        (8, 1, "cpu", None),
    ],
)
def test_idle_gpus_are_noted(
    monkeypatch: pytest.MonkeyPatch, visible: int, used: int, device: str, note: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    pilot = SimpleNamespace(train=Train(batch_size=8, launch={"processes": used}))
    found = preflight.idle_gpus(pilot, device)
    assert found is None if note is None else note in found


def test_a_pilot_that_asks_for_the_cpu_trains_there_whatever_gpus_there_are(
    small: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``readiness.device`` is of all stages: the training once took any GPU it saw."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(device, "torch_gpu", lambda: ("a GPU", ""))
    monkeypatch.setattr(device, "torch_gpu_memory", lambda: (8e9, 8e9))
    setup = small.make_setup(steps=2, evaluations=1)
    assert setup.device == "cuda", "what a setup takes that is told nothing"
    arguments = training_arguments(setup.train, tmp_path, 0, "cpu")
    assert arguments.device.type == "cpu" and not arguments.dataloader_pin_memory
    asked = {"name": "a", "question": "b", "readiness": {"device": "cpu"}}
    preflight.plan_memory(Pilot.model_validate(asked), "cpu", lambda _: None)
    with pytest.raises(ConfigError, match="the model lies on cpu"):
        preflight.require_trainable(
            Pilot.model_validate({**asked, "train": {"int8_gradients": True}})
        )
