"""The catalogues say the same things in both languages, and the contract's names in words."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from babel import Locale

import workbench.figures
from workbench.files import read_json
from workbench.paths import PROJECT
from workbench.pilot.sections.deploy_rollback import FORMER_WAYS, DrillWays
from workbench.serve.drill import WAYS
from workbench.wording.numbers import moment
from workbench.wording.text import LANGUAGES, NOUN, REPORT_TEXTS, Texts, plural_category
from workbench.wording.vocabulary import FIGURES

FIGURE_TEXTS = Path(workbench.figures.__file__).parent


@pytest.mark.parametrize("folder", [REPORT_TEXTS, FIGURE_TEXTS], ids=lambda p: p.name)
def test_both_languages_have_the_same_keys_and_placeholders(folder: Path) -> None:
    english, russian = (read_json(folder / f"text_{language}.json") for language in LANGUAGES)
    assert english.keys() == russian.keys()
    for key, text in english.items():
        assert _fields(text) == _fields(russian[key]), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_metric_of_the_contract_has_a_name(language: str) -> None:
    texts = Texts(language)
    assert {f"metric.{name}" for name in FIGURES} <= texts.keys()


def test_every_text_that_a_template_asks_for_exists() -> None:
    templates = (PROJECT / "workbench" / "report" / "templates").glob("*.html")
    asked = {
        key for path in templates for key in re.findall(r'\bt\("([\w.]+)"[,)]', path.read_text())
    }
    assert len(asked) > 40
    assert asked <= Texts().keys()


def test_the_vocabulary_is_the_contract() -> None:
    contract = (PROJECT / "docs" / "design.md").read_text()
    rows = contract.split("## Records")[1].split("## Formats")[0].splitlines()
    metrics = " ".join(row.split("|")[4] for row in rows if row.startswith("| `"))
    named = set(re.findall(r"`([a-z][a-z0-9_]*)`", metrics))
    assert named == set(FIGURES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_way_back_is_told_in_words_and_a_former_name_in_the_same(language: str) -> None:
    say = Texts(language)
    assert {f"way.{way}" for way in WAYS} <= say.keys()
    assert "rule" not in WAYS
    for former, now in FORMER_WAYS.items():
        assert say.label("way", former) == say.label("way", now) != now
    assert DrillWays(ways=["rule", "kill"]).ways == ["monitor", "kill"]


def test_labels_are_told_in_words() -> None:
    labels = {"class": "interactive_512", "arm": "ternary", "source": "probe", "batch": "8"}
    assert Texts().labels(labels) == "ternary, probe, interactive, 512-token output, batch 8"
    assert Texts().figure("new_metric", {"arm": "mine"}) == "new metric (mine)"


def _fields(text: str | dict[str, str]) -> set[str | None]:
    if isinstance(text, dict):  # a noun
        return set()
    return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}


def test_an_empty_unit_leaves_no_gap() -> None:
    figure = {"name": "cut_share", "labels": {}}
    said = Texts()("gate.at_most", figure=figure, value=0.63, unit="", limit=0.05)
    assert said.endswith(": 0.63, allowed at most 0.05")


@pytest.mark.parametrize(
    ("count", "english", "russian"),
    [
        (1, "1 request", "1 запрос"),
        (3, "3 requests", "3 запроса"),
        (5, "5 requests", "5 запросов"),
        (11, "11 requests", "11 запросов"),
        (21, "21 requests", "21 запрос"),
        (2.5, "2.5 requests", "2,5 запроса"),
        (12_341, "12,341 requests", "12\u202f341 запрос"),
        (0.00001234, "1.2×10⁻⁵ requests", "1,2×10⁻⁵ запроса"),
    ],
)
def test_a_noun_has_the_form_of_its_number(count: float, english: str, russian: str) -> None:
    assert Texts("en").counted(count, "requests") == english
    assert Texts("ru").counted(count, "requests") == russian


def test_labels_and_sentences_take_the_form() -> None:
    assert Texts().label("threads", "1") == "1 thread"
    assert Texts("ru").label("threads", "2") == "2 потока"
    assert plural_category("1.0", "en") == plural_category("1,0", "ru") == "other"
    said = Texts("ru")("card.noise.blocks", disturbed=1, blocks=21)
    assert said.endswith("в 1 из 21 блока")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_noun_has_each_plural_category_and_is_used(language: str) -> None:
    nouns = {
        key.removeprefix(NOUN): forms
        for key, forms in read_json(REPORT_TEXTS / f"text_{language}.json").items()
        if key.startswith(NOUN)
    }
    categories = set(Locale(language).plural_form.tags) | {"other"}
    assert all(forms.keys() == categories for forms in nouns.values())
    asked = {
        noun
        for folder in (REPORT_TEXTS, FIGURE_TEXTS)
        for text in read_json(folder / f"text_{language}.json").values()
        if isinstance(text, str)
        for _, _, noun, _ in string.Formatter().parse(text)
        if noun
    }
    assert asked <= nouns.keys()


@pytest.mark.parametrize("folder", [REPORT_TEXTS, FIGURE_TEXTS], ids=lambda p: p.name)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_number_stands_before_a_fixed_plural(language: str, folder: Path) -> None:
    """A placeholder of a count and a noun's plural behind it: the catalogue has nouns for that."""
    plurals = {
        forms[category]
        for key, forms in read_json(REPORT_TEXTS / f"text_{language}.json").items()
        if key.startswith(NOUN)
        for category in forms
    }
    wrong = [
        key
        for key, text in read_json(folder / f"text_{language}.json").items()
        if isinstance(text, str)
        for noun in re.findall(r"\{\w+\} ([a-zа-яё]+)", text)
        if noun in plurals
    ]
    assert not wrong


def test_a_time_is_written_as_the_language_does() -> None:
    assert moment("2026-11-29T10:21:27+0000") == "29 November 2026, 10:21 UTC"
    assert moment("2026-11-29T10:21:27+00:00", "ru") == "29 ноября 2026, 10:21 UTC"
    assert moment("unknown", "ru") == "unknown"
