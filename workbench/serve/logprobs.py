"""Log probabilities in OpenAI's two forms, and tokens as text.

A token's text is its own bytes, not what it adds to the answer: a token may be half a character.
Such bytes are written as ``bytes:\\xf0\\x9f``, so that two tokens never have one name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.engine.scores import TokenScore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PlacedToken(NamedTuple):
    """A token of an answer, and of its prompt with ``echo``. offset: of its text in the answer's,
    in characters. score: None of a prompt's first token."""

    token: int
    offset: int
    score: TokenScore | None


class TokenTexts:
    """The bytes and the text of single tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._decoder = "" if backend is None else str(backend.decoder)
        self.bytes_of = lru_cache(maxsize=2**16)(self._bytes_of)

    def text_of(self, token: int) -> str:
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _bytes_of(self, token: int) -> bytes:
        name: str | None = self._tokenizer.convert_ids_to_tokens([token])[0]
        if name is None:  # the model's vocabulary is larger than the tokenizer's
            return b""
        if token not in self._special and "ByteLevel" in self._decoder:
            letters = _bytes_by_letter()
            if all(letter in letters for letter in name):
                return bytes(letters[letter] for letter in name)
        if "ByteFallback" in self._decoder and _is_byte(name):
            return bytes([int(name[1:-1], 16)])
        if token in self._special:
            return str(name).encode()
        # Alone a text loses the space that it begins with, where that is its first letter's.
        two = self._decoded([token, token])
        return two[len(self._decoded([token])) :].encode()

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


def chat_logprobs(texts: TokenTexts, tokens: Iterable[PlacedToken]) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat."""

    def of(token: int, logprob: float) -> dict[str, Any]:
        raw = list(texts.bytes_of(token))
        return {"token": texts.text_of(token), "logprob": logprob, "bytes": raw}

    content = [
        {**of(each.token, each.score.logprob), "top_logprobs": [of(*top) for top in each.score.top]}
        for each in tokens
        if each.score is not None
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(texts: TokenTexts, tokens: Sequence[PlacedToken]) -> dict[str, Any]:
    """``choices[].logprobs`` of a completion; the token itself is among its alternatives."""
    return {
        "tokens": [texts.text_of(each.token) for each in tokens],
        "token_logprobs": [each.score and each.score.logprob for each in tokens],
        "top_logprobs": [_alternatives(texts, each.score) for each in tokens],
        "text_offset": [each.offset for each in tokens],
    }


def _alternatives(texts: TokenTexts, score: TokenScore | None) -> dict[str, float] | None:
    if score is None:
        return None
    found = {texts.text_of(score.token): score.logprob}
    for token, logprob in score.top:
        found.setdefault(texts.text_of(token), logprob)
    return found


@lru_cache(maxsize=1)
def _bytes_by_letter() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def _is_byte(name: str) -> bool:
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")
