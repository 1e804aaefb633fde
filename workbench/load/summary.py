"""What a load is like, in a small file that can be shared: ``profile.json``.

It holds no request: rates over time, by hour of day and by day of week, how bursty the gaps and
the counts are and how long that lasts, the joint histogram of lengths and classes, sessions,
concurrency and tenants as shares. It is enough to generate requests from
(:mod:`workbench.load.generate`), at any scale.

Made from the stored requests in two passes over their columns. The first counts; the second
measures gaps in *operational time* u(t), in which the rate over the windows of ``shape`` is one:
what is left there is the burstiness that the rate curve does not explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.load.lengths import Counted, Histogram, Joint
from workbench.load.plausible import implausible
from workbench.load.requests import CLASSES
from workbench.load.sessions import concurrency_of, sessions_of, tenants_of
from workbench.load.trace import Trace

VERSION = 1
MOST_FINE = 2**20
"""Windows of the finest grid."""
FINEST_PER_S = 10
EDGE = 1e-6
"""Of a window, that a time may lie before it and still be on its edge."""
SHOWN_GAPS = 5
MOST_SHAPE = 2000
"""Windows of the rate curve that goes into the small file."""
FEWEST_IN_SHAPE = 10.0
"""Requests that one of them has on average, at least."""
SCALES_S = (1.0, 10.0, 60.0, 600.0, 3600.0)
LAGS = (1, 2, 5, 10, 60)
GAP_POINTS = 513
SHORTEST_GAP, DECADES, STEPS = 1e-6, 13, 200
GAP_EDGES = SHORTEST_GAP * np.logspace(0, DECADES, DECADES * STEPS + 1)
"""Of the histogram of gaps in operational time: steps of 1.2 %; shorter ones share a cell."""
WEEK_HOURS = 7 * 24
LENGTH_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class Grid:
    """Counts on a fine grid of equal windows from the first request on.

    counts: requests, ``[windows, classes]``. gap_squares: sum of the squares of the gaps that end
    in a window, s^2, ``[windows]``. With both the CV of the gaps of any piece is a difference.
    """

    width_s: float
    counts: np.ndarray
    gap_squares: np.ndarray

    def at(self, width_s: float) -> tuple[float, np.ndarray]:
        """The nearest multiple of the width, and the counts of all its whole windows."""
        together = max(1, round(width_s / self.width_s))
        whole = len(self.counts) // together
        counts = self.counts.sum(axis=1)[: whole * together].reshape(whole, together).sum(axis=1)
        return together * self.width_s, counts

    def frame(self) -> pd.DataFrame:
        columns = {name: self.counts[:, at] for at, name in enumerate(CLASSES)}
        return pd.DataFrame({**columns, "gap_squares": self.gap_squares})


def summarise(trace: Trace, window_s: float) -> tuple[dict[str, Any], Grid]:
    """The small profile of a trace, plain JSON; and the fine grid that pieces are chosen on.

    window_s: width of the windows of the rate curve; the grid divides it.
    """
    first = _Counting(trace, window_s)
    n, span_s = first.n, first.span_s
    gaps = {
        "cv": first.gap_cv,
        "mean_s": span_s / (n - 1),
        "autocorrelation": first.gap_autocorrelation,
        "longest": first.longest_gaps,
    }
    grid = Grid(first.width_s, first.counts, first.gap_squares)
    shape_s, _ = grid.at(max(span_s / MOST_SHAPE, FEWEST_IN_SHAPE * span_s / n))
    shape = _covering(grid, shape_s)
    summary = {
        "version": VERSION,
        "source": trace.source,
        "kind": trace.kind,
        "origin_s": trace.origin_s,
        "time_zone": trace.time_zone,
        "whole_seconds": trace.whole_seconds,
        "requests": n,
        "span_s": span_s,
        "rate_per_s": (n - 1) / span_s,
        "gaps": gaps,
        "classes": dict(zip(CLASSES, first.counts.sum(axis=0).tolist(), strict=True)),
        "dispersion": [_dispersion(grid, scale) for scale in _scales(grid, window_s, span_s)],
        "count_autocorrelation": _autocorrelation(grid.at(window_s)[1]),
        "week": _week(grid, trace),
        "shape": {"width_s": shape_s, "counts": shape.tolist()},
        "operational": _operational(trace, shape_s, shape),
        "lengths": first.joint.to_json(),
        "prompt_tokens": _quantiles(first.prompt),
        "output_tokens": _quantiles(first.output),
        "longest_request": first.longest,
        "tokens": {"prompt": first.tokens[0], "output": first.tokens[1]},
        "sessions": sessions_of(trace.store),
        "tenants": tenants_of(trace.store),
        "concurrency": concurrency_of(trace.store, span_s),
        "prefix_reuse": trace.prefix_reuse,
        "notes": list(trace.notes),
    }
    summary["notes"] += implausible(summary)
    return summary, grid


class _Counting:
    """The first pass: everything that needs no rate curve."""

    def __init__(self, trace: Trace, window_s: float) -> None:
        columns = ("start_s", "prompt_tokens", "output_tokens", "class")
        self.span_s, self.n = trace.store.span_s(), trace.store.rows()
        per_window = min(window_s * FINEST_PER_S, window_s * MOST_FINE / self.span_s)
        self.width_s = window_s / max(1, int(per_window))
        windows = int(self.span_s / self.width_s + EDGE) + 1
        self.counts = np.zeros((windows, len(CLASSES)), np.int64)
        self.gap_squares = np.zeros(windows)
        self.prompt, self.output, self.joint = Histogram(), Histogram(), Joint()
        self.longest, self.tokens = 0, [0, 0]
        self.longest_gaps: list[tuple[float, float]] = []
        last, squares, products, last_gap = 0.0, 0.0, 0.0, None
        mean = self.span_s / (self.n - 1)
        for batch in trace.store.batches(columns):
            times = batch["start_s"]
            # Not //: 0.5 // 0.1 is 4, and a request on an edge begins the window after it.
            at = np.floor(times / self.width_s + EDGE).astype(np.int64)
            at = np.minimum(at, windows - 1)
            code = at * len(CLASSES) + batch["class"]
            low, high = int(at[0]), int(at[-1]) + 1
            found = np.bincount(code - low * len(CLASSES), minlength=(high - low) * len(CLASSES))
            self.counts[low:high] += found.reshape(-1, len(CLASSES))
            gaps = np.diff(times, prepend=last)
            self.gap_squares[low:high] += np.bincount(at - low, gaps**2, high - low)
            own = gaps - mean if last_gap is not None else gaps[1:] - mean
            squares += float(own @ own)
            if len(own):
                joined = own if last_gap is None else np.concatenate([[last_gap], own])
                products += float(joined[1:] @ joined[:-1])
                last_gap = float(own[-1])
            self._keep_longest(times, gaps)
            last = float(times[-1])
            prompt, output = batch["prompt_tokens"], batch["output_tokens"]
            self.prompt.add(prompt)
            self.output.add(output)
            self.joint.add(prompt, output, batch["class"].astype(np.int64))
            self.longest = max(self.longest, int((prompt.astype(np.int64) + output).max()))
            self.tokens[0] += int(prompt.sum(dtype=np.int64))
            self.tokens[1] += int(output.sum(dtype=np.int64))
        variance = squares / (self.n - 1)
        self.gap_cv = float(np.sqrt(variance) / mean)
        self.gap_autocorrelation = products / squares if squares > 0 else 0.0

    def _keep_longest(self, times: np.ndarray, gaps: np.ndarray) -> None:
        kept = self.longest_gaps
        shortest = kept[-1][1] if len(kept) == SHOWN_GAPS else -1.0
        longer = np.flatnonzero(gaps > shortest)
        if len(longer) > SHOWN_GAPS:
            longer = longer[np.argpartition(gaps[longer], -SHOWN_GAPS)[-SHOWN_GAPS:]]
        found = [(float(times[i] - gaps[i]), float(gaps[i])) for i in longer]
        self.longest_gaps = sorted([*kept, *found], key=lambda gap: -gap[1])[:SHOWN_GAPS]


def _covering(grid: Grid, width_s: float) -> np.ndarray:
    """The counts of all windows of a width, the last one too, which may be cut short."""
    together = round(width_s / grid.width_s)
    starts = np.arange(0, len(grid.counts), together)
    return np.add.reduceat(grid.counts.sum(axis=1), starts)


def _scales(grid: Grid, window_s: float, span_s: float) -> list[float]:
    wanted = sorted({*SCALES_S, window_s})
    return [s for s in wanted if s >= grid.width_s and span_s >= 10 * s] or [grid.width_s]


def _dispersion(grid: Grid, scale_s: float) -> dict[str, float]:
    """Counts in windows of one width; index: variance over mean, 1 for Poisson at any width."""
    width_s, counts = grid.at(scale_s)
    mean = float(counts.mean()) if len(counts) else 0.0
    return {
        "window_s": width_s,
        "mean": mean,
        "p95": float(np.quantile(counts, 0.95)) if len(counts) else 0.0,
        "max": int(counts.max(initial=0)),
        "index": float(counts.var() / mean) if mean else 0.0,
    }


def _autocorrelation(counts: np.ndarray) -> dict[str, float]:
    """Of the counts of neighbouring windows; lag (windows) -> correlation."""
    centred = counts - counts.mean() if len(counts) else counts
    power = float(centred @ centred)
    if power <= 0:
        return {}
    return {
        str(lag): float(centred[lag:] @ centred[:-lag]) / power
        for lag in LAGS
        if len(counts) >= 4 * lag
    }


def _week(grid: Grid, trace: Trace) -> dict[str, Any] | None:
    """Requests and seconds covered for each hour of the week, from Monday 0:00 on; None where the
    trace does not say which day it was."""
    if trace.origin_s is None:
        return None
    starts_s = trace.origin_s + grid.width_s * np.arange(len(grid.counts))
    moments = pd.to_datetime(starts_s, unit="s", utc=True)
    if trace.time_zone:
        moments = moments.tz_convert(trace.time_zone)
    hours = np.asarray(moments.day_of_week * 24 + moments.hour)
    totals = grid.counts.sum(axis=1)
    covered = np.full(len(totals), grid.width_s)
    return {
        "requests": np.bincount(hours, totals, WEEK_HOURS).astype(int).tolist(),
        "seconds": np.bincount(hours, covered, WEEK_HOURS).round(3).tolist(),
    }


def _operational(trace: Trace, width_s: float, counts: np.ndarray) -> dict[str, Any]:
    """Quantiles of the gaps in operational time (mean 1), and the correlation of neighbours."""
    edges_s = width_s * np.arange(len(counts) + 1)
    integral = np.concatenate([[0.0], np.cumsum(counts)])
    histogram = np.zeros(len(GAP_EDGES) + 1, np.int64)
    last, last_gap, n, squares, products, longest = 0.0, None, 0, 0.0, 0.0, 0.0
    for batch in trace.store.batches(["start_s"]):
        u = np.interp(batch["start_s"], edges_s, integral)
        gaps = np.diff(u, prepend=last)[0 if n else 1 :]
        last = float(u[-1])
        if not len(gaps):
            continue
        steps = STEPS * np.log10(np.maximum(gaps, SHORTEST_GAP) / SHORTEST_GAP)
        cell = np.minimum(np.ceil(steps), len(histogram) - 1).astype(np.int64)
        histogram += np.bincount(cell, minlength=len(histogram))
        around = gaps - 1.0
        before = around[:-1] if last_gap is None else np.append(last_gap, around[:-1])
        products += float(around[-len(before) :] @ before)
        squares += float(around @ around)
        last_gap, n, longest = float(around[-1]), n + len(gaps), max(longest, float(gaps.max()))
    # Half of the points lie in the longest hundredth: a few long gaps make the CV.
    body, tail = np.linspace(0, 0.99, GAP_POINTS // 2), 1 - np.logspace(-2, -7, GAP_POINTS // 2)
    shares = np.concatenate([body, tail, [1.0]])
    below = np.concatenate([[0], np.cumsum(histogram)]) / max(1, n)
    ends = np.concatenate([[0.0], GAP_EDGES, [max(longest, GAP_EDGES[-1])]])
    rising = np.concatenate([[True], np.diff(below) > 0])
    gaps = np.minimum(np.interp(shares, below[rising], ends[rising]), longest)
    return {
        "shares": shares.tolist(),
        "gaps": gaps.astype(float).round(9).tolist(),
        "autocorrelation": products / squares if squares > 0 else 0.0,
    }


def _quantiles(histogram: Histogram) -> dict[str, Any]:
    values, counts = histogram.values()
    found = Counted(values, counts)
    return {
        "mean": float(values @ counts / counts.sum()),
        "longest": int(values[-1]),
        "quantiles": {f"p{100 * q:g}": found.quantile(q) for q in LENGTH_SHARES},
    }
