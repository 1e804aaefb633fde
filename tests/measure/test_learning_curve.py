"""The law of a gap: what it foretells of curves whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.measure.learning_curve import FEWEST_POINTS, Curve, fit


def curve(floor: float, fall: float, exponent: float, noise: float = 0.002, seed: int = 0) -> Curve:
    """24 points of a constant rate from a tenth of a million tokens on; at the end the gap is
    floor + fall."""
    tokens = np.linspace(0.1e6, 1e6, 24)
    gap = floor + fall * (tokens / 1e6) ** -exponent
    gap = gap + np.random.default_rng(seed).normal(0, noise, 24)
    return Curve(tokens, gap, np.ones(24), np.zeros(24))


def test_the_tokens_until_a_gap_are_foretold_within_the_interval() -> None:
    truth = 1e6 * (0.05 / 0.1) ** (1 / -0.5)  # half of the fall is left at four times the tokens
    needed = fit(curve(0.02, 0.1, 0.5)).tokens_until(0.05)
    lo, middle, hi = np.quantile(needed, (0.025, 0.5, 0.975), method="inverted_cdf")
    assert lo < truth < hi and 0.5 * truth < middle < 2 * truth


def test_a_gap_below_the_floor_is_never_reached() -> None:
    needed = fit(curve(0.3, 0.02, 1.0)).tokens_until(0.15)
    assert np.isinf(needed).mean() > 0.95
    assert np.isinf(np.median(fit(curve(0.3, 0.0, 1.0)).tokens_until(0.1)))


def test_what_holds_already_needs_no_more() -> None:
    assert set(fit(curve(0.1, 0.1, 0.5)).tokens_until(0.0)) == {1e6}


def test_a_gap_that_grows_does_not_come_down() -> None:
    needed = fit(curve(0.3, -0.1, 0.5)).tokens_until(0.05)
    assert np.isinf(needed).mean() > 0.95


def test_the_rate_on_its_way_down_is_told_from_the_law() -> None:
    """A gap that fell only because the rate did: a longer training ends where this one does."""
    tokens = np.linspace(0.1e6, 1e6, 24)
    way = (1 - np.cos(np.pi * tokens / 1e6)) / 2
    gap = 0.3 - 0.1 * way + np.random.default_rng(1).normal(0, 0.002, 24)
    draws = fit(Curve(tokens, gap, np.ones(24), way))
    assert np.isinf(draws.tokens_until(0.1)).mean() > 0.9
    assert abs(np.median(draws.ends(np.array([1e6]))) - 0.2) < 0.01


def test_the_second_half_lies_in_the_band_of_the_first() -> None:
    inside = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        whole = curve(random.uniform(0, 0.1), random.uniform(0.05, 0.3), random.uniform(0.2, 0.8),
                      0.01, seed)  # fmt: skip
        half = fit(whole.first(12), draws=1000)
        lo, hi = np.quantile(
            half.seen(whole.tokens[12:], whole.annealed[12:], whole.weight[12:]),
            (0.025, 0.975), axis=0,
        )  # fmt: skip
        inside.append(np.mean((whole.gap[12:] >= lo) & (whole.gap[12:] <= hi)))
    assert np.mean(inside) > 0.9


def test_too_short_a_curve_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {FEWEST_POINTS}"):
        fit(curve(0.1, 0.1, 0.5).first(FEWEST_POINTS - 1))
