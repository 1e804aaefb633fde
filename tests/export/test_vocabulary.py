"""Tokenizers in GGUF files: the same tokens in llama.cpp, or a refusal."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from workbench.data.gguf_tokenizer import gguf_tokenizer
from workbench.data.pre_tokenizers import GPT_2, KNOWN, LLAMA_3, QWEN_2, cut_name
from workbench.data.tokenizer import load_tokenizer
from workbench.errors import ConfigError
from workbench.export.gguf_file import Written, write_gguf
from workbench.export.vocabulary import (
    end_of_turn,
    require_same_tokens,
    vocabulary,
    write_special_tokens,
)

TEXTS = [
    "It's 2026: 12345 tokens — naïve café,\n\n  x = f(a_b) + 3.5e-4;\tEnd  ",
    " WE'LL see\r\n\r\n 1000000 日本語 🙂 don't\n \n\n\tindent",
    "",
    "a",
]
LEARNT = [" ".join(TEXTS), "the tokens of the story's end we'll see 2026 12 123 indent café"] * 8
WHERE = Path("models/x")
SMOLLM2 = Path(__file__).parents[2] / "build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def byte_level(*steps, special=("<s>", "</s>"), **settings) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE(**settings))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(LEARNT, trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(special), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ))  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def cut_by(*patterns: str, **settings) -> PreTrainedTokenizerFast:
    return byte_level(
        *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        **settings,
    )


def split(pattern: str, **settings) -> PreTrainedTokenizerFast:
    return cut_by(pattern, **settings)


def sentencepiece(prefix: bool) -> PreTrainedTokenizerFast:
    """As Llama 2's: merges over characters, unknown ones as bytes, spaces as ▁."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Replace(" ", "▁")]
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * prefix + steps)
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    # without a pre-tokenizer the words of the text must be given one by one
    words = [f"▁{word}" for text in LEARNT[:2] for word in text.split() if word.isascii()]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(words * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


KINDS = {
    "gpt-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: byte_level(
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ),
    "sentencepiece": lambda: sentencepiece(prefix=True),
    "sentencepiece, no prefix": lambda: sentencepiece(prefix=False),
    "llama-bpe": lambda: split(LLAMA_3, ignore_merges=True),
    "dbrx": lambda: split(LLAMA_3),
    "qwen2": lambda: split(QWEN_2),
    **{
        name: (lambda k=known: cut_by(*k.regexes, ignore_merges=k.ignore_merges))
        for name, known in KNOWN.items()
        if name not in ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2")
    },
}


def write_small(tokenizer: PreTrainedTokenizerFast, path: Path) -> Written:
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    return write_gguf(AutoModelForCausalLM.from_config(config), tokenizer, path, name="small")


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_reads_the_same_tokens(tmp_path: Path, kind: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="the bench extra is not installed")
    tokenizer = KINDS[kind]()
    path = tmp_path / "small.gguf"
    write_small(tokenizer, path)
    peer = llama_cpp.Llama(str(path), vocab_only=True)
    for text in TEXTS:
        ours = tokenizer(text, add_special_tokens=False).input_ids
        assert peer.tokenize(text.encode(), add_bos=True) == [tokenizer.bos_token_id, *ours], text
    assert peer.token_eos() == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", [name for name in KINDS if not name.startswith("sentence")])
def test_a_way_of_cutting_is_known_by_what_it_does(tmp_path: Path, kind: str) -> None:
    """And the file that names it is read as the same tokens."""
    tokenizer = KINDS[kind]()
    assert cut_name(tokenizer.backend_tokenizer) == kind
    path = tmp_path / "small.gguf"
    write_small(tokenizer, path)
    again = gguf_tokenizer(path)
    for text in TEXTS:
        assert again(text, add_special_tokens=False).input_ids == (
            tokenizer(text, add_special_tokens=False).input_ids
        )


def test_the_same_cuts_said_otherwise_have_the_same_name() -> None:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    said = {
        "smollm": [
            byte_level(pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), plain),
            cut_by(r"\p{N}", GPT_2),
        ],
        "gpt-2": [cut_by(GPT_2 + r"|\s+"), byte_level(plain)],
        "qwen2": [split(QWEN_2.replace(r"\p{N}|", "[\\p{Nd}\\p{Nl}\\p{No}]|", 1))],
    }
    for name, tokenizers_of_it in said.items():
        assert [cut_name(t.backend_tokenizer) for t in tokenizers_of_it] == [name] * len(
            tokenizers_of_it
        )
    near = [
        split(LLAMA_3.replace("{1,3}", "{1,4}")), split(QWEN_2.replace("(?i:", "(?:")),
        split(QWEN_2, ignore_merges=True), cut_by(r"\p{N}+", GPT_2),
        changed("gpt-2", normalizers.NFC()), changed("qwen2", normalizers.NFKC()),
    ]  # fmt: skip
    assert [cut_name(t.backend_tokenizer) for t in near] == [None] * len(near)
    assert cut_name(changed("qwen2", normalizers.NFC()).backend_tokenizer) == "qwen2"


