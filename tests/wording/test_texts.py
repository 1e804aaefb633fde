"""The catalogues say the same things in both languages, and the contract's names in words."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

import workbench.figures
from workbench.files import read_json
from workbench.paths import PROJECT
from workbench.wording.text import LANGUAGES, REPORT_TEXTS, Texts
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


def test_labels_are_told_in_words() -> None:
    labels = {"class": "interactive_512", "arm": "ternary", "source": "probe", "batch": "8"}
    assert Texts().labels(labels) == "ternary, probe, interactive, 512-token output, batch 8"
    assert Texts().figure("new_metric", {"arm": "mine"}) == "new metric (mine)"


def _fields(text: str) -> set[str | None]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}


def test_an_empty_unit_leaves_no_gap() -> None:
    figure = {"name": "cut_share", "labels": {}}
    said = Texts()("gate.at_most", figure=figure, value=0.63, unit="", limit=0.05)
    assert said.endswith(": 0.63, allowed at most 0.05")
