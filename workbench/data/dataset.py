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
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from workbench.data.chat import chat_tokens
from workbench.data.document import Document
from workbench.data.mix import TokenPart, mixed_order
from workbench.data.tokenizer import document_start, encode, vocabulary_size
from workbench.errors import ConfigError
from workbench.files import replacing, write_text
from workbench.pilot.sections.data import Data
from workbench.records.events import Progress
from workbench.wording.counts import number_of

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
        _save_parts(path, documents, pieces)
        _save(path, np.concatenate([np.asarray(ids, dtype) for ids, _ in pieces]))
    return np.load(path, mmap_mode="r")


def judged_of(path: Path) -> np.ndarray | None:
    """Which of the tokens in ``path`` are judged, bool, mapped from the file beside it; None for
    all."""
    beside = _judged_path(path)
    return np.load(beside, mmap_mode="r") if beside.exists() else None


def parts_of(path: Path, data: Data) -> tuple[TokenPart, ...]:
    """Where the tokens in ``path`` are of which of several corpora; none for a single one."""
    beside = path.with_name(f"{path.stem}.parts.json")
    if not beside.exists():
        return ()
    ends = json.loads(beside.read_text(encoding="utf-8"))
    shares = dict(zip(data.part_names, data.shares, strict=True))
    return tuple(TokenPart(name, shares[name], *place) for name, place in ends.items())


def _save_parts(path: Path, documents: Sequence[Document], pieces: Sequence[LearnedTokens]) -> None:
    """Documents of one corpus follow one another."""
    places: dict[str, list[int]] = {}
    end = 0
    for document, (ids, _) in zip(documents, pieces, strict=True):
        begin, end = end, end + len(ids)
        places.setdefault(document.corpus, [begin, end])[1] = end
    if len(places) > 1:
        write_text(path.with_name(f"{path.stem}.parts.json"), json.dumps(places))


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
    parts: of several corpora; their sequences are mixed by their shares (:mod:`.mix`), each from
    a permutation of its own.
    Items are ``input_ids`` and ``labels``, both int64 ``[sequence_length]`` and equal, but for
    the labels of what is not judged: the model shifts them itself.
    Raises ConfigError when the tokens do not fill one step's batch (``at_least`` sequences), or a
    part has no sequence.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        sequence_length: int,
        length: int,
        seed: int,
        at_least: int = 1,
        judged: np.ndarray | None = None,
        parts: Sequence[TokenPart] = (),
    ) -> None:
        self.tokens, self.sequence_length, self.judged = tokens, sequence_length, judged
        self.length, self.seed = length, seed
        spans = [(part.begin, part.end) for part in parts] or [(0, len(tokens))]
        self.begins = [self._sequences(begin, end) for begin, end in spans]
        self.per_pass = sum(map(len, self.begins))
        if self.per_pass < at_least or min(map(len, self.begins)) < 1:
            short = min(range(len(spans)), key=lambda part: len(self.begins[part]))
            of = f" of {parts[short].name}" if parts else ""
            raise ConfigError(
                f"the corpus is too short: {number_of(spans[short][1] - spans[short][0], 'token')} "
                f"to learn from{of}, {number_of(len(self.begins[short]), 'sequence')} of "
                f"{sequence_length}" + ("" if judged is None else " with an answer"),
                allowed=f"at least {number_of(at_least, 'sequence')}, the batch of one step",
                next_step="give more text, or lower data.sequence_length or train.batch_size",
            )
        self._mix = mixed_order([part.share for part in parts], length, seed) if parts else None
        self._permutation = functools.lru_cache(maxsize=2 * len(spans))(self._draw)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        part = 0
        if self._mix is not None:
            part, index = (int(order[index]) for order in self._mix)
        turn, place = divmod(index, len(self.begins[part]))
        begin = int(self.begins[part][self._permutation(turn, part)[place]])
        row = self.tokens[begin : begin + self.sequence_length].astype(np.int64)
        ids = torch.from_numpy(row)
        if self.judged is None:
            return {"input_ids": ids, "labels": ids}
        judged = self.judged[begin : begin + self.sequence_length]
        return {"input_ids": ids, "labels": torch.from_numpy(np.where(judged, row, UNJUDGED))}

    @property
    def passes(self) -> float:
        """How often the corpus is seen; of several, all together."""
        return self.length / self.per_pass

    def _sequences(self, begin: int, end: int) -> np.ndarray:
        """First tokens of the sequences in a span; where not all is judged, of those that teach
        something: a sequence's first token has no past and is never a target."""
        whole = (end - begin) // self.sequence_length
        begins = begin + self.sequence_length * np.arange(whole)
        if self.judged is None or not whole:
            return begins
        rows = np.asarray(self.judged[begin : begin + whole * self.sequence_length])
        return begins[rows.reshape(whole, -1)[:, 1:].any(axis=1)]

    def _draw(self, turn: int, part: int) -> np.ndarray:
        of = [self.seed, turn, part] if self._mix is not None else [self.seed, turn]
        return np.random.default_rng(of).permutation(len(self.begins[part]))
