"""The text: documents read once, without copies, split into those to learn and those to judge.

The corpus is held in memory (``data.max_bytes`` bounds it); the tokens made from it are not.
A document is held out when a digest of the seed and its id says so. That depends on nothing
else, so a document stays on its side when others are added, and no part of a document is
ever on both sides. Exact copies of a text are dropped first, or they would leak across. What leaks
nevertheless, in parts, is counted (:mod:`.leaks`), and held-out documents that share more than
``data.max_leaked_share`` with the training text are left out of the judging. Where that would be
all of them, all are judged: the figures then say how much of it was learned.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from workbench.data.document import Document
from workbench.data.hub import PREFIX, read_hub
from workbench.data.leaks import document_leaks, leaks_frame
from workbench.data.patterns import Selection
from workbench.data.python_corpus import python_documents
from workbench.data.readers import Fields, read_path, refuse_patterns, select_files
from workbench.errors import ConfigError
from workbench.pilot.sections.data import CorpusSource, Data
from workbench.wording.counts import number_of

LONGEST_CHARACTER = 4
"""Bytes of UTF-8: a cut leaves at most fewer than these of its room."""
LOOKED_AT_BYTES = 64_000_000
"""Of text, at most, before a pilot starts."""


@dataclass(frozen=True)
class CorpusPart:
    """One of the corpora that were read. name: among several, else empty. share: of the training
    tokens. training, training_bytes, heldout: documents and bytes. files: of a local one.
    cut_bytes: its share of ``data.max_bytes``, where more text may follow; else None."""

    name: str
    corpus: str
    share: float
    training: int
    training_bytes: int
    heldout: int
    files: Selection | None
    cut_bytes: int | None = None

    def __str__(self) -> str:
        what = (
            f"{number_of(self.training, 'document')} to learn from "
            f"({self.training_bytes / 1e6:.1f} MB), "
        )
        what += f"{self.heldout} held out"
        weighed = (
            f"corpus {self.name}, {self.share:.0%} of the training tokens: " if self.name else ""
        )
        files = f"; {self.files}" if self.files and self.files.left_out else ""
        return f"{weighed}{what}{files}{self.cut_text}"

    @property
    def cut_text(self) -> str:
        if self.cut_bytes is None:
            return ""
        return f"; cut at {self.cut_bytes / 1e6:.3g} MB (data.max_bytes): what follows is not read"


@dataclass(frozen=True)
class Corpus:
    """training, heldout: documents in corpus order. copies: exact repetitions left out.

    digest: of all ids, sides and texts, to tell whether two runs saw the same corpus. leaks: of
    ``leaks_frame``, a row for each document that was held out, those left out of ``heldout`` too.
    parts: a row for each corpus that was read.
    """

    training: list[Document]
    heldout: list[Document]
    copies: int
    digest: str
    leaks: pd.DataFrame
    parts: tuple[CorpusPart, ...]

    @property
    def has_conversations(self) -> bool:
        return any(document.messages for document in (*self.training, *self.heldout))

    @property
    def training_bytes(self) -> int:
        return sum(document.size_bytes for document in self.training)

    @property
    def heldout_bytes(self) -> int:
        return sum(document.size_bytes for document in self.heldout)


def read_corpus(data: Data, seed: int) -> Corpus:
    """Read ``data.corpus``, or all of ``data.sources``, up to ``data.max_bytes`` and split each by
    document. Of several each has its share of ``max_bytes``, and their held-out documents stand in
    the order of the mix, so that every beginning of them has all in proportion.

    Raises ConfigError when one cannot be read, is empty, or has fewer than two documents.
    """
    split = _split(data, seed)
    heldout = _in_order(split.sides, data.shares)
    found = document_leaks(heldout, split.training)
    most = data.max_leaked_share
    if all(leak.share > most for leak in found):
        most = 1.0
    return Corpus(
        training=split.training,
        heldout=[d for d, leak in zip(heldout, found, strict=True) if leak.share <= most],
        copies=split.copies,
        digest=_digest(split.everything, {document.id for document in heldout}),
        leaks=leaks_frame(heldout, found, most),
        parts=tuple(split.parts),
    )


def training_documents(data: Data, seed: int) -> list[Document]:
    """Those that :func:`read_corpus` gives to learn from, without the leak check."""
    return _split(data, seed).training


class _Split(NamedTuple):
    """everything: in the order it was read. sides: the held-out documents of each part."""

    everything: list[Document]
    training: list[Document]
    sides: list[list[Document]]
    copies: int
    parts: list[CorpusPart]


def _split(data: Data, seed: int) -> _Split:
    copies: Counter[bytes] = Counter()
    ids: Counter[str] = Counter()
    everything: list[Document] = []
    training: list[Document] = []
    sides: list[list[Document]] = []
    parts: list[CorpusPart] = []
    for part, name, share in zip(data.parts, data.part_names, data.shares, strict=True):
        files = _files(part)
        room = int(data.max_bytes * share)
        documents = list(_distinct(data, part, name, room, copies, ids, files))
        _require_two(documents, part.corpus, room)
        of_part = _heldout_ids(documents, seed, data.holdout_share)
        everything += documents
        own = [d for d in documents if d.id not in of_part]
        training += own
        sides.append([d for d in documents if d.id in of_part])
        size = sum(document.size_bytes for document in own)
        full = sum(document.size_bytes for document in documents) > room - LONGEST_CHARACTER
        cut_bytes = room if full else None
        parts.append(
            CorpusPart(name, part.corpus, share, len(own), size, len(of_part), files, cut_bytes)
        )
    return _Split(everything, training, sides, copies.total() - len(copies), parts)


def _in_order(sides: list[list[Document]], shares: list[float]) -> list[Document]:
    """The documents of all parts as a mix takes them, those that are left over at the end."""
    met = [
        ((place + 0.5) / share, part, place)
        for part, (side, share) in enumerate(zip(sides, shares, strict=True))
        for place in range(len(side))
    ]
    return [sides[part][place] for _, part, place in sorted(met)]


def require_documents(data: Data) -> list[Document]:
    """The two documents that each local corpus begins with; raises ConfigError without them.

    Cheap, for a check before anything starts: it reads no further than them, so damage behind
    them is found by :func:`read_corpus`. The hub is not asked, and python not read.
    """
    first: list[Document] = []
    for part, name in zip(data.parts, data.part_names, strict=True):
        files = _files(part)
        if files is not None:
            met = _distinct(data, part, name, data.max_bytes, Counter(), Counter(), files)
            own = list(islice(met, 2))
            _require_two(own, part.corpus, data.max_bytes)
            first += own
    return first


class Ahead(NamedTuple):
    """What is known of the text before it is read. points: of the documents that were looked at,
    in [0, 1), ascending; one below ``data.holdout_share`` is held out. whole: there are no more.
    taken: (corpus, bytes of its files, share of them that is taken) where ``data.max_bytes`` cuts
    it."""

    points: list[float]
    whole: bool
    taken: list[tuple[str, int, float]]


def look_ahead(data: Data, seed: int, enough: int) -> Ahead:
    """Looks at documents until ``enough`` of them will be held out, or ``LOOKED_AT_BYTES`` were
    read; the hub is not asked.

    Raises ConfigError for text that cannot be read.
    """
    points: list[float] = []
    taken: list[tuple[str, int, float]] = []
    whole, looked, held = True, 0, 0
    copies: Counter[bytes] = Counter()
    ids: Counter[str] = Counter()
    for part, name, share in zip(data.parts, data.part_names, data.shares, strict=True):
        room, files = int(data.max_bytes * share), _files(part)
        if part.corpus.startswith(PREFIX):
            whole = False
            continue
        left = room
        for document in _distinct(data, part, name, room, copies, ids, files):
            points.append(_point(seed, document.id))
            looked += document.size_bytes
            left -= document.size_bytes
            held += points[-1] < data.holdout_share
            if held >= enough or looked >= LOOKED_AT_BYTES:
                whole, left = False, 0  # as if it were filled: files that hold more say whether
                break
        size = _files_bytes(Path(part.corpus), files) if files else 0
        if size > room and left < LONGEST_CHARACTER:
            taken.append((part.corpus, size, room / size))
    return Ahead(sorted(points), whole, taken)


def _files_bytes(path: Path, files: Selection) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum((path / name).stat().st_size for name in files.taken)


def _files(part: CorpusSource) -> Selection | None:
    """The files of a local corpus, None for another."""
    if part.corpus == "python" or part.corpus.startswith(PREFIX):
        refuse_patterns(f"corpus {part.corpus}", part.include, part.exclude)
        return None
    return select_files(Path(part.corpus), part.include, part.exclude)


def _distinct(
    data: Data,
    part: CorpusSource,
    name: str,
    room: int,
    texts: Counter[bytes],
    ids: Counter[str],
    files: Selection | None,
) -> Iterator[Document]:
    """The documents of ``part`` up to ``room`` bytes, each text and each id once.

    name: of the part among several. texts: counts how often each text was met, by its digest.
    """
    for document in _read(data, part, files):
        text = _cut(document.text, room)
        if not text.strip() or (document.messages and len(text) < len(document.text)):
            continue  # half a conversation is none
        digest = hashlib.sha256((document.messages or text).encode()).digest()
        texts[digest] += 1
        if texts[digest] > 1:
            continue
        unused = _unused(f"{name}/{document.id}" if name else document.id, ids)
        taken = replace(document, id=unused, text=text, corpus=name)
        yield taken
        room -= taken.size_bytes
        if room <= 0:
            break


def _unused(name: str, ids: Counter[str]) -> str:
    """``name``, or ``name~2`` and so on; ``ids`` counts, for each id taken, those made of it."""
    unused = name
    while unused in ids:
        ids[name] += 1
        unused = f"{name}~{ids[name]}"
    ids[unused] = 1
    return unused


def _read(data: Data, part: CorpusSource, files: Selection | None) -> Iterator[Document]:
    fields = Fields(part.text_field, part.messages_field, data.conversations == "plain")
    if part.corpus == "python":
        return python_documents()
    if part.corpus.startswith(PREFIX):
        return read_hub(part.corpus, part.split, fields)
    return read_path(Path(part.corpus), part.format, fields, files)


def _cut(text: str, room: int) -> str:
    """The beginning of ``text`` that fits into ``room`` UTF-8 bytes, whole characters only.

    A lone surrogate, which JSON can spell and UTF-8 cannot, becomes a question mark.
    """
    encoded = text.encode("utf-8", "replace")
    return encoded[:room].decode("utf-8", "ignore")


def _require_two(documents: list[Document], corpus: str, room: int) -> None:
    if len(documents) > 1:
        return
    cure = "it is one piece: give more text, or split it into more files or lines"
    if not documents:
        cure = "what was read is empty or blank: give files, or rows, with text in them"
    elif documents[0].size_bytes > room - LONGEST_CHARACTER:
        cure = "the first document alone fills data.max_bytes: raise it, or split the document"
    raise ConfigError(
        f"corpus {corpus}: {len(documents)} document(s) with text",
        allowed="at least two: one to learn from and one held out",
        next_step=cure,
    )


def _heldout_ids(documents: list[Document], seed: int, share: float) -> set[str]:
    """Ids whose point in [0, 1) is below ``share``; at least one document on each side."""
    points = {d.id: _point(seed, d.id) for d in documents}
    held = {name for name, point in points.items() if point < share}
    if not held:
        held = {min(points, key=points.__getitem__)}
    if len(held) == len(documents):
        held.remove(max(points, key=points.__getitem__))
    return held


def _point(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _digest(documents: list[Document], held: set[str]) -> str:
    total = hashlib.sha256()
    for document in documents:
        side = b"heldout" if document.id in held else b"training"
        content = (document.messages or document.text).encode()
        for part in (side, document.id.encode("utf-8", "replace"), content):
            total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:16]
