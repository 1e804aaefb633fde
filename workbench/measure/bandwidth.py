"""How fast this machine reads memory and multiplies INT8, measured: the two ceilings of speed.

A decode step reads each weight once, so tokens per second cannot exceed bandwidth over bytes
of the model; the ratio of two models' bytes bounds their speedup. A long prefill reuses each
weight for many tokens and is bounded by the dot products instead.

The native kernels' own loops are timed where they are built: a plain read in the order the
kernels read, and dot products on registers alone. Without them torch sums the buffer, which is
a lower bound: on a core that adds more slowly than it reads, the sum is what is timed. The
buffer must be several times the last cache.

The stage readiness records the median; the CPU benchmark holds every run against the best of
the repetitions right before and after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import ternary_kernels
import torch
from ternary_kernels.memory import in_huge_pages
from ternary_kernels.native import library
from torch import Tensor

MIB = 2**20
WARM_UP = 2
SHORTEST_S = 0.02
"""A repetition of the INT8 peak lasts at least this long, against the clock's steps and the
start of the threads."""


def bandwidth_buffer(size_mib: int) -> Tensor:
    """float32 [size_mib * 2**18] to read. It lies where weights lie, in huge pages, so that
    translating addresses costs the same."""
    return in_huge_pages(torch.ones(size_mib * MIB // 4, dtype=torch.float32))


def read_bandwidth_gbps(threads: int, buffer: Tensor, repetitions: int) -> tuple[list[float], str]:
    """(GB/s of each repetition, how it was read) with ``threads`` CPU threads.

    buffer: of :func:`bandwidth_buffer`.
    """
    native, size_mib = library(), buffer.nbytes // MIB
    with computing_threads(threads):
        if native is None:
            how = f"torch sums {size_mib} MiB of float32 (a lower bound)"
            seconds = _timed(buffer.sum, repetitions)
        else:
            isa = ternary_kernels.backend().isa
            how = f"plain read of {size_mib} MiB in native code for {isa}"
            address, size = buffer.data_ptr(), buffer.nbytes
            seconds = _timed(lambda: native.tk_read_all(address, size), repetitions)
    return [buffer.nbytes / s / 1e9 for s in seconds], how


def gpu_read_bandwidth_gbps(buffer_mib: int, repetitions: int) -> tuple[list[float], str]:
    """(GB/s of each repetition, how it was read) on torch's GPU 0."""
    buffer = torch.ones(buffer_mib * MIB // 4, dtype=torch.float32, device="cuda:0")

    def read() -> None:
        buffer.sum()
        torch.cuda.synchronize()

    seconds = _timed(read, repetitions)
    return [buffer.nbytes / s / 1e9 for s in seconds], f"torch sums {buffer_mib} MiB on the GPU"


def int8_peak_gmacs(threads: int, repetitions: int) -> tuple[list[float], str]:
    """(10^9 multiply-adds a second of each repetition, how) with ``threads`` CPU threads.

    Raises OSError with the reason where the native kernels are not built: torch has no INT8
    dot product whose speed would say anything about them.
    """
    native = library()
    if native is None:
        raise OSError(f"needs the native kernels: {ternary_kernels.backend().reason}")
    with computing_threads(threads):
        rounds = 1 << 12
        while _timed(partial(native.tk_dot_peak, rounds), 1)[0] < SHORTEST_S:
            rounds *= 2
        products = native.tk_dot_peak(rounds)
        seconds = _timed(partial(native.tk_dot_peak, rounds), repetitions)
    computes = ternary_kernels.backend()
    what = "products of tiles" if computes.tile_rows else "dot products"
    how = f"{what} on registers in native code for {computes.isa}"
    return [products / s / 1e9 for s in seconds], how


@contextmanager
def computing_threads(threads: int) -> Iterator[None]:
    """torch and the native kernels compute with ``threads`` threads inside the block."""
    before = torch.get_num_threads(), ternary_kernels.backend().threads
    try:
        torch.set_num_threads(threads)
        ternary_kernels.set_threads(threads)
        yield
    finally:
        torch.set_num_threads(before[0])
        ternary_kernels.set_threads(before[1])


def _timed(work: Callable[[], object], repetitions: int) -> list[float]:
    for _ in range(WARM_UP):
        work()
    seconds = []
    for _ in range(repetitions):
        begin_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin_s)
    return seconds
