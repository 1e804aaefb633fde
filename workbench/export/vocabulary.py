"""A tokenizer in the words of a GGUF file: tokens, their kinds, merges and how text is cut first.

llama.cpp has its own tokenizers and knows ours by name alone, so only those are written whose way
of cutting text it has: byte-level BPE that does what one of its names does
(:mod:`workbench.data.pre_tokenizers`), and SentencePiece's BPE (Llama 2, Mistral). Another one
would read a prompt as other tokens without a word, so it is refused; token ids work without any
tokenizer. What was written is read again by llama.cpp's rules, and must give the same tokens for
plain text and for whole conversations of the chat template (:func:`require_same_tokens`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from workbench.data.chat import chat_tokens
from workbench.data.conversation import conversation
from workbench.data.pre_tokenizers import KNOWN, cut_name, nearest_cut
from workbench.data.tokenizer import document_start, vocabulary_size
from workbench.errors import ConfigError
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from gguf import GGUFWriter

OTHER_ENDS = ("eot", "eom")
"""What llama.cpp calls the tokens beside eos that end a text: of a turn, of a message."""


PLAIN = (
    "It's 2026: 12345 tokens — naïve café,\n\n  x = f(a_b) + 3.5e-4;\tEnd  ",
    " WE'LL see\r\n\r\n 1000000 日本語 🙂 don't\n \n\n\tindent",
    "Съешь ещё этих мягких французских булок. مرحبا ٣٤٥ हिन्दी",
    "a",
)
TALKS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Is it 12?"}, {"role": "assistant", "content": "No, 345."}],
    [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "  What's 2 + 2?\n\n```py\n\tx = 1\n```"},
        {"role": "assistant", "content": "It's 4 — là 🙂\n"},
        {"role": "user", "content": "日本語 1000000 "},
    ],
)
ONE_TURN = conversation({"messages": TALKS[0]}, "messages", "the probe")


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
            f"the tokenizer of {where} has ids up to {needed - 1}, its embedding "
            f"{number_of(rows, 'row')}",
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
    pre = cut_name(tokenizer.backend_tokenizer) if bpe["type"] == "BPE" else None
    if pre is None:
        near = nearest_cut(tokenizer.backend_tokenizer) if bpe["type"] == "BPE" else None
        said = (
            f", nearly as {near[0]}, which in llama.cpp cuts {near[1]!r} otherwise" if near else ""
        )
        raise _unknown(where, f"{bpe['type']}, {_prepared(parts)}{said}")
    return Vocabulary("gpt2", pre, tokens, types, merges=merges)


def write_special_tokens(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]
) -> None:
    """The ids of special tokens; a text begins as in training, with bos or, without one, eos."""
    ids = {"bos": document_start(tokenizer), "eos": tokenizer.eos_token_id}
    ids |= {"unk": tokenizer.unk_token_id, "pad": tokenizer.pad_token_id}
    turn_end = end_of_turn(tokenizer)
    if turn_end is not None:
        ids["eot"] = turn_end
    others = sorted(eos_ids - set(ids.values()))
    free = [kind for kind in OTHER_ENDS if kind not in ids]
    if len(others) > len(free):
        raise ConfigError(
            f"{number_of(len(eos_ids), 'token ends', 'tokens end')} a text: {sorted(eos_ids)}"
            + ("" if turn_end is None else f", and {turn_end} a turn of its chat template"),
            allowed=f"at most {1 + len(OTHER_ENDS)} in a GGUF file",
            next_step="leave those that are never used out of eos_token_id in config.json and "
            "generation_config.json",
        )
    ids |= dict(zip(free, others, strict=False))
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


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that ends an answer in the tokenizer's chat template; None without a
    template, or where no special token does."""
    if tokenizer.chat_template is None:
        return None
    try:
        found = chat_tokens(tokenizer, ONE_TURN, "the chat template")
    except ConfigError:  # one that cannot write it ends no turn that could be told
        return None
    last = found.ids[int(found.judged.nonzero()[0][-1])]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return last if last in special else None


def require_same_tokens(
    tokenizer: PreTrainedTokenizerBase, read_again: PreTrainedTokenizerBase, where: Path
) -> int:
    """How many texts the two read as the same tokens: plain ones, and conversations in the chat
    template with its special tokens.

    read_again: as llama.cpp reads what was written. Raises ConfigError at the first other token.
    """
    texts = list(PLAIN)
    if tokenizer.chat_template is not None:
        for messages in TALKS:
            for asks in (False, True):
                try:
                    texts.append(
                        tokenizer.apply_chat_template(
                            messages, tokenize=False, add_generation_prompt=asks
                        )
                    )
                except Exception:  # a template may refuse a role; what it refuses is never sent
                    continue
    for text in texts:
        ours, theirs = (
            each(text, add_special_tokens=False, verbose=False)["input_ids"]
            for each in (tokenizer, read_again)
        )
        if ours != theirs:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            raise ConfigError(
                f"the tokenizer of {where} reads other tokens than its GGUF file would, from token "
                f"{at} of {text[:60]!r} on: {ours[at : at + 4]}, there {theirs[at : at + 4]}",
                allowed="the same tokens, special ones included",
                next_step="--no-tokenizer writes a file for token ids alone",
            )
    return len(texts)


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
        allowed=f"byte-level BPE that cuts text as {', '.join(KNOWN)} do; SentencePiece BPE",
        next_step="--no-tokenizer writes a file for token ids alone",
    )
