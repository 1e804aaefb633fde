"""The tokenizer: the user's own, or byte-level BPE trained on the training documents.

Byte-level BPE starts from the 256 bytes, so that every text has tokens and comes back
unchanged; one special token, ``<|endoftext|>``, starts and ends a document. Either kind is a
``transformers`` fast tokenizer and is saved beside the models it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from workbench.data.document import Document
from workbench.data.gguf_tokenizer import gguf_tokenizer, has_tokenizer
from workbench.data.hub import PREFIX
from workbench.errors import ConfigError, WorkbenchError, reason_of
from workbench.gguf_reader import is_gguf, read_gguf
from workbench.pilot.sections.data import Data

END_OF_TEXT = "<|endoftext|>"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files that make a folder a tokenizer's, whichever of the formats it has."""

SAMPLE_TEXTS, SAMPLE_CHARACTERS = 64, 2000
"""What an estimate of characters a token reads."""
LEARN_FROM_BYTES = 64 << 20
"""More text than this changes the merges little and takes minutes to count."""


def tokenizer_name(data: Data, checkpoint: str | None) -> str | None:
    """``data.tokenizer``, or else the checkpoint that brings its own; None: one is to be trained.

    A network knows the tokens that it was trained with; those of a new tokenizer would be other
    words to it. What lies on the Hub is taken to have one.
    """
    if data.tokenizer or checkpoint is None:
        return data.tokenizer
    folder = Path(checkpoint)
    if is_gguf(checkpoint):
        return checkpoint if has_tokenizer(read_gguf(folder)) else None
    has_own = _is_hub(checkpoint) or any((folder / name).is_file() for name in VOCABULARIES)
    return checkpoint if has_own else None


def make_tokenizer(
    data: Data, training: Iterable[Document], checkpoint: str | None = None
) -> PreTrainedTokenizerBase:
    """That of :func:`tokenizer_name`, else one trained on ``training``."""
    if name := tokenizer_name(data, checkpoint):
        return load_tokenizer(name)
    return train_tokenizer(training, data.vocab_size)


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most ``vocab_size`` tokens, the special token included.

    Deterministic: the same documents give the same merges. Few documents give fewer tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_up_to(documents, LEARN_FROM_BYTES), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, of a GGUF file or of ``hf:owner/name``.

    Raises ConfigError when it cannot be loaded or has no token that separates documents.
    """
    where = name.removeprefix(PREFIX)
    try:
        tokenizer = (
            gguf_tokenizer(Path(name))
            if is_gguf(name)
            else AutoTokenizer.from_pretrained(
                where, local_files_only=not _is_hub(name), trust_remote_code=False
            )
        )
    except WorkbenchError:
        raise
    except Exception as error:  # the loader raises what its formats' parsers raise
        raise ConfigError(
            f"tokenizer {name} could not be loaded: {reason_of(error)}",
            allowed="a folder with tokenizer.json, a .gguf file, or hf:owner/name",
            next_step="check the path, or leave data.tokenizer out to train one",
        ) from None
    if document_start(tokenizer) is None:
        raise ConfigError(
            f"tokenizer {name} has neither a bos nor an eos token",
            next_step="give it one in its tokenizer_config.json: it separates documents",
        )
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs for it: its ids may have holes, so their count is not enough."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def document_start(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands before a document: bos, or eos where there is no bos."""
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    return tokenizer.eos_token_id


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The token ids of each text alone: nothing added, and special tokens that a text merely
    mentions are ordinary characters."""
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    return encoded["input_ids"]


def sample_counts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[int, int]:
    """(characters, tokens) of the beginnings of the first texts: what :func:`window_characters`
    is told where nobody has the tokens of all the text."""
    sample = [text[:SAMPLE_CHARACTERS] for text in texts[:SAMPLE_TEXTS]]
    return sum(map(len, sample)), sum(map(len, encode(tokenizer, sample)))


def window_characters(window: int, characters: int, tokens: int) -> int:
    """About how many characters ``window`` tokens hold, of text that has ``tokens`` tokens in
    ``characters`` characters; at least 1."""
    return max(1, window * characters // max(1, tokens))


def changes_text(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> bool:
    """Whether a text does not come back from its tokens: then bits per byte are no measure."""
    return any(
        tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text
        for ids, text in zip(encode(tokenizer, texts), texts, strict=True)
    )


def _is_hub(name: str) -> bool:
    return name.startswith(PREFIX)


def _up_to(documents: Iterable[Document], size_bytes: int) -> Iterator[str]:
    for document in documents:
        if size_bytes <= 0:
            return
        yield document.text
        size_bytes -= document.size_bytes
