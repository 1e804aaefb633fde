"""Known cases, and small simulations of how often an interval holds the truth."""

import math

import numpy as np
import pandas as pd
import pytest

from workbench.measure.statistics import (
    bits_per_byte,
    bits_per_byte_difference,
    bits_per_byte_difference_over_seeds,
    block_means,
    count,
    fewest_for_quantile,
    holm,
    mean,
    mean_ratio,
    quantile,
    share,
    smallest_visible_effect,
    visible_in,
)

TRIALS = 300
SLACK = 3 * math.sqrt(0.95 * 0.05 / TRIALS)
"""Three standard errors of a share of 0.95 over the trials of a simulation."""


def coverage(interval, truth: float) -> float:
    """Share of trials whose interval holds the truth; ``interval(random)`` makes one."""
    random = np.random.default_rng(0)
    made = [interval(random) for _ in range(TRIALS)]
    return float(np.mean([e.lo <= truth <= e.hi for e in made]))


def test_bits_per_byte_is_a_ratio_of_sums_not_a_mean_of_ratios():
    nats, size = np.array([1.0] * 8 + [50.0]), np.array([1] * 8 + [100])
    assert bits_per_byte(nats, size).value == pytest.approx(58 / 108 / math.log(2))


def test_pairing_removes_what_is_hard_for_both_models():
    random = np.random.default_rng(1)
    size = random.integers(200, 5000, 64)
    difficulty = random.gamma(4, 0.3, 64)
    a = difficulty * size
    b = a + (0.02 + random.normal(0, 0.005, 64)) * size
    paired = bits_per_byte_difference(a, b, size)
    assert paired.value == pytest.approx(0.02 / math.log(2), abs=0.002)
    alone = bits_per_byte(b, size)
    assert (paired.hi - paired.lo) < 0.05 * (alone.hi - alone.lo)
    back = bits_per_byte_difference(b, a, size)
    assert back.value == pytest.approx(-paired.value)


def test_the_paired_bootstrap_covers_the_true_difference():
    def one(random):
        size = random.integers(100, 4000, 64)
        gap = random.exponential(0.03, 64)
        a = random.gamma(4, 0.3, 64) * size
        return bits_per_byte_difference(a, a + gap * size, size, resamples=400, seed=1)

    assert coverage(one, 0.03 / math.log(2)) > 0.95 - SLACK


def test_resampling_whole_sources_is_wider_when_documents_of_a_source_resemble_each_other():
    random = np.random.default_rng(2)
    source = np.repeat(np.arange(64), 20)
    nats = 100 * (1 + random.normal(0, 0.3, 64)[source] + random.normal(0, 0.02, 1280))
    size = np.full(1280, 100)
    by_document = bits_per_byte(nats, size)
    by_source = bits_per_byte(nats, size, groups=source)
    assert by_source.n == 64
    assert by_source.value == pytest.approx(by_document.value)
    assert by_source.hi - by_source.lo > 2 * (by_document.hi - by_document.lo)


def test_documents_that_carry_no_interval_say_why():
    few = bits_per_byte_difference([1, 2, 3], [2, 3, 5], [1, 1, 1])
    assert (few.lo, few.hi) == (None, None)
    assert few.reason == "no interval: 3 documents, a bootstrap needs 64"
    alone = bits_per_byte_difference([1, 2, 3], [2, 3, 5], [1, 1, 1], groups=["one"] * 3)
    assert (alone.lo, alone.hi) == (None, None), "one document has one ratio, and no interval"
    assert bits_per_byte_difference([1, 2], [2, 3], [1, 1]).hi is None, "nor have two alike"
    none = bits_per_byte([], [])
    assert none.value is None
    assert none.metric("bits_per_byte", "bits", "test").kind == "not measured"
    infinite = bits_per_byte([1.0, math.inf], [1, 1])
    assert infinite.reason == "one of the documents has a loss that is not finite"


def test_identical_models_differ_by_exactly_nothing():
    nats = np.random.default_rng(3).gamma(4, 1, 20)
    same = bits_per_byte_difference(nats, nats, np.full(20, 50))
    assert (same.value, same.lo, same.hi) == (0.0, 0.0, 0.0)


