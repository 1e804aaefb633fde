"""A document: the unit that is split, tokenised, judged and resampled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd


@dataclass(frozen=True)
class Document:
    """id: unique in its corpus. source: where it came from, for grouping. text: never empty."""

    id: str
    source: str
    text: str

    @property
    def size_bytes(self) -> int:
        """UTF-8 bytes: the denominator of bits per byte, the same for every tokenizer."""
        return len(self.text.encode("utf-8"))


def documents_frame(documents: Iterable[Document]) -> pd.DataFrame:
    """Columns id, source, text; the form in which records keep documents."""
    rows = [asdict(document) for document in documents]
    return pd.DataFrame(rows, columns=["id", "source", "text"], dtype=object)
