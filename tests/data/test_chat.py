"""Conversations: read, written by the tokenizer's template, and judged by their answers alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.data.chat import chat_tokens
from workbench.data.conversation import beginning, conversation, messages_of, plain_words
from workbench.data.corpus import read_corpus
from workbench.data.dataset import UNJUDGED, PackedSequences, judged_of, write_tokens
from workbench.data.document import Document, documents_frame, documents_from
from workbench.data.tokenizer import train_tokenizer
from workbench.errors import ConfigError
from workbench.pilot.sections.data import Data
from workbench.train.quality import bits_per_byte, document_losses, excerpts

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
)
TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETS = (  # writes the last answer otherwise than those before it, as Qwen 3 does
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ 'well, ' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def turn(role: str, content: str | None, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


TALK = [
    turn("system", "be brief"), turn("user", "what is 2 + 2?"), turn("assistant", "It's 4 — là."),
    turn("user", "and 3 + 3?"), turn("assistant", "six"),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    text = "the assistant says what is 2 + 2? It's 4 and 3 + 3? six; be brief, user system\n" * 9
    return train_tokenizer([Document("a", "test", text)], 330)


@pytest.fixture
def tokenizer(plain: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    plain.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    plain.chat_template = CHATML
    return plain


def packed(messages: list[dict[str, object]], **more: object) -> str:
    return conversation({"messages": messages, **more}, "messages", "row 1")


def judged_text(tokenizer: PreTrainedTokenizerFast, talk: str) -> str:
    found = chat_tokens(tokenizer, talk, "here")
    return tokenizer.decode([i for i, j in zip(found.ids, found.judged, strict=True) if j])


@pytest.mark.parametrize("template", [CHATML, MARKED, TOOLS])
def test_the_answers_and_what_ends_them_are_judged_and_nothing_else(tokenizer, template) -> None:
    tokenizer.chat_template = template
    talk = packed(TALK)
    assert judged_text(tokenizer, talk) == "It's 4 — là.<|im_end|>six<|im_end|>"
    found = chat_tokens(tokenizer, talk, "here")
    assert found.size_bytes == len("It's 4 — là.six".encode())
    assert found.ids == tokenizer.apply_chat_template(TALK, return_dict=False)


def test_marks_of_the_template_are_those_of_transformers(tokenizer) -> None:
    tokenizer.chat_template = MARKED
    theirs = tokenizer.apply_chat_template(
        TALK, return_dict=True, return_assistant_tokens_mask=True
    )
    assert chat_tokens(tokenizer, packed(TALK), "here").judged.tolist() == [
        bool(mask) for mask in theirs["assistant_masks"]
    ]


def test_calls_of_tools_are_answers_and_what_tools_say_is_not(tokenizer) -> None:
    tokenizer.chat_template = TOOLS
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    talk = [turn("user", "2?"), turn("assistant", None, tool_calls=[call]), turn("tool", "four"),
            turn("assistant", "4")]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    text = judged_text(tokenizer, packed(talk, tools=tools))
    assert text == 'add{"a": 2}<|im_end|>4<|im_end|>'
    tokenizer.chat_template = CHATML  # knows no calls: would teach an empty answer
    with pytest.raises(ConfigError, match="here: message 2: the chat template leaves out its call"):
        chat_tokens(tokenizer, packed(talk), "here")
    with pytest.raises(ConfigError, match="leaves out the tool 'add'"):
        chat_tokens(tokenizer, packed(talk[:1] + talk[3:], tools=tools), "here")


def test_a_template_that_forgets_is_refused_unless_there_is_one_answer(tokenizer) -> None:
    tokenizer.chat_template = FORGETS
    with pytest.raises(ConfigError, match="writes a turn otherwise once another follows"):
        chat_tokens(tokenizer, packed(TALK), "here")
    assert judged_text(tokenizer, packed(TALK[:3])) == "well, It's 4 — là.<|im_end|>"


def test_a_template_that_raises_is_quoted(tokenizer) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ConfigError, match=r"here: the chat template refuses it.*must alternate"):
        chat_tokens(tokenizer, packed(TALK), "here")


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [{"messages": [turn("user", f"say {i}"), turn("assistant", f"it is {i}")]} for i in range(9)]


def test_conversations_are_known_by_their_field_in_jsonl_and_parquet(tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_parquet(tmp_path / "c.parquet")
    for path in (write(tmp_path / "c.jsonl", ROWS), tmp_path / "c.parquet"):
        corpus = read_corpus(Data(corpus=str(path), holdout_share=0.3), 7)
        documents = corpus.training + corpus.heldout
        assert len(documents) == 9 and corpus.has_conversations
        assert {plain_words(d.messages) for d in documents} == {
            f"say {i}\n\nit is {i}" for i in range(9)
        }
    renamed = [{"talk": row["messages"]} for row in ROWS]
    data = Data(corpus=str(write(tmp_path / "d.jsonl", renamed)), messages_field="talk")
    assert read_corpus(data, 7).has_conversations
    text = [{"text": "plain", **ROWS[0]}, {"text": "text", **ROWS[1]}]
    corpus = read_corpus(Data(corpus=str(write(tmp_path / "t.jsonl", text))), 7)
    assert not corpus.has_conversations, "text_field comes first"
    lines = Data(corpus=str(tmp_path / "c.jsonl"), conversations="plain")
    (first, *_), _ = (read_corpus(lines, 7).training, None)
    assert first.text.startswith("user: say") and not first.messages


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "not a list of messages"),
        ("[", "is text and no JSON"),
        ([{"from": "human", "value": "a"}], "message 1: no object with a role"),
        ([turn("user", "a")], "no turn of 'assistant'"),
        (
            [turn("user", "a"), turn("assistant", " ")],
            "message 2: the turn of 'assistant' says noth",
        ),
        ([turn("user", [{"type": "image_url"}])], "a content of the kind 'image_url'"),
        ([turn("assistant", None, tool_calls=[{"id": "1"}])], "without function.name"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_line(tmp_path: Path, messages, what) -> None:
    path = write(tmp_path / "c.jsonl", [ROWS[0], {"messages": messages}])
    with pytest.raises(ConfigError, match=f"c.jsonl, line 2.*{what}"):
        read_corpus(Data(corpus=str(path)), 7)


def test_a_beginning_ends_with_an_answer() -> None:
    talk = packed(TALK)
    assert [m["content"] for m in messages_of(beginning(talk, 1))][-1] == "It's 4 — là."
    assert len(messages_of(beginning(talk, 40))) == 3
    assert beginning(talk, 1000) == talk


def test_training_sees_labels_of_answers_alone(tokenizer, tmp_path: Path) -> None:
    documents = [Document("a", "s", "x", packed(TALK)), Document("b", "s", "plain text"),
                 Document("c", "s", "x", packed(TALK[1:3]))]  # fmt: skip
    tokens = write_tokens(tmp_path / "tokens.npy", tokenizer, documents)
    judged = judged_of(tmp_path / "tokens.npy")
    learned = tokenizer.decode(tokens[judged])
    assert learned == (
        "It's 4 — là.<|im_end|>six<|im_end|><|endoftext|>plain textIt's 4 — là.<|im_end|>"
    )
    data = PackedSequences(tokens, 8, 50, 3, judged=judged)
    for item in (data[i] for i in range(50)):
        counted = item["labels"] != UNJUDGED
        assert counted[1:].any(), "a sequence without an answer teaches nothing"
        assert torch.equal(item["labels"][counted], item["input_ids"][counted])
    assert not data.judged[: 8 * (len(tokens) // 8)].all() and data.per_pass <= len(tokens) // 8
    again = [data[i]["labels"].tolist() for i in range(50)]
    assert again == [PackedSequences(tokens, 8, 50, 3, judged=judged)[i]["labels"].tolist()
                     for i in range(50)]  # fmt: skip
    assert judged_of(tmp_path / "other.npy") is None


@pytest.mark.parametrize("context", [5, 64])
def test_the_loss_of_a_conversation_is_that_of_its_answers(tokenizer, context: int) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    ))  # fmt: skip
    documents = [Document("a", "s", plain_words(packed(TALK)), packed(TALK)),
                 Document("b", "s", "plain text")]  # fmt: skip
    table = excerpts(documents, 1000, 9)
    assert documents_from(table)[0].messages == documents[0].messages
    losses = document_losses(model, tokenizer, table, context)
    found = chat_tokens(tokenizer, documents[0].messages, "here")
    stream = [tokenizer.bos_token_id, *found.ids]
    expected = 0.0
    for begin in range(0, len(found.ids), context):
        piece = torch.tensor([stream[begin : begin + context + 1]])
        logs = model(input_ids=piece[:, :-1]).logits.detach().log_softmax(-1)[0]
        lost = -logs.gather(1, piece[0, 1:, None])[:, 0]
        expected += float(lost[torch.tensor(found.judged[begin : begin + context])].sum())
    assert losses["nats"][0] == pytest.approx(expected, rel=1e-5)
    assert losses["bytes"].tolist() == [found.size_bytes, len("plain text")]
    assert losses["tokens"][0] == found.judged.sum()
    assert bits_per_byte(losses) > 0


def test_tables_without_conversations_have_the_columns_they_had() -> None:
    assert list(documents_frame([Document("a", "s", "t")])) == ["id", "source", "text"]
    assert np.array_equal(
        list(documents_frame([Document("a", "s", "t", packed(TALK))])),
        ["id", "source", "text", "messages"],
    )