def test_a_ratio_over_blocks_cancels_the_drift_between_blocks():
    drift = np.array([1.0, 1.5, 3.0, 0.7, 1.1, 0.9])
    ratio = mean_ratio(2.0 * drift, drift)
    assert ratio.value == pytest.approx(2.0)
    assert (ratio.lo, ratio.hi) == pytest.approx((2.0, 2.0))


def test_a_ratio_and_its_inverse_tell_the_same_story():
    a, b = np.array([2.0, 2.2, 1.9, 2.1, 2.0, 2.3]), np.array([1.0, 1.05, 0.97, 1.0, 1.1, 0.9])
    one, other = mean_ratio(a, b), mean_ratio(b, a)
    assert one.value * other.value == pytest.approx(1.0)
    assert one.lo * other.hi == pytest.approx(1.0)


def test_the_interval_of_a_ratio_covers_the_truth():
    def one(random):
        drift = random.lognormal(0, 0.3, 6)
        return mean_ratio(
            1.3 * drift * random.lognormal(0, 0.05, 6), drift * random.lognormal(0, 0.05, 6)
        )

    assert coverage(one, 1.3) == pytest.approx(0.95, abs=SLACK)


def test_two_noisy_blocks_give_a_ratio_and_the_reason_why_no_interval():
    """Student's t over these two blocks reached from 0.0001 to 86,257."""
    two = mean_ratio([2.0, 8.0], [1.0, 1.0])
    assert (two.value, two.lo, two.hi) == (4.0, None, None)
    assert two.reason == two.metric("speedup", "x", "timed").reason
    assert two.reason == "no interval: 2 blocks, an interval needs 6"


def test_an_interval_of_times_stays_above_zero_however_noisy_they_are():
    noisy = mean([1.0, 1.0, 1.0, 1.0, 1.0, 30.0])
    assert 0 < noisy.lo < noisy.value < noisy.hi
    signed = mean([-1.0, 1.0, 2.0, 0.5, 1.0, 30.0])
    assert signed.lo < 0


def test_a_block_with_a_missing_arm_or_a_nought_is_left_out():
    timings = pd.DataFrame(
        {
            "block": [0, 0, 0, 0, 1, 2, 2],
            "arm": ["a", "b", "b", "a", "a", "a", "b"],
            "seconds": [1.0, 2.0, 8.0, 4.0, 5.0, 0.0, 1.0],
        }
    )
    means = block_means(timings)
    assert means.index.tolist() == [0]
    assert means.loc[0].to_dict() == pytest.approx({"a": 2.0, "b": 4.0})


def test_the_smallest_visible_effect_is_found_in_four_of_five_sessions():
    random = np.random.default_rng(5)

    def effect_of(noise: np.ndarray) -> float:
        return smallest_visible_effect(noise[0], noise[1]).value

    noises = random.lognormal(0, 0.02, (TRIALS, 2, 12))
    typical = math.expm1(np.mean([abs(math.log1p(abs(effect_of(noise)))) for noise in noises]))
    found = []
    for noise in random.lognormal(0, 0.02, (TRIALS, 2, 12)):
        ratio = mean_ratio((1 + typical) * noise[0], noise[1])
        found.append(not ratio.lo <= 1.0 <= ratio.hi)
    # The lean of the A/A comparison comes on top, so it is a little more than four of five.
    assert 0.8 - SLACK < np.mean(found) < 0.97


def test_what_a_ratio_s_own_scatter_says_is_found_in_four_of_five_sessions():
    """Whatever the true ratio is: only its scatter counts."""
    draw = np.random.default_rng(7)
    found = 0
    for _ in range(600):
        logs = draw.normal(0, 0.02, (2, 8))
        effect = visible_in(mean_ratio(np.exp(0.3 + logs[0]), np.ones(8))).value
        other = mean_ratio(np.exp(math.log1p(effect) + logs[1]), np.ones(8))
        found += other.lo > 1
    assert found / 600 == pytest.approx(0.8, abs=0.05)
    assert "needs 6 whole blocks, got 3" in visible_in(mean_ratio([1.0] * 3, [1.0] * 3)).reason


