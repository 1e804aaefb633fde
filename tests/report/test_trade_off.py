"""The picture of the first screen: every arm that was measured, gates as lines, and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bs4 import BeautifulSoup

from workbench.figures import report as figures
from workbench.figures.theme import ARM_COLOURS
from workbench.records.metric import Metric
from workbench.report.html import write_html
from workbench.report.trade_off import trade_off, trade_off_html
from workbench.report.trade_off_svg import GateLine, Half, Mark, half_svg
from workbench.wording.numbers import number
from workbench.wording.text import Texts

GATES = """
    - {metric: quality_gap_bits_per_byte, labels: {arm: ternary}, at_most: 0.1}
    - {metric: memory_ratio, labels: {arm: ternary, source: trained}, at_least: 2.0}
    - {metric: memory_ratio, labels: {arm: ternary, source: probe}, at_least: 3.0}
    - {metric: speedup, labels: {arm: ternary, class: interactive_512}, at_least: 1.5}
"""


@pytest.fixture
def run(make_run):
    return make_run(gates=GATES)


def drawn(run, language: str = "en") -> BeautifulSoup:
    texts = Texts(language)
    return BeautifulSoup(trade_off_html(trade_off(run, texts), texts, alone=False), "html.parser")


@pytest.mark.parametrize("language", ["en", "ru"])
def test_every_arm_is_named_and_the_words_say_the_record_s_figures(run, language) -> None:
    tree, texts, record = drawn(run, language), Texts(language), run.record("measure_ab")
    speed_half, memory_half = tree.find_all("svg")
    alt = tree.find(role="img")["aria-label"]
    for arm in ("ternary", "post_training", "int8", "int4"):
        (dot,) = speed_half.find_all(attrs={"data-arm": arm})
        assert dot["fill"] == ARM_COLOURS[arm]
        assert memory_half.find(attrs={"data-arm": arm})
        for name, labels in (
            ("speedup", {"class": "interactive_512"}),
            ("memory_ratio", {"source": "trained"}),
            ("quality_gap_bits_per_byte", {}),
        ):
            value = record.metric(name, arm=arm, **labels).value
            assert texts(f"trade.alt.{name}", value=number(value, language)) in alt
        words = " ".join(text.text for text in speed_half.find_all("text"))
        assert texts.label("arm", arm) in words, "a direct label"
    assert "{" not in str(tree)


def test_a_gate_is_a_line_where_it_judges_what_is_drawn(run) -> None:
    speed_half, memory_half = drawn(run).find_all("svg")
    named = [
        {text.text for text in half.select(".wb-gate-name")} for half in (speed_half, memory_half)
    ]
    assert " ".join(named[0]) and all("at most 0.1" in " ".join(names) for names in named)
    assert len(speed_half.select("path.wb-gate")) == len(memory_half.select("path.wb-gate")) == 2
    said = drawn(run).figcaption.text
    assert "have no line here" in said and "probe" in said, "the probe's gate is not of these"
    assert "trained" not in said.split("no line here")[1]


def test_an_arm_without_a_figure_is_left_out_with_a_word(run) -> None:
    record = run.record("measure_ab")
    record.metrics = [
        replace(m, value=None, lo=None, hi=None, kind="not measured", reason="no time")
        if m.name == "speedup" and m.labels["arm"] == "int8"
        else m
        for m in record.metrics
    ]
    record.save()
    speed_half, memory_half = drawn(run).find_all("svg")
    assert not speed_half.find(attrs={"data-arm": "int8"})
    assert memory_half.find(attrs={"data-arm": "int8"})
    assert "Left out: INT8 without training (not measured: speed)" in drawn(run).figcaption.text


def test_a_run_without_the_session_has_no_picture(make_run) -> None:
    run = make_run(stages=("readiness",))
    assert trade_off(run, Texts()) is None
    assert "wb-trade" not in write_html(run.folder, lambda *_: []).read_text().split("</style>")[1]


def test_the_notebook_shows_the_picture_of_the_page(run) -> None:
    view = figures.trade_off(run.record("report"))
    page = write_html(run.folder, lambda *_: []).read_text()
    assert str(drawn(run).svg)[:400] in str(BeautifulSoup(page, "html.parser"))
    assert "<style>" in view.html and "ternary" in view.text


def test_marks_at_one_place_and_intervals_without_end_are_drawn_within_the_frame() -> None:
    def metric(value: float, lo: float | None = None, hi: float | None = None) -> Metric:
        return Metric("x", value, "", "", lo=lo, hi=hi)

    marks = [
        Mark(f"arm{k}", f"a rather long name {k}", metric(2.0, 0.001, 90_000.0), metric(0.1, None))
        for k in range(6)
    ]
    tree = BeautifulSoup(
        half_svg(Half("x", "y", marks, "base", [GateLine(2, "g")], [GateLine(0, "h")]), "en"),
        "html.parser",
    )
    assert len(tree.select(".wb-dot")) == 6 and "nan" not in str(tree)
    for text in tree.find_all("text"):
        assert 0 <= float(text["x"]) <= 420 and 0 <= float(text["y"]) <= 320
