"""How much memory a piece of work keeps, as the operating system counts it.

The figure is the growth of what this process holds, so that libraries loaded before do not count,
whoever else has mapped them, comes or goes. Freed memory is given back to the system first (glibc
keeps it otherwise), on both sides of the difference. On a GPU it is what torch's allocator hands
out.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from workbench.machine.memory import process_bytes


@dataclass
class Growth:
    """``size_bytes``: set when the block has ended; below about 1 MB it is noise."""

    size_bytes: int = 0


@contextmanager
def memory_growth(device: str = "cpu") -> Iterator[Growth]:
    """Measure what the block leaves behind in memory."""
    growth = Growth()
    before = _held(device)
    yield growth
    growth.size_bytes = _held(device) - before


def _held(device: str) -> int:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)
    return process_bytes()
