"""Sampling: the distribution it draws from, seeds, and what a request may ask."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from workbench.engine.request import GenerationRequest
from workbench.engine.sampling import Sampler, _nucleus


def draws(logits: np.ndarray, count: int, **fields) -> np.ndarray:
    sampler = Sampler(GenerationRequest((1,), 1, **fields), frozenset())
    return np.array([sampler.choose(logits.copy(), 0) for _ in range(count)])


def test_greedy_takes_the_most_likely() -> None:
    assert set(draws(np.array([0.1, 3.0, -1.0]), 5)) == {1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_draws_from_the_softmax(temperature: float) -> None:
    logits = np.array([0.0, 1.0, 2.0, -1.0])
    weights = np.exp(logits / temperature)
    counts = np.bincount(draws(logits, 4000, temperature=temperature, seed=1), minlength=4)
    assert stats.chisquare(counts, 4000 * weights / weights.sum()).pvalue > 1e-3


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = np.log(np.array([0.05, 0.4, 0.3, 0.15, 0.1]))
    assert set(draws(logits, 500, temperature=1.0, top_p=0.69, seed=2)) == {1, 2}
    assert set(draws(logits, 500, temperature=1.0, top_p=0.71, seed=2)) == {1, 2, 3}


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.1, 8.0])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort(
    share: float, spread: float
) -> None:
    """Flat distributions make the search for the nucleus take several looks."""
    weights = np.exp(spread * np.random.default_rng(0).normal(size=20_000))
    enough = share * weights.sum()
    found = _nucleus(weights, enough)
    ordered = np.sort(weights)[::-1]
    fewest = min(int(ordered.cumsum().searchsorted(enough)) + 1, len(weights))
    assert len(found) == len(set(found.tolist())) == fewest
    np.testing.assert_allclose(np.sort(weights[found])[::-1], ordered[:fewest])


def test_top_k_draws_from_the_likeliest_and_top_p_from_those() -> None:
    probability = np.array([0.05, 0.4, 0.3, 0.15, 0.1])
    counts = np.bincount(draws(np.log(probability), 3000, temperature=1.0, top_k=2, seed=2))
    assert set(np.flatnonzero(counts)) == {1, 2}
    assert stats.chisquare(counts[1:3], 3000 * np.array([0.4, 0.3]) / 0.7).pvalue > 1e-3
    # 0.4 of the 0.85 that three tokens hold is 0.47 of them, and 0.35 alone of all.
    both = {"temperature": 1.0, "top_k": 3, "seed": 2}
    assert set(draws(np.log(probability), 300, **both, top_p=0.46)) == {1}
    assert set(draws(np.log(probability), 300, **both, top_p=0.48)) == {1, 2}
    same = [draws(np.log(probability), 50, temperature=1.0, seed=5, top_k=k) for k in (0, 5, 9)]
    assert (same[0] == same[1]).all() and (same[0] == same[2]).all()


def test_penalties_are_taken_off_what_was_put_out() -> None:
    """One for each token that is there, and one for each time; the prompt's do not count but
    those that are output of before."""
    logits = np.array([5.0, 4.4, 3.9, -9.0])

    def chosen(count: int, **fields) -> list[int]:
        request = GenerationRequest((0, 1), 9, **fields)
        sampler = Sampler(request, frozenset())
        return [sampler.choose(logits.copy(), done) for done in range(count)]

    assert chosen(3) == [0, 0, 0]
    assert chosen(4, presence_penalty=1.0) == [0, 1, 0, 0]
    # 5.0 4.4 3.9; 4.0 4.4 3.9; 4.0 3.4 3.9; 3.0 3.4 3.9; 3.0 3.4 2.9
    assert chosen(5, frequency_penalty=1.0) == [0, 1, 0, 2, 1]
    assert chosen(2, presence_penalty=1.0, given_output=1) == [0, 0]
    assert chosen(3, frequency_penalty=-1.0) == [0, 0, 0]


def test_a_seed_repeats_and_none_does_not() -> None:
    logits = np.zeros(1000)
    again = [draws(logits, 20, temperature=1.0, seed=7).tolist() for _ in range(2)]
    assert again[0] == again[1]
    assert draws(logits, 20, temperature=1.0).tolist() != again[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_tokens": ()}, "no tokens"),
        ({"max_tokens": -1}, "max_tokens is -1; allowed: 0 or more"),
        ({"top_k": -1}, "top_k is -1; allowed: 0"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf; allowed: a finite"),
        ({"logprobs": -1}, "logprobs is -1; allowed: 0 or more"),
        ({"grammar": "{}", "ignore_eos": True}, "grammar with min_tokens or ignore_eos"),
        ({"given_output": 1}, "given_output is 1; allowed: 0 to 0"),
        ({"min_tokens": 9}, r"allowed: 0 to max_tokens \(4\)"),
        ({"temperature": -1.0}, "temperature is -1.0; allowed: 0 or more"),
        ({"temperature": float("nan")}, "allowed: 0 or more"),
        ({"top_p": 0.0}, "allowed: above 0, at most 1"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationRequest(**{"prompt_tokens": (1,), "max_tokens": 4, **fields})
