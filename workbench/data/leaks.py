"""What judging text shares with the text that was learned: stretches of 50 letters and digits.

The unit is that of GPT-4's report (arXiv 2303.08774, appendix C): spaces, signs and case are
dropped, and a stretch of 50 letters and digits that stands in both texts is a leak. There three
stretches of a text were looked for; here all of them are. The older unit, 13 words (GPT-3, arXiv
2005.14165), needs words with spaces between them, which code and Chinese do not have, and tokens
would make the answer depend on the tokenizer.

Every stretch of the judging text is hashed (64 bits, a rolling polynomial), and the learned text
is passed over once, in pieces of a million letters: memory is some 20 bytes a judged letter and
100 MB beside it, however much is learned. Two different stretches share a hash about once in 10^19
pairs; at 10^6 judged and 10^8 learned letters that is one false leak in 10^5 corpora.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from workbench.data.conversation import ANSWERS, plain_words
from workbench.data.document import Document

STRETCH = 50
"""Letters and digits."""
PIECE = 1 << 20
SEEN_BITS = 24
"""Of the table that tells, for most stretches, without a search that they are not judged."""
LONGEST_PASSAGE = 200
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_SEPARATOR = 1 << 32


@dataclass(frozen=True)
class Leak:
    """Of one judged text. characters: its letters and digits; leaked: those that lie in a stretch
    that was learned too. passage: the longest such place, as it stands in the text, cut.
    learned_in: the document it was found in first. Both are empty where nothing leaked."""

    characters: int
    leaked: int
    passage: str = ""
    learned_in: str = ""

    @property
    def share(self) -> float:
        return self.leaked / max(1, self.characters)


def find_leaks(judged: Sequence[str], learned: Iterable[tuple[str, str]]) -> list[Leak]:
    """The leak of each judged text; one shorter than :data:`STRETCH` has none.

    learned: (id, text) of each document.

    >>> text = "the quick brown fox jumps over the lazy dog while two bored cats look on"
    >>> [leak.share for leak in find_leaks([text, "another text"], [("a", f"So {text.upper()}!")])]
    [1.0, 0.0]
    """
    letters = [_letters(text) for text in judged]
    hashes = np.concatenate([_hashes(codes) for codes, _ in letters] or [np.empty(0, np.uint64)])
    known = np.unique(hashes)
    first = np.full(len(known), -1, np.int64)  # the learned document of each, by its place
    names: list[str] = []
    if len(known):
        _pass_over(learned, known, first, names)
    found = first[np.searchsorted(known, hashes)] if len(known) else first
    leaks, begin = [], 0
    for text, (codes, places) in zip(judged, letters, strict=True):
        count = max(0, len(codes) - STRETCH + 1)
        leaks.append(_leak(text, places, found[begin : begin + count], names))
        begin += count
    return leaks


def document_leaks(heldout: Sequence[Document], training: Sequence[Document]) -> list[Leak]:
    """Of each held-out document what is judged of it (of a conversation the answers) and was
    learned, wherever it stands there."""
    judged = [plain_words(d.messages, ANSWERS) if d.messages else d.text for d in heldout]
    return find_leaks(judged, ((d.id, d.text) for d in training))


def leaks_frame(documents: Sequence[Document], leaks: Sequence[Leak], most: float) -> pd.DataFrame:
    """Columns document, source, characters, leaked, share, left_out (the share is above ``most``),
    passage, learned_in; the documents that share most first."""
    rows = [
        {
            "document": document.id, "source": document.source, "characters": leak.characters,
            "leaked": leak.leaked, "share": leak.share, "left_out": leak.share > most,
            "passage": leak.passage, "learned_in": leak.learned_in,
        }
        for document, leak in zip(documents, leaks, strict=True)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.sort_values("leaked", ascending=False, kind="stable", ignore_index=True)


def _pass_over(
    learned: Iterable[tuple[str, str]], known: np.ndarray, first: np.ndarray, names: list[str]
) -> None:
    """Fill ``first`` and ``names`` from all that was learned."""
    maybe = np.zeros(1 << SEEN_BITS, bool)
    maybe[known >> np.uint64(64 - SEEN_BITS)] = True
    for codes, documents in _pieces(learned, names):
        hashes = _hashes(codes)
        near = np.flatnonzero(maybe[hashes >> np.uint64(64 - SEEN_BITS)])
        places = np.searchsorted(known, hashes[near])
        places[places == len(known)] = 0
        met = known[places] == hashes[near]
        # backwards, so that the first document is what stays
        which, where = places[met][::-1], documents[near[met]][::-1]
        new = first[which] < 0
        first[which[new]] = where[new]


def _pieces(
    learned: Iterable[tuple[str, str]], names: list[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(letters, the document of each by its number) of about :data:`PIECE` letters; documents are
    kept apart by what is no letter, and pieces of one document overlap."""
    codes: list[np.ndarray] = []
    documents: list[np.ndarray] = []
    size = 0
    for name, text in learned:
        number = len(names)
        names.append(name)
        letters = np.append(_letters(text)[0], np.uint64(_SEPARATOR + number))
        for begin in range(0, len(letters), PIECE):
            part = letters[begin : begin + PIECE + STRETCH - 1]
            codes.append(part)
            documents.append(np.full(len(part), number))
            size += len(part)
            if size >= PIECE:
                yield np.concatenate(codes), np.concatenate(documents)
                codes, documents, size = [], [], 0
    if codes:
        yield np.concatenate(codes), np.concatenate(documents)


