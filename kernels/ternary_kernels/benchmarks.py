"""What the machine can do at most: the two limits that every measured speed is held against.

Shared machines change within minutes, so these are measured between the rows of a benchmark,
in the same process and on the same thread team.
"""

from __future__ import annotations

import time

import torch

from . import native

# Far beyond any cache, and on huge pages as the weights are.
_BUFFER_BYTES = 512 << 20
_buffer: torch.Tensor | None = None


def read_bandwidth_gbps(threads: int, *, repeats: int = 5) -> float:
    """The best of ``repeats`` plain reads of 512 MB, in GB/s (1e9 bytes)."""
    buffer = _memory()
    with _Threads(threads):
        lib = native.library()
        words = buffer.view(torch.int64)
        best = 0.0
        for _ in range(repeats):
            begin = time.perf_counter()
            if lib is None:
                words.sum()
            else:
                lib.tk_read_all(buffer.data_ptr(), buffer.nbytes)
            best = max(best, buffer.nbytes / (time.perf_counter() - begin) / 1e9)
    return best


def int8_peak_gmacs(threads: int, *, repeats: int = 3) -> float:
    """INT8 multiply-adds a second (1e9) with all operands in registers.

    Without the native library: what torch's float32 matmul reaches, the arithmetic that the
    fallback path uses.
    """
    with _Threads(threads):
        lib = native.library()
        best = 0.0
        for _ in range(repeats):
            begin = time.perf_counter()
            if lib is None:
                n = 1024
                torch.ones(n, n) @ torch.ones(n, n)
                done = n**3
            else:
                done = lib.tk_dot_peak(3_000_000)
            best = max(best, done / (time.perf_counter() - begin) / 1e9)
    return best


def _memory() -> torch.Tensor:
    global _buffer
    if _buffer is None:
        from .memory import in_huge_pages

        _buffer = in_huge_pages(torch.zeros(1, dtype=torch.uint8).expand(_BUFFER_BYTES))
    return _buffer


class _Threads:
    """Run with this many threads, then restore."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self.before = native.backend().threads
        native.set_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        native.set_threads(self.before)
