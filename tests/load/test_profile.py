"""The profile's figures, its windows, pieces and schedules, and requests drawn from it."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError
from workbench.files import write_json
from workbench.load.lengths import Counted, cell_bounds, cells_of
from workbench.load.piece import LengthLimits
from workbench.load.profile import REQUESTS, LoadProfile, generated_trace, read_summary

FREE = LengthLimits()


def bursts(seed=0, n=6000) -> np.ndarray:
    """A busy hour and a quiet one in turn, Gamma gaps with CV 3 in both."""
    random = np.random.default_rng(seed)
    gaps = random.gamma(1 / 9, 9.0, n) * np.where(np.arange(n) // 1000 % 2, 0.2, 1.0)
    return np.concatenate([[0.0], np.cumsum(gaps)])


def test_rate_and_gap_cv_are_those_of_the_gaps(profiled):
    made = profiled([0, 1, 2, 6])
    assert made.rate_per_s == pytest.approx(0.5)
    assert made.gap_cv == pytest.approx(np.std([1, 1, 4]) / 2)
    times = bursts()
    gaps = np.diff(times)
    made = profiled(times)
    assert made.gap_cv == pytest.approx(gaps.std() / gaps.mean())
    assert made.summary["gaps"]["autocorrelation"] == pytest.approx(
        np.corrcoef(gaps[1:], gaps[:-1])[0, 1], abs=0.01
    )
    counts = np.bincount((times // 60).astype(int))[: int(times[-1] // 60)]
    (found,) = [d for d in made.summary["dispersion"] if d["window_s"] == 60]
    assert found["index"] == pytest.approx(counts.var() / counts.mean())
    assert found["p95"] == np.quantile(counts, 0.95)


def test_windows_hold_every_request_once_and_know_a_short_last_window(profiled):
    made = profiled([0, 1, 2, 11, 25], [10, 600, 10, 10, 10])
    windows = made.rate_windows(10.0)
    interactive = windows[windows["class"] == "interactive"]
    assert interactive["requests"].tolist() == [2, 1, 1]
    assert interactive["rate_per_s"].tolist() == pytest.approx([0.2, 0.1, 0.2])
    assert windows.loc[windows["class"] == "batch", "requests"].tolist() == [1, 0, 0]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 2**27 - 1), min_size=1, max_size=50))
def test_a_length_lies_in_its_cell_and_cells_are_narrow(lengths):
    tokens = np.array(lengths)
    first, end = cell_bounds(cells_of(tokens))
    assert ((first <= tokens) & (tokens < end)).all()
    assert ((end - first) <= np.maximum(1, tokens / 16)).all()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=300), st.floats(0.01, 0.99))
def test_quantiles_of_counted_values_are_numpy_s(values, q):
    found = Counted(*np.unique(values, return_counts=True))
    assert found.quantile(q) == pytest.approx(np.quantile(values, q))


def test_a_piece_keeps_the_load_s_own_gaps_in_order(profiled):
    made = profiled([0, 1, 2, 6, 7, 8, 15])
    schedule = made.piece("window", 10.0, start_s=1.5).schedule(2.0, FREE)
    assert [r.prompt_tokens for r in schedule] == [300, 400, 500, 600]
    assert [r.intended_s for r in schedule] == pytest.approx([0.25, 2.25, 2.75, 3.25])


def test_a_piece_that_runs_over_the_end_goes_on_at_the_start(profiled):
    made = profiled([0, 1, 2, 6])  # the ring closes with a mean gap of 2 s
    schedule = made.piece("window", 9.0, start_s=5.0).schedule(1.0, FREE)
    assert [r.intended_s for r in schedule] == pytest.approx([1.0, 3.0, 4.0, 5.0])
    assert [r.prompt_tokens for r in schedule] == [400, 100, 200, 300]


def test_a_typical_piece_is_bursty_where_the_load_is_and_says_what_it_lost(profiled):
    made = profiled(bursts())
    long = made.piece("typical", made.span_s / 3)
    assert long.fidelity.lost == []
    assert long.fidelity.piece_gap_cv == pytest.approx(made.gap_cv, rel=0.1)
    peak = made.piece("peak", 60.0)
    assert len(peak.requests) > 3 * 60 * made.rate_per_s
    assert any("requests in the replayed piece" in text for text in peak.fidelity.lost)
    lonely = profiled([0, 1000, 2000, 2001]).piece("window", 1.5, start_s=1000.0)
    assert "too few requests" in lonely.fidelity.lost[0]


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    gaps=st.lists(st.floats(0.0, 50.0), min_size=2, max_size=40).filter(lambda g: sum(g) > 0.5),
    length_s=st.floats(1.0, 300.0),
    kind=st.sampled_from(["typical", "peak"]),
)
def test_any_piece_is_ordered_within_its_length_near_its_rate_and_repeatable(
    profiled, gaps, length_s, kind
):
    made = profiled(np.concatenate([[0.0], np.cumsum(gaps)]))
    try:
        piece = made.piece(kind, length_s)
    except ConfigError:
        return
    times = [r.intended_s for r in piece.schedule(1.0, FREE)]
    assert all(a <= b for a, b in itertools.pairwise(times))
    assert times[0] >= 0
    assert times[-1] <= length_s * (1 + 1e-9)
    # Whole turns of the ring hold exactly their share; only the rest of a turn can differ.
    assert abs(len(times) - length_s * made.rate_per_s) <= made.summary["requests"] + 1
    again = made.piece(kind, length_s)
    assert again.to_json() == piece.to_json()


def test_a_piece_without_any_request_or_with_too_many_is_a_clear_error(profiled):
    made = profiled([0, 1000, 2000])
    with pytest.raises(ConfigError, match="no request falls into a replay"):
        made.piece("window", 1.0, start_s=10.0)
    with pytest.raises(ConfigError, match=r"has 1e\+300 requests\n.*allowed: 1000000\n"):
        made.piece("typical", 1e303)
    with pytest.raises(ConfigError, match="piece_start_s"):
        made.piece("window", 10.0, start_s=2000.0)


def test_lengths_beyond_the_limits_are_cut_marked_and_counted(profiled):
    made = profiled([0, 1, 2, 3], [10, 80, 10, 300], prompts=[100, 200, 900, 900])
    assert made.cut_share(FREE) == (0, 4)
    assert made.cut_share(LengthLimits(context=280)) == (2, 4)
    schedule = made.piece("window", 4.0).schedule(1.0, LengthLimits(context=280))
    assert [(r.prompt_tokens, r.output_tokens, r.cut) for r in schedule] == [
        (100, 10, False),
        (200, 80, False),
        (270, 10, True),
        (140, 140, True),
    ]
    both = LengthLimits(prompt_tokens=150, output_tokens=50)
    assert made.cut_share(both) == (3, 4)


def test_requests_drawn_from_the_small_file_are_like_the_load_at_any_scale(profiled, tmp_path):
    random = np.random.default_rng(4)
    times = bursts(3, 20_000)
    prompts = random.lognormal(6, 1, len(times)).astype(int) + 1
    outputs = np.maximum(1, prompts // 4 + random.integers(0, 50, len(times)))
    made = profiled(times, outputs.tolist(), prompts=prompts)
    path = tmp_path / "shared.json"
    write_json(path, made.summary)
    assert path.stat().st_size < 400_000
    for scale in (1.0, 0.5):
        folder = tmp_path / str(scale)
        folder.mkdir()
        trace = generated_trace(read_summary(path), made.span_s, scale, 5, folder / REQUESTS)
        drawn = LoadProfile.of(trace, 60.0, folder)
        assert drawn.kind == "modelled"
        assert drawn.rate_per_s == pytest.approx(scale * made.rate_per_s, rel=0.1)
        assert drawn.gap_cv == pytest.approx(made.gap_cv, rel=0.2)
        for quantile in ("p50", "p95"):
            for column in ("prompt_tokens", "output_tokens"):
                own, theirs = (p.summary[column]["quantiles"][quantile] for p in (made, drawn))
                assert theirs == pytest.approx(own, rel=0.12)
        lengths = drawn.requests[["prompt_tokens", "output_tokens"]].corr("spearman").iloc[0, 1]
        assert lengths > 0.95
    (own,) = [d for d in made.summary["dispersion"] if d["window_s"] == 60]
    folder = tmp_path / "1.0"
    (theirs,) = [d for d in LoadProfile.at(folder).summary["dispersion"] if d["window_s"] == 60]
    assert theirs["index"] == pytest.approx(own["index"], rel=0.3)


def test_a_file_that_is_no_profile_is_a_clear_error(tmp_path):
    for text in ("", "[]", "{}", '{"version": 1}', "\x00"):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(ConfigError, match="no load profile"):
            read_summary(tmp_path / "p.json")
