"""A tokenizer in the words of a GGUF file: tokens, their kinds, merges and how text is cut first.

llama.cpp has its own tokenizers and knows ours by name alone, so only those are written whose way
of cutting text it has: byte-level BPE as in GPT-2 (what the workbench trains), Llama 3 and Qwen 2,
and SentencePiece's BPE (Llama 2, Mistral). Another one would read a prompt as other tokens
without a word, so it is refused; token ids work without any tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from workbench.data.gguf_tokenizer import PRE_TOKENIZERS
from workbench.data.tokenizer import document_start, vocabulary_size
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from gguf import GGUFWriter

OTHER_ENDS = ("eot", "eom")
"""What llama.cpp calls the tokens beside eos that end a text: of a turn, of a message."""


@dataclass(frozen=True)
class Vocabulary:
    """model: llama.cpp's tokenizer, ``gpt2``, ``llama`` or ``none``. pre: how it cuts text first.
    tokens, types, scores: a row of the embedding each; types by ``gguf.TokenType``."""

    model: str
    pre: str | None = None
    tokens: tuple[str, ...] = ()
    types: tuple[int, ...] = ()
    scores: tuple[float, ...] | None = None
    merges: tuple[str, ...] = ()
    space_prefix: bool = False

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        if self.model == "none":
            return
        if self.pre:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        if self.merges:
            writer.add_token_merges(self.merges)


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, where: Path) -> Vocabulary:
    """rows: of the embedding; those without a token are marked unused.

    where: for the ConfigError about a tokenizer that llama.cpp does not have, or that has tokens
    without a row.
    """
    parts = _parts(tokenizer, where)
    if (needed := vocabulary_size(tokenizer)) > rows:
        raise ConfigError(
            f"the tokenizer of {where} has ids up to {needed - 1}, its embedding {rows} rows",
            allowed="a row for every token",
            next_step="--no-tokenizer writes a file for token ids alone",
        )
    _require_same_cuts(tokenizer, parts, where)
    tokens, types = _tokens_and_types(tokenizer, rows)
    bpe = parts["model"]
    if bpe["type"] == "BPE" and bpe.get("byte_fallback"):
        if not _is_sentencepiece(parts):
            raise _unknown(where, f"BPE with bytes, {_prepared(parts)}")
        return Vocabulary(
            "llama", "default", tokens, types, _scores(bpe, tokens), space_prefix=_prefixes(parts)
        )
    merges = tuple(m if isinstance(m, str) else " ".join(m) for m in bpe.get("merges", ()))
    pre = _pre_tokenizer(parts) if bpe["type"] == "BPE" else None
    if pre is None:
        raise _unknown(where, f"{bpe['type']}, {_prepared(parts)}")
    return Vocabulary("gpt2", pre, tokens, types, merges=merges)


def write_special_tokens(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]
) -> None:
    """The ids of special tokens; a text begins as in training, with bos or, without one, eos."""
    ids = {"bos": document_start(tokenizer), "eos": tokenizer.eos_token_id}
    ids |= {"unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    others = sorted(eos_ids - {ids["eos"]})
    if len(others) > len(OTHER_ENDS):
        raise ConfigError(
            f"{len(eos_ids)} tokens end a text: {sorted(eos_ids)}",
            allowed=f"at most {1 + len(OTHER_ENDS)} in a GGUF file",
            next_step="leave those that are never used out of eos_token_id in config.json and "
            "generation_config.json",
        )
    ids |= dict(zip(OTHER_ENDS, others, strict=False))
    for kind, token in ids.items():
        if token is not None:
            getattr(writer, f"add_{kind}_token_id")(token)
    writer.add_add_bos_token(ids["bos"] is not None)
    if template := tokenizer.chat_template:  # a text, or several by name
        writer.add_chat_template(
            template
            if isinstance(template, str)
            else [{"name": name, "template": text} for name, text in template.items()]
        )


def _parts(tokenizer: PreTrainedTokenizerBase, where: Path) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown(where, f"{type(tokenizer).__name__}, which has no tokenizer.json")
    return json.loads(backend.to_str())


def _require_same_cuts(
    tokenizer: PreTrainedTokenizerBase, parts: dict[str, Any], where: Path
) -> None:
    """ConfigError for what llama.cpp does otherwise around special tokens, as a chat template has
    them: it puts a space before the text after each, and takes none away."""
    strips = [a["content"] for a in parts["added_tokens"] if a["rstrip"] or a["lstrip"]]
    if strips:
        raise _unknown(where, f"one whose token {strips[0]!r} swallows the spaces beside it")
    if tokenizer.chat_template and (parts["pre_tokenizer"] or {}).get("prepend_scheme") == "first":
        raise _unknown(where, "one that puts a space before a chat template's first text alone")


def _tokens_and_types(
    tokenizer: PreTrainedTokenizerBase, rows: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    from gguf import TokenType

    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [TokenType.UNUSED] * rows
    for token, i in tokenizer.get_vocab().items():
        is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        tokens[i], types[i] = token, TokenType.BYTE if is_byte else TokenType.NORMAL
    for i, added in tokenizer.added_tokens_decoder.items():
        types[i] = TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    if tokenizer.unk_token_id is not None and types[tokenizer.unk_token_id] == TokenType.NORMAL:
        types[tokenizer.unk_token_id] = TokenType.UNKNOWN
    return tuple(tokens), tuple(map(int, types))


def _pre_tokenizer(parts: dict[str, Any]) -> str | None:
    """llama.cpp's name for how byte-level BPE cuts text; None if it has none."""
    cut = parts["pre_tokenizer"] or {}
    steps = cut.get("pretokenizers", [cut])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1 and last.get("use_regex"):
        return None if parts["normalizer"] else "gpt-2"
    if len(steps) == 2 and steps[0].get("type") == "Digits" and last.get("use_regex"):
        alone = steps[0]["individual_digits"] and not parts["normalizer"]
        return "smollm" if alone else None
    if len(steps) == 2 and steps[0].get("type") == "Split" and not last.get("use_regex"):
        split = steps[0]
        whole = split["behavior"] == "Isolated" and not split["invert"]
        name = PRE_TOKENIZERS.get(split["pattern"].get("Regex")) if whole else None
        # Qwen composes characters (NFC) and llama.cpp does not; nearly all text is composed.
        known = (None, "NFC") if name == "qwen2" else (None,)
        return name if (parts["normalizer"] or {}).get("type") in known else None
    return None


