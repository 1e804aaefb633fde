"""Train the ternary arm in processes that are killed again and again, until one finishes.

Run as a script: ``killed.py FOLDER``. Every attempt is a fork that trains in FOLDER; most of
them end by SIGKILL at a chosen moment, some from outside at any moment, the last one ends by
itself. Prints one JSON line: how each attempt ended. The forks save the imports' time.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from small_training import make_model, make_setup

from workbench.records.events import Progress
from workbench.train import callbacks
from workbench.train.arm import train_arm
from workbench.train.telemetry import Telemetry

Sabotage = Callable[[], None]


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_row(step: int) -> Sabotage:
    """Killed when the row of ``step`` is written and nothing else of it."""

    def arrange() -> None:
        write = Telemetry.add

        def add(self: Telemetry, table: str, rows: list[dict[str, object]]) -> None:
            write(self, table, rows)
            if table == "loss" and rows[0]["step"] == step:
                die()

        Telemetry.add = add

    return arrange


def inside_a_row() -> None:
    """Killed in the middle of a line."""

    def add(self: Telemetry, table: str, rows: list[dict[str, object]]) -> None:
        with self._path(table).open("a") as file:
            file.write(json.dumps(rows[0])[:20])
        die()

    Telemetry.add = add


def inside_a_checkpoint() -> None:
    """Killed with half of the optimizer's state written."""

    def save(value: object, path: str) -> None:
        buffer = io.BytesIO()
        write(value, buffer)
        if "optimizer" in str(path):
            Path(path).write_bytes(buffer.getvalue()[: buffer.tell() // 2])
            die()
        Path(path).write_bytes(buffer.getvalue())

    write, torch.save = torch.save, save


def before_the_marker() -> None:
    """Killed with every file of the checkpoint written and nothing that says so."""
    callbacks.mark_whole = die


def attempt(folder: Path, sabotage: Sabotage | None, kill_after_s: float | None) -> str:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        if sabotage:
            sabotage()
        setup = make_setup()
        train_arm(
            "ternary",
            make_model("ternary", setup),
            setup,
            folder,
            Progress(folder / "events.jsonl", "train_qat"),
        )
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


if __name__ == "__main__":
    where = Path(sys.argv[1])
    planned: list[tuple[Sabotage | None, float | None]] = [
        (after_row(3), None),
        (inside_a_checkpoint, None),
        (before_the_marker, None),
        (after_row(5), None),
        (after_row(12), None),
        (inside_a_row, None),
        (inside_a_checkpoint, None),
        (None, 0.45),
        (None, 0.6),
        (None, None),
    ]
    print(json.dumps([attempt(where, *plan) for plan in planned]))
