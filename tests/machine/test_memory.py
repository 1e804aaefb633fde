import mmap
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import pytest

from workbench.machine.memory import cgroup_limits, memory, process_bytes, process_tree_bytes
from workbench.measure.memory_use import memory_growth

MB = 10**6
HOLDS_A_FILE = """
import mmap, subprocess, sys
path, heap, children = sys.argv[1], bytearray(int(sys.argv[2])), int(sys.argv[3])
with open(path, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    read = sum(mapped[::4096])
    below = [sys.executable, "-c", sys.argv[4], path, str(len(heap)), "0", ""]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    started = [subprocess.Popen(below, **pipes) for _ in range(children)]
    for child in started:
        child.stdout.readline()
    print("read", flush=True)
    sys.stdin.read()
    for child in started:
        child.communicate()
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_every_ancestor_s_limit_counts_and_droppable_cache_does_not(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    write(tmp_path / "fs/a/memory.max", "4000\n")
    write(tmp_path / "fs/a/memory.current", "1500\n")
    write(tmp_path / "fs/a/memory.stat", "anon 500\ninactive_file 700\n")
    write(tmp_path / "fs/a/b/memory.max", "max\n")
    write(tmp_path / "fs/a/b/memory.current", "100\n")
    assert cgroup_limits(own, tmp_path / "fs") == [(4000, 800)]


def test_a_container_whose_path_is_the_host_s_reads_its_own_mount(tmp_path):
    own = tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/docker/xyz\n4:memory:/docker/xyz\n")
    write(tmp_path / "fs/memory/memory.limit_in_bytes", "9000\n")
    write(tmp_path / "fs/memory/memory.usage_in_bytes", "1000\n")
    assert cgroup_limits(own, tmp_path / "fs") == [(9000, 1000)]


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cgroup_limits(tmp_path / "absent", tmp_path) == []


def test_available_memory_lies_within_the_total():
    now = memory()
    assert 0 < now.available_bytes <= now.total_bytes


@pytest.fixture
def large_file(tmp_path):
    """64 MB that stay in the page cache."""
    path = tmp_path / "weights"
    path.write_bytes(b"7" * 64 * MB)
    return path


@contextmanager
def holding(path, heap=0, children=0):
    """A process that has read the file through a mapping, with as many below it."""
    order = [sys.executable, "-c", HOLDS_A_FILE, str(path), str(heap), str(children), HOLDS_A_FILE]
    with subprocess.Popen(order, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"read\n"
        yield process
        process.stdin.close()


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is shared")


@linux
def test_neighbours_that_come_and_go_do_not_change_what_a_process_holds(large_file):
    """By PSS it would grow by 32 MB when the first neighbour ends."""
    with holding(large_file) as process:
        found = []
        for beside in (False, True, False):
            with holding(large_file) if beside else nullcontext():
                found.append(process_tree_bytes(process.pid))
    assert found[0] > 64 * MB
    assert all(abs(after - before) < MB for before, after in pairwise(found)), found


@linux
def test_what_a_tree_shares_counts_once_and_what_each_has_in_each(large_file):
    with holding(large_file, 10 * MB) as one, holding(large_file, 10 * MB, children=2) as three:
        alone, tree = process_tree_bytes(one.pid), process_tree_bytes(three.pid)
    assert 2 * 10 * MB < tree - alone < 2 * 20 * MB, (alone, tree)


@linux
def test_growth_of_memory_is_not_that_of_a_library_that_a_neighbour_leaves_alone(large_file):
    """By the unique set size it would be 64 MB."""
    with open(large_file, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert sum(mapped[::4096])
        with holding(large_file) as neighbour, memory_growth() as nothing:
            neighbour.communicate()
        before = process_bytes()
        with memory_growth() as grown:
            kept = bytearray(32 * MB)
        mapped.close()
    assert abs(nothing.size_bytes) < 2 * MB
    assert grown.size_bytes == pytest.approx(len(kept), abs=2 * MB)
    assert process_bytes() == pytest.approx(before - 64 * MB + len(kept), abs=4 * MB)
