"""What holds for all figures: a cross is a loss, wide intervals get a logarithmic axis, and what
compares shows everything."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from workbench.figures import compare, deploy_rollback, readiness, report, theme, tuning
from workbench.figures.page import stage_figures
from workbench.records.metric import Metric
from workbench.report.compare import compare as compare_runs
from workbench.wording.labels import label_text, labels_of


def test_a_cross_is_a_loss_and_nothing_else() -> None:
    symbols = {
        *theme.ARM_SYMBOLS.values(), *report.OUTCOME_SYMBOLS.values(), theme.UNKNOWN_SYMBOL,
        *tuning.OUTCOME_SYMBOLS.values(), *compare.SYMBOLS.values(),
    }  # fmt: skip
    assert not {symbol for symbol in symbols if symbol.split("-")[0] in ("x", "cross")}


def test_the_crosses_of_the_timeline_are_the_lost_requests(make_run) -> None:
    record = make_run().record("deploy_rollback")
    rows = record.table("requests")
    for lost in (0, 3):
        rows.loc[rows.index[:lost], "first_token_s"] = None
        record.save_table("requests", rows)
        drawn = deploy_rollback.timeline(record)
        crosses = [trace for trace in drawn.data if trace.marker.symbol == theme.LOST]
        assert sum(len(trace.x) for trace in crosses) == rows["first_token_s"].isna().sum()


@pytest.mark.parametrize(("lo", "hi", "kind"), [(3.0, 3.7, None), (0.000128, 86_257.0, "log")])
def test_a_wide_interval_makes_a_logarithmic_axis(make_run, lo, hi, kind) -> None:
    record = make_run(stages=("readiness",)).record("readiness")
    record.metrics = [
        replace(m, value=3.33, lo=lo, hi=hi) if m.name == "decode_speedup" else m
        for m in record.metrics
    ]
    axis = readiness.probe_gains(record).layout.xaxis
    assert axis.type == kind
    if kind == "log":
        assert len(axis.tickvals) <= 14, "names of ticks would run into each other"


def test_zero_has_no_place_on_a_logarithmic_axis() -> None:
    metric = Metric("lost_requests", 5.0, "requests", "counted", lo=0.0, hi=90_000.0, n=9)
    assert not theme.wide([metric])


def test_a_phase_without_a_figure_says_why(make_run) -> None:
    record = make_run().record("deploy_rollback")
    record.metrics = [
        replace(m, value=None, lo=None, hi=None, kind="not measured", reason="too few")
        if m.labels.get("phase") == "switch"
        else m
        for m in record.metrics
    ]
    drawn = deploy_rollback.phases(record)
    assert len(drawn.layout.xaxis.categoryarray) == 3
    assert "too few" in drawn.layout.annotations[0].text


def test_every_figure_of_a_comparison_is_shown_and_verdicts_come_with_it(make_run) -> None:
    found = compare_runs([make_run(), make_run(seed=2)])
    every = compare.every_figure(found)
    assert every.html.count("<tr>") == len(found.figures) + 1
    states = re.findall(r"<td>(differs|no interval|within intervals|same)</td>", every.html)
    assert states == sorted(
        states, key=["differs", "no interval", "within intervals", "same"].index
    )
    few = compare.every_figure(found, search="speed-up trained")
    assert 1 < few.html.count("<tr>") < every.html.count("<tr>")
    verdicts = compare.verdicts(found)
    for name in found.runs:
        assert name in verdicts.html
    assert "passes" in verdicts.html and "Decode speed-up" in verdicts.html
    assert "different questions" not in verdicts.html


def test_names_of_ticks_do_not_run_into_each_other(make_run) -> None:
    drawn = compare.ratios(compare_runs([make_run(), make_run(seed=2)]))
    ends = [value for trace in drawn.data for value in trace.x]
    assert len(drawn.layout.xaxis.tickvals) <= (15 if max(ends) < 1.6 and min(ends) > 0.6 else 11)


def test_labels_with_spaces_are_read_back() -> None:
    labels = {"window": "10 s", "arm": "ternary", "shape": "a=b c"}
    assert labels_of(label_text({k: labels[k] for k in ("window", "arm")})) == {
        "window": "10 s", "arm": "ternary",
    }  # fmt: skip
    assert labels_of("") == {}


def test_the_report_draws_them_all(shared_run) -> None:
    drawn = stage_figures(shared_run.record("readiness"), "en")
    assert drawn and not any(figure.error for figure in drawn)
