"""Documents as packed token sequences, in an order that only the seed and the step decide.

All training documents are written one after another, each behind the tokenizer's start
token, into one array on disk; a sequence is ``sequence_length`` tokens of it, so a sequence
may hold the end of one document and the beginning of the next. Nothing is padded.

Of conversations the answers alone are learned: a second array beside the tokens says which tokens
are judged, the others have the label -100, and a sequence without any judged token is left out.

The order is a fresh permutation of all sequences for each pass over them, drawn from (seed,
pass). Item ``i`` of the data set is the ``i``-th sequence of that endless order: two arms see
the same batches, and a training that goes on at step ``s`` needs no state but ``s``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from workbench.data.chat import chat_tokens
from workbench.data.document import Document
from workbench.data.tokenizer import document_start, encode, vocabulary_size
from workbench.errors import ConfigError
from workbench.files import replacing
from workbench.records.events import Progress

DOCUMENTS_AT_ONCE = 256


UNJUDGED = -100
"""Label of a token that no loss counts."""
LearnedTokens = tuple[list[int], np.ndarray | None]
"""Token ids, and which of them are judged; None for all."""


def write_tokens(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    progress: Progress | None = None,
) -> np.ndarray:
    """Tokenise ``documents`` into ``path`` (.npy) and return the array, mapped from the file.

    uint16 where the vocabulary allows it, else uint32. Where there are conversations, the file
    beside it says which tokens are judged (:func:`judged_of`).
    A file that is there already is used.
    """
    if not path.exists():
        dtype = np.uint16 if vocabulary_size(tokenizer) <= 1 << 16 else np.uint32
        pieces = list(_pieces(tokenizer, documents, progress))
        if any(judged is not None for _, judged in pieces):
            flags = [np.ones(len(ids), bool) if j is None else j for ids, j in pieces]
            _save(_judged_path(path), np.concatenate(flags))
        _save(path, np.concatenate([np.asarray(ids, dtype) for ids, _ in pieces]))
    return np.load(path, mmap_mode="r")


def judged_of(path: Path) -> np.ndarray | None:
    """Which of the tokens in ``path`` are judged, bool, mapped from the file beside it; None for
    all."""
    beside = _judged_path(path)
    return np.load(beside, mmap_mode="r") if beside.exists() else None


def _judged_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.judged.npy")


def _save(path: Path, values: np.ndarray) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, values)


def _pieces(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    progress: Progress | None,
) -> Iterator[LearnedTokens]:
    start = document_start(tokenizer)
    assert start is not None, "load_tokenizer refuses a tokenizer without one"
    for begin in range(0, len(documents), DOCUMENTS_AT_ONCE):
        some = documents[begin : begin + DOCUMENTS_AT_ONCE]
        for ids, judged, _ in document_tokens(tokenizer, some):
            if judged is None:
                yield [start, *ids], None
            elif ids[:1] == [start]:  # the template has it already
                yield ids, judged
            else:
                yield [start, *ids], np.concatenate([[False], judged])
        if progress:
            progress.step("tokenise", begin + len(some), len(documents), "documents")


def document_tokens(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]
) -> Iterator[tuple[list[int], np.ndarray | None, int]]:
    """Of each document its token ids, which of them are judged (None: all) and the bytes of what
    is judged."""
    plain = [document.text for document in documents if not document.messages]
    texts = iter(encode(tokenizer, plain) if plain else ())
    for document in documents:
        if document.messages:
            found = chat_tokens(tokenizer, document.messages, f"conversation {document.id}")
            yield found.ids, found.judged, found.size_bytes
        else:
            yield next(texts), None, document.size_bytes


class PackedSequences(Dataset[dict[str, torch.Tensor]]):
    """``length`` training sequences in the order of ``seed``.

    tokens: the whole array of token ids, one dimension. judged: bool, one a token; None for all.
    Items are ``input_ids`` and ``labels``, both int64 ``[sequence_length]`` and equal, but for
    the labels of what is not judged: the model shifts them itself.
    Raises ConfigError when the tokens do not fill one step's batch (``at_least`` sequences).
    """

    def __init__(
        self,
        tokens: np.ndarray,
        sequence_length: int,
        length: int,
        seed: int,
        at_least: int = 1,
        judged: np.ndarray | None = None,
    ) -> None:
        self.tokens, self.sequence_length, self.judged = tokens, sequence_length, judged
        self.length, self.seed = length, seed
        whole = len(tokens) // sequence_length
        self.places = np.arange(whole) if judged is None else self._with_answers(judged, whole)
        self.per_pass = len(self.places)
        if self.per_pass < at_least:
            raise ConfigError(
                f"the corpus is too short: {len(tokens)} tokens to learn from, "
                f"{self.per_pass} sequences of {sequence_length}"
                + ("" if judged is None else f" with an answer, of {whole}"),
                allowed=f"at least {at_least} sequences, the batch of one step",
                next_step="give more text, or lower data.sequence_length or train.batch_size",
            )
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        turn, place = divmod(index, self.per_pass)
        begin = int(self.places[self._permutation(turn)[place]]) * self.sequence_length
        row = self.tokens[begin : begin + self.sequence_length].astype(np.int64)
        ids = torch.from_numpy(row)
        if self.judged is None:
            return {"input_ids": ids, "labels": ids}
        judged = self.judged[begin : begin + self.sequence_length]
        return {"input_ids": ids, "labels": torch.from_numpy(np.where(judged, row, UNJUDGED))}

    @property
    def passes(self) -> float:
        """How often the corpus is seen."""
        return self.length / self.per_pass

    def _with_answers(self, judged: np.ndarray, whole: int) -> np.ndarray:
        """Sequences that teach something; their first token has no past and is never a target."""
        length = self.sequence_length
        rows = np.asarray(judged[: whole * length]).reshape(whole, length)
        return np.flatnonzero(rows[:, 1:].any(axis=1))

    def _draw(self, turn: int) -> np.ndarray:
        return np.random.default_rng([self.seed, turn]).permutation(self.per_pass)
