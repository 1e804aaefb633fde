"""The Russian page of a full run, read for English: what no catalogue translates is found here.

Headings, tables, recorded sentences, and in the figures' JSON titles, axes, legends, names of
ticks, annotations and what a pointer shows. Not looked at, and no more than this: commands and
code, versions, titles of papers, and the pilot's own texts, which are in its own language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from bs4 import BeautifulSoup

from workbench.figures.page import stage_figures
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.base import said_in
from workbench.records.run import open_run
from workbench.report.card import verdict_card
from workbench.report.gates import why_in
from workbench.report.html import write_html
from workbench.wording.text import Texts

FIELD = re.compile(r"--[\w-]+|[\w-]*[._/][\w./-]+|\S*\d\S*")
"""A flag, a field of the pilot, a file, a version, a name with a number."""
NAMES = set(
    [
        "amx",
        "avx",
        "blocks",
        "budget",
        "cpu",
        "csv",
        "distillation",
        "export",
        "false",
        "full",
        "native",
        "none",
        "precision",
        "processes",
        "python",
        "run",
        "sample",
        "seed",
        "speedup",
        "steps",
        "teacher",
        "threads",
        "torch",
        "transformers",
        "true",
        "workbench",
    ]
)
"""Values of fields and names of libraries."""


NOT_OURS = ("script", "style", "code", "pre", ".packages", "dd cite", ".gates [lang=en]", "h1")
"""Commands, versions, papers, and the pilot's own question and reasons."""
SHOWN = {"text", "name", "title", "ticktext", "hovertemplate", "texttemplate", "x", "y", "values",
         "labels", "hovertext", "categoryarray"}  # fmt: skip
"""Keys of a figure's JSON under which stands what is seen."""
FIGURE = re.compile('<script type="application/json" id="([^"]+)">(.*?)</script>', re.DOTALL)
LEAKS = "figure-train_qat-leaks-spec"
NO_TEXT = re.compile(r"<[^>]*>|%\{[^}]*\}|&[#\w]+;")


def english_of(page: str) -> list[str]:
    """Texts of the page and of its figures with an English word that is no name."""
    tree = BeautifulSoup(page, "html.parser")
    told = []
    for figure in re.finditer(FIGURE, page):
        drawn = json.loads(figure[2])
        if figure[1] == LEAKS:  # a table of the user's own text
            drawn = drawn["layout"]
        told += [(figure[1], text) for text in seen(drawn)]
    for unread in tree.select(", ".join(NOT_OURS)):
        unread.decompose()
    told += [("", str(text)) for text in tree.find_all(string=True) if str(text).strip() != "html"]
    for name in ("title", "aria-label"):
        told += [(name, element[name]) for element in tree.select(f"[{name}]")]
    found = []
    for place, text in told:
        plain = FIELD.sub(" ", NO_TEXT.sub(" ", text))
        words = [w for w in re.findall(r"\b[a-z]{3,}\b", plain) if w not in NAMES]
        if words:
            found.append(f"{place} {' '.join(words)}: {text.strip()[:90]}")
    return found


def seen(figure: object, key: str = "") -> Iterator[str]:
    """The texts that a figure shows."""
    if isinstance(figure, str):
        if key in SHOWN:
            yield figure
    elif isinstance(figure, dict):
        for name, inner in figure.items():
            yield from seen(inner, name)
    elif isinstance(figure, list):
        for inner in figure:
            yield from seen(inner, key)


def test_the_russian_page_has_no_english(shared_run) -> None:
    page = write_html(shared_run.folder, stage_figures, "ru").read_text(encoding="utf-8")
    assert page.count("data-figure=") > 30, "a page with its figures"
    assert not english_of(page), "\n".join(english_of(page))


def test_an_untranslated_sentence_is_found() -> None:
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
