"""Own prompts and tasks: what a row may say, what is wrong by file and line, what checks hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.data.document import Document
from workbench.data.own_prompts import OwnPrompt, prompt_tokens, read_prompts
from workbench.data.own_tasks import TaskRow, read_task
from workbench.data.tokenizer import train_tokenizer
from workbench.errors import ConfigError
from workbench.pilot.sections.prompts import Prompts
from workbench.pilot.sections.tasks import Task

SHIPPED = Path(__file__).parents[2] / "pilots" / "smollm2"


def written(folder: Path, *rows: object) -> str:
    path = folder / "own.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def said(read, section) -> str:
    with pytest.raises(ConfigError) as caught:
        read(section)
    return str(caught.value)


def test_rows_are_read_with_their_lines_and_names(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "contains": "a"}
    file = written(tmp_path, {"prompt": "one", "id": "first"}, "", chat, {"prompt": "three"})
    rows = read_prompts(Prompts(file=file, most=2))
    assert [(row.name, row.line, row.text, row.has_check) for row in rows] == [
        ("first", 1, "one", False),
        ("3", 3, "hi", True),
    ]
    assert read_prompts(Prompts()) == []


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "not JSON"),
        ("[1]", "got list"),
        ({"text": "a"}, "text: unknown key"),
        ({"id": 1}, "exactly one of prompt and messages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "exactly one of"),
        ({"messages": [{"role": "assistant", "content": "b"}]}, "must be the user's"),
        ({"messages": [{"role": "robot", "content": "b"}]}, "'robot', allowed: 'system', 'user'"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens: got 0"),
        ({"prompt": "a", "regex": "("}, "no regular expression"),
        ({"prompt": "a", "json_valid": False}, "json_valid"),
        ({"prompt": "a", "json_schema": {"type": 3}}, "no JSON schema"),
        ({"prompt": "a", "contains": []}, "contains"),
        ('{"prompt": "a\\ud800"}', "half a character"),
        ({"prompt": "b", "id": "1"}, "id '1' is that of line 1 too"),
    ],
)
def test_a_wrong_prompt_is_named_by_file_and_line(tmp_path: Path, row: object, told: str) -> None:
    text = said(read_prompts, Prompts(file=written(tmp_path, {"prompt": "a", "id": 1}, row)))
    assert "own.jsonl, line 2: " in text and told in text


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "give question or context"),
        ({"question": "q", "choices": ["a", "b"]}, "give answer beside choices"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "choices"),
        ({"question": "q", "choices": ["a", "a"], "answer": 0}, "each must be there once"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "their numbers are 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "'c' is none of the choices"),
        ({"question": "q", "target": "a"}, "choices with answer, or context with target"),
        ({"context": "q"}, "choices with answer, or context with target"),
        ({"context": " ", "target": "a"}, "context: blank"),
        ({"context": "q", "choices": ["a", "b"], "answer": 0, "target": "a"}, "no target"),
    ],
)
def test_a_wrong_question_is_named_by_file_and_line(tmp_path: Path, row: object, told: str) -> None:
    text = said(read_task, Task(file=written(tmp_path, row)))
    assert "own.jsonl, line 1: " in text and told in text


def test_a_file_of_nothing_or_that_is_none_is_refused(tmp_path: Path) -> None:
    assert "has no rows" in said(read_task, Task(file=written(tmp_path, "")))
    assert "cannot be read" in said(read_task, Task(file=str(tmp_path)))
    (tmp_path / "latin").write_bytes("café".encode("latin-1"))
    assert "not UTF-8" in said(read_task, Task(file=str(tmp_path / "latin")))


@pytest.mark.parametrize(
    ("check", "kept", "broken", "by"),
    [
        ({"contains": "Paris"}, "It is PARIS.", "Rome", "contains"),
        ({"contains": ["a", "b"]}, "b a", "a", "contains"),
        ({"regex": r"^\d+$"}, "42", "42 or so", "regex"),
        ({"regex": "a.b"}, "a\nb", "ab", "regex"),
        ({"json_valid": True}, ' {"a": 1}\n', "```json\n{}\n```", "json"),
        ({"json_valid": True}, "[]", "NaN", "json"),
        ({"json_schema": {"required": ["a"]}}, '{"a": 0}', '{"b": 0}', "schema"),
        ({"json_schema": {"required": ["a"]}}, '{"a": 0}', "{", "json"),
        ({"contains": "a", "regex": "b"}, "ab", "a", "regex"),
    ],
)
def test_a_check_holds_what_it_says(check: dict, kept: str, broken: str, by: str) -> None:
    own = OwnPrompt(prompt="?", **check)
    assert own.has_check and own.broken_by(kept) is None
    found = own.broken_by(broken)
    assert found is not None and found[0] == by and found[1]


def test_messages_take_the_tokenizers_template_and_without_one_lines() -> None:
    tokenizer = train_tokenizer([Document("d", "s", "user: hello there assistant:")], 300)
    own = OwnPrompt(messages=[{"role": "user", "content": "hello"}])
    (ids,) = prompt_tokens(tokenizer, [own], "own.jsonl")
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == "user: hello\nassistant:"
    tokenizer.chat_template = (
        "{% for m in messages %}<|endoftext|>{{ m.content }}{% endfor %}"
        "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    )
    (ids,) = prompt_tokens(tokenizer, [own], "own.jsonl")
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == "hello"
    two = OwnPrompt(messages=[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    with pytest.raises(ConfigError, match="template refused: one turn only"):
        prompt_tokens(tokenizer, [two], "own.jsonl")


def test_a_question_is_asked_and_gone_on_with_by_one_space() -> None:
    row = TaskRow(question="2 + 2?", context="Sums.", choices=["3", "4"], answer="4")
    assert row.asked == "Sums.\nQuestion: 2 + 2?\nAnswer:"
    assert row.continuations == [" 3", " 4"] and row.right == 1
    assert TaskRow(context="It is ", target="so").continuations == ["so"]
    assert TaskRow(context="It is", target="n't").continuations == [" n't"]
    assert TaskRow(context="It is", target=", so").continuations == [", so"]
    assert TaskRow(context="print(", target="x").continuations == ["x"]


def test_the_shipped_files_are_read_whole() -> None:
    prompts = read_prompts(Prompts(file=str(SHIPPED / "prompts.jsonl"), most=1000))
    assert len(prompts) == 64 and sum(own.has_check for own in prompts) == 62
    rows = read_task(Task(file=str(SHIPPED / "tasks.jsonl")))
    assert len(rows) == 40
    # Whoever always takes the same place must not be right more often than by chance.
    places = [row.right for row in rows if row.choices]
    assert max(places.count(place) for place in range(4)) < len(places) / 2


def test_what_holds_answers_against_a_schema_is_imported_where_a_prompt_has_one() -> None:
    """It takes seconds, and every command that checks a pilot would wait for them."""
    code = (
        "import sys; import workbench.data.own_prompts as own;"
        "assert 'jsonschema' not in sys.modules;"
        "own.OwnPrompt(prompt='x', json_schema={'type': 'object'}); import jsonschema"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
