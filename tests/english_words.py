"""Finds the English of a Russian page: what no catalogue translates.

Headings, tables, recorded sentences, and in the figures' JSON titles, axes, legends, names of
ticks, annotations and what a pointer shows. Not looked at, and no more than this: commands and
code, versions, titles of papers, and the pilot's own texts, which are in its own language.
``tests/conftest.py`` hands :func:`english_of` to the tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from bs4 import BeautifulSoup

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
        "nvml",
        "none",
        "precision",
        "processes",
        "python",
        "rapl",
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


def english_of(page: str, *own: str) -> list[str]:
    """Texts of the page and of its figures with an English word that is no name. own: names of the
    pilot's own."""
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
        words = [w for w in re.findall(r"\b[a-z]{3,}\b", plain) if w not in (*NAMES, *own)]
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
