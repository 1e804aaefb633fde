"""Figures over documents, on tables whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from workbench.measure.paired_bootstrap import PairedBootstrap


def table(bits: dict[str, np.ndarray], size: np.ndarray, seeds: int = 1) -> pd.DataFrame:
    """One excerpt a document; each seed a little off, the mean as given."""
    rows = []
    for arm, values in bits.items():
        for seed in range(seeds):
            off = seed - (seeds - 1) / 2
            rows += [
                {"arm": arm, "seed": seed, "id": f"d{i}@0", "bytes": int(n)}
                | {"nats": (value + off) * math.log(2)}
                for i, (value, n) in enumerate(zip(values, size, strict=True))
            ]
    return pd.DataFrame(rows)


@pytest.fixture
def drawn() -> tuple[dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(3)
    size = rng.integers(100, 900, 64).astype(float)
    full = 2.0 * size * rng.uniform(0.6, 1.4, 64)
    return {"full": full, "bad": full + 0.2 * size, "good": full + 0.1 * size}, size


def test_bits_per_byte_is_a_ratio_of_sums_averaged_over_seeds(drawn) -> None:
    bits, size = drawn
    bootstrap = PairedBootstrap(table(bits, size, seeds=3))
    assert len(bootstrap) == 64
    estimate = bootstrap.estimate(lambda b: b["full"])
    assert estimate.value == pytest.approx(bits["full"].sum() / size.sum())
    assert estimate.lo < estimate.value < estimate.hi


def test_what_makes_a_document_hard_for_all_cancels(drawn) -> None:
    """A constant loss a byte: the gap is exact though the arms themselves spread widely."""
    bootstrap = PairedBootstrap(table(*drawn))
    gap = bootstrap.estimate(lambda b: b["bad"] - b["full"])
    assert (gap.value, gap.lo, gap.hi) == pytest.approx((0.2, 0.2, 0.2))
    ratio = bootstrap.estimate(lambda b: (b["good"] - b["full"]) / (b["bad"] - b["full"]))
    assert (ratio.value, ratio.lo, ratio.hi) == pytest.approx((0.5, 0.5, 0.5))


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Gaps drawn around 0.1: 95 of 100 intervals or more hold it."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        size = rng.integers(300, 600, 64).astype(float)
        full = 2.0 * size
        bits = {"full": full, "arm": full + size * rng.normal(0.1, 0.05, 64)}
        estimate = PairedBootstrap(table(bits, size)).estimate(lambda b: b["arm"] - b["full"])
        held += estimate.lo <= 0.1 <= estimate.hi
    assert held >= 92


def test_arms_judged_on_different_documents_are_refused(drawn) -> None:
    rows = table(*drawn)
    with pytest.raises(ValueError, match="same excerpts"):
        PairedBootstrap(rows.iloc[1:])
    rows.loc[0, "bytes"] += 1
    with pytest.raises(ValueError, match="same excerpts"):
        PairedBootstrap(rows)


def test_few_documents_and_undefined_figures_have_no_interval(drawn) -> None:
    bits, size = drawn
    few = PairedBootstrap(table({arm: values[:5] for arm, values in bits.items()}, size[:5]))
    estimate = few.estimate(lambda b: b["full"])
    assert estimate.value and estimate.lo is None and "5 documents" in estimate.reason
    bootstrap = PairedBootstrap(table(bits, size))
    assert bootstrap.estimate(lambda b: b["full"] * np.nan).value is None
    half = bootstrap.estimate(lambda b: np.where(b["full"] > 2.0, np.nan, b["full"]))
    if half.value is not None:
        assert half.lo is None and "draws" in half.reason
