"""The tokenizer that a GGUF file brings, built from its tokens, merges and scores.

llama.cpp names how a text is cut before it is merged (``tokenizer.ggml.pre``); known here are those
that ``transformers`` can say exactly. ``transformers`` reads such files too and takes minutes for
a large vocabulary; this takes seconds.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from workbench.data.pre_tokenizers import COMPOSES, KNOWN, SAME_AS
from workbench.errors import ConfigError
from workbench.gguf_reader import GgufFile, read_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""Kinds of tokens in the file."""


def has_tokenizer(file: GgufFile) -> bool:
    """Whether the file names one; ``workbench export --no-tokenizer`` writes none."""
    return file.get("tokenizer.ggml.model", "none") != "none"


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Raises ConfigError for a file without one, and for one whose way of cutting text is not
    known: a guess would read other tokens without a word."""
    file = read_gguf(path)
    kind = file.get("tokenizer.ggml.model", "none")
    if kind == "gpt2":
        made = _byte_level(file)
    elif kind == "llama":
        made = _sentencepiece(file)
    else:
        raise _unknown(file, f"the tokenizer {kind}")
    ids = {
        name: file.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    tokens = file.get("tokenizer.ggml.tokens")
    special = {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
    _add_special(made, file, tokens)
    if file.get("tokenizer.ggml.add_bos_token", kind == "llama") and ids["bos"] is not None:
        bos = tokens[ids["bos"]]
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
            special_tokens=[(bos, ids["bos"])],
        )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, **special
    )
    tokenizer.chat_template = file.get("tokenizer.chat_template")
    return tokenizer


def _byte_level(file: GgufFile) -> Tokenizer:
    pre = file.get("tokenizer.ggml.pre", "default")
    pre = SAME_AS.get(pre, pre)
    if pre not in KNOWN:
        raise _unknown(file, f"byte-level BPE that cuts text by {pre!r}")
    merges = [tuple(merge.split(" ", 1)) for merge in file.get("tokenizer.ggml.merges", [])]
    ignores = KNOWN[pre].ignore_merges
    made = Tokenizer(models.BPE(vocab=_vocabulary(file), merges=merges, ignore_merges=ignores))
    made.pre_tokenizer = KNOWN[pre].pre_tokenizer()
    if pre in COMPOSES:
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    return made


def _sentencepiece(file: GgufFile) -> Tokenizer:
    """SentencePiece's BPE joins the pair whose token has the best score; the file has no merges."""
    vocabulary = _vocabulary(file)
    scores = dict(zip(file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.scores"),
                      strict=True))  # fmt: skip
    ranked = []
    for token, place in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-scores[token], place, vocabulary[left], left, right))
    merges = [(left, right) for *_, left, right in sorted(ranked)]
    unknown = file.get("tokenizer.ggml.unknown_token_id")
    unk = None if unknown is None else file.get("tokenizer.ggml.tokens")[unknown]
    bpe = models.BPE(
        vocab=vocabulary, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True
    )
    made = Tokenizer(bpe)
    prefix = bool(file.get("tokenizer.ggml.add_space_prefix", True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    undone = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*undone, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return made


def _vocabulary(file: GgufFile) -> dict[str, int]:
    """Token -> id, without the rows that stand for none."""
    tokens = file.get("tokenizer.ggml.tokens", [])
    kinds = file.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    return {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != UNUSED
    }


def _add_special(made: Tokenizer, file: GgufFile, tokens: list[str]) -> None:
    """Tokens that a text is cut at before anything else."""
    kinds = file.get("tokenizer.ggml.token_type") or []
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, its in zip(tokens, kinds, strict=False)
            if its == kind or (special and its == UNKNOWN)
        ]
        (made.add_special_tokens if special else made.add_tokens)(added)


def _unknown(file: GgufFile, what: str) -> ConfigError:
    return ConfigError(
        f"{file.path} has {what}",
        allowed=f"byte-level BPE that cuts text by {', '.join([*KNOWN, *SAME_AS])}, or "
        "SentencePiece BPE",
        next_step="set data.tokenizer to the folder of the model's own tokenizer",
    )
