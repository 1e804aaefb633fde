"""One training in several processes, each with an equal part of every step.

This process waits. It hands the training over in a file; torch's elastic launcher starts the
processes (:mod:`workbench.train.launcher`), and in each (:mod:`workbench.train.worker`)
``transformers`` and ``accelerate`` join it to the others: NCCL between GPUs, gloo on a CPU. Under
``ddp`` each has the whole model, else a shard of it (:mod:`workbench.train.sharded`). The first
process writes telemetry and final weights, as a training without others does. Other machines have
processes of the same training too (:mod:`workbench.train.nodes`).

The processes hold a pipe of this one as their standard input. It closes however this process
ends, and they end with it: two trainings never write into one folder.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.distributed import TCPStore

from workbench.child import child, end_of_log
from workbench.errors import ConfigError, StageError, WorkbenchError
from workbench.files import read_json, write_json
from workbench.machine.device import DeviceName
from workbench.paths import shown
from workbench.pilot.sections.train import Train, TrainingLaunch
from workbench.records.events import Progress, follow
from workbench.train.nodes import (
    POLL_S,
    Meeting,
    Node,
    call_nodes,
    fail,
    failed,
    node_of,
    seen_in_time,
    wait_for_nodes,
)
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from workbench.train.arm import Training

HANDOVER, TOKENS, LOG, KILLED = "handover.pt", "tokens.npy", "log.txt", "killed.json"
LAUNCH = "launch.json"
STOP_S = 40.0
"""The launcher gives its processes 30 s to end before it kills them."""


def require_devices(train: Train, device: DeviceName) -> None:
    """ConfigError for more processes than GPUs, for several nodes without their environment, and
    inside another launcher's processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: a launcher has started this several times",
            allowed="one process, which starts the others itself",
            next_step="run workbench without torchrun, and set train.launch instead",
        )
    node_of(train.launch)
    visible = torch.cuda.device_count() if device == "cuda" else None
    processes = train.launch.processes
    if visible is not None and processes > visible:
        raise ConfigError(
            f"train.launch.processes: {processes}, but torch sees {number_of(visible, 'GPU')}",
            allowed=f"1 to {visible}, one process a GPU",
            next_step="lower train.launch.processes, or name more GPUs in CUDA_VISIBLE_DEVICES",
        )


def train_in_processes(training: Training, progress: Progress) -> None:
    """Train in the processes of ``train.launch``, until the final weights are in the arm's folder.

    The models are on the CPU meanwhile: the first process needs the memory of this one's GPU.
    Raises what a process raised, and StageError where one was killed.
    """
    device = next(training.model.parameters()).device
    folder = training.folder / "processes"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
    folder.mkdir()
    for model in (training.model, training.teacher):
        if model is not None:
            model.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        _hand_over(training, progress, folder)
        launch = training.setup.train.launch
        write_json(folder / LAUNCH, launch.model_dump(mode="json"))
        _launch(launch, folder, progress)
    finally:
        (folder / HANDOVER).unlink(missing_ok=True)  # as large as the model
        (folder / TOKENS).unlink(missing_ok=True)
        training.model.to(device)
    shutil.rmtree(folder, ignore_errors=True)  # another node may still close its log


def _hand_over(training: Training, progress: Progress, folder: Path) -> None:
    """Into one file; the tokens, which may be many, stay in theirs."""
    tokens = training.setup.tokens
    path = getattr(tokens, "filename", None)
    if path is None:
        path = folder / TOKENS
        np.save(path, tokens)
    bare = replace(training, setup=replace(training.setup, tokens=None))
    parts = (bare, Path(path), progress.path, progress.stage)
    torch.save(parts, folder / HANDOVER, pickle_protocol=pickle.HIGHEST_PROTOCOL)


