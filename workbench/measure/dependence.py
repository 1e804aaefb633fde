"""Figures of requests that share a queue: tails, shares and rates of a load in time order.

A request that waits makes the next one wait, so a thousand latencies of one server are worth far
fewer independent ones, and intervals made as if they were independent hold the truth in 50 %
of cases instead of 95 %. How many they are worth is estimated from the observations:

- **over time**: n requests in the order of their arrival are worth n / (c tau), where tau is
  their integrated autocorrelation time (Sokal's automatic window). It is the longest of those
  of the latencies and of "slower than the median, the quarter, the tenth", because a tail
  decorrelates later than the bulk and has too few events to tell by itself; c = 3 (2 for rates)
  covers what is later still. A series shorter than 100 tau cannot tell its own tau, so nothing
  is said of it.
- **over blocks**: the server was empty between them, so blocks are independent. Their means
  scatter more than independent requests would; that factor is the design effect of cluster
  sampling (Korn and Graubard, Survey Methodology 24, 1998), corrected for few blocks.

With that number a quantile is bounded by order statistics and a share by Clopper and Pearson's
interval as for independent requests. The constants were found by simulation of queues at
utilisations of 0.5 to 0.9 with Poisson and bursty arrivals: ``make calibrate``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from workbench.measure.fewest import FEWEST_BLOCKS
from workbench.measure.statistics import (
    LEVEL,
    STOPPING,
    Estimate,
    fewest_for_quantile,
)
from workbench.wording.counts import number_of

SHORTEST_IN_TAUS = 100
"""A shorter series underestimates its own autocorrelation time."""
FEWEST_REQUESTS = 200
TAIL_FACTOR, RATE_FACTOR = 3.0, 2.0
"""By how much the windows' tau is too short: a tail decorrelates later than the bulk, and
Sokal's window ends before slow bursts do."""
BLOCK_FACTOR = 1.5
"""By how much the design effect of few blocks is too small for a tail."""
THRESHOLDS = (0.5, 0.75, 0.9)
SOKAL_WINDOW = 5.0
LONGEST_SERIES = 200_000
"""An autocorrelation time is found in so many observations; the rest adds only work."""


def quantile_over_time(latencies: ArrayLike, q: float, level: float = LEVEL) -> Estimate:
    """A quantile of ``latencies`` [requests] in the order of their arrival."""
    values = _finite(latencies)
    if not len(values):
        return _nothing(level)
    worth, why = _worth_over_time([*_indicators(values), _logs(values)], len(values), "requests")
    return _quantile(values, q, worth, why, level)


def share_over_time(
    met: ArrayLike, latencies: ArrayLike | None = None, level: float = LEVEL
) -> Estimate:
    """Share of requests for which ``met`` [requests, bool] holds, in the order of their arrival.

    latencies: of the same requests. Needed where (nearly) all or none are met, because nothing
    else then shows how long a queue lasts.
    """
    met = np.asarray(met, float)
    if not len(met):
        return _nothing(level)
    series = [met]
    if latencies is not None:
        values = _finite(latencies)
        series += [*_indicators(values), _logs(values)]
    elif met.min() == met.max():
        why = "no interval: the outcome never changes, so how long it lasts is unknown"
        return Estimate(float(met.mean()), None, None, len(met), "", level, why)
    worth, why = _worth_over_time(series, len(met), "requests")
    return _share(float(met.mean()), len(met), worth, why, level)


def rate_over_time(counts: ArrayLike, window_s: float, level: float = LEVEL) -> Estimate:
    """Events a second from ``counts`` [windows] of equal ``window_s`` in time order.

    Student's t on a logarithmic scale with as many observations as the windows are worth.
    """
    rates = _finite(counts) / window_s
    n = len(rates)
    if not n:
        return _nothing(level)
    value = float(rates.mean())
    worth, why = _worth_over_time([rates], n, "windows", tail=RATE_FACTOR)
    if why is not None or value <= 0:
        return Estimate(value, None, None, n, "", level, why or "no interval: no event was seen")
    error = rates.std(ddof=1) / math.sqrt(worth)
    factor = math.exp(float(stats.t.ppf(0.5 + level / 2, worth - 1)) * error / value)
    method = (
        f"t interval over {number_of(n, 'window')} worth "
        f"{number_of(worth, 'independent one', form='.0f')}, log scale"
    )
    return Estimate(value, value / factor, value * factor, n, method, level)


def quantile_over_blocks(
    latencies: ArrayLike,
    blocks: Sequence[Any],
    q: float,
    level: float = LEVEL,
    unit: str = "requests",
) -> Estimate:
    """A quantile of all ``latencies`` [requests], each in one of ``blocks`` [requests]. unit: what
    is observed, in words."""
    values = _finite(latencies)
    if not len(values):
        return _nothing(level)
    worth, why = _worth_over_blocks(_indicators(values), blocks, level)
    return _quantile(values, q, worth, why, level, unit)


