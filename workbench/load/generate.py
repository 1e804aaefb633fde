"""Requests drawn from a small profile: the trace's shape at any length and scale.

Gaps in operational time are drawn from their quantiles, with the correlation of neighbours that
the trace has (a Gaussian copula: AR(1) numbers, made uniform), and carried back to clock time
through the rate curve. A load longer than the curve goes on at its start, at the same hour of the
day where the trace says the hour. Lengths and classes come from the joint histogram. What is lost:
the order of lengths, sessions, and any correlation beyond neighbours that the rate curve does not
hold. At the load's own scale the CV of the gaps comes out within a fifth of the load's. At another
the rate curve stays on its clock: more requests come within the same busy times and the pauses
between these stay, so the CV grows with the scale where there are pauses (Azure's code trace: 13 at
its own scale, 9 at half of it, 26 at four times), and hardly where there are none (1.05 to 1.14).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats
from scipy.signal import lfilter

from workbench.errors import ConfigError
from workbench.load.lengths import drawn_lengths
from workbench.load.order import Batch
from workbench.wording.counts import number_of

MOST_REQUESTS = 50_000_000
CHUNK = 1_000_000
DAY_S = 86_400.0


def generated(summary: dict[str, Any], duration_s: float, scale: float, seed: int) -> list[Batch]:
    """Batches of requests in [0, duration_s), in order; the same seed draws the same ones.

    scale: 2 has twice as many requests a second, as bursty at their own pace.
    Raises ConfigError when there would be fewer than two requests or more than MOST_REQUESTS.
    """
    expected = summary["rate_per_s"] * scale * duration_s
    if not 2 <= expected <= MOST_REQUESTS:
        raise ConfigError(
            f"profile_load.generate: {duration_s:g} s at {scale:g} times "
            f"{summary['rate_per_s']:.3g} requests/s are "
            f"{number_of(expected, 'request', form='.3g')}",
            allowed=f"2 to {MOST_REQUESTS}",
            next_step="change profile_load.generate.duration_s or scale",
        )
    arrivals, lengths = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    curve = _Curve(summary, duration_s, scale)
    gaps = _Gaps(summary["operational"], arrivals)
    batches, u = [], 0.0
    while u < curve.total:
        at = u + np.cumsum(gaps.draw(CHUNK if expected > CHUNK else int(expected) + 100))
        u = float(at[-1])
        start_s = curve.clock_s(at[at < curve.total])
        if len(start_s):
            prompt, output, class_ = drawn_lengths(summary["lengths"], len(start_s), lengths)
            batches.append(
                {
                    "start_s": start_s,
                    "prompt_tokens": prompt.astype(np.int32),
                    "output_tokens": output.astype(np.int32),
                    "class": (class_ + 1).astype(np.int8),
                }
            )
    if sum(len(batch["start_s"]) for batch in batches) < 2:
        raise ConfigError(
            f"profile_load.generate: fewer than two requests fall into {duration_s:g} s",
            allowed="two or more requests",
            next_step="raise profile_load.generate.duration_s or scale",
        )
    return batches


class _Curve:
    """Operational time over clock time: the integral of the rate."""

    def __init__(self, summary: dict[str, Any], duration_s: float, scale: float) -> None:
        shape = summary["shape"]
        counts = np.array(shape["counts"], float)
        width_s, span_s = shape["width_s"], summary["span_s"]
        lasts_s = np.minimum(width_s, span_s - width_s * np.arange(len(counts)))
        lasts_s = np.where(lasts_s > 0, lasts_s, 0.0)
        period_s = float(lasts_s.sum())
        if summary["origin_s"] is not None and period_s > DAY_S:
            # Whole days, so that the second round begins at the hour that the first one did.
            period_s = DAY_S * (period_s // DAY_S)
        times = np.concatenate([[0.0], np.cumsum(lasts_s)])
        integral = np.concatenate([[0.0], np.cumsum(counts)])
        inside = times < period_s
        end = float(np.interp(period_s, times, integral))
        times, integral = np.append(times[inside], period_s), np.append(integral[inside], end)
        turns = np.arange(int(np.ceil(duration_s / period_s)))
        self._times = np.concatenate([times[:-1] + turn * period_s for turn in turns])
        self._integral = np.concatenate([integral[:-1] + turn * end for turn in turns])
        self._times = np.append(self._times, len(turns) * period_s)
        self._integral = np.append(self._integral, len(turns) * end) * scale
        self.total = float(np.interp(duration_s, self._times, self._integral))

    def clock_s(self, operational: np.ndarray) -> np.ndarray:
        return np.interp(operational, self._integral, self._times)


class _Gaps:
    """Gaps with the quantiles and the neighbours' correlation of the trace, mean 1."""

    def __init__(self, operational: dict[str, Any], random: np.random.Generator) -> None:
        self._shares = np.array(operational["shares"])
        self._gaps = np.array(operational["gaps"])
        self._random, self._last = random, float(random.normal())
        self._correlation = _normal_correlation(self, operational["autocorrelation"])
        uniform = (np.arange(200_000) + 0.5) / 200_000
        self._mean = float(np.interp(uniform, self._shares, self._gaps).mean()) or 1.0

    def draw(self, n: int) -> np.ndarray:
        r = self._correlation
        noise = self._random.normal(size=n) * np.sqrt(1 - r * r)
        normal, _ = lfilter([1.0], [1.0, -r], noise, zi=[r * self._last])
        self._last = float(normal[-1])
        return self.of(normal) / self._mean

    def of(self, normal: np.ndarray) -> np.ndarray:
        return np.interp(stats.norm.cdf(normal), self._shares, self._gaps)


def _normal_correlation(gaps: _Gaps, wanted: float) -> float:
    """The correlation of the normal numbers that gives the gaps the wanted one."""
    if abs(wanted) < 0.01:
        return 0.0
    pairs = np.random.default_rng(0).normal(size=(2, 50_000))
    tried = np.linspace(-0.95, 0.95, 39)
    first = gaps.of(pairs[0])
    found = [
        np.corrcoef(first, gaps.of(r * pairs[0] + np.sqrt(1 - r * r) * pairs[1]))[0, 1]
        for r in tried
    ]
    return float(tried[int(np.argmin(np.abs(np.array(found) - wanted)))])
