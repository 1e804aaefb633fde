"""How llama.cpp cuts a text before it merges: the names that it has for it, told by what they do.

A GGUF file names the way (``tokenizer.ggml.pre``), and llama.cpp has a list of regular expressions
for each name, applied one after another. Written here in ``tokenizers``' terms, they can be run
beside anybody's tokenizer: whose pieces of :func:`probes` are the same has that name, however its
own ``tokenizer.json`` says it. Probed are all triples of some twenty kinds of characters, runs of
digits and of spaces, and contractions in both cases.

Some models' own expressions differ from llama.cpp's in rare letters alone: the long s and the
Kelvin sign, which are an s and a k where case is ignored. They are not probed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = _ENDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN_2 = _ENDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
_WORDS = r" ?[^(\s|.,!?…。，、।۔،)]+"

_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
"""As llama.cpp tells them: of ASCII by case, any other letter is both."""
_BY_CASE = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+ENDS|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*ENDS"
)
_REST_OF_CASE = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = _BY_CASE.replace("ENDS", "") + r"|\p{N}" + _REST_OF_CASE
GPT_4O = _BY_CASE.replace("ENDS", f"{_ENDS}?") + r"|\p{N}{1,3}" + _REST_OF_CASE
CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "Ὗ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
"""Letters that have a case, as deepseek-llm lists them. Its signs begin with the ideographic space,
which llama.cpp takes for a space before it looks for signs: here they begin behind it."""


@dataclass(frozen=True)
class KnownCut:
    """regexes: llama.cpp's, one after the other. ignore_merges: whether a whole piece that is a
    token is taken without merging."""

    regexes: tuple[str, ...]
    ignore_merges: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in self.regexes]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, last])


KNOWN = {
    "gpt-2": KnownCut((GPT_2,)),
    "smollm": KnownCut((r"\p{N}", GPT_2)),
    "llama-bpe": KnownCut((LLAMA_3,), ignore_merges=True),
    "dbrx": KnownCut((LLAMA_3,)),
    "qwen2": KnownCut((QWEN_2,)),
    "deepseek-coder": KnownCut(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
    ),
    "deepseek-llm": KnownCut(
        (
            r"[\r\n]",
            rf"\s?[{CASED}]+",
            r"\s?[!-/:-~！-／：-～‘-‟、-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        )
    ),
    "tekken": KnownCut((TEKKEN,), ignore_merges=True),
    "gpt-4o": KnownCut((GPT_4O,)),
    "falcon": KnownCut((_PUNCTUATION, GPT_2, "[0-9][0-9][0-9]")),
    "poro-chat": KnownCut((_WORDS,)),
    "viking": KnownCut((_WORDS, r"\p{N}")),
}
"""Name in llama.cpp -> what it does."""
SAME_AS = {
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "smaug-bpe": "dbrx",
    "deepseek-r1-qwen": "qwen2", "megrez": "qwen2", "stablelm2": "qwen2", "mpt": "gpt-2",
    "olmo": "gpt-2", "phi-2": "gpt-2", "starcoder": "smollm", "refact": "smollm",
    "command-r": "smollm", "codeshell": "smollm", "exaone": "smollm", "bloom": "poro-chat",
}  # fmt: skip
"""Further names of the same."""
COMPOSES = ("qwen2",)
"""Whose models compose characters (NFC) where llama.cpp does not; nearly all text is composed."""

_KINDS = "aZé中あ가я1٣½ \n\r\t\u00a0\u3000'./_$+🙂s’\u0e34"
_RUNS = (
    " 1 12 123 1234 12345678 ab12cd1234 x=1234567;",
    "it's IT'S we'll WE'LL I've I'VE he'd HE'D I'm I'M you're YOU'RE don't DON'T 'tis 's s'x",
    "I'vex I'VEx we'lls WE'LLs he'da HE'Da it'sx IT'SX I'mx I'MX you'rex YOU'REX don'tx DON'TX",
    "a  b   c    d\n\ne\n\n\nf \n g\r\n\r\nh\t\ti  \n  j",
    "(a) [b] {c} <d> a.b,c!d?e…f。g，h -- == ++ $$ ~~ `` ||| //",
    "ends in spaces  ",
    "ends in lines\n\n ",
    " \n",
)
_UNCOMPOSED = "e\u0301 A\u030a n\u0303"


def cut_name(tokenizer: Tokenizer) -> str | None:
    """llama.cpp's name for how a byte-level BPE tokenizer cuts text; None if it has none."""
    cut, change = tokenizer.pre_tokenizer, tokenizer.normalizer
    if cut is None:
        return None
    texts = list(probes())
    if change is not None and any(change.normalize_str(text) != text for text in texts):
        return None
    own = [_pieces(cut, text) for text in texts]
    fitting = [name for name in KNOWN if _known_pieces(name) == own]
    ignores = bool(getattr(tokenizer.model, "ignore_merges", False))
    name = next((n for n in fitting if KNOWN[n].ignore_merges == ignores), None)
    composes = change is not None and change.normalize_str(_UNCOMPOSED) != _UNCOMPOSED
    if composes and (name not in COMPOSES or _composed(change) != _composed(normalizers.NFC())):
        return None
    return name


def nearest_cut(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """(name of the way that cuts plain ASCII text alike, a text that it cuts otherwise) of a
    tokenizer without a name; None where no way is near."""
    cut = tokenizer.pre_tokenizer
    if cut is None or tokenizer.normalizer is not None:
        return None
    triples = ["".join(triple) for triple in product(_KINDS, repeat=3)]
    plain = [text for text in (*triples, *_RUNS) if text.isascii()]
    own = [_pieces(cut, text) for text in plain]
    for name, known in KNOWN.items():
        other = known.pre_tokenizer()
        if [_pieces(other, text) for text in plain] == own:
            apart = (text for text in triples if _pieces(other, text) != _pieces(cut, text))
            return (name, text) if (text := next(apart, None)) else None
    return None


def probes() -> Iterator[str]:
    yield "".join(map("".join, product(_KINDS, repeat=3)))
    yield from _RUNS


@cache
def _known_pieces(name: str) -> list[list[str]]:
    cut = KNOWN[name].pre_tokenizer()
    return [_pieces(cut, text) for text in probes()]


def _pieces(cut: PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in cut.pre_tokenize_str(text)]


def _composed(change: normalizers.Normalizer) -> str:
    return change.normalize_str(_UNCOMPOSED)
