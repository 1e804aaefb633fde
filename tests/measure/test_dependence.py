"""Requests that share a queue: small versions of the simulations of ``make calibrate``."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.measure.dependence import (
    autocorrelation_time,
    block_statistics,
    quantile_over_blocks,
    quantile_over_time,
    rate_over_time,
    share_over_blocks,
    share_over_time,
)
from workbench.measure.statistics import mean_ratio, quantile, share


def queue(random: np.random.Generator, runs: int, n: int, load: float) -> np.ndarray:
    """Latencies [runs, n] of a single server with Poisson arrivals and exponential service, in
    mean service times; every run begins empty."""
    gaps, service = random.exponential(1 / load, (runs, n)), random.exponential(1, (runs, n))
    latency, waiting = np.empty((runs, n)), np.zeros(runs)
    for i in range(n):
        if i:
            waiting = np.maximum(waiting + service[:, i - 1] - gaps[:, i], 0)
        latency[:, i] = waiting + service[:, i]
    return latency


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_autocorrelation_time_of_a_known_process(phi: float) -> None:
    random = np.random.default_rng(0)
    values = np.zeros(20_000)
    for i, shock in enumerate(random.normal(size=len(values))):
        values[i] = phi * values[i - 1] + shock
    assert autocorrelation_time(values) == pytest.approx((1 + phi) / (1 - phi), rel=0.15)


def test_a_quantile_over_time_covers_where_one_of_independent_requests_does_not() -> None:
    """M/M/1 at a utilisation of 0.5: the latency is exponential with mean 2."""
    random, truth = np.random.default_rng(1), 2 * np.log(2)
    runs = queue(random, 100, 1800, 0.5)[:, 500:]
    held = {"time": [], "independent": []}
    for latencies in runs:
        estimate = quantile_over_time(latencies, 0.5)
        if estimate.lo is not None:
            held["time"].append(estimate.lo <= truth <= estimate.hi)
        estimate = quantile(latencies, 0.5)
        held["independent"].append(estimate.lo <= truth <= estimate.hi)
    assert len(held["time"]) > 60
    assert np.mean(held["time"]) > 0.95
    assert np.mean(held["independent"]) < 0.85


def test_a_share_over_time_covers_where_a_share_of_independent_requests_does_not() -> None:
    random, limit, truth = np.random.default_rng(2), 4.0, 1 - np.exp(-2.0)
    runs = queue(random, 100, 1800, 0.5)[:, 500:]
    held = {"time": [], "independent": []}
    for latencies in runs:
        met = latencies <= limit
        estimate = share_over_time(met, latencies)
        if estimate.lo is not None:
            held["time"].append(estimate.lo <= truth <= estimate.hi)
        estimate = share(int(met.sum()), len(met))
        held["independent"].append(estimate.lo <= truth <= estimate.hi)
    assert len(held["time"]) > 60
    assert np.mean(held["time"]) > 0.95
    assert np.mean(held["independent"]) < 0.85


def test_a_short_series_in_a_busy_queue_has_no_interval_and_says_why() -> None:
    latencies = queue(np.random.default_rng(3), 1, 300, 0.9)[0]
    estimate = quantile_over_time(latencies, 0.5)
    assert estimate.value == np.quantile(latencies, 0.5)
    assert estimate.lo is None and "300 requests depend on one another" in estimate.reason
    assert share_over_time(latencies < 5, latencies).lo is None


def test_a_tail_needs_more_requests_than_independent_ones_would() -> None:
    latencies = queue(np.random.default_rng(4), 1, 1500, 0.5)[0]
    assert quantile(latencies, 0.99).hi is not None
    estimate = quantile_over_time(latencies, 0.99)
    assert estimate.hi is None and "p99 needs 368" in estimate.reason


def test_a_target_that_is_always_met_needs_the_latencies() -> None:
    random = np.random.default_rng(5)
    alone = share_over_time(np.ones(500))
    assert (alone.value, alone.lo) == (1.0, None) and "never changes" in alone.reason
    seen = share_over_time(np.ones(500), random.exponential(1, 500))
    assert 0.95 < seen.lo < seen.hi == 1.0


def test_blocks_cover_in_a_busy_queue_with_few_blocks() -> None:
    """Blocks of 40 requests, each from an empty server at a utilisation of 0.9."""
    random = np.random.default_rng(6)
    truth = np.quantile(queue(random, 2000, 40, 0.9), 0.5)
    labels = np.repeat(np.arange(12), 40)
    held = []
    for _ in range(100):
        latencies = queue(random, 12, 40, 0.9).ravel()
        estimate = quantile_over_blocks(latencies, labels, 0.5)
        of = share_over_blocks(latencies <= truth, labels, latencies)
        if estimate.lo is not None:
            held.append((estimate.lo <= truth <= estimate.hi, of.lo <= 0.5 <= of.hi))
    assert len(held) > 80
    assert np.min(np.mean(held, axis=0)) > 0.92


def test_under_six_blocks_there_is_no_interval() -> None:
    latencies = np.random.default_rng(7).exponential(1, 200)
    estimate = quantile_over_blocks(latencies, np.repeat(np.arange(5), 40), 0.5)
    assert estimate.lo is None and estimate.reason == "no interval: 5 blocks, an interval needs 6"


def test_a_rate_of_bursty_arrivals_covers_and_does_not_reach_nought() -> None:
    random, held = np.random.default_rng(8), []
    for _ in range(100):
        busy = np.zeros(600)
        for i in range(1, len(busy)):  # two states that last five windows each
            busy[i] = busy[i - 1] if random.random() > 0.2 else 1 - busy[i - 1]
        estimate = rate_over_time(random.poisson(1 + 9 * busy), 2.0)
        held.append(estimate.lo is not None and 0 < estimate.lo <= 2.75 <= estimate.hi)
    assert np.mean(held) > 0.9
    assert rate_over_time(np.zeros(100), 1.0).lo is None


def test_statistics_of_blocks_are_paired_for_a_ratio() -> None:
    random = np.random.default_rng(9)
    rows = [
        pd.DataFrame({"block": b, "arm": arm, "ms": factor * random.exponential(1, 50)})
        for b in range(8)
        for arm, factor in (("a", 2.0), ("b", 1.0))
    ]
    frame = block_statistics(pd.concat(rows), "ms", lambda ms: float(np.quantile(ms, 0.9)))
    assert frame.shape == (8, 2)
    ratio = mean_ratio(frame["a"], frame["b"])
    assert ratio.lo < 2.0 < ratio.hi