def test_a_favour_to_one_place_is_part_of_the_smallest_visible_effect_with_its_sign():
    second = np.array([1.0, 1.001, 0.999, 1.0, 1.0, 1.0])
    assert smallest_visible_effect(second, 1.05 * second).value >= 0.05
    assert smallest_visible_effect(1.05 * second, second).value <= -0.05


def test_an_a_a_comparison_needs_six_blocks():
    lone = smallest_visible_effect([1.0], [1.0])
    assert lone.value is None
    assert "needs 6 whole blocks, got 1" in lone.reason


def test_of_fifteen_comparisons_of_equal_arms_a_false_one_is_rare_after_holm():
    random = np.random.default_rng(6)
    alone, corrected = [], []
    for _ in range(TRIALS):
        arms = random.lognormal(0, 0.02, (16, 8))
        p_values = [mean_ratio(arms[0], arm).p_value for arm in arms[1:]]
        alone.append(min(p_values) < 0.05)
        corrected.append(any(holm(p_values)))
    assert np.mean(alone) > 0.3
    assert np.mean(corrected) <= 0.05 + SLACK


def test_holm_steps_down_until_one_comparison_does_not_differ():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([]) == []


@pytest.mark.parametrize(("q", "needed"), [(0.99, 368), (0.95, 72), (0.9, 36), (0.5, 6)])
def test_a_tail_needs_its_published_number_of_observations(q, needed):
    assert fewest_for_quantile(q) == needed
    short = quantile(np.arange(needed - 1), q)
    assert short.value is not None
    assert (short.lo, short.hi) == (None, None)
    assert f"needs {needed}" in short.reason
    enough = quantile(np.arange(needed), q)
    assert enough.lo <= enough.value <= enough.hi


def test_the_interval_of_a_median_of_twenty_lies_between_its_sixth_and_fifteenth():
    median = quantile(np.arange(1, 21), 0.5)
    assert (median.lo, median.value, median.hi) == (6, 10.5, 15)


@pytest.mark.parametrize(("q", "n"), [(0.5, 15), (0.95, 200)])
def test_the_interval_of_a_quantile_covers_the_truth_for_a_skewed_distribution(q, n):
    truth = -math.log(1 - q)
    covered = coverage(lambda random: quantile(random.exponential(1, n), q), truth)
    assert covered > 0.95 - SLACK


def test_a_share_and_a_count_have_the_exact_interval():
    some = share(8, 10)
    assert (some.lo, some.hi) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert share(0, 0).value is None
    lost = count(0, 41)
    assert (lost.value, lost.lo, lost.basis) == (0.0, 0.0, "count")
    assert lost.hi == pytest.approx(41 * (1 - 0.025 ** (1 / 41)))
    assert "0 of 41" in lost.metric("lost_requests", "requests", "replayed").how


def test_an_estimate_becomes_a_metric_with_everything_it_knows():
    metric = quantile(np.arange(100), 0.5).metric("ttft_ms", "ms", "timed", arm="ternary")
    assert metric.value == 49.5
    assert metric.n == 100
    assert metric.lo < metric.value < metric.hi
    assert metric.how == "timed; order statistics 40 and 61 of 100"
    assert metric.labels == {"arm": "ternary"}


def test_a_gap_over_seeds_holds_the_luck_of_seeds_and_documents() -> None:
    """Gaps of seeds spread by 0.02, those of documents by 0.1: the interval of one seed alone
    would miss the mean of all seeds in most cases."""
    draw, size, misses, alone = np.random.default_rng(0), np.full(64, 1000.0), 0, 0
    for _ in range(200):
        document = draw.normal(0.05, 0.1, 64)
        seeds = draw.normal(0.0, 0.02, 3)
        first = draw.gamma(20.0, 50.0, 64)
        second = [first + 1000 * math.log(2) * (document + seed) for seed in seeds]
        over = bits_per_byte_difference_over_seeds([first] * 3, second, size)
        misses += not over.lo <= 0.05 <= over.hi
        one = bits_per_byte_difference(first, second[0], size, resamples=200)
        alone += not one.lo <= 0.05 <= one.hi
    assert misses <= 16 < alone  # 95 % of 200, with the luck of the simulation
    assert over.n == 3 and "t over 3 seeds" in over.method
    single = bits_per_byte_difference_over_seeds([first], second[:1], size)
    assert single.lo is None and "one seed" in single.reason
