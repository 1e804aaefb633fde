"""Intervals that match how the observations were made.

Which method fits is decided by what was repeated independently:

- **Documents** (quality): both models judge the same documents, so documents are resampled in
  pairs and the figure is a ratio of sums (nats over bytes), never a mean of ratios.
- **Blocks** (time, energy): requests inside a run depend on each other, so a block in which
  the arms take turns (ABBA) gives one observation, and a ratio is made within the block, where
  drift of the clock rate or temperature cancels.
- **Requests** (tails): an order statistic bounds a quantile without any assumption about the
  distribution; with too few observations there is no finite bound, and none is given.

Every function returns an :class:`Estimate`; where the observations do not carry an interval,
its ends are None and ``reason`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from workbench.records.metric import Kind, Metric

LEVEL = 0.95
FEWEST_RESAMPLED = 8
"""A bootstrap over fewer units is far too narrow to be shown as an interval."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval ``[lo, hi]`` at ``level``, from ``n`` independent units.

    method: how the interval was made, for the reader. reason: why it has no interval, or why
    there is no value.
    """

    value: float | None
    lo: float | None
    hi: float | None
    n: int
    method: str
    level: float = LEVEL
    reason: str | None = None

    def metric(
        self, name: str, unit: str, how: str, kind: Kind = "measured", **labels: str
    ) -> Metric:
        """This estimate as a figure of a record; a missing value keeps its reason."""
        if self.value is None:
            return Metric.missing(name, unit, self.reason or "not measured", **labels)
        text = "; ".join(filter(None, (how, self.method, self.reason)))
        return Metric(
            name, self.value, unit, text, kind, self.n, self.lo, self.hi, self.level, labels=labels
        )


# Documents


def bits_per_byte(
    nats: ArrayLike,
    size_bytes: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """Loss of one model: sum of nats over sum of bytes, in bits, resampled by document.

    nats, size_bytes: ``[documents]``. groups: a label per document, to resample whole groups
    (sources, authors) where documents of one group resemble each other.
    """
    bits = np.asarray(nats, float) / math.log(2)
    return _ratio_of_sums(bits, size_bytes, groups, resamples, seed, level)


def bits_per_byte_difference(
    nats_a: ArrayLike,
    nats_b: ArrayLike,
    size_bytes: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """How much worse B is than A on the same documents, in bits per byte (positive: worse).

    The difference is made per document before resampling, so what makes a document hard for
    both models cancels. Non-inferiority holds when ``hi`` lies below the margin.
    """
    bits = (np.asarray(nats_b, float) - np.asarray(nats_a, float)) / math.log(2)
    return _ratio_of_sums(bits, size_bytes, groups, resamples, seed, level)


def _ratio_of_sums(
    above: ArrayLike,
    below: ArrayLike,
    groups: Sequence[Any] | None,
    resamples: int,
    seed: int,
    level: float,
) -> Estimate:
    above, below = np.asarray(above, float), np.asarray(below, float)
    if above.shape != below.shape or above.ndim != 1:
        raise ValueError(f"shapes {above.shape} and {below.shape}; allowed: one equal length")
    if not len(above) or below.sum() <= 0:
        return Estimate(None, None, None, 0, "", level, "no document with text was judged")
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        return Estimate(None, None, None, len(above), "", level, "a document's loss is not finite")
    unit = "documents"
    if groups is not None:
        # Sums of a group are all that the ratio needs of it.
        _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        above, below = np.bincount(index, above), np.bincount(index, below)
        unit = "groups"
    value, n = float(above.sum() / below.sum()), len(above)
    method = f"paired bootstrap over {n} {unit}, {resamples} resamples, BCa"
    if n < FEWEST_RESAMPLED:
        why = f"no interval: {n} {unit}, a bootstrap needs {FEWEST_RESAMPLED}"
        return Estimate(value, None, None, n, "", level, why)
    if np.allclose(above, value * below, rtol=1e-12, atol=0.0):
        return Estimate(value, value, value, n, f"the same ratio in all {n} {unit}", level)
    result = stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // n),
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    lo, hi = result.confidence_interval
    if not (math.isfinite(lo) and math.isfinite(hi)):
        return Estimate(value, None, None, n, "", level, "no interval: the resamples are constant")
    return Estimate(value, float(lo), float(hi), n, method, level)


# Blocks


def block_means(
    timings: pd.DataFrame, value: str = "seconds", *, block: str = "block", arm: str = "arm"
) -> pd.DataFrame:
    """Geometric mean of ``value`` per block and arm: a frame ``[blocks, arms]``.

    Blocks in which an arm is missing or a value is not positive are left out, because they
    can no longer be compared within themselves.
    """
    logs = np.log(timings[value].where(timings[value] > 0))
    means = logs.groupby([timings[block], timings[arm]]).agg(lambda x: x.mean(skipna=False))
    return np.exp(means.unstack(arm)).dropna()


def mean_ratio(above: ArrayLike, below: ArrayLike, level: float = LEVEL) -> Estimate:
    """Ratio of two paired quantities, one pair a block, e.g. seconds of A over seconds of B.

    The value is the geometric mean of the blocks' ratios; the interval is Student's t on their
    logarithms (n - 1 degrees of freedom), so that A/B and B/A tell the same story.
    """
    above, below = np.asarray(above, float), np.asarray(below, float)
    if above.shape != below.shape or above.ndim != 1:
        raise ValueError(f"shapes {above.shape} and {below.shape}; allowed: one equal length")
    if not len(above):
        return Estimate(None, None, None, 0, "", level, "no whole block was measured")
    if not ((above > 0) & (below > 0) & np.isfinite(above) & np.isfinite(below)).all():
        raise ValueError("a ratio over blocks needs positive, finite values in every block")
    logs = _mean(np.log(above / below), "blocks", level)
    return replace(
        logs,
        value=math.exp(logs.value),
        lo=None if logs.lo is None else math.exp(logs.lo),
        hi=None if logs.hi is None else math.exp(logs.hi),
        method=logs.method and f"geometric mean of ratios within blocks, {logs.method}",
    )


def mean(values: ArrayLike, unit: str = "blocks", level: float = LEVEL) -> Estimate:
    """Mean of independent values (one a block, one a window) with Student's t interval."""
    values = np.asarray(values, float)
    if not len(values):
        return Estimate(None, None, None, 0, "", level, f"no {unit} were measured")
    if not np.isfinite(values).all():
        raise ValueError("a mean needs finite values")
    return _mean(values, unit, level)


