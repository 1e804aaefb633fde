"""Trackers: a missing one is said by name; one that is there gets each arm's curves."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
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


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """The writers that TensorBoard, as good as installed, has been asked for."""
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setattr("workbench.train.trainer.require_trackers", lambda _: None)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def trained(
    small: SimpleNamespace, folder: Path, teaches: bool = False, **train: object
) -> pd.DataFrame:
    """The loss of three steps at full strength."""
    at_once = {"warmup": {"share": 0.0}, "threshold": {"share": 0.0}, "lr_schedule": "constant"}
    setup = small.make_setup(steps=3, evaluations=3, trackers=["tensorboard"], **at_once | train)
    progress = Progress(folder / "events.jsonl", "train_qat")
    teacher = small.make_model("full_precision", setup) if teaches else None
    model = small.make_model("ternary", setup)
    return train_arm("ternary", model, setup, folder, progress, teacher).telemetry.frame("loss")


def sent(writer: Writer, name: str) -> list[float]:
    return [value for own, _, value in writer.scalars if own == f"train/{name}"]


def test_an_installed_tracker_gets_the_curve_beside_the_checkpoints(
    small: SimpleNamespace, tmp_path: Path, board: list[Writer]
) -> None:
    loss = trained(small, tmp_path, guard={"action": "lower_rate", "one_value_share": 0.0})
    (writer,) = board
    assert writer.log_dir == str(tmp_path / "tensorboard")
    assert sent(writer, "loss") == pytest.approx(loss["loss"].tolist())
    rates = sent(writer, "learning_rate")
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4]) and rates == loss["lr"].tolist()


def test_the_loss_of_a_distilled_arm_is_that_of_the_next_token_here_too(
    small: SimpleNamespace, tmp_path: Path, board: list[Writer]
) -> None:
    loss = trained(small, tmp_path, True, distillation={"teacher": "full_precision", "alpha": 0.5})
    (writer,) = board
    for name in ("loss", "objective", "teacher_kl"):
        assert sent(writer, name) == pytest.approx(loss[name].tolist())
    assert (abs(loss["loss"] - loss["objective"]) > 0.01).all()