def take_over(folder: Path) -> tuple[Training, Progress]:
    """What :func:`_hand_over` wrote; the weights are mapped from the file."""
    path = folder / HANDOVER
    training, tokens, events, stage = torch.load(path, mmap=True, weights_only=False)
    setup = replace(training.setup, tokens=np.load(tokens, mmap_mode="r"))
    return replace(training, setup=setup), Progress(events, stage)


def _launch(launch: TrainingLaunch, folder: Path, progress: Progress) -> None:
    """Start the processes and pass their events on to this one's listener until they end."""
    seen = progress.path.stat().st_size if progress.path.exists() else 0
    node = node_of(launch)
    store, meeting = call_nodes(node, folder) if node else (None, None)

    def elsewhere() -> str:
        return failed(store, meeting) if store and meeting else ""

    with _launcher(launch, folder, node, meeting) as launcher:
        over = lambda: launcher.poll() is not None or bool(elsewhere())  # noqa: E731
        for event in follow(progress.path, over, seen):
            if progress.listener and event["stage"] == progress.stage:
                progress.listener(event)
    if node and store and meeting:
        if launcher.returncode:
            fail(store, meeting, "node 0")
        wait_for_nodes(store, meeting, node)
    if launcher.returncode or elsewhere():
        raise _failure(launch.together, folder, elsewhere())


def train_along(node: Node, store: TCPStore, meeting: Meeting) -> None:
    """This node's part in a training that the first one leads, until it ends anywhere."""
    handover = meeting.folder / HANDOVER
    if not seen_in_time(handover):
        fail(
            store,
            meeting,
            f"node {node.rank} does not see {handover}: the folder of the runs (WORKBENCH_RUNS) "
            "must be one that all nodes share",
        )
        return
    launch = TrainingLaunch.model_validate(read_json(meeting.folder / LAUNCH))
    with _launcher(launch, meeting.folder, node, meeting) as launcher:
        while launcher.poll() is None and not failed(store, meeting):
            time.sleep(POLL_S)
    if launcher.returncode and not failed(store, meeting):
        fail(store, meeting, f"node {node.rank}")


def _launcher(
    launch: TrainingLaunch, folder: Path, node: Node | None, meeting: Meeting | None
) -> AbstractContextManager[subprocess.Popen[str]]:
    """torch's launcher of this machine's processes."""
    threads = max(1, torch.get_num_threads() // launch.processes)
    where, log = [], LOG
    if node and meeting:
        where = [node.nodes, node.rank, node.address, meeting.port, f"training-{meeting.number}"]
        log = f"log-{node.rank}.txt" if node.rank else LOG
    return child(
        "workbench.train.launcher",
        str(folder),
        str(launch.processes),
        *map(str, where),
        log=folder / log,
        environment={"OMP_NUM_THREADS": str(threads)},
        own_session=True,
        stop_s=STOP_S,
    )


def _failure(processes: int, folder: Path, elsewhere: str = "") -> WorkbenchError:
    """Who was killed, or what the first process that failed said. elsewhere: what another node
    says."""
    goes_on = "the same command goes on from the last whole checkpoint"
    killed = read_json(folder / KILLED) if (folder / KILLED).exists() else {}
    for rank, number in killed.items():
        return StageError(
            f"training in {number_of(processes, 'process')}: process {rank} was killed by signal "
            f"{number} ({signal.Signals(number).name})",
            next_step=f"often the memory was full: lower train.batch_size; {goes_on}",
        )
    failures = [pickle.loads(path.read_bytes()) for path in folder.glob("failure-*.pickle")]
    if failures:
        return min(failures, key=lambda pair: pair[0])[1]
    if elsewhere:
        return StageError(
            f"training in {number_of(processes, 'process')} ended on another node: {elsewhere}",
            next_step=f"that node's output says more, and its log beside {shown(folder / LOG)}; "
            f"{goes_on}",
        )
    tail = end_of_log(folder / LOG)
    return StageError(
        f"training in {number_of(processes, 'process')} ended; the end of its log:\n    {tail}",
        next_step=f"the whole log is {shown(folder / LOG)}; {goes_on}",
    )
