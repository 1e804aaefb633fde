"""Prompts of a team's own, from a JSONL file, and what their answers must keep to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from transformers import PreTrainedTokenizerBase

from workbench.data.asked_file import AskedRow, FilledText, read_asked
from workbench.data.tokenizer import document_start, encode
from workbench.errors import ConfigError
from workbench.paths import shown
from workbench.pilot.sections.base import Count, Section
from workbench.pilot.sections.prompts import Prompts

Broken = Literal["contains", "regex", "json", "schema"]
"""What an answer did not keep to: a key below ``prompts.broken.`` of the catalogue."""


class ChatTurn(Section):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class OwnPrompt(AskedRow):
    """One prompt: ``prompt`` or ``messages``, and the check of its answer.

    contains: each of these texts must be in the answer, letter case ignored. regex: found anywhere
    in it (Python's ``re``, ``.`` takes line ends too). json_valid, json_schema: the whole answer is
    JSON, that keeps to the schema. With several, all must hold.
    """

    prompt: FilledText | None = None
    messages: list[ChatTurn] | None = Field(None, min_length=1)
    max_tokens: Count | None = None
    contains: FilledText | Annotated[list[FilledText], Field(min_length=1)] | None = None
    regex: FilledText | None = None
    json_valid: Literal[True] | None = None
    json_schema: dict[str, Any] | None = None

    @field_validator("regex")
    @classmethod
    def that_compiles(cls, regex: str | None) -> str | None:
        try:
            re.compile(regex or "", re.DOTALL)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return regex

    @field_validator("json_schema")
    @classmethod
    def that_is_one(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is None:
            return None
        from jsonschema import SchemaError

        try:
            _validator(schema).check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"no JSON schema: {error.message}") from None
        return schema

    @model_validator(mode="after")
    def one_form(self) -> OwnPrompt:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last of messages must be the user's: it is what is answered")
        return self

    @property
    def text(self) -> str:
        """As a reader is shown it."""
        if self.messages is None:
            return self.prompt or ""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n".join(f"{turn.role}: {turn.content}" for turn in self.messages)

    @property
    def has_check(self) -> bool:
        checks = (self.contains, self.regex, self.json_valid, self.json_schema)
        return any(check is not None for check in checks)

    def broken_by(self, answer: str) -> tuple[Broken, str] | None:
        """The first check that ``answer`` does not keep to, and what that asked for or found; None
        where it keeps to all."""
        wanted = [self.contains] if isinstance(self.contains, str) else self.contains or []
        for text in wanted:
            if text.casefold() not in answer.casefold():
                return "contains", text
        if self.regex is not None and not re.search(self.regex, answer, re.DOTALL):
            return "regex", self.regex
        if self.json_valid is None and self.json_schema is None:
            return None
        try:
            value = json.loads(answer, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return "json", str(error)
        if self.json_schema is None:
            return None
        validator = _validator(self.json_schema)(self.json_schema)
        wrong = next(iter(validator.iter_errors(value)), None)
        return None if wrong is None else ("schema", wrong.message)


def _validator(schema: dict[str, Any]) -> Any:
    """jsonschema's class for it, imported where a prompt asks for one: that takes longer than all
    else a command does before it answers."""
    from jsonschema.validators import validator_for

    return validator_for(schema)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def read_prompts(section: Prompts) -> list[OwnPrompt]:
    """Those of the pilot; none where it names no file. Raises ConfigError with file and line."""
    return read_asked(Path(section.file), OwnPrompt, section.most) if section.file else []


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[OwnPrompt], file: str
) -> list[list[int]]:
    """Of each prompt: a text as in training, behind the token that starts a document; messages by
    the tokenizer's chat template and, where there is none, as ``role: text`` lines, since a base
    model knows no other form. Raises ConfigError for messages that the template refuses."""
    start = document_start(tokenizer)
    found = []
    for own in prompts:
        if own.messages is not None and tokenizer.chat_template is not None:
            text = _templated(tokenizer, own, f"{shown(Path(file))}, line {own.line}")
            # The template writes special tokens as text, so here they are tokens.
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            turns = [f"{turn.role}: {turn.content}\n" for turn in own.messages or ()]
            text = own.prompt or "".join([*turns, "assistant:"])
            ids = ([] if start is None else [start]) + encode(tokenizer, [text])[0]
        found.append(ids)
    return found


def _templated(tokenizer: PreTrainedTokenizerBase, own: OwnPrompt, where: str) -> str:
    turns = [turn.model_dump() for turn in own.messages or ()]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template raises what its author chose
        raise ConfigError(
            f"{where}: messages: the model's chat template refused: {error}",
            next_step="write the conversation as the model knows it, or give it as prompt",
        ) from None
