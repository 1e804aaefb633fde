"""Contenders that are timed in turns, each run beside the limit of the machine around it.

A shared machine changes within seconds. So what is compared takes turns, a ratio is one of
neighbouring runs, and a run is held against the mean of the limit measured right before and
right after it: the read bandwidth for what reads, the INT8 peak for what multiplies.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import ternary_kernels

from workbench.bench.cpu_rows import CpuRow, row
from workbench.measure.bandwidth import bandwidth_buffer, int8_peak_gmacs, read_bandwidth_gbps

REPEATS = 5
BUFFER_MIB = 512
"""Far beyond any cache."""
REPETITIONS = 3


@dataclass(frozen=True)
class Contender:
    """Something that is timed.

    what: engine, precision, threads. run: returns the tokens it made. bytes_per_token: read,
    where memory is the limit; macs_per_token: INT8 multiply-adds, where arithmetic is. Neither
    stands for a limit that was not measured.
    """

    name: str
    what: tuple[str, str, int]
    run: Callable[[], int]
    bytes_per_token: float = 0.0
    macs_per_token: float = 0.0


class TimedRun(NamedTuple):
    """One timed run. share: of what the limit around it allows, or None; limit: GB/s or GMAC/s."""

    tokens_per_s: float
    share: float | None = None
    limit: float = math.nan


class Limits:
    """The machine's limits, as often as they were measured: each time the best of a few
    repetitions, because a limit is what can be reached.

    peaks: empty without the native kernels, whose dot products they are.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._buffer = bandwidth_buffer(BUFFER_MIB)
        self.bandwidths: list[float] = []
        self.peaks: list[float] = []
        self._bandwidth()
        if ternary_kernels.backend().name == "native":
            self._peak()

    def time(self, it: Contender) -> TimedRun:
        """One run, between two measurements of its limit."""
        if it.bytes_per_token:
            work, measure = it.bytes_per_token, self._bandwidth
        elif it.macs_per_token and self.peaks:
            work, measure = it.macs_per_token, self._peak
        else:
            return TimedRun(_tokens_per_s(it.run))
        before = measure()
        rate = _tokens_per_s(it.run)
        limit = (before + measure()) / 2
        return TimedRun(rate, work * rate / 1e9 / limit, limit)

    def _bandwidth(self) -> float:
        values, _ = read_bandwidth_gbps(self.threads, self._buffer, REPETITIONS)
        self.bandwidths.append(max(values))
        return self.bandwidths[-1]

    def _peak(self) -> float:
        values, _ = int8_peak_gmacs(self.threads, REPETITIONS)
        self.peaks.append(max(values))
        return self.peaks[-1]


class Turns:
    """Contenders that ran one after the other, again and again.

    limit_s: after so many seconds no other round is begun; without it there are ``REPEATS``.
    """

    def __init__(self, limits: Limits, *contenders: Contender, limit_s: float = math.inf) -> None:
        self._contenders = contenders
        self._runs: dict[int, list[TimedRun]] = {id(it): [] for it in contenders}
        began, rounds = time.monotonic(), 0
        while rounds < REPEATS and (not rounds or time.monotonic() - began < limit_s):
            for it in contenders:
                self._runs[id(it)].append(limits.time(it))
            rounds += 1

    def rows(self) -> Iterator[CpuRow]:
        """A row for each contender."""
        return map(self.row, self._contenders)

    def row(self, it: Contender) -> CpuRow:
        """Its tokens a second."""
        runs = self._runs[id(it)]
        rates = [run.tokens_per_s for run in runs]
        return _beside_limit(row(it.name, *it.what, rates, "tokens/s"), it, runs)

    def ratio(self, name: str, one: Contender, other: Contender) -> CpuRow:
        """By how much ``one`` is faster than its neighbour, and how near ``one`` came to its
        own limit in these very runs."""
        ours, theirs = self._runs[id(one)], self._runs[id(other)]
        ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(ours, theirs, strict=True)]
        return _beside_limit(row(name, *one.what, ratios, "x"), one, ours)


def _beside_limit(found: CpuRow, it: Contender, runs: Sequence[TimedRun]) -> CpuRow:
    shares = [run.share for run in runs if run.share is not None]
    if not shares:
        return found
    unit, digits = ("GB/s", 1) if it.bytes_per_token else ("GMAC/s", 0)
    limit = statistics.median(run.limit for run in runs)
    share = 100 * statistics.median(shares)
    return replace(found, roofline_pct=share, limit=f"{limit:.{digits}f} {unit}")


def _tokens_per_s(run: Callable[[], int]) -> float:
    began = time.perf_counter()
    return run() / (time.perf_counter() - began)
