"""report.html: offline, complete, in both languages, and with hostile or missing input."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from workbench.errors import ConfigError
from workbench.figures import (
    deploy_rollback,
    hybrid_plan,
    measure_ab,
    profile_load,
    readiness,
    train_qat,
)
from workbench.figures.page import stage_figures
from workbench.measure.meters.window import Reason
from workbench.paths import PROJECT
from workbench.report import html, plotly_page
from workbench.report.environment_view import command_of
from workbench.report.html import write_html
from workbench.report.views import missing_rows, result_tables
from workbench.wording.reasons import reason_words
from workbench.wording.text import Texts

TEMPLATES = PROJECT / "workbench" / "report" / "templates"
STAGES = (readiness, profile_load, train_qat, measure_ab, hybrid_plan, deploy_rollback)
DRAWN = sum(len(module.FIGURES) for module in STAGES) + 2
OVERLAPPING = """[...document.querySelectorAll('.draw')]
    .filter(b => b.querySelector('.main-svg').getBoundingClientRect().height
               > b.getBoundingClientRect().height + 1).map(b => b.id)"""
SECTIONS = (
    "summary",
    "gates",
    "claims",
    "results",
    "missing",
    "cost",
    "stages",
    "roadmap",
    "reproduce",
)


@pytest.mark.browser
@pytest.mark.parametrize(("language", "width"), [("en", 1300), ("ru", 390)])
def test_the_page_draws_offline(shared_run, browser, language: str, width: int) -> None:
    page_file = write_html(shared_run.folder, stage_figures, language)
    requests, complaints = [], []
    context = browser.new_context(offline=True, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(page_file.as_uri())
    page.wait_for_function(
        "n => [...document.querySelectorAll('.js-plotly-plot')]"
        ".filter(p => p.querySelector('.main-svg')).length === n",
        arg=DRAWN,
        timeout=30_000,
    )
    assert requests == [page_file.as_uri()]
    assert complaints == []
    scrolled = page.evaluate("document.documentElement.scrollWidth")
    assert scrolled <= width, "the page itself must not scroll sideways"
    assert page.get_attribute("html", "lang") == language
    page.click("#theme")
    page.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")
    page.wait_for_function(
        "() => document.querySelector('.js-plotly-plot')._fullLayout.font.color === '#D9DEE6'"
    )
    assert page.evaluate(OVERLAPPING) == []
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_function(
        "() => [...document.querySelectorAll('.draw')]"
        ".every(b => b._fullLayout.width === b.clientWidth)"
    )
    assert page.evaluate(OVERLAPPING) == []
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(
        "() => document.querySelector('.draw')._fullLayout.font.color === '#2B2F36'"
        " && document.querySelector('.draw')._fullLayout.width === 660"
    )
    assert page.evaluate(OVERLAPPING) == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)", "a dark page is printed on white"
    assert complaints == []
    context.close()


def test_no_style_is_matched_anew_at_every_change() -> None:
    """A selector with ``:has`` on the page's whole tree is: printing drew for a minute, each
    measured text after a look at every element."""
    assert (
        ":has(" not in (TEMPLATES / "page.css").read_text() + (TEMPLATES / "card.css").read_text()
    )


@pytest.mark.browser
def test_the_policy_stops_a_script_that_calls_home(shared_run, browser) -> None:
    page_file = write_html(shared_run.folder, stage_figures)
    context = browser.new_context()
    page = context.new_page()
    page.goto(page_file.as_uri())
    failed = page.evaluate("fetch('http://127.0.0.1:9/').then(() => '', error => String(error))")
    assert "TypeError" in failed
    broken = page.evaluate(
        "new Promise(done => document.addEventListener('securitypolicyviolation',"
        " e => done(e.violatedDirective)) || (new Image().src = 'http://127.0.0.1:9/a.png'))"
    )
    assert broken == "img-src"
    context.close()


def test_the_page_is_complete(shared_run) -> None:
    text = write_html(shared_run.folder, stage_figures).read_text()
    assert text.count('id="plotly-library"') == 1
    assert text.count("data-figure=") == DRAWN
    assert all(f'<section id="{name}"' in text for name in SECTIONS)
    assert not re.search(r'<(script|link|img|iframe)[^>]+(src|href)="http', text)
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "theoretical only" in text and "Eleven times more batch" in text
    assert "workbench run" in text
    assert "Sample tariff" in text


def test_russian_pages_speak_russian(shared_run) -> None:
    text = write_html(shared_run.folder, stage_figures, "ru").read_text()
    body = text.split("</style>")[1].split('id="plotly-library"')[0]
    for english in ("At a glance", "Not measured, and why", "lower is better", "measured</span>"):
        assert english not in body
    for russian in ("Внедрять", "Условия", "меньше — лучше", "2,93"):
        assert russian in body


def test_without_plotly_the_page_has_tables_and_says_so(shared_run, monkeypatch) -> None:
    monkeypatch.setattr(html, "plotly_installed", lambda: False)
    text = write_html(shared_run.folder, stage_figures).read_text()
    assert len(text) < 500_000
    assert "plotly is not installed here" in text
    assert "data-figure" not in text and "plotly-library" not in text
    assert "Time per output token" in text


def test_an_unfinished_run_has_a_page_too(make_run) -> None:
    run = make_run(stages=("readiness", "profile_load"))
    text = write_html(run.folder, stage_figures).read_text()
    assert "Unfinished: 2 of 7 stages" in text and 'data-state="unfinished"' in text
    assert "2 of 7 stages are finished" in text
    assert text.count("The stage has not finished in this run.") == 4 + 3
    assert "declares no gates" not in text


def test_text_of_others_cannot_become_markup(make_run) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    run = make_run()
    record = run.record("train_qat")
    record.notes.append(hostile)
    layers = record.table("layers")
    layers.loc[0, "layer"] = hostile
    record.save_table("layers", layers)
    record.save()
    text = write_html(run.folder, stage_figures).read_text()
    page = text.replace(plotly_page.plotly_js(), "")
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;img src=x onerror" in page


def test_a_figure_that_cannot_be_drawn_does_not_take_the_page_with_it(make_run) -> None:
    run = make_run()
    record = run.record("hybrid_plan")
    record.save_table("plan", record.table("plan").drop(columns="size_bytes"))
    record.save()
    text = write_html(run.folder, stage_figures).read_text()
    assert "This figure could not be drawn: KeyError" in text
    assert text.count("data-figure=") == DRAWN - 1


def test_a_folder_without_a_run_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="is not a run"):
        write_html(tmp_path, stage_figures)


def test_arms_stand_together_under_the_same_conditions(shared_run) -> None:
    latency = next(t for t in result_tables(shared_run.records(), Texts()) if t.title == "Latency")
    group = next(g for g in latency.groups if g.title == "Latency of a request")
    assert [row.of.split(",")[0] for row in group.rows] == [
        "full precision", "ternary", "post-training ternary", "INT8 without training",
        "INT4 without training",
    ] * 2  # fmt: skip
    assert all(row.mark and latency.hows[row.mark] for row in group.rows)
    assert not any("switch" in row.of for g in latency.groups for row in g.rows)


def test_what_is_missing_is_told_once_for_each_reason(make_run) -> None:
    rows = missing_rows(make_run().records(), Texts())
    energy = [row for row in rows if row["reason"] == "no power meter answered here"]
    assert len(energy) == len({row["stage"] for row in energy})
    figures = {one["title"]: one["of"] for row in energy for one in row["figures"]}
    assert "full precision, ternary, post-training ternary" in figures["Energy per request"]
    assert all("RAPL" in " ".join(row["details"]) for row in energy)


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_technical_reason_is_told_in_words(language: str) -> None:
    texts = Texts(language)
    told = {
        "no_meter: nvml: torch 2.13.0+cpu was built without CUDA; rapl: no /sys": "no_meter",
        "full_precision: no_meter: nvml: none": "no_meter",
        "device_missing: snmp: no_answer": "device_missing",
        "no interval: 2 blocks, an interval needs 6": "few",
        "no interval: 5 groups, a bootstrap needs 64": "few",
        "no interval: 12 requests are worth 4 independent ones, p99 needs 368": "dependent",
        "54 were observed; p99 needs 100 for a value": "few_observed",
        "no block has the 20 observations of both arms that p95 needs within one; the largest "
        "has 2": "few_in_block",
        "an A/A comparison needs 6 whole blocks, got 2": "few_aa",
    }  # fmt: skip
    for reason, key in told.items():
        words = reason_words(reason, texts)
        assert words != reason and "{" not in words
        assert words[:12] == texts.get(f"why.{key}", "")[:12], reason
    assert reason_words("something new", texts) == "something new"


def test_every_code_of_an_energy_window_has_words() -> None:
    for code in get_args(Reason):
        assert reason_words(f"{code}: of some meter", Texts()) != f"{code}: of some meter"


def test_the_command_can_be_typed_again(shared_run) -> None:
    shared_run.header["overrides"] = ["train.lr=3e-4", "data.corpus=my texts"]
    assert command_of(shared_run).endswith("--set train.lr=3e-4 --set 'data.corpus=my texts'")
