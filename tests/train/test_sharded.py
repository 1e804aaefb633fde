"""Shards of a ternary model train what the whole one does, and no number of processes is lost."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import safetensors.torch
import torch

from workbench.errors import ConfigError, StageError
from workbench.records.events import Progress
from workbench.ternary import bit_linears
from workbench.train.arm import FINAL, train_arm
from workbench.train.checkpoints import last_whole
from workbench.train.evaluator import Evaluator
from workbench.train.sharded import SHARDS

TAUGHT = {
    "steps": 20, "batch_size": 2, "gradient_accumulation": 2, "save_every": 4, "evaluations": 4,
    "gradient_checkpointing": True,
    "distillation": {"teacher": "full_precision", "alpha": 0.25, "attention_weight": 1.0},
    "guard": {"flip_rate": 0.0, "action": "lower_rate", "rate_factor": 0.5},
}  # fmt: skip
WITHIN_S = 60.0
"""From the kill of a process to the sentence that says so."""


def train(
    small: SimpleNamespace, folder: Path, listener: object = None, **over: object
) -> tuple[Evaluator, torch.nn.Module]:
    setup = small.make_setup(**TAUGHT, **over)
    model, teacher = (small.make_model(arm, setup) for arm in ("ternary", "full_precision"))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    progress = Progress(folder / "events.jsonl", "train_qat", listener)
    return train_arm("ternary", model, setup, folder, progress, teacher), model


def kill_one_of(folder: Path, killed_at: list[float]):
    """A listener that kills the last process once a checkpoint is whole."""

    def listen(event: dict) -> None:
        whole = any((folder / "checkpoints").glob("checkpoint-*/whole.json"))
        if killed_at or event["kind"] != "step" or not whole:
            return
        found = [
            process
            for process in psutil.process_iter(["cmdline"])
            if "workbench.train.worker" in (process.info["cmdline"] or [])
            and any(str(folder) in word for word in process.info["cmdline"])
        ]
        last = max(found, key=lambda process: int(process.environ()["RANK"]))
        killed_at.append(time.monotonic())
        last.send_signal(signal.SIGKILL)

    return listen


@pytest.mark.slow
def test_two_shards_train_as_one_model_does_through_a_kill_and_on_another_number(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    one, whole_model = train(small, tmp_path / "one")
    folder, killed_at = tmp_path / "shards", []
    two = {"processes": 2, "strategy": "fsdp"}

    with pytest.raises(StageError, match=r"process 1 was killed by signal 9 \(SIGKILL\)") as said:
        train(small, folder, kill_one_of(folder, killed_at), launch=two)
    assert time.monotonic() - killed_at[0] < WITHIN_S
    assert "goes on from the last whole checkpoint" in said.value.next_step
    kept = last_whole(folder / "checkpoints")
    assert kept and not (folder / FINAL).exists()
    written = {path.name for path in (kept[0] / SHARDS).iterdir()}
    assert written == {".metadata", "__0_0.distcp", "__1_0.distcp"}, "each wrote its own"
    with pytest.raises(ConfigError, match="has a checkpoint of fsdp or hsdp"):
        train(small, folder, launch={"processes": 2})

    shards, model = train(small, folder, launch={"processes": 1, "strategy": "fsdp"})

    for name, exact in (
        ("loss", ["step", "tokens", "phase", "batch", "teacher_tokens", "lr"]),
        ("evaluations", ["step", "weights"]),
        ("guard", ["step", "limit", "factor"]),
        ("layers", ["step", "layer"]),
    ):
        here, there = shards.telemetry.frame(name), one.telemetry.frame(name)
        assert len(here) and here[exact].equals(there[exact]), name
    traffic = shards.telemetry.frame("loss")
    matrices = sum(4 * layer.weight.numel() for _, layer in bit_linears(model))
    alone, shared = (
        traffic.loc[traffic["step"] > kept[1]],
        traffic.loc[traffic["step"] <= kept[1]],
    )
    assert (alone[["gathered_bytes", "reduced_bytes"]] == 0).all(axis=None), "of one process"
    # Half of each matrix, for the forward pass and for the backward one; half of its gradient.
    assert (shared["gathered_bytes"] > matrices).all() and shared["gathered_bytes"].nunique() == 1
    assert (shared["reduced_bytes"] > matrices / 2).all()
    columns = ["loss", "objective", "teacher_kl", "relations", "grad_norm"]
    here, there = (each.telemetry.frame("loss")[columns].to_numpy() for each in (shards, one))
    assert abs(here - there).max() < 1e-5
    judged = [each.telemetry.frame("evaluations")["loss"].to_numpy() for each in (shards, one)]
    assert abs(judged[0] - judged[1]).max() < 1e-5
    rates = [each.telemetry.frame("layers")["share_zero"].to_numpy() for each in (shards, one)]
    assert abs(rates[0] - rates[1]).max() < 5e-3
    files = [safetensors.torch.load_file(tmp_path / n / FINAL) for n in ("shards", "one")]
    assert files[0].keys() == files[1].keys()
    for name, value in files[1].items():
        torch.testing.assert_close(files[0][name], value, atol=2e-5, rtol=2e-4)
    for (name, here), (_, there) in zip(bit_linears(model), bit_linears(whole_model), strict=True):
        same = (here.ternarized()[0] == there.ternarized()[0]).float().mean()
        assert same > 0.998, name
