"""Every sentence of the report, by key, in English and Russian.

The catalogues are ``text_en.json`` and ``text_ru.json`` beside this file (figures have their
own pair). Names of metrics, labels and units that a catalogue does not know are shown as
recorded, so a new metric is never hidden; what a stage wrote as a sentence stays English.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from workbench.files import read_json
from workbench.wording.labels import label_place
from workbench.wording.numbers import number

LANGUAGES = ("en", "ru")
REPORT_TEXTS = Path(__file__).parent


class Texts:
    """The catalogues of one language in ``folders``, joined."""

    def __init__(self, language: str = "en", *folders: Path) -> None:
        self.language = language
        self._texts: dict[str, str] = {}
        for folder in folders or (REPORT_TEXTS,):
            self._texts |= read_json(folder / f"text_{language}.json")

    def __call__(self, key: str, **values: Any) -> str:
        """The text with its ``{names}`` filled in; numbers in the language's own notation."""
        said = self._texts[key].format(**{k: self._shown(v) for k, v in values.items()})
        return re.sub(r" +(?=[ ,])", "", said)  # a unit may be empty

    def get(self, key: str, default: str) -> str:
        return self._texts.get(key, default)

    def keys(self) -> set[str]:
        return set(self._texts)

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
        return known or pattern.format(value=value)

    def labels(self, labels: dict[str, str]) -> str:
        names = sorted(labels, key=label_place)
        return ", ".join(self.label(name, labels[name]) for name in names)

    def figure(self, name: str, labels: dict[str, str]) -> str:
        """A metric and what it is a figure of: ``decode speedup (probe)``."""
        shown = self.labels(labels)
        return f"{self.metric(name)} ({shown})" if shown else self.metric(name)

    def _shown(self, value: Any) -> str:
        if isinstance(value, dict):
            return self.figure(value["name"], value["labels"])
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return str(value)
        return number(value, self.language)
