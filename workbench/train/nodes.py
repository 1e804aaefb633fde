"""Several machines that train together: the first leads, the others follow.

The same command runs on every node, with the environment that torchrun takes too: ``MASTER_ADDR``
and ``MASTER_PORT`` (of the first node), and ``NODE_RANK``. The first node runs the pilot. The
others wait for its trainings and start their processes for each, from the same files: the folder
of the runs is shared. What the nodes say to each other goes through a ``TCPStore`` that the first
one's command serves, so that one whose command ends is noticed by all, however it ends.

Of training n: ``training/n`` says where it lies and where its processes meet, ``failed/n`` that a
node has failed in it, ``left/n`` counts the nodes that are done with it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistStoreError, TCPStore

from workbench.errors import ConfigError, StageError
from workbench.pilot.sections.train import TrainingLaunch
from workbench.wording.counts import number_of

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
CONNECT_S = 600.0
"""For nodes whose command begins later, and for the first one's to begin."""
LEAVE_S = 20.0
"""For the other nodes to be done with a training that has ended on the first."""
SEEN_S = 60.0
"""For a shared file system to show what another machine has written."""
POLL_S = 0.3


@dataclass(frozen=True)
class Node:
    """Which of the machines this is. rank: from 0. address, port: of the first one."""

    rank: int
    nodes: int
    address: str
    port: int


@dataclass(frozen=True)
class Meeting:
    """Training ``number`` of a run on several nodes, and the port where its processes meet."""

    number: int
    folder: Path
    port: int


def node_of(launch: TrainingLaunch, environment: Mapping[str, str] = os.environ) -> Node | None:
    """This machine's place by the environment; None where one machine trains alone.

    Raises ConfigError for what is missing or no such place.
    """
    if launch.nodes == 1:
        return None
    allowed = (
        f"MASTER_ADDR, the first node's address; MASTER_PORT, a free port there, 1 to 65535; "
        f"NODE_RANK, 0 to {launch.nodes - 1}"
    )
    next_step = (
        "run the same command on every node with them (deploy/slurm, deploy/kubernetes and "
        "deploy/skypilot have it written out), or set train.launch.nodes to 1"
    )
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"train.launch.nodes: {launch.nodes}, but the environment has no {', '.join(missing)}",
            allowed=allowed,
            next_step=next_step,
        )
    address, port, rank = (environment[name] for name in VARIABLES)
    for name, value, least, most in (
        ("MASTER_PORT", port, 1, 65535),
        ("NODE_RANK", rank, 0, launch.nodes - 1),
    ):
        if not value.isdecimal() or not least <= int(value) <= most:
            raise ConfigError(
                f"train.launch.nodes: {launch.nodes}, but {name} is {value}",
                allowed=allowed,
                next_step=next_step,
            )
    return Node(int(rank), launch.nodes, address, int(port))


@contextmanager
def all_nodes(launch: TrainingLaunch) -> Iterator[bool]:
    """Whether this node runs the pilot in the block: the first one does, and one that is alone.

    The others train along before they come to the block, until the first one's command ends.
    Raises StageError on them where it ends without a word.
    """
    node = node_of(launch)
    if node is None:
        yield True
    elif node.rank > 0:
        from workbench.train.processes import train_along

        _follow(node, train_along)
        yield False
    else:
        store = _serve(node)
        try:
            yield True
        finally:
            store.set("ended", "1")
            _wait(lambda: store.add("gone", 0) >= node.nodes - 1, LEAVE_S)


def call_nodes(node: Node, folder: Path) -> tuple[TCPStore, Meeting]:
    """Ask the other nodes to train what was handed over in ``folder``."""
    try:
        store = TCPStore(
            node.address, node.port, is_master=False, timeout=timedelta(seconds=5), use_libuv=True
        )
    except DistStoreError as error:
        raise StageError(
            f"training on {number_of(node.nodes, 'node')}: nobody answers at "
            f"{node.address}:{node.port}",
            allowed="a training within workbench run or workbench stage, whose command listens",
            next_step="start it by one of these on every node",
        ) from error
    meeting = Meeting(store.add("trainings", 1), folder, _free_port())
    said = {"folder": str(folder), "port": meeting.port}
    store.set(f"training/{meeting.number}", json.dumps(said))
    return store, meeting


def failed(store: TCPStore, meeting: Meeting) -> str:
    """What a node said that failed in it; empty while none has."""
    key = f"failed/{meeting.number}"
    return store.get(key).decode() if store.check([key]) else ""


def fail(store: TCPStore, meeting: Meeting, text: str) -> None:
    store.set(f"failed/{meeting.number}", text)


def seen_in_time(file: Path, most_s: float = SEEN_S) -> bool:
    """Whether a file of the first node is seen here, at once or a little later."""
    _wait(file.exists, most_s)
    return file.exists()


def wait_for_nodes(store: TCPStore, meeting: Meeting, node: Node) -> None:
    """Until all other nodes are done with it, or :data:`LEAVE_S` have passed."""
    _wait(lambda: store.add(f"left/{meeting.number}", 0) >= node.nodes - 1, LEAVE_S)


def _serve(node: Node, timeout_s: float = 30.0) -> TCPStore:
    try:
        return TCPStore(
            node.address,
            node.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
    except (DistStoreError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"MASTER_ADDR {node.address}, MASTER_PORT {node.port}: the first node cannot listen "
            f"there: {str(error).splitlines()[0]}",
            allowed="an address of this machine and a port that nobody uses",
            next_step="choose another MASTER_PORT, or correct MASTER_ADDR, on every node",
        ) from error


def _follow(node: Node, train_along: Callable[[Node, TCPStore, Meeting], None]) -> None:
    where = f"{node.address}:{node.port}"
    try:
        store = TCPStore(
            node.address, node.port, is_master=False, timeout=timedelta(seconds=CONNECT_S)
        )
    except (DistStoreError, RuntimeError) as error:
        raise StageError(
            f"node {node.rank}: the first node did not answer at {where} for {CONNECT_S:.0f} s",
            next_step="see whether the same command runs there, and whether a firewall is between",
        ) from error
    number = 1
    try:
        while not store.check(["ended"]):
            if not store.check([f"training/{number}"]):
                time.sleep(POLL_S)
                continue
            said = json.loads(store.get(f"training/{number}"))
            train_along(node, store, Meeting(number, Path(said["folder"]), said["port"]))
            store.add(f"left/{number}", 1)
            number += 1
        store.add("gone", 1)
    except (DistStoreError, RuntimeError) as error:  # torch's errors of a lost connection
        raise StageError(
            f"node {node.rank}: the first node's command at {where} has gone",
            next_step="its output says why; the same command on all nodes goes on from there",
        ) from error


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _wait(is_so: Callable[[], bool], most_s: float) -> None:
    ends = time.monotonic() + most_s
    while not is_so() and time.monotonic() < ends:
        time.sleep(POLL_S)
