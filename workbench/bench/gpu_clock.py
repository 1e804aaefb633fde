"""One row of the GPU benchmark, and the two clocks: CUDA-graph replays, and the rehearsal's.

A kernel of a few microseconds cannot be timed launch by launch. The calls of a case, one for
each copy of its operands, are captured in one CUDA graph; a replay is timed with device events
and divided by the number of calls. The copies together exceed the L2 cache several times, so
each call finds its weights in device memory, as a decode step does.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from workbench.measure.statistics import quantile

REPLAYS = 25
SHORTEST_REPLAY_S = 1e-3
CACHES_OVER = 3
MOST_COPIES = 128

Call = Callable[[], object]


@dataclass(frozen=True)
class GpuRow:
    """value: median; lo, hi: its 95 % interval from order statistics of the replays (for
    ``first_call`` and ``second_call``, whose value is the slowest, the extremes). shape: [N x K]
    of the weight. rows: tokens at a time.
    ratio_bf16: speed over the best bf16 product of the same run. roofline_pct: of what the
    counted bytes and operations allow at this run's measured ceilings. note: why there is no
    value, where there is none."""

    name: str
    shape: str
    rows: int
    precision: str
    value: float | None
    lo: float | None
    hi: float | None
    unit: str
    ratio_bf16: float | None = None
    roofline_pct: float | None = None
    device: str = ""
    note: str = ""

    def as_json(self) -> str:
        return json.dumps({k: _rounded(v) for k, v in asdict(self).items()})

    def on(self, device: str) -> GpuRow:
        return replace(self, device=device)


class GraphClock:
    """Seconds of one call on the CUDA device, from graph replays."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.cache_bytes = properties.L2_cache_size

    def copies(self, nbytes: int) -> int:
        """Copies of operands of that size which together exceed the cache several times."""
        return max(1, min(MOST_COPIES, math.ceil(CACHES_OVER * self.cache_bytes / max(1, nbytes))))

    def once(self, call: Call) -> float:
        """Seconds of a first call from the host's side, its compilation included."""
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    def samples(self, calls: Sequence[Call]) -> list[float]:
        """Seconds of a call, one sample a replay."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls[:2]:
                call()
        torch.cuda.current_stream().wait_stream(side)
        one_s = self._replay(self._capture(calls), 3)[-1]
        rounds = max(1, math.ceil(SHORTEST_REPLAY_S / max(one_s, 1e-7)))
        graph = self._capture([*calls] * rounds)
        return [s / (len(calls) * rounds) for s in self._replay(graph, REPLAYS + 2)[2:]]

    def _capture(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph

    def _replay(self, graph: torch.cuda.CUDAGraph, times: int) -> list[float]:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks)]


class RehearsalClock:
    """The same interface without a GPU: every call once. Its seconds mean nothing."""

    def copies(self, nbytes: int) -> int:
        return 2

    def once(self, call: Call) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def samples(self, calls: Sequence[Call]) -> list[float]:
        return [self.once(call) for call in calls]


def median(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median and its interval; the extremes where there are too few samples for one."""
    found = quantile(samples, 0.5)
    lo = found.lo if found.lo is not None else min(samples)
    hi = found.hi if found.hi is not None else max(samples)
    return found.value, lo, hi


def _rounded(value: object) -> object:
    return float(f"{value:.6g}") if isinstance(value, float) else value