def _is_sentencepiece(parts: dict[str, Any]) -> bool:
    """Whether nothing happens before the merges but that spaces become ▁, with one in front or
    not: by a normalizer (Llama 2) or by a pre-tokenizer that does not split (Mistral)."""
    normal, cut = parts["normalizer"], parts["pre_tokenizer"]
    if cut is not None:
        spaces = cut["type"] == "Metaspace" and cut["replacement"] == "▁"
        return normal is None and spaces and not cut.get("split", True)
    steps = (normal or {}).get("normalizers", [normal] if normal else [])
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return steps in ([replace], [{"type": "Prepend", "prepend": "▁"}, replace])


def _scores(bpe: dict[str, Any], tokens: tuple[str, ...]) -> tuple[float, ...]:
    """SentencePiece joins the pair whose token has the best score: minus the rank of the merge."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(bpe["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault(left + right, i)
    return tuple(-float(rank.get(token, len(rank))) for token in tokens)


def _prefixes(parts: dict[str, Any]) -> bool:
    """Whether a text gets a space in front."""
    normal, cut = parts["normalizer"] or {}, parts["pre_tokenizer"] or {}
    steps = [*normal.get("normalizers", [normal]), *cut.get("pretokenizers", [cut])]
    return any(
        step.get("type") == "Prepend" or step.get("prepend_scheme") in ("always", "first")
        for step in steps
    )


def _prepared(parts: dict[str, Any]) -> str:
    normal = parts["normalizer"]
    changed = f"changed by {_described(normal)}, " if normal else ""
    return f"{changed}cut by {_described(parts['pre_tokenizer'])}"


def _described(step: dict[str, Any] | None) -> str:
    if step is None:
        return "nothing"
    inner = step.get("pretokenizers") or step.get("normalizers")
    return " and ".join(map(_described, inner)) if inner else step["type"]


def _unknown(where: Path, what: str) -> ConfigError:
    return ConfigError(
        f"the tokenizer of {where} is {what}: llama.cpp has none that is known to be the same",
        allowed="byte-level BPE as in GPT-2, Llama 3, Qwen 2 or SmolLM; SentencePiece BPE",
        next_step="--no-tokenizer writes a file for token ids alone",
    )
