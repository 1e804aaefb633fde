import numpy as np
import pytest

from workbench.errors import ConfigError
from workbench.load.arrivals import declared_requests, gamma_arrivals, lognormal_lengths
from workbench.pilot.sections.profile_load import Synthetic


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_declared_rate_and_cv(cv):
    times = gamma_arrivals(20_000.0, 5.0, cv, np.random.default_rng(1))
    gaps = np.diff(times)
    assert 1 / gaps.mean() == pytest.approx(5.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    assert times[-1] < 20_000.0
    # The series is not cut short: what lies after the last request is about one mean gap.
    assert 20_000.0 - times[-1] < 100 * gaps.mean() * max(1, cv**2)


def test_lengths_have_the_declared_quantiles():
    lengths = lognormal_lengths(200_000, 512, 3000, np.random.default_rng(2))
    assert np.quantile(lengths, [0.5, 0.99]) == pytest.approx([512, 3000], rel=0.02)
    assert lengths.min() >= 1


def test_the_same_seed_declares_the_same_load_and_parts_do_not_disturb_each_other():
    base = declared_requests(Synthetic(), 7)
    again = declared_requests(Synthetic(), 7)
    assert all((base[name] == again[name]).all() for name in base)
    other = declared_requests(Synthetic(), 8)["start_s"]
    assert len(other) != len(base["start_s"]) or (other != base["start_s"]).any()
    longer_prompts = declared_requests(Synthetic(prompt_tokens_p99=9000), 7)
    assert (longer_prompts["start_s"] == base["start_s"]).all()
    assert (longer_prompts["output_tokens"] == base["output_tokens"]).all()
    assert (longer_prompts["prompt_tokens"] != base["prompt_tokens"]).any()


def test_a_declared_load_has_its_batch_share():
    classes = declared_requests(Synthetic(duration_s=2000.0, batch_share=0.3), 1)["class"]
    assert (classes == 2).mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (Synthetic(duration_s=0.001), "0 requests in 0.001 s"),
        (Synthetic(rate_per_s=1e9), "3e\\+11 requests"),
    ],
)
def test_a_declared_load_that_makes_no_profile_is_a_clear_error(declared, words):
    with pytest.raises(ConfigError, match=words):
        declared_requests(declared, 1)


def test_descending_quantiles_are_refused():
    with pytest.raises(ValueError, match=r"prompt_tokens_p99 \(100\) must not be below"):
        Synthetic(prompt_tokens_p99=100)