def share_over_blocks(
    met: ArrayLike,
    blocks: Sequence[Any],
    latencies: ArrayLike | None = None,
    level: float = LEVEL,
) -> Estimate:
    """Share of requests for which ``met`` holds; see :func:`quantile_over_blocks`."""
    met = np.asarray(met, float)
    if not len(met):
        return _nothing(level)
    series = [met] if latencies is None else [met, *_indicators(_finite(latencies))]
    worth, why = _worth_over_blocks(series, blocks, level)
    return _share(float(met.mean()), len(met), worth, why, level)


def share_difference_over_blocks(
    first: ArrayLike,
    second: ArrayLike,
    blocks: Sequence[Any],
    first_latencies: ArrayLike | None = None,
    second_latencies: ArrayLike | None = None,
    level: float = LEVEL,
) -> Estimate:
    """How much larger the share of ``second`` is than that of ``first``, of the same requests.

    All arguments [requests], the same requests in both; see :func:`share_over_blocks`. The interval
    is made of those of the two shares (MOVER: Zou and Donner, Statistics in Medicine 27, 2008),
    less what the blocks' shares have in common. A t interval of the blocks' differences misses to
    one side in 10 to 20 % of cases, because now and then one block has nearly all the misses.
    """
    one = share_over_blocks(first, blocks, first_latencies, level)
    two = share_over_blocks(second, blocks, second_latencies, level)
    if one.value is None or two.value is None:
        return _nothing(level)
    value, n = two.value - one.value, one.n
    if one.lo is None or one.hi is None or two.lo is None or two.hi is None:
        return Estimate(value, None, None, n, "", level, one.reason or two.reason)
    common = _correlation(first, second, blocks)

    def distance(of: float, less: float) -> float:
        return math.sqrt(max(0.0, of**2 + less**2 - 2 * common * of * less))

    lo = value - distance(two.value - two.lo, one.hi - one.value)
    hi = value + distance(two.hi - two.value, one.value - one.lo)
    method = f"from the two shares' intervals over blocks, whose shares correlate by {common:.2f}"
    return Estimate(value, lo, hi, n, method, level)


def _correlation(first: ArrayLike, second: ArrayLike, blocks: Sequence[Any]) -> float:
    """Of the blocks' shares; 0 where it is negative or one of them never changes."""
    both = pd.DataFrame({"first": np.asarray(first, float), "second": np.asarray(second, float)})
    shares = both.groupby(np.asarray(blocks)).mean().to_numpy().T
    if not shares.std(axis=1).all():
        return 0.0
    return max(0.0, float(np.corrcoef(shares)[0, 1]))


def ratio_of_sums_over_blocks(above: ArrayLike, below: ArrayLike, level: float = LEVEL) -> Estimate:
    """Sum of ``above`` over sum of ``below`` [blocks], such as joules over requests: blocks with
    more requests weigh more, as they do in the load.

    Student's t over blocks of what each adds to the ratio (linearised), on a logarithmic scale,
    and ``STOPPING`` times as wide for skew, as in :func:`~workbench.measure.statistics.mean`.
    """
    above, below = np.asarray(above, float), np.asarray(below, float)
    n = len(above)
    if not n or below.sum() <= 0:
        return _nothing(level)
    value = float(above.sum() / below.sum())
    if n < FEWEST_BLOCKS:
        why = f"no interval: {number_of(n, 'block')}, an interval needs {FEWEST_BLOCKS}"
        return Estimate(value, None, None, n, "", level, why)
    apart = above - value * below
    error = math.sqrt(n / (n - 1) * float((apart**2).sum())) / float(below.sum())
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * STOPPING * error
    method = (
        f"t interval of a ratio of sums over {number_of(n, 'block')}, {STOPPING:g} times as wide "
        "for skew"
    )
    if value <= 0:
        return Estimate(value, value - half, value + half, n, method, level)
    factor = math.exp(half / value)
    return Estimate(value, value / factor, value * factor, n, f"{method}, log scale", level)


def block_statistics(
    requests: pd.DataFrame,
    value: str,
    statistic: Callable[[np.ndarray], float],
    *,
    block: str = "block",
    arm: str = "arm",
) -> pd.DataFrame:
    """``statistic`` of the column ``value`` in each block and arm: a frame [blocks, arms].

    Blocks in which an arm is missing are left out. Two of its columns are paired observations
    for :func:`~workbench.measure.statistics.mean_ratio`: the same requests at the same times went
    to both arms, so what a small block does to a quantile it does to both.
    """
    cells = requests.groupby([block, arm])[value].agg(lambda column: statistic(column.to_numpy()))
    return cells.unstack(arm).dropna()


def autocorrelation_time(series: ArrayLike) -> float:
    """How many observations in a row are worth one: 1 + 2 (sum of the autocorrelations), >= 1.

    The sum ends at the first lag that is ``SOKAL_WINDOW`` times itself (Sokal 1997). A series
    that never changes gives 1: it shows nothing.
    """
    values = np.asarray(series, float)
    if len(values) > LONGEST_SERIES:
        begin = (len(values) - LONGEST_SERIES) // 2
        values = values[begin : begin + LONGEST_SERIES]
    n = len(values)
    values = values - values.mean()
    if n < 2 or not values.any():
        return 1.0
    spectrum = np.fft.rfft(values, 2 * n)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum))[:n]
    sums = 2.0 * np.cumsum(correlation / correlation[0]) - 1.0
    ends = np.flatnonzero(np.arange(n) >= SOKAL_WINDOW * sums)
    return max(1.0, float(sums[ends[0] if len(ends) else n - 1]))