_OF_CASE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+END|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*END"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""As the models' own tokenizer.json has it; llama.cpp's tells case of ASCII alone."""


@pytest.mark.parametrize(
    ("name", "digits", "end", "ignores"),
    [
        ("tekken", r"\p{N}", "", True),
        ("gpt-4o", r"\p{N}{1,3}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?", False),
    ],
)
def test_cuts_by_case_are_known_as_llama_cpp_has_them_and_refused_where_it_has_others(
    name: str, digits: str, end: str, ignores: bool
) -> None:
    """A word's own case cuts it (``camelCase``), in llama.cpp that of ASCII letters alone."""
    cut = KNOWN[name].pre_tokenizer()
    words = [
        piece.replace("Ġ", " ") for piece, _ in cut.pre_tokenize_str("an HTTPServer's camelCase")
    ]
    ended = [" HTTPServer's"] if name == "gpt-4o" else [" HTTPServer", "'s"]
    assert words == ["an", *ended, " camel", "Case"]
    inner = r"(?=\p{L})[^a-z]", r"(?=\p{L})[^A-Z]"
    upper, lower = (f"(?:{each})" for each in inner)
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{upper}*{lower}+{end}|{start}{upper}+{lower}*{end}"
    same = cut_by(words, ignore_merges=ignores)
    assert cut_name(same.backend_tokenizer) is None, "digits and spaces are cut as well"
    rest = rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    assert cut_name(cut_by(words + rest, ignore_merges=ignores).backend_tokenizer) == name
    theirs = cut_by(_OF_CASE.replace("END", end).replace("DIGITS", digits), ignore_merges=ignores)
    assert cut_name(theirs.backend_tokenizer) is None
    with pytest.raises(ConfigError, match=rf"nearly as {name}, which in llama\.cpp cuts '") as told:
        vocabulary(theirs, len(theirs), WHERE)
    assert "--no-tokenizer" in str(told.value)


def test_deepseeks_digits_are_told_apart() -> None:
    """deepseek-llm keeps runs of digits whole; one by one is another way."""
    known = KNOWN["deepseek-llm"].regexes
    assert cut_name(cut_by(*known).backend_tokenizer) == "deepseek-llm"
    assert cut_name(cut_by(*known[:-1], r"\p{N}").backend_tokenizer) is None


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("kind", ["smollm", "sentencepiece"])
def test_whole_conversations_are_the_same_tokens_and_their_end_is_named(
    tmp_path: Path, kind: str
) -> None:
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn(tokenizer) == end
    path = tmp_path / "chat.gguf"
    said = str(write_small(tokenizer, path))
    assert "conversations of its chat template among them; <|im_end|> ends a turn" in said
    again = gguf_tokenizer(path)
    talk = [{"role": "user", "content": " 12 or 345? "}, {"role": "assistant", "content": "No.\n"}]
    ids = tokenizer.apply_chat_template(talk, return_dict=False)
    assert again.apply_chat_template(talk, return_dict=False) == ids and ids.count(end) == 2
    if llama_cpp := importlib.util.find_spec("llama_cpp") and importlib.import_module("llama_cpp"):
        peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        text = tokenizer.apply_chat_template(talk, tokenize=False)
        assert peer.tokenize(text.encode(), add_bos=False, special=True) == ids
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    assert fields["tokenizer.ggml.eot_token_id"].contents() == end
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.exists(), reason="make smollm2 fetches it")
def test_smollm2s_own_tokenizer_goes_along(tmp_path: Path) -> None:
    """From its GGUF file to ours: known by what it does, and the same tokens in conversations."""
    tokenizer = load_tokenizer(str(SMOLLM2))
    assert cut_name(tokenizer.backend_tokenizer) == "smollm"
    path = tmp_path / "smol.gguf"
    said = str(write_small(tokenizer, path))
    assert "cuts text as smollm: the same tokens for 8 texts" in said
    assert "<|im_end|> ends a turn" in said
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.eot_token_id"].contents() == tokenizer.eos_token_id == 2


