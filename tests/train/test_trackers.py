"""Trackers: a missing one is said by name; one that is there gets each arm's curves."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from transformers.integrations import integration_utils

from workbench.errors import ConfigError
from workbench.records.events import Progress
from workbench.train import trackers
from workbench.train.arm import train_arm


class Writer:
    """In the place of TensorBoard's SummaryWriter."""

    made: list[Writer] = []  # noqa: RUF012

    def __init__(self, log_dir: str) -> None:
        self.log_dir, self.scalars = log_dir, []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, step, value))

    def add_text(self, *_: object) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def test_a_missing_tracker_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda name: None if name == "mlflow" else name
    )
    trackers.require_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match="mlflow not installed") as caught:
        trackers.require_trackers(["tensorboard", "mlflow"])
    assert "pip install mlflow" in caught.value.next_step


def test_an_installed_tracker_gets_the_curve_beside_the_checkpoints(
    small: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setattr("workbench.train.trainer.require_trackers", lambda _: None)
    monkeypatch.setattr(Writer, "made", [])
    lesson = small.make_lesson(
        steps=3,
        evaluations=3,
        trackers=["tensorboard"],
        warmup={"share": 0.0},
        threshold={"share": 0.0},
        lr_schedule="constant",
        guard={"action": "lower_rate", "one_value_share": 0.0},
    )
    progress = Progress(tmp_path / "events.jsonl", "train_qat")
    model = small.make_model("ternary", lesson)
    loss = train_arm("ternary", model, lesson, tmp_path, progress).telemetry.frame("loss")
    (writer,) = Writer.made
    assert writer.log_dir == str(tmp_path / "tensorboard")
    sent = [value for name, _, value in writer.scalars if name == "train/loss"]
    assert sent == pytest.approx(loss["loss"].tolist())
    rates = [value for name, _, value in writer.scalars if name == "train/learning_rate"]
    assert rates == pytest.approx([1e-3, 5e-4, 2.5e-4]) and rates == loss["lr"].tolist()
