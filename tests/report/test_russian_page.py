"""The Russian page of a full run, read for English (``tests/english_words.py``): what no catalogue
translates is found here; of a pilot that ran, in ``tests/runner/test_whole_pilot.py``."""

from __future__ import annotations

import pandas as pd
from bs4 import BeautifulSoup

from workbench.figures.page import stage_figures
from workbench.figures.readiness import fits
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.base import said_in
from workbench.records.run import open_run
from workbench.records.stage_record import StageRecord
from workbench.report.card import verdict_card
from workbench.report.gates import why_in
from workbench.report.html import write_html
from workbench.report.views import _sentence
from workbench.wording.text import Texts


def test_the_russian_page_has_no_english(shared_run, english_of) -> None:
    page = write_html(shared_run.folder, stage_figures, "ru").read_text(encoding="utf-8")
    assert page.count("data-figure=") > 30, "a page with its figures"
    assert not english_of(page), "\n".join(english_of(page))


def test_an_untranslated_sentence_is_found(english_of) -> None:
    assert english_of("<p>Не измерено: no meter was found</p>")
    assert english_of('<p lang="en">no meter was found</p>')
    assert english_of('<p title="the whole node">1</p>')
    figure = '<script type="application/json" id="f">{"xaxis":{"title":{"text":"%s"}}}</script>'
    assert english_of(figure % "blocks of time") and not english_of(figure % "номер блока")
    assert not english_of("<p>Задайте report.cost в <code>the pilot</code></p>")


def test_the_pilots_own_texts_may_be_given_in_both_languages(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    pilot = tmp_path / "both.yaml"
    pilot.write_text(
        "name: both\nquestion: {en: Does it pay?, ru: Окупится ли это?}\n"
        "report: {gates: [{metric: lost_requests, at_most: 0, why: {en: none, ru: ни одного}}]}\n"
    )
    run = open_run(resolve(pilot))
    assert verdict_card(run, Texts("ru")).question == "Окупится ли это?"
    assert verdict_card(run, Texts("en")).question == "Does it pay?"
    page = BeautifulSoup(write_html(run.folder, lambda *_: [], "ru").read_text(), "html.parser")
    assert (page.h1.text, page.h1["lang"]) == ("Окупится ли это?", "ru")
    assert why_in('{"en": "none", "ru": "ни одного"}', "ru") == "ни одного"
    assert why_in("{not json", "ru") == "{not json"
    assert said_in({"en": "only this"}, "ru") == "only this"


def test_a_ready_models_format_is_said_in_russian() -> None:
    said = {"code": "caveat.ready", "values": {"format": "GGUF file (Q4_0, TQ2_0)"}, "text": ""}
    assert "(файл GGUF (Q4_0, TQ2_0))" in _sentence(said, Texts("ru"))


def test_a_checkpoints_own_shape_is_said_in_russian(tmp_path, english_of) -> None:
    record = StageRecord("readiness", tmp_path)
    sizes = ("serving_ternary_gb", "serving_full_gb", "training_gb")
    row = {"preset": "checkpoint", "parameters": 1e8, **dict.fromkeys(sizes, 1.0)}
    record.save_table("fits", pd.DataFrame([row]))
    figure = f'<script type="application/json" id="f">{fits(record, "ru").to_json()}</script>'
    assert "чекпойнт пилота" in fits(record, "ru").data[0].y and not english_of(figure)
