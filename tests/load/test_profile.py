import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.load.profile import LengthLimits, LoadProfile, replay_schedule
from workbench.load.trace import Trace

ANY_LENGTH = LengthLimits(10**6, 10**6)


def profile(times_s, outputs=None, classes=None) -> LoadProfile:
    n = len(times_s)
    requests = pd.DataFrame(
        {
            "start_s": np.asarray(times_s, float),
            "prompt_tokens": np.arange(1, n + 1) * 100,
            "output_tokens": outputs or [10] * n,
            "class": classes or [""] * n,
        }
    )
    return LoadProfile.of(Trace(requests, "test", "measured"), 512)


def test_a_request_is_in_the_class_the_trace_says_else_in_that_of_its_output():
    made = profile([0, 1, 2, 3], [10, 513, 513, 10], ["", "", "interactive", "batch"])
    assert made.requests["class"].tolist() == ["interactive", "batch", "interactive", "batch"]


def test_rate_and_gap_cv_are_those_of_the_gaps():
    made = profile([0, 1, 2, 6])
    assert made.rate_per_s == pytest.approx(0.5)
    assert made.gap_cv == pytest.approx(np.std([1, 1, 4]) / 2)


def test_windows_hold_every_request_once_and_know_a_short_last_window():
    made = profile([0, 1, 2, 11, 25], [10, 600, 10, 10, 10])
    windows = made.rate_windows(10.0)
    interactive = windows[windows["class"] == "interactive"]
    assert interactive["requests"].tolist() == [2, 1, 1]
    assert interactive["rate_per_s"].tolist() == pytest.approx([0.2, 0.1, 0.2])
    assert windows.loc[windows["class"] == "batch", "requests"].tolist() == [1, 0, 0]


def test_a_replay_keeps_the_trace_s_own_gaps_in_order():
    made = profile([0, 1, 2, 6, 7, 8, 15])
    schedule = replay_schedule(made, duration_s=5.0, speedup=2.0, seed=3, limits=ANY_LENGTH)
    rows = [r.prompt_tokens // 100 - 1 for r in schedule]
    assert rows == [(rows[0] + i) % 7 for i in range(len(rows))]
    times = made.requests["start_s"].to_numpy()
    for (a, b), (i, j) in zip(
        np.lib.stride_tricks.sliding_window_view([r.intended_s for r in schedule], 2),
        itertools.pairwise(rows),
        strict=True,
    ):
        if j > i:
            assert b - a == pytest.approx((times[j] - times[i]) / 2.0)


def test_lengths_beyond_the_limits_are_cut_and_marked():
    made = profile([0, 1, 2, 3], [10, 80, 10, 80])
    schedule = replay_schedule(made, 100.0, 1.0, seed=1, limits=LengthLimits(250, 50))
    assert max(r.prompt_tokens for r in schedule) == 250
    assert max(r.output_tokens for r in schedule) == 50
    assert all(r.cut == (r.prompt_tokens == 250 or r.output_tokens == 50) for r in schedule)
    assert not all(r.cut for r in schedule)


@settings(deadline=None, max_examples=50)
@given(
    gaps=st.lists(st.floats(0.0, 50.0), min_size=2, max_size=40).filter(lambda g: sum(g) > 0.5),
    duration_s=st.floats(1.0, 200.0),
    speedup=st.floats(0.1, 20.0),
    seed=st.integers(0, 5),
)
def test_any_replay_is_ordered_within_its_duration_near_its_rate_and_repeatable(
    gaps, duration_s, speedup, seed
):
    made = profile(np.concatenate([[0.0], np.cumsum(gaps)]))
    arguments = (made, duration_s, speedup, seed, ANY_LENGTH)
    try:
        schedule = replay_schedule(*arguments)
    except ConfigError:
        return
    times = [r.intended_s for r in schedule]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= duration_s * (1 + 1e-9)
    # Whole turns of the ring hold exactly their share; only the rest of a turn can differ.
    assert abs(len(times) - duration_s * speedup * made.rate_per_s) <= len(made.requests)
    assert schedule == replay_schedule(*arguments)


def test_a_replay_too_short_for_any_request_is_a_clear_error():
    made = profile([0, 1000, 2000])
    with pytest.raises(ConfigError, match="no request falls into a replay"):
        replay_schedule(made, 0.001, 1.0, 0, ANY_LENGTH)


def test_a_replay_of_more_requests_than_can_be_kept_is_a_clear_error():
    made = profile([0, 1000, 2000])
    with pytest.raises(ConfigError, match=r"has 1e\+300 requests\n.*allowed: 1000000\n"):
        replay_schedule(made, 1.0, 1e303, 0, ANY_LENGTH)
