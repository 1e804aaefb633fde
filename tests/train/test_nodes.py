"""Two nodes, here two commands of one machine: they train together, and end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from workbench.errors import ConfigError
from workbench.records.events import Progress
from workbench.train.arm import FINAL, train_arm
from workbench.train.checkpoints import last_whole
from workbench.train.nodes import Node, _serve, seen_in_time
from workbench.train.processes import LOG, _failure
from workbench.train.telemetry import Telemetry

SCRIPT = Path(__file__).with_name("on_nodes.py")
TRAIN = {"steps": 20, "batch_size": 4, "save_every": 4, "evaluations": 2}
WITHIN_S = 60.0


def both(folder: Path, processes: int, strategy: str) -> list[subprocess.Popen[str]]:
    """The first node's command, and the second one's, which begins earlier."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launch = {"processes": processes, "nodes": 2, "strategy": strategy}
    words = [sys.executable, str(SCRIPT), str(folder), json.dumps({**TRAIN, "launch": launch})]
    nodes = [
        subprocess.Popen(
            words, env={**os.environ, **where, "NODE_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (1, 0)
    ]  # fmt: skip
    return nodes[::-1]


def worker_of(rank: int, folder: Path) -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        is_one = "workbench.train.worker" in words and any(str(folder) in word for word in words)
        if is_one and process.environ()["RANK"] == str(rank):
            return process
    raise AssertionError(f"no worker of rank {rank}")


@pytest.mark.slow
def test_two_nodes_train_as_one_machine_does_through_a_kill_and_in_another_mesh(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    setup = small.make_setup(**TRAIN)
    one = train_arm(
        "ternary", small.make_model("ternary", setup), setup, tmp_path / "one",
        Progress(tmp_path / "one" / "events.jsonl", "train_qat"),
    ).telemetry  # fmt: skip
    folder = tmp_path / "two"
    folder.mkdir()

    first, second = both(folder, 1, "fsdp")
    limit = time.monotonic() + 120
    while not any(folder.glob("checkpoints/checkpoint-*/whole.json")):
        assert time.monotonic() < limit and first.poll() is None, first.communicate()
        time.sleep(0.05)
    worker_of(1, folder).send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said = first.communicate(timeout=WITHIN_S)[1]
    assert time.monotonic() - killed < WITHIN_S
    assert first.returncode and "process 1 was killed by signal 9 (SIGKILL)" in said
    second.communicate(timeout=WITHIN_S)
    assert second.returncode is not None and not (folder / FINAL).exists()
    assert last_whole(folder / "checkpoints")

    nodes = both(folder, 2, "hsdp")
    ends = [node.communicate(timeout=200)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], ends
    two = Telemetry(folder / "telemetry", 10**9)
    here, there = two.frame("loss"), one.frame("loss")
    assert here[["step", "tokens", "batch"]].equals(there[["step", "tokens", "batch"]])
    assert abs(here["loss"] - there["loss"]).max() < 1e-5
    assert not (folder / "processes").exists()


def test_a_folder_that_a_node_does_not_see_is_named(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("closed")
    told = _failure(2, tmp_path, "node 1 does not see /runs/x: the folder of the runs must be one")
    assert "ended on another node: node 1 does not see /runs/x" in str(told)
    assert not seen_in_time(tmp_path / "absent", 0.1) and seen_in_time(tmp_path / LOG, 0.1)


def test_an_address_that_is_not_here_is_named() -> None:
    with pytest.raises(ConfigError, match=r"MASTER_ADDR 192\.0\.2\.1, MASTER_PORT 29555: the"):
        _serve(Node(0, 2, "192.0.2.1", 29555), timeout_s=1.0)
