"""Documents as packed token sequences, in an order that only the seed and the step decide.

All training documents are written one after another, each behind the tokenizer's start
token, into one array on disk; a sequence is ``sequence_length`` tokens of it, so a sequence
may hold the end of one document and the beginning of the next. Nothing is padded.

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

from workbench.data.document import Document
from workbench.data.tokenizer import document_start, encode, vocabulary_size
from workbench.errors import ConfigError
from workbench.files import replacing
from workbench.records.events import Progress

DOCUMENTS_AT_ONCE = 256


def write_tokens(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    progress: Progress | None = None,
) -> np.ndarray:
    """Tokenise ``documents`` into ``path`` (.npy) and return the array, mapped from the file.

    uint16 where the vocabulary allows it, else uint32. A file that is there already is used.
    """
    if not path.exists():
        dtype = np.uint16 if vocabulary_size(tokenizer) <= 1 << 16 else np.uint32
        chunks = [np.asarray(ids, dtype) for ids in _chunks(tokenizer, documents, progress)]
        with replacing(path) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate(chunks))
    return np.load(path, mmap_mode="r")


def _chunks(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    progress: Progress | None,
) -> Iterator[list[int]]:
    start = document_start(tokenizer)
    assert start is not None, "load_tokenizer refuses a tokenizer without one"
    for begin in range(0, len(documents), DOCUMENTS_AT_ONCE):
        some = documents[begin : begin + DOCUMENTS_AT_ONCE]
        yield [
            token for ids in encode(tokenizer, [d.text for d in some]) for token in (start, *ids)
        ]
        if progress:
            progress.step("tokenise", begin + len(some), len(documents), "documents")


class PackedSequences(Dataset[dict[str, torch.Tensor]]):
    """``length`` training sequences in the order of ``seed``.

    tokens: the whole array of token ids, one dimension.
    Items are ``input_ids`` and ``labels``, both int64 ``[sequence_length]`` and equal: the
    model shifts them itself.
    Raises ConfigError when the tokens do not fill one step's batch (``at_least`` sequences).
    """

    def __init__(
        self, tokens: np.ndarray, sequence_length: int, length: int, seed: int, at_least: int = 1
    ) -> None:
        self.tokens, self.sequence_length = tokens, sequence_length
        self.length, self.seed = length, seed
        self.per_pass = len(tokens) // sequence_length
        if self.per_pass < at_least:
            raise ConfigError(
                f"the corpus is too short: {len(tokens)} tokens to learn from, "
                f"{self.per_pass} sequences of {sequence_length}",
                allowed=f"at least {at_least} sequences, the batch of one step",
                next_step="give more text, or lower data.sequence_length or train.batch_size",
            )
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        turn, place = divmod(index, self.per_pass)
        begin = int(self._permutation(turn)[place]) * self.sequence_length
        row = self.tokens[begin : begin + self.sequence_length].astype(np.int64)
        ids = torch.from_numpy(row)
        return {"input_ids": ids, "labels": ids}

    @property
    def passes(self) -> float:
        """How often the corpus is seen."""
        return self.length / self.per_pass

    def _draw(self, turn: int) -> np.ndarray:
        return np.random.default_rng([self.seed, turn]).permutation(self.per_pass)
