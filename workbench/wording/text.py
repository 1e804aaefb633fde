"""Every sentence of the report, by key, in English and Russian.

The catalogues are ``text_en.json`` and ``text_ru.json`` beside this file (figures have their
own pair). Names of metrics, labels and units that a catalogue does not know are shown as
recorded, so a new metric is never hidden; what a stage wrote as a sentence stays English.

A number before its noun is written ``{count:requests}``: the noun ``noun.requests`` of the
catalogue has a form for each plural category of the language, and the number as it is shown decides
which (CLDR's rules, by Babel): 1 request, 1.0 requests; 21 запрос, 3 запроса, 5 запросов.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from babel import Locale

from workbench.files import read_json
from workbench.wording.labels import label_place
from workbench.wording.numbers import MINUS, THIN_SPACE, number

LANGUAGES = ("en", "ru")
NOUN = "noun."
"""Begins the keys of nouns: plural category -> form."""
REPORT_TEXTS = Path(__file__).parent
VALUES_OF_LABELS = {"fastest": "arm", "shape": "shape"}
"""Name of a text's value -> the label whose words it takes."""


class Texts:
    """The catalogues of one language in ``folders``, joined."""

    def __init__(self, language: str = "en", *folders: Path) -> None:
        self.language = language
        self._texts: dict[str, str] = {}
        self._nouns: dict[str, dict[str, str]] = {}
        for folder in folders or (REPORT_TEXTS,):
            for key, text in read_json(folder / f"text_{language}.json").items():
                if isinstance(text, dict):
                    self._nouns[key.removeprefix(NOUN)] = text
                else:
                    self._texts[key] = text

    def __call__(self, key: str, **values: Any) -> str:
        """The text with its ``{names}`` filled in; numbers in the language's own notation."""
        said = self._texts[key].format(**{k: self._value(k, v) for k, v in values.items()})
        return re.sub(r" +(?=[ ,])", "", said)  # a unit may be empty

    def get(self, key: str, default: str) -> str:
        return self._texts.get(key, default)

    def keys(self) -> set[str]:
        return set(self._texts)

    def counted(self, count: float, noun: str) -> str:
        """``1 request``, ``3 requests``: the number as it is shown, and the noun's form for it.

        noun: its key after ``noun.``. Raises KeyError for one that the catalogue does not have.
        """
        shown = number(count, self.language)
        forms = self._nouns[noun]
        return f"{shown} {forms[plural_category(shown, self.language)]}"

    def unit(self, unit: str) -> str:
        return self.get(f"unit.{unit}", unit)

    def metric(self, name: str) -> str:
        return self.get(f"metric.{name}", name.replace("_", " "))

    def label(self, label: str, value: str) -> str:
        """One label's value in words: ``ternary``, ``batch 8``, ``interactive, 512 tokens``."""
        counted = re.fullmatch(r"(interactive|batch)_(\d+)", value) if label == "class" else None
        if counted:
            return self(f"label.class_{counted[1]}", count=int(counted[2]))
        known = self.get(f"{label}.{value}", "")
        pattern = self.get(f"label.{label}", "{value}")
        whole = int(value) if value.isdecimal() else value
        return known or pattern.format(value=self._shown(whole) if ":" in pattern else value)

    def labels(self, labels: dict[str, str]) -> str:
        names = sorted(labels, key=label_place)
        return ", ".join(self.label(name, labels[name]) for name in names)

    def figure(self, name: str, labels: dict[str, str]) -> str:
        """A metric and what it is a figure of: ``decode speedup (probe)``."""
        shown = self.labels(labels)
        return f"{self.metric(name)} ({shown})" if shown else self.metric(name)

    def _value(self, name: str, value: Any) -> Any:
        """A text's value; one that is named after a label stands in its words."""
        label = VALUES_OF_LABELS.get(name)
        return self.get(f"{label}.{value}", str(value)) if label else self._shown(value)

    def _shown(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.figure(value["name"], value["labels"])
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return str(value)
        return _Number(value, self)


class _Number:
    """A number of a text, which may be followed by its noun."""

    def __init__(self, value: float, texts: Texts) -> None:
        self.value, self.texts = value, texts

    def __format__(self, noun: str) -> str:
        if noun:
            return self.texts.counted(self.value, noun)
        return number(self.value, self.texts.language)


def plural_category(shown: str, language: str) -> str:
    """``one``, ``few``, ``many`` or ``other``, of a number as it is written in the language."""
    plain = shown.replace(MINUS, "-").replace(THIN_SPACE, "")
    plain = plain.replace(",", "." if language == "ru" else "")
    try:
        return Locale(language).plural_form(abs(Decimal(plain)))
    except InvalidOperation:  # 1.2×10⁻⁵
        return "other"