def _leak(text: str, places: np.ndarray, found: np.ndarray, names: list[str]) -> Leak:
    """found: the learned document of each stretch of the text, -1 for none."""
    hit = found >= 0
    if not hit.any():
        return Leak(len(places), 0)
    edges = np.zeros(len(places) + 1, np.int64)
    edges[:-1][: len(hit)] += hit
    edges[STRETCH : STRETCH + len(hit)] -= hit
    covered = np.concatenate([[0], (np.cumsum(edges[:-1]) > 0).astype(np.int8), [0]])
    begins, ends = (np.flatnonzero(np.diff(covered) == step) for step in (1, -1))
    longest = int(np.argmax(ends - begins))
    begin, end = begins[longest], ends[longest]
    passage = text[places[begin] : places[end - 1] + 1]
    if len(passage) > LONGEST_PASSAGE:
        passage = passage[: LONGEST_PASSAGE - 1] + "…"
    return Leak(len(places), int((ends - begins).sum()), passage, names[found[begin]])


def _letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(code points of the letters and digits in lower case, where they stand in the text)."""
    points = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    table = _lower_case()
    codes = table[np.minimum(points, len(table) - 1)]
    places = np.flatnonzero(codes)
    return codes[places].astype(np.uint64), places


@cache
def _lower_case() -> np.ndarray:
    """Code point -> that of its lower case; 0 for what is neither letter nor digit. Beyond the
    third plane there are none, and the last entry says so."""
    table = np.zeros(0x30001, np.uint32)
    for point in range(0x30000):
        if (sign := chr(point)).isalnum():
            lower = sign.lower()
            table[point] = ord(lower) if len(lower) == 1 else point
    return table


def _hashes(codes: np.ndarray) -> np.ndarray:
    """A hash of every :data:`STRETCH` codes in a row, uint64, wherever they stand.

    sum(v_k B^k) over a stretch is a difference of two running sums modulo 2^64; B is odd, so the
    factor B^i of its place i can be divided out.
    """
    if len(codes) < STRETCH:
        return np.empty(0, np.uint64)
    values = _mixed(codes)
    powers, inverses = _powers(_BASE, len(codes)), _powers(_INVERSE, len(codes))
    sums = np.concatenate([[np.uint64(0)], np.cumsum(values * powers)])
    plain = (sums[STRETCH:] - sums[:-STRETCH]) * inverses[: len(codes) - STRETCH + 1]
    return _mixed(plain)


def _powers(base: int, count: int) -> np.ndarray:
    """base^0, base^1, ... modulo 2^64."""
    size = max(PIECE * 2, 1 << (count - 1).bit_length())
    return _all_powers(base, size)[:count]


@cache
def _all_powers(base: int, size: int) -> np.ndarray:
    factors = np.full(size, np.uint64(base))
    factors[0] = 1
    return np.cumprod(factors)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of a value over all 64 (splitmix64)."""
    mixed = values + np.uint64(_BASE)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
