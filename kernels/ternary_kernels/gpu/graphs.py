"""CUDA graphs of the steps of a model, captured when a bucket is first used.

A decode step of a 3B model is some 270 launches of a few microseconds; launched one by one, the
host would be the limit. A step is a function of *static buffers*: it reads its rows from them
and returns tensors at fixed addresses. The first call for a key (the kind of step and its
bucket of rows) runs it once uncaptured, which compiles its kernels and lets cuBLAS take its
workspace, and then captures it; later calls replay. All graphs share one pool of memory.

Where memory runs out in the middle of a capture, the key is remembered as refused and the step
runs uncaptured from then on: slower, the same numbers, and said once in ``notes``. Without a
CUDA device nothing is captured, so that tests run the very same steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Step = Callable[[], Tensor]
CAPTURING = threading.Lock()
MEMORY = (torch.OutOfMemoryError, MemoryError)


def decode_bucket(rows: int, most: int) -> int:
    """The power of two that holds ``rows``, at most ``most``."""
    return min(most, 1 << max(0, rows - 1).bit_length())


def prefill_bucket(rows: int, most: int) -> int:
    """What a prefill step of ``rows`` is filled up to: 16, 32, then multiples of 64 and of 256.

    Padding rows are multiplied like others, so the steps are finer than powers of two.
    """
    if rows <= 64:
        return min(most, max(16, decode_bucket(rows, 64)))
    step = 64 if rows <= 512 else 256
    return min(most, -(-rows // step) * step)


@dataclass
class Graphs:
    """enabled: False runs every step uncaptured. notes: what could not be captured, and why."""

    enabled: bool
    notes: list[str] = field(default_factory=list)
    _graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor]] = field(default_factory=dict)
    _refused: set[Hashable] = field(default_factory=set)
    _pool: object = None

    def run(self, key: Hashable, step: Step, fill: Callable[[], None], times: int = 1) -> Tensor:
        """Fill the static buffers, run ``step`` ``times`` times, and return its last result.

        fill: called before each attempt, because a trial run may change the buffers. The result
        is overwritten by the next run of any key.
        """
        if self.enabled and key not in self._graphs and key not in self._refused:
            self._capture(key, step, fill)
        fill()
        if key in self._graphs:
            graph, result = self._graphs[key]
            for _ in range(times):
                graph.replay()
            return result
        for _ in range(times):
            result = step()
        return result

    def clear(self) -> None:
        """Let go of all graphs and their memory."""
        self._graphs.clear()
        self._refused.clear()

    def _capture(self, key: Hashable, step: Step, fill: Callable[[], None]) -> None:
        fill()
        self._try(step)
        try:
            self._graphs[key] = self._record(step)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            # Only what the capture itself broke: the trial run above has shown the step sound.
            self._refused.add(key)
            if len(self._refused) == 1:
                cause = error.__context__ if isinstance(error.__context__, MEMORY) else error
                reason = str(cause).strip().splitlines()[0].rstrip(".")
                self.notes.append(
                    f"the step {key} could not be captured in a CUDA graph and runs uncaptured, "
                    f"slower: {reason}. Lower slots or context to leave it memory."
                )

    def _try(self, step: Step) -> None:
        """Run once on a side stream, as a capture must not see first uses."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)

    def _record(self, step: Step) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Another arm may compute in its thread meanwhile, but not capture: torch captures on
            # one stream, and an allocator whose capture was broken off frees nothing any more.
            with (
                CAPTURING,
                torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
            ):
                result = step()
        except RuntimeError:
            torch.cuda.set_stream(stream)  # a capture that ends in an error may keep its own
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            raise
        return graph, result
