"""The field's words that a reader may not know, each explained once, in both languages.

``glossary.json`` is the one list: of each word its name, a pattern of the forms in which it stands
in a sentence, and what it means. :func:`explained` marks the words in HTML that is already written
and says which it met; the page explains those, and only those, in one list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path

from workbench.files import read_json

GLOSSARY = Path(__file__).with_name("glossary.json")
UNREAD = {"a", "button", "code", "pre", "script", "style", "summary", "svg", "dfn"}
UNREAD |= {"h1", "h2", "h3", "h4"}
"""No word is marked in these: what is a control, a name, or a heading."""
VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}


@dataclass(frozen=True)
class Term:
    """One word. key: its place in the page is ``term-KEY``; forms: a pattern of how it stands in
    a sentence; text: what it means."""

    key: str
    name: str
    forms: str
    text: str


@lru_cache
def glossary(language: str) -> dict[str, Term]:
    """Key -> term, in the order of the list."""
    return {
        key: Term(key, said[language]["term"], said[language]["forms"], said[language]["text"])
        for key, said in read_json(GLOSSARY).items()
    }


class Explainer:
    """Marks words part by part of one page and remembers which it met.

    The first mark of a word in the page is reached with the keyboard; one more in each further
    part is there for the mouse, and does not lengthen the way through the page.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._met: set[str] = set()

    @property
    def met(self) -> list[Term]:
        """The words marked so far, by name."""
        known = glossary(self.language)
        return sorted((known[key] for key in self._met), key=lambda term: term.name.casefold())

    def __call__(self, html: str) -> str:
        """The part with the first of each word marked; all else stays as it was."""
        writer = _Writer(self.language, self._met)
        writer.feed(html)
        writer.close()
        return "".join(writer.written)


class _Writer(HTMLParser):
    """Writes what it reads, and marks words in the text between the tags."""

    def __init__(self, language: str, met: set[str]) -> None:
        super().__init__(convert_charrefs=False)
        self.written: list[str] = []
        self._language, self._met = language, met
        self._here: set[str] = set()
        self._open: list[tuple[str, bool]] = []  # tag, and whether nothing is marked inside

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.written.append(self.get_starttag_text() or "")
        if tag in VOID:
            return
        other = dict(attrs).get("lang", self._language) != self._language
        self._open.append((tag, tag in UNREAD or other or self._unread))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.written.append(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        self.written.append(f"</{tag}>")
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.written.append(
            data if self._unread else _pattern(self._language).sub(self._mark, data)
        )

    def handle_entityref(self, name: str) -> None:
        self.written.append(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.written.append(f"&#{name};")

    def handle_comment(self, data: str) -> None:
        self.written.append(f"<!--{data}-->")

    @property
    def _unread(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def _mark(self, found: re.Match[str]) -> str:
        key = found.lastgroup or ""
        if key in self._here:
            return found[0]
        beyond = ' tabindex="-1"' if key in self._met else ""
        self._here.add(key)
        self._met.add(key)
        place = escape(f"term-{key}")
        return f'<a class="term" href="#{place}" aria-describedby="{place}"{beyond}>{found[0]}</a>'


@lru_cache
def _pattern(language: str) -> re.Pattern[str]:
    """All words at once; where two fit at one place, the one with the longer name counts."""
    terms = sorted(glossary(language).values(), key=lambda term: -len(term.name))
    return re.compile(
        r"(?<![\w-])(?:" + "|".join(f"(?P<{it.key}>{it.forms})" for it in terms) + r")(?![\w-])"
    )
