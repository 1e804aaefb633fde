"""A document: the unit that is split, tokenised, judged and resampled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd


@dataclass(frozen=True)
class Document:
    """id: unique in its corpus. source: where it came from, for grouping. text: never empty; of a
    conversation its plain words. messages: the conversation as JSON (:mod:`.conversation`), empty
    where the document is text. corpus: which of several mixed corpora it is of, empty for one.
    """

    id: str
    source: str
    text: str
    messages: str = ""
    corpus: str = ""

    @property
    def size_bytes(self) -> int:
        """UTF-8 bytes: the denominator of bits per byte, the same for every tokenizer."""
        return len(self.text.encode("utf-8"))


OPTIONAL = ("messages", "corpus")
"""Columns of a table that has them only where a document does."""


def documents_frame(documents: Iterable[Document]) -> pd.DataFrame:
    """Columns id, source, text, and messages and corpus where a document has one; the form in
    which records keep documents."""
    rows = [asdict(document) for document in documents]
    used = [name for name in OPTIONAL if any(row[name] for row in rows)]
    return pd.DataFrame(rows, columns=["id", "source", "text", *used], dtype=object)


def documents_from(frame: pd.DataFrame) -> list[Document]:
    """The documents of a table that :func:`documents_frame` made."""
    columns = [name for name in ("id", "source", "text", *OPTIONAL) if name in frame]
    return [Document(**row) for row in frame[columns].to_dict("records")]
