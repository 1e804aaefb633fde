"""Main memory: what the machine has, what this process may still take, what processes hold.

In a container the kernel reports the host's memory, while the control group kills the
process at its own limit; the smaller of the two is what counts.

What processes hold never depends on their neighbours. The system's own figures that count shared
pages once do: the proportional set size (PSS) of a process grows by half of a library when another
program that has mapped it ends, and its unique set size (USS) by all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Memory:
    """Bytes. ``limit_bytes``: of the control group, None without one."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None


def memory() -> Memory:
    """The state at this moment; ``available`` counts caches that the system would give up."""
    system = psutil.virtual_memory()
    total, available, limit = int(system.total), int(system.available), None
    for group_limit, used in cgroup_limits():
        if group_limit < total:
            limit = group_limit if limit is None else min(limit, group_limit)
            available = min(available, max(0, group_limit - used))
    return Memory(total if limit is None else limit, available, limit)


class TreeMemory:
    """What a process and all below it hold, looked at often.

    To count shared pages once the system walks through all of them, some 10 ms for each half a
    gigabyte; that is done when this is made, and afterwards only growth is added, which is not
    shared. Raises psutil.Error when the process is gone.
    """

    def __init__(self, pid: int) -> None:
        top = psutil.Process(pid)
        self._processes = [top, *top.children(recursive=True)]
        self._start_bytes, self._resident = process_tree_bytes(pid), self._resident_bytes()

    def now_bytes(self) -> int:
        return self._start_bytes + self._resident_bytes() - self._resident

    def _resident_bytes(self) -> int:
        total = 0
        for process in self._processes:
            with suppress(psutil.Error):  # it ended meanwhile
                total += process.memory_info().rss
        return total


def process_tree_bytes(pid: int | None = None) -> int:
    """Memory that a process and all below it hold; None: this one. Pages that several of them
    share count once where the system can tell (Linux), once in each elsewhere: of a file that
    several have mapped, what the one holds that holds most of it.

    Raises psutil.Error when the process itself is gone.
    """
    top = psutil.Process(pid)
    own, files = _held(top)
    for process in top.children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            more, of_files = _held(process)
            own, files = own + more, files | of_files
    return own + files.total()


def process_bytes() -> int:
    """Memory that this process holds, with what it has mapped of files and shares."""
    own = psutil.Process()
    return sum(part.rss for part in _maps(own)) or int(own.memory_info().rss)


def _held(process: psutil.Process) -> tuple[int, Counter[str]]:
    """Bytes that no file stands behind, and those of each file."""
    own, files = 0, Counter[str]()
    for part in _maps(process):
        if part.path.startswith("["):
            own += part.pss  # after a fork parent and child share it, and nobody else
        else:
            own += min(part.anonymous, part.pss)  # written since it was mapped
            files[part.path] += part.rss - part.anonymous
    return own or int(process.memory_info().rss), files


def _maps(process: psutil.Process) -> Sequence[Any]:
    """What is where in its memory; empty where the system does not tell."""
    try:
        maps = process.memory_maps(grouped=False)
    except (AttributeError, psutil.AccessDenied):
        return []
    return maps if maps and hasattr(maps[0], "pss") else []


def cgroup_limits(own: Path = OWN_CGROUP, root: Path = CGROUPS) -> list[tuple[int, int]]:
    """(limit, used) in bytes of each control group this process is in that has a limit.

    A limit of any ancestor binds, so every folder from the process's own up to the root is
    read. ``used`` leaves out page cache that can be dropped.
    """
    found = []
    for folder, limit_name, used_name, cache_name in _folders(own, root):
        limit = _number(folder / limit_name)
        used = _number(folder / used_name)
        if limit is not None and used is not None:
            found.append((limit, max(0, used - _inactive_file(folder, cache_name))))
    return found


def _folders(own: Path, root: Path) -> list[tuple[Path, str, str, str]]:
    v2 = ("memory.max", "memory.current", "inactive_file")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, inner = line.split(":", 2)
        if controllers == "":
            base, names = root, v2
        elif "memory" in controllers.split(","):
            base, names = root / "memory", v1
        else:
            continue
        path = base / inner.strip("/")
        # Inside a container the path is often the host's and does not exist; the mount's
        # root then is the container's own group.
        while path != base:
            folders.append((path, *names))
            path = path.parent
        folders.append((base, *names))
    return folders


def _number(path: Path) -> int | None:
    """The file's number; None for ``max`` and for a file that is not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _inactive_file(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
