"""TensorBoard, MLflow and Weights & Biases, for users who have them; none is needed.

``transformers`` has the callbacks. What is added here: a missing package is said before anything
starts, TensorBoard's files outlive the checkpoints, and each arm is a run of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback

from workbench.errors import ConfigError


def require_trackers(names: Sequence[str]) -> None:
    """ConfigError naming the package of a tracker that is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"train.trackers: {', '.join(missing)} not installed",
            allowed="trackers whose package is there; the run keeps its own tables without any",
            next_step=f"pip install {' '.join(missing)}, or remove it from train.trackers",
        )


def keep_tensorboard_in(trainer: Trainer, folder: Path) -> None:
    """TensorBoard's files go to ``folder``, unless TENSORBOARD_LOGGING_DIR says another."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)


def end_run(names: Sequence[str]) -> None:
    """Weights & Biases keeps one run open for the whole process: the next arm gets its own."""
    if "wandb" in names:
        importlib.import_module("wandb").finish()
