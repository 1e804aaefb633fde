"""Two processes train what one would, and nothing is lost when one of them ends."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from workbench.errors import ConfigError, StageError
from workbench.pilot.sections.train import Train
from workbench.records.events import Progress
from workbench.train import processes, worker
from workbench.train.arm import FINAL, train_arm
from workbench.train.checkpoints import last_whole
from workbench.train.evaluator import Evaluator
from workbench.train.processes import require_devices
from workbench.train.setup import TrainingSetup

TAUGHT = {
    "steps": 60, "batch_size": 2, "gradient_accumulation": 2, "save_every": 2, "evaluations": 4,
    "distillation": {"teacher": "full_precision", "alpha": 0.25, "attention_weight": 1.0},
    "guard": {"flip_rate": 0.0, "action": "lower_rate", "rate_factor": 0.5},
}  # fmt: skip


def train(
    small: SimpleNamespace, setup: TrainingSetup, folder: Path, listener: object = None
) -> Evaluator:
    model, teacher = (small.make_model(arm, setup) for arm in ("ternary", "full_precision"))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    progress = Progress(folder / "events.jsonl", "train_qat", listener)
    return train_arm("ternary", model, setup, folder, progress, teacher)


def workers(folder: Path) -> list[psutil.Process]:
    """Those that train in ``folder``, in the order of their ranks."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        if "workbench.train.worker" in (process.info["cmdline"] or []) and any(
            str(folder) in word for word in process.info["cmdline"]
        ):
            found[int(process.environ()["RANK"])] = process
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
def test_two_processes_train_as_one_does_through_every_interruption(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    one = train(small, small.make_setup(**TAUGHT), tmp_path / "one").telemetry
    setup, folder = small.make_setup(**TAUGHT, launch={"processes": 2}), tmp_path / "two"
    checkpoints = folder / "checkpoints"

    def interrupt(event: dict) -> None:
        raise KeyboardInterrupt

    def kill(event: dict) -> None:
        if event["kind"] == "step" and any(checkpoints.glob("checkpoint-*/whole.json")):
            workers(folder)[1].send_signal(signal.SIGKILL)

    events = Progress(folder / "events.jsonl", "train_qat")
    threading.Timer(0.5, events.note, ["while the processes start"]).start()
    with pytest.raises(KeyboardInterrupt):
        train(small, setup, folder, interrupt)
    assert not workers(folder)
    with pytest.raises(StageError, match=r"process 1 was killed by signal 9 \(SIGKILL\)"):
        train(small, setup, folder, kill)
    assert not workers(folder) and last_whole(checkpoints) and not (folder / FINAL).exists()
    two = train(small, setup, folder).telemetry
    assert not (folder / "processes").exists()

    for name, exact in (
        ("loss", ["step", "tokens", "phase", "batch", "teacher_tokens", "lr"]),
        ("evaluations", ["step", "weights"]),
        ("guard", ["step", "limit", "factor"]),
        ("layers", ["step", "layer"]),
    ):
        here, there = two.frame(name), one.frame(name)
        assert len(here) and here[exact].equals(there[exact]), name
    columns = ["loss", "objective", "teacher_kl", "relations", "grad_norm"]
    here, there = (telemetry.frame("loss")[columns].to_numpy() for telemetry in (two, one))
    assert here == pytest.approx(there, rel=2e-3)
    weights, wanted = (
        safetensors.torch.load_file(tmp_path / name / FINAL) for name in ("two", "one")
    )
    for name, value in wanted.items():
        torch.testing.assert_close(weights[name], value, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StageError("the guard stopped ternary", allowed="less", next_step="lower it"), "less"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "process 1 of 2: out of mem"),
        (KeyError("x"), "process 1 of 2 failed: KeyError"),
    ],
)
def test_what_a_process_says_first_is_what_the_user_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, each in (("1", error), ("0", RuntimeError("Connection closed by peer"))):
        monkeypatch.setenv("RANK", rank)
        worker._write_failure(tmp_path, each)
    told = processes._failure(2, tmp_path)
    assert words in str(told) and told.next_step
    (tmp_path / processes.KILLED).write_text('{"1": 9}')
    assert "process 1 was killed by signal 9" in str(processes._failure(2, tmp_path))


def test_a_process_that_said_nothing_has_its_log(tmp_path: Path) -> None:
    (tmp_path / processes.LOG).write_text("the last line")
    assert "the last line" in str(processes._failure(2, tmp_path))


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "share"),
    [(4, 32, 8, (4, 4)), (16, 1, 8, (2, 1)), (4, 4, 8, (2, 1)), (6, 4, 3, (2, 4))],
)
def test_a_step_is_shared_out_whatever_its_batches(
    batch: int, accumulation: int, processes: int, share: tuple[int, int]
) -> None:
    train = Train(
        batch_size=batch, gradient_accumulation=accumulation, launch={"processes": processes}
    )
    assert train.share == share
    assert share[0] * share[1] * processes == batch * accumulation


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="3 processes cannot share a step's 8 sequences"):
        Train(batch_size=4, gradient_accumulation=2, launch={"processes": 3})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_devices(Train(launch={"processes": 2}), "cuda")
    require_devices(Train(launch={"processes": 4}), "cpu")
    with pytest.raises(ConfigError, match=r"train\.launch\.processes: 4, but torch sees 2 GPUs"):
        require_devices(Train(launch={"processes": 4}), "cuda")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"set train\.launch instead"):
        require_devices(Train(), "cpu")
