"""A number before its noun, in the English of terminal, records and errors: 1 request, 3 requests.

The page's own sentences have their nouns in the catalogues (:mod:`workbench.wording.text`), in both
languages; what a stage records and an error says is English, and has this. A test finds a number
that stands before a plural without it.
"""

from __future__ import annotations

IRREGULAR = {"matrix": "matrices", "series": "series"}


def number_of(count: float, noun: str, nouns: str | None = None, form: str = "") -> str:
    """The number and the noun's form for it, as the number is shown: ``1``, not ``1.0``.

    noun: of one; adjectives may stand before it, a verb behind. nouns: of several, where that is
    more than the last word's plural. form: the number's format.

    >>> number_of(1, "held-out document"), number_of(1234, "matrix", form=",")
    ('1 held-out document', '1,234 matrices')
    >>> number_of(1, "line stands", "lines stand"), number_of(2.4, "request", form=".0f")
    ('1 line stands', '2 requests')
    """
    shown = format(count, form)
    if shown.lstrip("-") == "1":
        return f"{shown} {noun}"
    return f"{shown} {nouns or plural(noun)}"


def plural(noun: str) -> str:
    """Of its last word: ``request``, ``own prompt``, ``query``, ``batch``, ``matrix``."""
    begun, gap, last = noun.rpartition(" ")
    if last not in IRREGULAR and last[-1] == "y" and last[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    ending = "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return begun + gap + IRREGULAR.get(last, last + ending)
