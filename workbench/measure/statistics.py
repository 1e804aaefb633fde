"""Intervals that match how the observations were made, or the reason why there is none.

Which method fits is decided by what was repeated independently:

- **Documents** (quality): both models judge the same documents, so documents are resampled in
  pairs and the figure is a ratio of sums (nats over bytes), never a mean of ratios. The
  bootstrap is studentized, because a few documents carry much of a gap.
- **Blocks** (time, energy): requests inside a run depend on each other, so a block in which
  the arms take turns gives one observation, and a ratio is made within the block, where
  drift of the clock rate or temperature cancels. Intervals of what is positive are made on a
  logarithmic scale and never reach below zero.
- **Requests** that are independent: an order statistic bounds a quantile without any assumption
  about the distribution, and a count of them has Clopper and Pearson's exact interval. Requests
  that share a queue are not independent: :mod:`workbench.measure.dependence`.

An interval at level 0.95 is to miss by at most 2.5 % on either side, which ``make calibrate``
shows by simulation (docs/measuring.md); where fewer observations would not keep that, none is
given. Every function returns an :class:`Estimate`; without an interval its ends are None and
``reason`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, stats

from workbench.measure.fewest import FEWEST_BLOCKS, FEWEST_DOCUMENTS
from workbench.records.metric import Basis, Metric, MetricKind
from workbench.wording.counts import number_of

LEVEL = 0.95
STOPPING = 1.1
"""What keeps 2.5 % on either side when a session of 8 to 80 blocks ends by its own precision."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval ``[lo, hi]`` at ``level``, from ``n`` independent units.

    method: how the interval was made, for the reader. reason: why it has no interval, or why
    there is no value. basis, p_value: see :class:`~workbench.records.metric.Metric`.
    """

    value: float | None
    lo: float | None
    hi: float | None
    n: int
    method: str
    level: float = LEVEL
    reason: str | None = None
    basis: Basis = "sample"
    p_value: float | None = None

    def metric(
        self, name: str, unit: str, how: str, kind: MetricKind = "measured", **labels: str
    ) -> Metric:
        """This estimate as a figure of a record; a missing value keeps its reason."""
        if self.value is None:
            return Metric.missing(name, unit, self.reason or "not measured", **labels)
        text = "; ".join(filter(None, (how, self.method, self.reason)))
        return Metric(
            name,
            self.value,
            unit,
            text,
            kind,
            self.n,
            self.lo,
            self.hi,
            self.level,
            self.reason,
            labels,
            self.basis,
            self.p_value,
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


def bits_per_byte_difference_over_seeds(
    nats_a: Sequence[ArrayLike],
    nats_b: Sequence[ArrayLike],
    size_bytes: ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """How much worse B is than A in the mean of all trainings that other seeds would give.

    nats_a, nats_b: for each seed ``[documents]``, the same documents. ``n`` counts the seeds.
    Two errors join: that of the documents (:func:`bits_per_byte_difference` of the losses' means
    over the seeds) and that of the seeds, Student's t of their gaps, which takes the gaps of
    seeds to be normal. They are independent, so the squares of the half widths add on each side
    (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    n = len(nats_a)
    means = [np.mean(np.asarray(nats, float), axis=0) for nats in (nats_a, nats_b)]
    joint = bits_per_byte_difference(*means, size_bytes, groups=groups, level=level)
    if n < 2 or joint.value is None or joint.lo is None or joint.hi is None:
        reason = "no interval: one seed tells nothing of others" if n < 2 else joint.reason
        return replace(joint, lo=None, hi=None, n=n, method="", reason=reason, p_value=None)
    bits = np.asarray(nats_b, float).sum(axis=1) - np.asarray(nats_a, float).sum(axis=1)
    half, _ = _t_interval(bits / math.log(2) / np.sum(np.asarray(size_bytes, float)), level)
    lo = joint.value - math.hypot(joint.value - joint.lo, half)
    hi = joint.value + math.hypot(joint.hi - joint.value, half)
    method = f"t over {number_of(n, 'seed')} joined with: {joint.method} ({joint.n} of them)"
    return replace(joint, lo=lo, hi=hi, n=n, method=method, p_value=None)


def ratio_of_sums(
    above: ArrayLike,
    below: ArrayLike,
    unit: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate:
    """Sum of ``above`` over sum of ``below``, both ``[units]``, resampled by unit (prompts) as
    documents are: nats over tokens, tokens of one arm over those of another."""
    return _ratio_of_sums(above, below, None, resamples, seed, level, unit)


def _ratio_of_sums(
    above: ArrayLike,
    below: ArrayLike,
    groups: Sequence[Any] | None,
    resamples: int,
    seed: int,
    level: float,
    unit: str = "documents",
) -> Estimate:
    above, below = np.asarray(above, float), np.asarray(below, float)
    if above.shape != below.shape or above.ndim != 1:
        raise ValueError(f"shapes {above.shape} and {below.shape}; allowed: one equal length")
    if not len(above) or below.sum() <= 0:
        return Estimate(None, None, None, 0, "", level, f"none of the {unit} has text to judge")
    if not (np.isfinite(above).all() and np.isfinite(below).all()):
        why = f"one of the {unit} has a loss that is not finite"
        return Estimate(None, None, None, len(above), "", level, why)
    if groups is not None:
        # Sums of a group are all that the ratio needs of it.
        _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        above, below = np.bincount(index, above), np.bincount(index, below)
        unit = "groups"
    value, n = float(above.sum() / below.sum()), len(above)
    # Of few units one ratio is chance, and of a single one it is no news; none at all is exact.
    alike = np.allclose(above, value * below, rtol=1e-12, atol=0.0)
    if alike and (n >= FEWEST_DOCUMENTS or not above.any()):
        return Estimate(value, value, value, n, f"the same ratio in all {n} {unit}", level)
    if n < FEWEST_DOCUMENTS:
        why = f"no interval: {n} {unit}, a bootstrap needs {FEWEST_DOCUMENTS}"
        return Estimate(value, None, None, n, "", level, why)
    error = _error_of_ratio(above, below, np.ones((1, n)))[1][0]
    pulls = _pulls(above, below, resamples, np.random.default_rng(seed))
    tail = tail_of_documents(n, level)
    low, high = np.quantile(pulls, [tail, 1.0 - tail])
    p = min(np.mean(pulls >= value / error), np.mean(pulls <= value / error)) / tail
    p = min(1.0, (1.0 - level) * max(p, 1 / (tail * resamples)))
    method = f"paired bootstrap over {n} {unit}, {number_of(resamples, 'resample')}, studentized"
    lo, hi = float(value - high * error), float(value - low * error)
    return Estimate(value, lo, hi, n, method, level, p_value=float(p))


def tail_of_documents(n: int, level: float = LEVEL) -> float:
    """Share of the resamples to leave out at either end, so that it misses by (1 - level)/2.

    With heavy tails the few documents that carry a gap are often not among n, and a bootstrap
    cannot know them. Its error falls about as n^-0.4; 4.3 is what keeps lognormal gaps with
    sigma 1 at 2.5 % from 64 documents on (``make calibrate``).
    """
    return (1.0 - level) / 2 * max(0.0, 1.0 - 4.3 * n**-0.4)


def _error_of_ratio(
    above: np.ndarray, below: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of sums and its standard error (linearised) for draws ``counts`` [draws, units]."""
    n = len(above)
    size = counts @ below
    ratio = counts @ above / size
    squares = counts @ above**2 - 2 * ratio * (counts @ (above * below))
    squares += ratio**2 * (counts @ below**2)
    return ratio, np.sqrt(np.maximum(squares, 0.0) * n / (n - 1)) / size


def _pulls(
    above: np.ndarray, below: np.ndarray, resamples: int, random: np.random.Generator
) -> np.ndarray:
    """(resampled ratio - ratio) over the resample's own standard error (Efron 1979)."""
    n, value = len(above), above.sum() / below.sum()
    found = []
    for begin in range(0, resamples, step := max(1, 2_000_000 // n)):
        draws = random.multinomial(n, np.full(n, 1 / n), min(step, resamples - begin))
        ratio, error = _error_of_ratio(above, below, draws.astype(float))
        found.append((ratio - value) / np.where(error > 0, error, np.inf))
    return np.concatenate(found)


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


def mean_ratio(
    above: ArrayLike, below: ArrayLike, level: float = LEVEL, *, stopped: bool = False
) -> Estimate:
    """Ratio of two paired quantities, one pair a block, e.g. seconds of A over seconds of B.

    The value is the geometric mean of the blocks' ratios; the interval is Student's t on their
    logarithms (n - 1 degrees of freedom), so that A/B and B/A tell the same story.

    stopped: the blocks ended because their interval had become narrow enough. That happens
    earlier where they are alike by chance, so the interval is ``STOPPING`` times as wide.
    """
    above, below = np.asarray(above, float), np.asarray(below, float)
    if above.shape != below.shape or above.ndim != 1:
        raise ValueError(f"shapes {above.shape} and {below.shape}; allowed: one equal length")
    if not len(above):
        return Estimate(None, None, None, 0, "", level, "no whole block was measured")
    if not ((above > 0) & (below > 0) & np.isfinite(above) & np.isfinite(below)).all():
        raise ValueError("a ratio over blocks needs positive, finite values in every block")
    logs = np.log(above / below)
    n, centre = len(logs), float(logs.mean())
    if n < FEWEST_BLOCKS:
        return Estimate(math.exp(centre), None, None, n, "", level, _too_few(n, "blocks"))
    half, p = _t_interval(logs, level, STOPPING if stopped else 1.0)
    method = f"geometric mean of ratios within blocks, t interval over {number_of(n, 'block')}"
    if stopped:
        method += f", {STOPPING:g} times as wide for having stopped by its width"
    lo, hi = math.exp(centre - half), math.exp(centre + half)
    return Estimate(math.exp(centre), lo, hi, n, method, level, p_value=p)


def mean(values: ArrayLike, unit: str = "blocks", level: float = LEVEL) -> Estimate:
    """Mean of independent values (one a block) with Student's t interval.

    Where no value is negative, the interval is made of the mean's logarithm, whose standard
    error is that of the mean over the mean (delta method): it never reaches zero. It is
    ``STOPPING`` times as wide, because times are skewed and a session ends by its precision.
    """
    values = np.asarray(values, float)
    n = len(values)
    if not n:
        return Estimate(None, None, None, 0, "", level, f"no {unit} were measured")
    if not np.isfinite(values).all():
        raise ValueError("a mean needs finite values")
    centre = float(values.mean())
    if n < FEWEST_BLOCKS:
        return Estimate(centre, None, None, n, "", level, _too_few(n, unit))
    half, _ = _t_interval(values, level, STOPPING)
    method = f"t interval over {n} {unit}, {STOPPING:g} times as wide for skew and early stopping"
    if values.min() < 0 or centre == 0:
        return Estimate(centre, centre - half, centre + half, n, method, level)
    factor = math.exp(half / centre)
    return Estimate(centre, centre / factor, centre * factor, n, f"{method}, log scale", level)


def _too_few(n: int, unit: str) -> str:
    return f"no interval: {n} {unit}, an interval needs {FEWEST_BLOCKS}"


def _t_interval(values: np.ndarray, level: float, widened: float = 1.0) -> tuple[float, float]:
    """(half width, two-sided p that the mean is 0) of independent values."""
    n = len(values)
    error = widened * values.std(ddof=1) / math.sqrt(n)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * error)
    if error == 0:
        return half, 1.0 if values[0] == 0 else 0.0
    return half, float(2 * stats.t.sf(abs(values.mean()) / error, n - 1))


def smallest_visible_effect(
    first: ArrayLike,
    second: ArrayLike,
    level: float = LEVEL,
    power: float = 0.8,
    *,
    stopped: bool = False,
) -> Estimate:
    """The relative difference that such a session finds in 80 % of cases, from an A/A comparison.

    first, second: seconds of the same arm in the places of A and of B, one pair a block. A
    difference d of the logarithms is found when its interval excludes 0, which happens with
    probability ``power`` from d = (t_level + t_power) standard errors on, plus what the A/A
    comparison itself leans by, as that comes on top of any arm in that place. The value is a
    signed share (0.02: two per cent); its sign is that of the lean: positive where the second
    place was the slower one. It has no interval of its own. stopped: see :func:`mean_ratio`.
    """
    ratio = mean_ratio(second, first, level, stopped=stopped)
    if ratio.value is None or ratio.lo is None:
        why = f"an A/A comparison needs {FEWEST_BLOCKS} whole blocks, got {ratio.n}"
        return Estimate(None, None, None, ratio.n, "", level, why)
    freedom = ratio.n - 1
    quantile_of = stats.t(freedom).ppf
    half = (math.log(ratio.hi) - math.log(ratio.lo)) / 2
    seen = half * (1 + float(quantile_of(power) / quantile_of(0.5 + level / 2)))
    lean = math.log(ratio.value)
    sign = math.copysign(1.0, lean)
    effect = sign * math.expm1(seen + abs(lean))
    method = (
        f"found in {power:.0%} of cases, from the A/A t interval over {number_of(ratio.n, 'block')}"
    )
    return Estimate(effect, None, None, ratio.n, method, level, ITSELF_A_WIDTH)


ITSELF_A_WIDTH = "no interval: it is made of the width of one"


def visible_in(ratio: Estimate, power: float = 0.8) -> Estimate:
    """The relative difference that a session finds in 80 % of cases, from how much a ratio of two
    arms scattered over its blocks; for a session without an A/A comparison.

    ratio: of :func:`mean_ratio`, not stopped by its width. The scatter is that of the comparison
    itself, so nothing has to be measured twice; what a place in the block leans by does not show
    in it, and is left to the balance of the orders. A positive share, without an interval.
    """
    if ratio.value is None or ratio.lo is None or ratio.hi is None:
        why = f"the scatter of a ratio needs {FEWEST_BLOCKS} whole blocks, got {ratio.n}"
        return Estimate(None, None, None, ratio.n, "", ratio.level, why)
    half = (math.log(ratio.hi) - math.log(ratio.lo)) / 2
    seen = half * _found_from(ratio.n, ratio.level, power)
    method = (
        f"found in {power:.0%} of cases, from the ratio's t interval over "
        f"{number_of(ratio.n, 'block')}"
    )
    return Estimate(math.expm1(seen), None, None, ratio.n, method, ratio.level, ITSELF_A_WIDTH)


@cache
def _found_from(n: int, level: float, power: float) -> float:
    """The difference that another session of ``n`` blocks finds with ``power``, in half widths of
    this one's interval. Both sessions know the scatter from their own blocks only, so the chance is
    the mean over what either takes it for (chi distributed, at the middles of 100 equal shares)."""
    shares = (np.arange(100) + 0.5) / 100
    taken = np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))
    t = float(stats.t.ppf(0.5 + level / 2, n - 1))

    def missing(halves: float) -> float:
        found = stats.norm.cdf(t * (halves * taken[:, None] - taken[None, :])).mean()
        return float(found) - power

    return float(optimize.brentq(missing, 0.1, 100.0))


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several comparisons differ, with at most 1 - ``level`` chance of any false one.

    Holm's step-down: the smallest p against alpha/m, the next against alpha/(m - 1), and so on
    until one does not pass. Scandinavian Journal of Statistics 6 (1979).
    """
    order = np.argsort(p_values)
    differs = [False] * len(order)
    for rank, place in enumerate(order):
        if p_values[place] > (1.0 - level) / (len(order) - rank):
            break
        differs[place] = True
    return differs


# Requests


def quantile(values: ArrayLike, q: float, level: float = LEVEL) -> Estimate:
    """A quantile and the order statistics that bound it, for any distribution.

    The number of observations below the true quantile is Binomial(n, q); the interval lies
    between the innermost order statistics that leave at most ``(1 - level)/2`` on either side
    (``scipy.stats.quantile_test``).
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
        why = f"no interval: {number_of(n, 'observation')}, p{100 * q:g} needs {needed}"
        return Estimate(value, None, None, n, "", level, why)
    ranks = stats.quantile_test(np.arange(1, n + 1), p=q).confidence_interval(level)
    lower, upper = int(ranks.low), int(ranks.high)
    method = f"order statistics {lower} and {upper} of {n}"
    return Estimate(value, float(ordered[lower - 1]), float(ordered[upper - 1]), n, method, level)


def fewest_for_quantile(q: float, level: float = LEVEL) -> int:
    """Observations from which both bounds of :func:`quantile` are finite: 368 for p99 at 95 %."""
    tail = (1.0 - level) / 2
    return max(math.ceil(math.log(tail) / math.log(x)) for x in (q, 1.0 - q))


def share(successes: int, n: int, level: float = LEVEL) -> Estimate:
    """A share of independent yes-or-no outcomes, with Clopper and Pearson's exact interval."""
    if not n:
        return Estimate(None, None, None, 0, "", level, "nothing was observed")
    interval = stats.binomtest(successes, n).proportion_ci(level, method="exact")
    method = f"exact interval (Clopper-Pearson), {successes} of {n}"
    return Estimate(successes / n, float(interval.low), float(interval.high), n, method, level)


def paired_share_difference(gained: int, lost: int, n: int, level: float = LEVEL) -> Estimate:
    """By how much more often B is right than A, on the same n questions.

    gained: right in B alone. lost: right in A alone. The interval is Tango's score interval for
    paired proportions (Statistics in Medicine 17, 1998, 891) with a continuity correction of one
    question, without which it misses by up to 4.8 % to one side (docs/measuring.md). The p value is
    McNemar's exact one, of the questions that one of them alone answers rightly.
    """
    if not n:
        return Estimate(None, None, None, 0, "", level, "nothing was judged by both")
    value, p = (gained - lost) / n, 1.0
    if gained + lost:
        p = float(stats.binomtest(gained, gained + lost).pvalue)
    z = float(stats.norm.ppf(0.5 + level / 2))

    def excess(difference: float, side: float) -> float:
        """Standard errors of the value over a true difference at the likeliest shares that have it,
        less those that the interval allows."""
        b = -gained - lost + (2 * n - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        lost_share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * lost_share + difference * (1 - difference))
        away = gained - lost - n * difference + side
        return away / math.sqrt(max(variance, 1e-300)) + side * z

    ends = []
    for side in (-1.0, 1.0):
        outer = side * (1 - 1e-12)
        whole = side * excess(outer, side) > 0
        ends.append(side if whole else float(optimize.brentq(excess, value, outer, args=(side,))))
    method = (
        f"Tango's interval with continuity correction over {number_of(n, 'pair')}; exact McNemar: "
        f"right here alone {gained}, there alone {lost}, p = {p:.3g}"
    )
    return Estimate(value, ends[0], ends[1], n, method, level, p_value=p)


def count(events: int, n: int, level: float = LEVEL) -> Estimate:
    """How many of ``n`` requests it happened to; the interval is that of the share, times n.

    It says how many of ``n`` such requests it would happen to in the long run, if it happens to
    each independently of the others.
    """
    of = share(events, n, level)
    if of.value is None:
        return of
    return replace(of, value=float(events), lo=of.lo * n, hi=of.hi * n, basis="count")
