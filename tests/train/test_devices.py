"""Which devices a training uses: one, unless the pilot asks for more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from workbench.pilot.sections.train import Train
from workbench.records.events import Progress
from workbench.train import preflight
from workbench.train.arm import train_arm


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
    ("visible", "used", "note"),
    [(8, 1, "8 GPUs are visible and the training uses 1"), (8, 8, None), (1, 1, None)],
)
def test_idle_gpus_are_noted(
    monkeypatch: pytest.MonkeyPatch, visible: int, used: int, note: str | None
) -> None:
    monkeypatch.setattr(preflight, "training_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    pilot = SimpleNamespace(train=Train(batch_size=8, processes=used))
    found = preflight.idle_gpus(pilot)
    assert found is None if note is None else note in found
