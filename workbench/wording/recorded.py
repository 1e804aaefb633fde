"""Sentences that stages recorded, in the reader's language and with its plural forms.

A stage writes in English what it did, noticed and could not measure, with the numbers in it. Here a
sentence is found again by its pattern in ``recorded.json``, its numbers and names are taken out,
and the page's language says the same with them; so a record of any age is read. A sentence of
several parts, joined by semicolons, is read part by part. What no pattern knows stays as it was
recorded, which the page marks as English.

In a pattern ``{#1}`` is a number, ``{#1:blocks}`` one with its noun in English, ``{@1}`` an arm and
``{1}`` a part that may be a recorded sentence itself; ``{f1}`` (without spaces), ``{file}`` and
other words are names that have no translation, but for ``{numbers}`` and ``{items}`` of a case and
a ``{decision}``. An arm may have a name of the pilot's own (``measure_ab.in_cores``,
``measure_ab.addresses``); as any word may be such a name, it counts as one only where all else of
the sentence is known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from workbench.files import read_json
from workbench.wording.labels import ARMS
from workbench.wording.numbers import MINUS, THIN_SPACE
from workbench.wording.text import Texts, plural_category

RECORDED = Path(__file__).with_name("recorded.json")
PLACE = re.compile(r"\{(#\d+|@\d+|[a-z0-9]+)(?::([a-z_]+))?\}")
NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"
OWN_NAME = r"[a-z][\w-]*"
ENGLISH = re.compile(r"^(?=.*[A-Za-z]{3})(?!.*[А-Яа-я])(?=.* )", re.DOTALL)
"""Words, none of them Russian: more than the name of a field."""
SHIPPED_ARMS = (*ARMS, "full_precision_again")
BETWEEN = "; "
"""Stands between the parts of a sentence."""


@dataclass(frozen=True)
class Recorded:
    """A sentence as the page shows it. known: whether it is in the page's language."""

    text: str
    known: bool


@dataclass(frozen=True)
class SentencePattern:
    """begins: the fixed text before the first place, by which most patterns are ruled out."""

    begins: str
    compiled: re.Pattern[str]
    places: dict[str, str]
    templates: dict[str, str]


def recorded(sentence: str, texts: Texts) -> Recorded:
    """The sentence in the language of ``texts``, or as it was recorded where no pattern fits.

    >>> from workbench.wording.text import Texts
    >>> recorded("positive is worse; no interval: 1 blocks, an interval needs 6", Texts()).text
    'positive is worse; no interval: 1 block, an interval needs 6'
    """
    said = _said(sentence.strip(), texts)
    known = said is not None or texts.language == "en" or not ENGLISH.search(sentence)
    return Recorded(sentence if said is None else said, known)


def _said(sentence: str, texts: Texts) -> str | None:
    """None where neither each of its parts is known nor a pattern fits the whole."""
    if BETWEEN in sentence:
        parts = [_said(part, texts) for part in sentence.split(BETWEEN)]
        if None not in parts:
            return BETWEEN.join(part for part in parts if part is not None)
    for pattern in patterns():
        if not sentence.startswith(pattern.begins):
            continue
        found = pattern.compiled.fullmatch(sentence)
        if found and (_arms_are_shipped(pattern, found) or _parts_known(pattern, found, texts)):
            return _filled(pattern, found, texts)
    return None


def _arms_are_shipped(pattern: SentencePattern, found: re.Match[str]) -> bool:
    arms = (found[group] for name, group in pattern.places.items() if name[0] == "@")
    return all(arm in SHIPPED_ARMS for arm in arms)


def _parts_known(pattern: SentencePattern, found: re.Match[str], texts: Texts) -> bool:
    parts = [found[group] for name, group in pattern.places.items() if name[0].isdecimal()]
    return all(_said(part, texts) is not None or not ENGLISH.search(part) for part in parts)


def number_name(name: str, texts: Texts) -> str:
    """A number of the case in words: ``machine time of a request, ternary``."""
    head, _, of = name.partition(".")
    said = texts.get(f"number.{head}", head.replace("_", " "))
    return f"{said}, {texts.get(f'arm.{of}', texts.get(f'item.{of}', of))}" if of else said


def _filled(pattern: SentencePattern, found: re.Match[str], texts: Texts) -> str:
    """The pattern's sentence in the language of ``texts``, with what was found in its places."""
    values = {name: _value(name, found[group], texts) for name, group in pattern.places.items()}

    def fill(place: re.Match[str]) -> str:
        shown, noun = values[place[1]], place[2]
        return f"{shown} {_noun(shown, noun, texts)}" if noun else shown

    return PLACE.sub(fill, pattern.templates[texts.language])


def _value(name: str, got: str, texts: Texts) -> str:
    if name[0] == "#":
        return _number(got, texts.language)
    if name[0] == "@":
        return texts.label("arm", got)
    if name == "decision":
        return texts.get(f"decision.{got}", got).lower()
    if name == "items" and texts.language != "en":
        return ", ".join(texts.get(f"item.{one}", one) for one in re.split(", | and ", got))
    if name == "numbers":
        return ", ".join(number_name(number, texts) for number in got.split(", "))
    return (_said(got, texts) or got) if name[0].isdecimal() else got


def _noun(shown: str, noun: str, texts: Texts) -> str:
    return _nouns()[noun]["one" if plural_category(shown, texts.language) == "one" else "other"]


def _number(got: str, language: str) -> str:
    """With all the digits it was recorded with, in the language's notation."""
    shown = got.replace("-", MINUS)
    if language == "ru":
        shown = shown.replace(",", THIN_SPACE).replace(".", ",")
    return shown


@lru_cache
def _nouns() -> dict[str, dict[str, str]]:
    """English nouns of the patterns: plural -> its two forms."""
    return read_json(RECORDED)["nouns"]


@lru_cache
def patterns() -> tuple[SentencePattern, ...]:
    """Those with more fixed text first: they say more."""
    made = [_pattern(en, ru) for en, ru in read_json(RECORDED)["sentences"]]
    return tuple(sorted(made, key=lambda it: -len(PLACE.sub("", it.templates["en"]))))


def _pattern(en: str, ru: str) -> SentencePattern:
    places: dict[str, str] = {}
    parts, at = [], 0
    for place in PLACE.finditer(en):
        name, noun = place[1], place[2]
        parts.append(re.escape(en[at : place.start()]))
        if name in places:
            parts.append(f"(?P={places[name]})")
        else:
            group = places[name] = f"g{len(places)}"
            parts.append(f"(?P<{group}>{_form(name)})")
            if noun:
                forms = "|".join(re.escape(form) for form in _nouns()[noun].values())
                parts.append(f" (?:{forms})")
        at = place.end()
    parts.append(re.escape(en[at:]))
    first = PLACE.search(en)
    begins = en[: first.start()] if first else en
    return SentencePattern(begins, re.compile("".join(parts)), places, {"en": en, "ru": ru})


def _form(name: str) -> str:
    if name[0] == "#":
        return NUMBER
    if name[0] == "@":
        return "|".join([*sorted(SHIPPED_ARMS, key=len, reverse=True), OWN_NAME])
    if name[0].isdecimal():
        return ".+?"
    return r"\S+?" if name == "f1" else "(?:(?!; |: ).)+?"
