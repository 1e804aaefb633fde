"""Inputs as people have them, with the right values (``../shared``, where it is there)."""

import pytest

from workbench.errors import ConfigError
from workbench.load.profile import LoadProfile
from workbench.paths import PROJECT

SHARED = PROJECT.parent / "shared"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")
OWN = {"time": "arrived_at", "prompt": "in_tok", "output": "out_tok", "tenant": "tenant"}


@pytest.mark.parametrize(
    ("name", "n", "rate", "cv", "prompt", "output"),
    [
        ("azure_llm_2023_code.csv", 8819, 2.57, 13.2, (1469, 7436), (13, 252)),
        ("azure_llm_2023_conv.csv", 19366, 5.53, 1.09, (1020, 4142), (129, 601)),
    ],
)
def test_the_published_traces_have_their_published_figures(
    read, tmp_path, name, n, rate, cv, prompt, output
):
    profile = LoadProfile.of(read(SHARED / "data" / name), 60.0, tmp_path)
    summary = profile.summary
    assert summary["requests"] == n
    assert profile.rate_per_s == pytest.approx(rate, abs=0.005)
    assert profile.gap_cv == pytest.approx(cv, rel=0.005)
    for column, (p50, p99) in (("prompt_tokens", prompt), ("output_tokens", output)):
        for quantile, published in (("p50", p50), ("p99", p99)):
            value = summary[column]["quantiles"][quantile]
            assert value == pytest.approx(published, abs=1)
    assert not summary["notes"]


@pytest.mark.parametrize(
    ("name", "section", "rate", "note"),
    [
        ("trace_seconds.jsonl", {}, 2.26, ""),
        ("requests_some_failed.jsonl", {}, 1.15, "5 of 100 requests failed (error 429: 5)"),
        ("azure_local_time_autumn.csv", {"time_zone": "Europe/Berlin"}, 0.159, "at another hour"),
        ("azure_local_time_autumn.csv", {"time_zone": "Europe/London"}, 0.159, ""),
        ("own_columns.csv", {"columns": OWN}, 1.376, "5 of 80 requests failed (status 429: 5)"),
        ("own_columns.csv", {"columns": OWN, "delimiter": ";", "decimal": ","}, 1.376, "1.46/s"),
    ],
)
def test_a_case_has_its_right_rate(read, name, section, rate, note):
    trace = read(SHARED / "cases" / name, **section)
    start_s = trace.store.frame()["start_s"]
    assert (len(start_s) - 1) / start_s.iloc[-1] == pytest.approx(rate, rel=0.005)
    assert note in " ".join(trace.notes)


def test_prompts_from_a_cache_are_counted_in(read):
    trace = read(SHARED / "cases" / "gateway_cached_prompt.jsonl")
    assert trace.store.frame()["prompt_tokens"].median() == pytest.approx(10_000, rel=0.05)


def test_a_local_clock_is_a_question(read):
    with pytest.raises(ConfigError, match="the clock goes back") as caught:
        read(SHARED / "cases" / "azure_local_time_autumn.csv")
    assert "Europe/Berlin" in caught.value.next_step


def test_the_code_trace_s_bursts_survive_into_a_piece_or_are_said_to_be_lost(read, tmp_path):
    profile = LoadProfile.of(read(SHARED / "data/azure_llm_2023_code.csv"), 60.0, tmp_path)
    long = profile.piece("typical", 300.0).fidelity
    assert long.lost == []
    assert long.piece_gap_cv == pytest.approx(13.15, rel=0.1)
    assert long.piece_p95 == pytest.approx(long.p95, rel=0.1)
    short = profile.piece("typical", 20.0).fidelity
    assert any("less bursty than the load" in text for text in short.lost)
    assert profile.piece("peak", 60.0).fidelity.piece_rate_per_s > 4 * profile.rate_per_s
