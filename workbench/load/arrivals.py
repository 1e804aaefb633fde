"""A declared load for a site that has no trace yet. Every figure made from it is assumed.

Gaps between requests ~ Gamma(shape 1/cv^2, scale cv^2/rate): mean 1/rate, coefficient of
variation cv; cv = 1 is a Poisson process. Lengths ~ log-normal through the two declared
quantiles: mu = ln p50, sigma = ln(p99/p50)/z(0.99). Arrivals, lengths and classes have random
streams of their own, so changing one of them leaves the others as they were.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from workbench.errors import ConfigError
from workbench.load.order import Batch
from workbench.pilot.sections.profile_load import Synthetic
from workbench.wording.counts import number_of

MOST_REQUESTS = 2_000_000


def declared_requests(declared: Synthetic, seed: int) -> Batch:
    """Requests drawn from a declared load; the same seed draws the same requests."""
    arrivals, prompts, outputs, classes = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(4)
    )
    start_s = gamma_arrivals(declared.duration_s, declared.rate_per_s, declared.gap_cv, arrivals)
    n = len(start_s)
    batch = classes.random(n) < declared.batch_share
    return {
        "start_s": start_s - start_s[0],
        "prompt_tokens": lognormal_lengths(
            n, declared.prompt_tokens_p50, declared.prompt_tokens_p99, prompts
        ).astype(np.int32),
        "output_tokens": lognormal_lengths(
            n, declared.output_tokens_p50, declared.output_tokens_p99, outputs
        ).astype(np.int32),
        "class": np.where(batch, 2, 1).astype(np.int8),
    }


def gamma_arrivals(
    duration_s: float, rate_per_s: float, cv: float, random: np.random.Generator
) -> np.ndarray:
    """Times in [0, duration_s) of requests whose gaps have mean 1/rate and the given CV.

    Raises ConfigError when fewer than two requests, or more than :data:`MOST_REQUESTS`, come.
    """
    expected = duration_s * rate_per_s
    if expected > MOST_REQUESTS:
        raise ConfigError(
            f"profile_load.synthetic: {rate_per_s:g} requests/s for {duration_s:g} s are "
            f"{number_of(expected, 'request', form='.3g')}",
            allowed=f"at most {MOST_REQUESTS}",
            next_step="lower duration_s; a profile needs no more than some thousand requests",
        )
    shape, scale = 1.0 / cv**2, cv**2 / rate_per_s
    chunk = int(expected + 10 * np.sqrt(expected) * max(cv, 1.0)) + 10
    times = np.cumsum(random.gamma(shape, scale, chunk))
    while times[-1] < duration_s:
        times = np.append(times, times[-1] + np.cumsum(random.gamma(shape, scale, chunk)))
    times = times[times < duration_s]
    if len(times) < 2:
        raise ConfigError(
            f"profile_load.synthetic: {number_of(len(times), 'request')} in {duration_s:g} s at "
            f"{rate_per_s:g} requests/s with gap_cv {cv:g}",
            allowed="two or more requests",
            next_step="raise duration_s or rate_per_s",
        )
    return times


def lognormal_lengths(n: int, p50: float, p99: float, random: np.random.Generator) -> np.ndarray:
    """``n`` whole lengths of at least 1 whose median and 99th percentile are as given."""
    sigma = np.log(p99 / p50) / norm.ppf(0.99)
    return np.maximum(1, np.rint(random.lognormal(np.log(p50), sigma, n))).astype(np.int64)