def _mean(values: np.ndarray, unit: str, level: float) -> Estimate:
    n, centre = len(values), float(values.mean())
    if n < 2:
        return Estimate(centre, None, None, n, "", level, f"no interval: a spread needs two {unit}")
    half = stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n, f"t interval over {n} {unit}", level)


def smallest_visible_effect(first: ArrayLike, second: ArrayLike, level: float = LEVEL) -> Estimate:
    """The smallest relative difference this set-up can tell from none, from an A/A session.

    first, second: the same arm measured in the places of A and of B, one pair a block. The
    value is the end of the ratio's interval that lies further from 1, as a share (0.02: two
    arms must differ by 2 %): it holds the spread, the number of blocks and any favour that the
    order of measurement gives to one place. It has no interval of its own.
    """
    ratio = mean_ratio(first, second, level)
    if ratio.lo is None or ratio.hi is None:
        why = f"an A/A comparison needs two or more whole blocks, got {ratio.n}"
        return Estimate(None, None, None, ratio.n, "", level, why)
    effect = math.exp(max(abs(math.log(ratio.lo)), abs(math.log(ratio.hi)))) - 1.0
    method = f"further end of the A/A {ratio.method}"
    return Estimate(effect, None, None, ratio.n, method, level)


# Requests


def quantile(values: ArrayLike, q: float, level: float = LEVEL) -> Estimate:
    """A quantile and the order statistics that bound it, for any distribution.

    The number of observations below the true quantile is Binomial(n, q); the interval lies
    between the innermost order statistics that leave at most ``(1 - level)/2`` on either side.
    The value interpolates linearly between order statistics. Assumes independent observations.
    """
    if not 0.0 < q < 1.0:
        raise ValueError(f"q is {q}; allowed: between 0 and 1")
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    if not n:
        return Estimate(None, None, None, 0, "", level, "nothing was observed")
    if not np.isfinite(ordered).all():
        raise ValueError("a quantile needs finite values")
    value = float(np.quantile(ordered, q))
    if n < (needed := fewest_for_quantile(q, level)):
        why = f"no interval: {n} observations, p{100 * q:g} needs {needed}"
        return Estimate(value, None, None, n, "", level, why)
    tail = (1.0 - level) / 2
    # ppf gives the smallest k with P(X <= k) >= p. Lower rank l: P(X < l) <= tail holds up to
    # l = ppf(tail); upper rank u: P(X < u) >= 1 - tail holds from u = ppf(1 - tail) + 1 on.
    lower = int(stats.binom.ppf(tail, n, q))
    upper = int(stats.binom.ppf(1.0 - tail, n, q)) + 1
    method = f"order statistics {lower} and {upper} of {n}"
    return Estimate(value, float(ordered[lower - 1]), float(ordered[upper - 1]), n, method, level)


def fewest_for_quantile(q: float, level: float = LEVEL) -> int:
    """Observations from which both bounds of :func:`quantile` are finite: 368 for p99 at 95 %."""
    tail = (1.0 - level) / 2
    return max(math.ceil(math.log(tail) / math.log(x)) for x in (q, 1.0 - q))


def share(successes: int, n: int, level: float = LEVEL) -> Estimate:
    """A share of independent yes-or-no outcomes, with Wilson's interval."""
    if not n:
        return Estimate(None, None, None, 0, "", level, "nothing was observed")
    interval = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Estimate(
        successes / n, float(interval.low), float(interval.high), n, "Wilson interval", level
    )
