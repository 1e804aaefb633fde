"""A corpus: documents read once, without copies, split into those to learn and those to judge.

The corpus is held in memory (``data.max_bytes`` bounds it); the tokens made from it are not.
A document is held out when a digest of the seed and its id says so. That depends on nothing
else, so a document stays on its side when others are added, and no part of a document is
ever on both sides. Exact copies of a text are dropped first, or they would leak across.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from workbench.data.document import Document
from workbench.data.hub import PREFIX, read_hub
from workbench.data.python_corpus import python_documents
from workbench.data.readers import Fields, read_path
from workbench.errors import ConfigError
from workbench.pilot.sections.data import Data


@dataclass(frozen=True)
class Corpus:
    """training, heldout: documents in corpus order. copies: exact repetitions left out.

    digest: of all ids, sides and texts, to tell whether two runs saw the same corpus.
    """

    training: list[Document]
    heldout: list[Document]
    copies: int
    digest: str

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
    """Read ``data.corpus`` up to ``data.max_bytes`` and split it by document.

    Raises ConfigError when it cannot be read, is empty, or has fewer than two documents.
    """
    copies: Counter[bytes] = Counter()
    documents = list(_distinct(data, copies))
    _require_two(documents, data.corpus)
    held = _heldout_ids(documents, seed, data.holdout_share)
    return Corpus(
        training=[d for d in documents if d.id not in held],
        heldout=[d for d in documents if d.id in held],
        copies=copies.total() - len(copies),
        digest=_digest(documents, held),
    )


def require_documents(data: Data) -> list[Document]:
    """The two documents that a local corpus begins with; raises ConfigError without them.

    Cheap, for a check before anything starts: it reads no further than them, so damage behind
    them is found by :func:`read_corpus`. The hub is not asked, and python not read.
    """
    if data.corpus == "python" or data.corpus.startswith(PREFIX):
        return []
    first = list(islice(_distinct(data, Counter()), 2))
    _require_two(first, data.corpus)
    return first


def _distinct(data: Data, texts: Counter[bytes]) -> Iterator[Document]:
    """The documents up to ``data.max_bytes``, each text and each id once.

    texts: counts how often each text was met, by its digest.
    """
    ids: Counter[str] = Counter()
    room = data.max_bytes
    for document in _read(data):
        text = _cut(document.text, room)
        if not text.strip() or (document.messages and len(text) < len(document.text)):
            continue  # half a conversation is none
        digest = hashlib.sha256((document.messages or text).encode()).digest()
        texts[digest] += 1
        if texts[digest] > 1:
            continue
        taken = replace(document, id=_unused(document.id, ids), text=text)
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


def _read(data: Data) -> Iterator[Document]:
    fields = Fields(data.text_field, data.messages_field, data.conversations == "plain")
    if data.corpus == "python":
        return python_documents()
    if data.corpus.startswith(PREFIX):
        return read_hub(data.corpus, data.split, fields)
    return read_path(Path(data.corpus), data.format, fields)


def _cut(text: str, room: int) -> str:
    """The beginning of ``text`` that fits into ``room`` UTF-8 bytes, whole characters only.

    A lone surrogate, which JSON can spell and UTF-8 cannot, becomes a question mark.
    """
    encoded = text.encode("utf-8", "replace")
    return encoded[:room].decode("utf-8", "ignore")


def _require_two(documents: list[Document], corpus: str) -> None:
    if len(documents) < 2:
        raise ConfigError(
            f"corpus {corpus}: {len(documents)} document(s) with text",
            allowed="at least two: one to learn from and one held out",
            next_step="give more text, split it into more files or lines, or raise data.max_bytes",
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