def _worth_over_time(
    series: Sequence[np.ndarray], n: int, unit: str, tail: float = TAIL_FACTOR
) -> tuple[float, str | None]:
    """(independent observations that ``n`` are worth, why that cannot be told)."""
    if n < FEWEST_REQUESTS:
        return 0.0, f"no interval: {n} {unit} in one row, an interval needs {FEWEST_REQUESTS}"
    tau = max(autocorrelation_time(each) for each in series)
    if n < SHORTEST_IN_TAUS * tau:
        return 0.0, (
            f"no interval: {n} {unit} depend on one another over about {tau:.0f}; "
            f"{SHORTEST_IN_TAUS * tau:.0f} or more are needed to tell how much"
        )
    return n / (tail * tau), None


def _worth_over_blocks(
    series: Sequence[np.ndarray], blocks: Sequence[Any], level: float
) -> tuple[float, str | None]:
    _, index, sizes = np.unique(np.asarray(blocks), return_inverse=True, return_counts=True)
    n, count = len(index), len(sizes)
    if count < FEWEST_BLOCKS:
        return 0.0, f"no interval: {number_of(count, 'block')}, an interval needs {FEWEST_BLOCKS}"
    effect = max(_design_effect(each, index, sizes) for each in series)
    t = stats.t(count - 1).ppf(0.5 + level / 2) / stats.norm.ppf(0.5 + level / 2)
    return n / max(1.0, BLOCK_FACTOR * effect * float(t) ** 2), None


def _design_effect(met: np.ndarray, index: np.ndarray, sizes: np.ndarray) -> float:
    """Variance of the mean of ``met`` over blocks, over that of as many independent ones."""
    n, count, mean = len(met), len(sizes), float(met.mean())
    if mean in (0.0, 1.0):
        return 1.0
    apart = np.bincount(index, met) - sizes * mean
    variance = count / (count - 1) * float((apart**2).sum()) / n**2
    return variance * n / (mean * (1.0 - mean))


def _quantile(
    values: np.ndarray,
    q: float,
    worth: float,
    why: str | None,
    level: float,
    unit: str = "requests",
) -> Estimate:
    """Order statistics as for ``worth`` independent observations, at the same shares of n."""
    if not 0.0 < q < 1.0:
        raise ValueError(f"q is {q}; allowed: between 0 and 1")
    ordered, n = np.sort(values), len(values)
    value = float(np.quantile(ordered, q))
    independent = math.floor(worth)
    if why is None and independent < (needed := fewest_for_quantile(q, level)):
        why = (
            f"no interval: {n} {unit} are worth {number_of(independent, 'independent one')}, "
            f"p{100 * q:g} needs {needed}"
        )
    if why is not None:
        return Estimate(value, None, None, n, "", level, why)
    ranks = stats.quantile_test(np.arange(1, independent + 1), p=q).confidence_interval(level)
    lower = max(1, math.floor((ranks.low - 1) / independent * n) + 1)
    upper = min(n, math.ceil(ranks.high / independent * n))
    method = (
        f"order statistics {lower} and {upper} of {n} worth "
        f"{number_of(independent, 'independent one')}"
    )
    return Estimate(value, float(ordered[lower - 1]), float(ordered[upper - 1]), n, method, level)


def _share(mean: float, n: int, worth: float, why: str | None, level: float) -> Estimate:
    """Clopper and Pearson's interval with ``worth`` trials, which need not be a whole number."""
    if why is not None:
        return Estimate(mean, None, None, n, "", level, why)
    tail, met = (1.0 - level) / 2, mean * worth
    missed = worth - met
    lo = float(stats.beta.ppf(tail, met, missed + 1)) if met > 0 else 0.0
    hi = float(stats.beta.ppf(1.0 - tail, met + 1, missed)) if missed > 0 else 1.0
    method = (
        f"Clopper-Pearson, {number_of(n, 'request')} worth "
        f"{number_of(worth, 'independent one', form='.0f')}"
    )
    return Estimate(mean, lo, hi, n, method, level)


def _indicators(values: np.ndarray) -> list[np.ndarray]:
    return [(values > edge).astype(float) for edge in np.quantile(values, THRESHOLDS)]


def _logs(values: np.ndarray) -> np.ndarray:
    """Latencies on a scale on which one long wait does not hide all the others."""
    return np.log(np.maximum(values, np.finfo(float).tiny)) if values.min() >= 0 else values


def _finite(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        raise ValueError("requests in time order need finite values")
    return values


def _nothing(level: float) -> Estimate:
    return Estimate(None, None, None, 0, "", level, "nothing was observed")
