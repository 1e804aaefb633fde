"""The Russian page of a full run, read for English: what no catalogue translates is found here.

Not looked at: commands, code and file names, versions, and what says of itself that it is English
(``lang="en"``): sentences that stages recorded, titles of papers, the pilot's own texts in it.
"""

from __future__ import annotations

import re

from bs4 import BeautifulSoup

from workbench.pilot.resolve import resolve
from workbench.pilot.sections.base import said_in
from workbench.records.run import open_run
from workbench.report.card import verdict_card
from workbench.report.gates import why_in
from workbench.report.html import write_html
from workbench.wording.text import Texts

FIELD = re.compile(r"[\w-]*[._/][\w./-]+|\S*\d\S*")
"""A field of the pilot, a file, a version, a name with a number."""
NAMES = set(
    [
        "amx",
        "avx",
        "blocks",
        "budget",
        "cpu",
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


def english_of(page: str) -> list[str]:
    """Texts of the page with two English words in a row, or one that is no name."""
    tree = BeautifulSoup(page, "html.parser")
    for unread in tree(["script", "style", "code", "pre"]) + tree.select("[lang=en], .packages"):
        unread.decompose()
    found = []
    for text in tree.find_all(string=True):
        plain = FIELD.sub(" ", str(text))
        words = [w for w in re.findall(r"\b[a-z]{3,}\b", plain) if w not in NAMES]
        if words and str(text).strip() != "html":
            found.append(f"{' '.join(words)}: {str(text).strip()[:90]}")
    return found


def test_the_russian_page_has_no_english(shared_run) -> None:
    page = write_html(shared_run.folder, lambda *_: [], "ru").read_text(encoding="utf-8")
    assert not english_of(page), "\n".join(english_of(page))


def test_an_untranslated_sentence_is_found() -> None:
    assert english_of("<p>Не измерено: no meter was found</p>")
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
