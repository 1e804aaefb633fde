"""Memory that a training frees is kept for its next step.

A step on a CPU allocates and frees tensors of tens of megabytes. glibc maps each of these anew and
gives it back at once, so that the kernel clears every page of it again: on two cores a third of a
step of a 135M model. Within :func:`freed_memory_kept` they come from the heap and stay there. No
number that is computed changes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
EVERYTHING = 2**31 - 1
TRIM_DEFAULT, MMAP_DEFAULT = 128 * 1024, 65_536
_within = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, freed memory stays with the process; at the outermost end it is given back.

    Costs memory: up to a fifth more at the peak. Does nothing where the allocator is not glibc's.
    """
    global _within
    glibc = _glibc()
    _within += 1
    try:
        if glibc and _within == 1:
            glibc.mallopt(M_MMAP_MAX, 0)
            glibc.mallopt(M_TRIM_THRESHOLD, EVERYTHING)
        yield
    finally:
        _within -= 1
        if glibc and _within == 0:
            glibc.mallopt(M_MMAP_MAX, MMAP_DEFAULT)
            glibc.mallopt(M_TRIM_THRESHOLD, TRIM_DEFAULT)
            glibc.malloc_trim(0)


def _glibc() -> Any:
    """The C library with glibc's tuning; None where it has none (musl, macOS, Windows)."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
