"""How fast this machine reads memory, measured: the ceiling of every decode step.

A decode step reads each weight once, so tokens per second cannot exceed bandwidth over bytes
of the model; the ratio of two models' bytes bounds their speedup. The buffer must be several
times the last cache. Where the native kernels are built their own reader is timed, because
it reads as the kernels do; else torch sums the buffer, which is a lower bound: on a core that
adds more slowly than it reads, the sum is what is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

MIB = 2**20
WARM_UP = 2


def read_bandwidth_gbps(threads: int, buffer_mib: int, repetitions: int) -> tuple[list[float], str]:
    """(GB/s of each repetition, how it was read) with ``threads`` CPU threads."""
    buffer = torch.ones(buffer_mib * MIB // 4, dtype=torch.float32)
    with torch_threads(threads):
        seconds = _timed(buffer.sum, repetitions)
    how = f"torch sums {buffer_mib} MiB of float32 (a lower bound)"
    return [buffer.nbytes / s / 1e9 for s in seconds], how


def gpu_read_bandwidth_gbps(buffer_mib: int, repetitions: int) -> tuple[list[float], str]:
    """(GB/s of each repetition, how it was read) on torch's GPU 0."""
    buffer = torch.ones(buffer_mib * MIB // 4, dtype=torch.float32, device="cuda:0")

    def read() -> None:
        buffer.sum()
        torch.cuda.synchronize()

    seconds = _timed(read, repetitions)
    return [buffer.nbytes / s / 1e9 for s in seconds], f"torch sums {buffer_mib} MiB on the GPU"


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """torch computes with ``threads`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(work: Callable[[], object], repetitions: int) -> list[float]:
    for _ in range(WARM_UP):
        work()
    seconds = []
    for _ in range(repetitions):
        begin_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin_s)
    return seconds