def test_other_tokens_in_a_conversation_are_refused_with_the_place(tmp_path: Path) -> None:
    """A plain text may be read alike and a template's tokens not: here one is no special token."""
    tokenizer, again = KINDS["qwen2"](), KINDS["qwen2"]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert require_same_tokens(tokenizer, again, WHERE) == 4
    tokenizer.chat_template = CHATML
    with pytest.raises(
        ConfigError, match=r"models/x reads other tokens.*from token 0 of '<\|im_st"
    ):
        require_same_tokens(tokenizer, again, WHERE)


def test_a_text_begins_with_eos_where_there_is_no_bos(tmp_path: Path) -> None:
    tokenizer = KINDS["qwen2"]()
    tokenizer.bos_token = None
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    fields = written_fields(tokenizer, tmp_path / "small.gguf")
    assert fields["tokenizer.ggml.bos_token_id"].contents() == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    assert fields["tokenizer.chat_template.tool_use"].contents() == "{{ tools }}"


def written_fields(tokenizer: PreTrainedTokenizerFast, path: Path) -> dict:
    """The fields of a file that has no tensors."""
    from gguf import GGUFReader, GGUFWriter

    writer = GGUFWriter(path, "llama")
    write_special_tokens(writer, tokenizer, frozenset())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return GGUFReader(path).fields


def test_a_token_without_a_row_is_refused() -> None:
    tokenizer = KINDS["gpt-2"]()
    rows = len(tokenizer) - 5
    with pytest.raises(ConfigError, match=rf"ids up to {rows + 4}, its embedding {rows} rows"):
        vocabulary(tokenizer, rows, WHERE)


def test_spaces_as_a_pre_tokenizer_are_sentencepiece_too() -> None:
    space = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    words = vocabulary(changed("sentencepiece", None, space), 500, WHERE)
    assert words.model == "llama" and words.space_prefix


def test_spaces_around_special_tokens_that_llama_cpp_cuts_otherwise_are_refused() -> None:
    """Metaspace ``first`` and tokens with ``rstrip`` (Phi-3): other tokens in a chat template."""
    first = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    chat = changed("sentencepiece", None, first)
    chat.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    with pytest.raises(ConfigError, match="a space before a chat template's first text alone"):
        vocabulary(chat, 500, WHERE)
    phi = KINDS["sentencepiece"]()
    phi.add_tokens([AddedToken("<|end|>", rstrip=True)], special_tokens=True)
    with pytest.raises(ConfigError, match=r"'<\|end\|>' swallows the spaces"):
        vocabulary(phi, 500, WHERE)


def changed(kind: str, normalizer, pre_tokenizer=None) -> PreTrainedTokenizerFast:
    tokenizer = KINDS[kind]()
    tokenizer.backend_tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def test_rows_without_a_token_are_unused_and_special_ones_are_control() -> None:
    from gguf import TokenType

    tokenizer = KINDS["gpt-2"]()
    tokenizer.add_tokens(["<mine>"])
    words = vocabulary(tokenizer, len(tokenizer) + 2, WHERE)
    assert (words.model, words.pre) == ("gpt2", "gpt-2")
    assert len(words.tokens) == len(set(words.tokens)) == len(tokenizer) + 2
    kinds = {TokenType(kind) for kind in words.types[-2:]}
    assert kinds == {TokenType.UNUSED} and words.types[0] == TokenType.CONTROL
    assert words.types[words.tokens.index("<mine>")] == TokenType.USER_DEFINED


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "BPE.*ByteLevel"),
        (lambda: split(r"\w+"), "BPE, cut by Split and ByteLevel"),
        (lambda: byte_level(pre_tokenizers.Whitespace()), "BPE, cut by Whitespace"),
        (
            lambda: changed("llama-bpe", normalizers.Lowercase()),
            "BPE, changed by Lowercase, cut by Split and ByteLevel",
        ),
        (lambda: changed("sentencepiece", normalizers.NFKC()), "BPE with bytes, changed by NFKC"),
        (lambda: changed("sentencepiece", None), "BPE with bytes, cut by nothing"),
        (
            lambda: changed("sentencepiece", None, pre_tokenizers.Metaspace(split=True)),
            "BPE with bytes, cut by Metaspace",
        ),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(make, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"models/x is {what}[\s\S]*--no-tokenizer"):
        vocabulary(make(), 500, WHERE)
