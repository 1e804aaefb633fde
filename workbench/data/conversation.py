"""Conversations as people keep them: ``messages`` in OpenAI's form, read and checked.

A row's conversation becomes one JSON text, which is what a document, a table and a record hold of
it: ``{"messages": [{"role": ..., "content": ...}, ...], "tools": [...]}``. Beside it the document
has the plain words of all turns as its text: tokenizers are trained on those, copies and leaks
looked for in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import ConfigError

ANSWERS = "assistant"
"""The role whose turns are learned and judged."""
NEXT = "mend or leave out the row, or set data.messages_field to the one that holds conversations"


def conversation(row: Mapping[str, Any], field: str, where: str) -> str:
    """The conversation of a row as JSON; its ``tools`` stay beside it, where the row has some.

    Raises ConfigError, beginning with ``where``, for what is no conversation or has no answer.
    """
    given = row[field]
    if isinstance(given, str):
        given = _unpacked(given, field, where)
    if not isinstance(given, list) or not given:
        raise _wrong(where, f"{field!r} holds {type(given).__name__}, not a list of messages")
    messages = [_message(each, f"{where}: message {i}") for i, each in enumerate(given, start=1)]
    if not any(each["role"] == ANSWERS for each in messages):
        raise _wrong(where, f"no turn of {ANSWERS!r}: nothing to learn and nothing to judge")
    whole: dict[str, Any] = {"messages": messages}
    if tools := row.get("tools"):
        whole["tools"] = _without_nulls(json.loads(tools) if isinstance(tools, str) else tools)
    return json.dumps(whole, ensure_ascii=False)


def messages_of(packed: str) -> list[dict[str, Any]]:
    return json.loads(packed)["messages"]


def plain_words(packed: str, role: str | None = None) -> str:
    """What is said, without roles: of all turns, or of those of ``role``."""
    said = [_said(each) for each in messages_of(packed) if role in (None, each["role"])]
    return "\n\n".join(filter(None, said))


def as_lines(packed: str) -> str:
    """``role: text`` lines, the plain text that a model without a template is asked in."""
    return "".join(f"{each['role']}: {_said(each)}\n" for each in messages_of(packed))


def beginning(packed: str, characters: int) -> str:
    """The conversation up to its last answer that ends within ``characters``; at least the first
    answer."""
    whole = json.loads(packed)
    length, end = 0, 0
    for place, each in enumerate(whole["messages"], start=1):
        length += len(_said(each))
        if end and length > characters:
            break
        if each["role"] == ANSWERS:
            end = place
    return json.dumps({**whole, "messages": whole["messages"][:end]}, ensure_ascii=False)


def _message(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise _wrong(where, "no object with a role and a content")
    message = _without_nulls(given)
    content = message["content"] = _text(given.get("content"), where)
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [_call(each, where) for each in calls]
    elif not content.strip():
        raise _wrong(where, f"the turn of {given['role']!r} says nothing")
    return message


def _text(content: Any, where: str) -> str:
    """A text, none, or the parts of one; what a language model cannot read is refused."""
    if content is None or isinstance(content, str):
        # JSON can spell a lone surrogate, which UTF-8 cannot
        return (content or "").encode("utf-8", "replace").decode()
    parts = content if isinstance(content, list) else [content]
    kinds = [part.get("type") if isinstance(part, dict) else type(part).__name__ for part in parts]
    if other := next((kind for kind in kinds if kind != "text"), None):
        raise _wrong(where, f"a content of the kind {other!r}; text alone is read")
    return "".join(_text(part.get("text"), where) for part in parts)


def _call(given: Any, where: str) -> dict[str, Any]:
    """A call as templates read it: its arguments as an object."""
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _wrong(where, "a tool call without function.name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _unpacked(arguments or "{}", "tool_calls.function.arguments", where)
    return {**given, "function": {**function, "arguments": arguments}}


def _unpacked(text: str, field: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _wrong(where, f"{field!r} is text and no JSON: {error}") from None


def _without_nulls(value: Any) -> Any:
    """Tables fill in null for what an object does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nulls(inner) for inner in value]
    return value


def _said(message: Mapping[str, Any]) -> str:
    calls = [
        f"{call['function']['name']} {json.dumps(call['function']['arguments'])}"
        for call in message.get("tool_calls", ())
    ]
    return "\n".join(filter(None, [message["content"], *calls]))


def _wrong(where: str, what: str) -> ConfigError:
    return ConfigError(
        f"{where}: {what}",
        allowed='[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]; '
        "also the roles system and tool, and tool_calls",
        next_step=NEXT,
    )
