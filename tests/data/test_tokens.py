"""Tokenizer and packed sequences: text comes back, and the order is a function of seed and step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from workbench.data.dataset import PackedSequences, write_tokens
from workbench.data.document import Document
from workbench.data.tokenizer import (
    changes_text,
    document_start,
    encode,
    load_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from workbench.errors import ConfigError

DOCUMENTS = [
    Document(f"d{i}", "test", f"def f{i}(x):\n    return x * {i}  # größer als {i % 7}\n" * 5)
    for i in range(60)
]
TOKENIZER = train_tokenizer(DOCUMENTS, 400)


@given(st.text())
def test_every_text_comes_back_from_its_tokens(text: str) -> None:
    [ids] = encode(TOKENIZER, [text])
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text
    assert document_start(TOKENIZER) not in ids


def test_the_special_token_in_a_text_is_ordinary_characters() -> None:
    [ids] = encode(TOKENIZER, ["a<|endoftext|>b"])
    assert document_start(TOKENIZER) not in ids and len(ids) > 3


def test_training_twice_gives_the_same_merges_and_at_most_the_size_asked_for() -> None:
    again = train_tokenizer(DOCUMENTS, 400)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()
    assert 257 < len(TOKENIZER) <= 400
    assert len(train_tokenizer(DOCUMENTS, 257)) == 257


def test_a_saved_tokenizer_loads_from_its_folder(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    texts = [d.text for d in DOCUMENTS]
    assert encode(loaded, texts) == encode(TOKENIZER, texts)
    assert not changes_text(loaded, texts)


def test_a_tokenizer_that_is_absent_or_cannot_mark_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="could not be loaded"):
        load_tokenizer(str(tmp_path / "nothing"))
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    with pytest.raises(ConfigError, match="neither a bos nor an eos"):
        load_tokenizer(str(tmp_path))


def test_a_loader_that_fails_without_a_word_is_named(tmp_path: Path, monkeypatch) -> None:
    def fail(*_, **__):
        raise EOFError

    monkeypatch.setattr("workbench.data.tokenizer.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(ConfigError, match="could not be loaded: EOFError"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_loses_text_is_noticed() -> None:
    from tokenizers import normalizers

    lossy: PreTrainedTokenizerBase = train_tokenizer(DOCUMENTS, 300)
    lossy.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert changes_text(lossy, ["Abc"]) and not changes_text(lossy, ["abc"])


def test_ids_with_holes_have_room_for_the_largest(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_holes(largest=70_000)
    assert len(tokenizer) < 1000 and vocabulary_size(tokenizer) == 70_001
    assert vocabulary_size(TOKENIZER) == len(TOKENIZER)
    tokens = write_tokens(tmp_path / "t.npy", tokenizer, [Document("d", "test", "aza")])
    assert tokens.dtype == np.uint32 and tokens.max() == 70_000


def tokenizer_with_holes(largest: int) -> PreTrainedTokenizerBase:
    """Byte-level, and its letter z has the id ``largest``, far from all others."""
    state = json.loads(train_tokenizer(DOCUMENTS, 257).backend_tokenizer.to_str())
    state["model"]["vocab"]["z"] = largest
    backend = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>")


def test_tokens_are_every_document_behind_its_start(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "t.npy", TOKENIZER, DOCUMENTS)
    assert tokens.dtype == np.uint16 and isinstance(tokens, np.memmap)
    starts = np.flatnonzero(tokens == document_start(TOKENIZER))
    assert len(starts) == len(DOCUMENTS) and starts[0] == 0
    last = TOKENIZER.decode(tokens[starts[-1] + 1 :].tolist(), clean_up_tokenization_spaces=False)
    assert last == DOCUMENTS[-1].text


def test_each_pass_shows_each_sequence_once_and_passes_differ() -> None:
    tokens = np.arange(10 * 8 + 3, dtype=np.uint16)
    data = PackedSequences(tokens, 8, length=30, seed=3)
    first = [int(data[i]["input_ids"][0]) for i in range(10)]
    second = [int(data[i]["input_ids"][0]) for i in range(10, 20)]
    assert sorted(first) == sorted(second) == list(range(0, 80, 8))
    assert first != second
    assert data.passes == 3.0


def test_an_item_depends_on_seed_and_index_alone() -> None:
    tokens = np.arange(4096, dtype=np.uint16)
    one = PackedSequences(tokens, 16, length=900, seed=1)
    two = PackedSequences(tokens, 16, length=900, seed=1)
    backwards = [two[i]["input_ids"].tolist() for i in reversed(range(900))]
    assert [one[i]["input_ids"].tolist() for i in range(900)] == backwards[::-1]
    other = PackedSequences(tokens, 16, length=900, seed=2)
    assert [one[i]["input_ids"][0] for i in range(9)] != [
        other[i]["input_ids"][0] for i in range(9)
    ]


def test_a_corpus_shorter_than_one_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 sequences of 8") as caught:
        PackedSequences(np.zeros(31, np.uint16), 8, length=100, seed=0, at_least=4)
    assert "train.batch_size" in str(caught.value)
