"""Conversations as tokens, by the tokenizer's own chat template, and which of them are judged.

Learned and judged are the answers alone: the turns of the assistant, each up to and with the token
that ends the turn. Where the template marks them itself (``{% generation %}``), its marks are
taken. Else an answer is what stands between two renderings: the conversation up to it, with the
template's prompt for an answer, and the conversation with it. Both must begin the rendering of the
whole conversation; a template that writes earlier turns otherwise once later ones follow (as those
do that drop old reasoning) is refused, because what it shows in training is not what it shows
in use.

The bytes of what is judged are those of the answers' text without special tokens, so that bits per
byte stay comparable between tokenizers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from workbench.data.conversation import ANSWERS
from workbench.errors import ConfigError, reason_of

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
Spans = list[tuple[int, int]]
"""First character and the one behind the last."""


@dataclass(frozen=True)
class JudgedTokens:
    """ids: of the text, nothing added. judged: bool, one a token. size_bytes: UTF-8 bytes of the
    text that the judged tokens stand for."""

    ids: list[int]
    judged: np.ndarray
    size_bytes: int


def no_template(what: str) -> ConfigError:
    """``what`` has conversations, and its tokenizer nothing to write them by."""
    return ConfigError(
        f"{what} has conversations, and its tokenizer no chat template",
        allowed="a tokenizer with a chat template, as chat models bring one",
        next_step="name such a model as model.checkpoint, or its folder as data.tokenizer; "
        "data.conversations: plain learns them as lines of plain text",
    )


def chat_tokens(tokenizer: PreTrainedTokenizerBase, packed: str, where: str) -> JudgedTokens:
    """packed: of :func:`~.conversation.conversation`. where: what an error begins with.

    Raises ConfigError for a conversation that the template refuses, leaves a part of out, or
    renders so that its answers cannot be told apart.
    """
    text, answers = rendered(tokenizer, packed, where)
    # The template writes special tokens as text, so here they are tokens.
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False,
        return_attention_mask=False,
    )  # fmt: skip
    ids, ends = encoded["input_ids"], np.array(encoded["offset_mapping"]).reshape(-1, 2)
    judged = np.zeros(len(ids), bool)
    for begin, end in answers:
        judged |= (ends[:, 0] < end) & (ends[:, 1] > begin)
    special = _special(tokenizer)
    said = "".join(special.sub("", text[begin:end]) for begin, end in answers)
    return JudgedTokens(ids, judged, len(said.encode()))


def rendered(tokenizer: PreTrainedTokenizerBase, packed: str, where: str) -> tuple[str, Spans]:
    """The conversation as the template writes it, and where its answers stand in that text."""
    whole = json.loads(packed)
    messages, tools = whole["messages"], whole.get("tools")
    if tokenizer.chat_template is None:
        raise no_template(where)
    template = tokenizer.get_chat_template(tools=tools)

    def written(count: int, **settings: Any) -> tuple[str, Spans]:
        try:
            render: Any = render_jinja_template  # its annotation forgets the marks
            texts, marks = render(
                [messages[:count]], tools=tools, chat_template=template,
                **tokenizer.special_tokens_map, **settings,
            )  # fmt: skip
        except Exception as error:  # a template raises what its author chose
            raise ConfigError(
                f"{where}: the chat template refuses it: {reason_of(error)}",
                next_step="leave such rows out, or write them as the template has them",
            ) from None
        return texts[0], list(marks[0]) if marks else []

    if MARKED.search(template):
        text, answers = written(len(messages), return_assistant_tokens_mask=True)
    else:
        text, _ = written(len(messages))
        answers = [
            _between(written(place, add_generation_prompt=True)[0], written(place + 1)[0], text,
                     tokenizer, where)
            for place, each in enumerate(messages) if each["role"] == ANSWERS
        ]  # fmt: skip
    _require_all_shown(text, messages, tools, where)
    if not any(end > begin for begin, end in answers):
        raise ConfigError(
            f"{where}: the chat template marks no answer", next_step="mend its {% generation %}"
        )
    return text, answers


def _between(
    before: str, after: str, whole: str, tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[int, int]:
    """The span of an answer, up to the last special token if nothing but spaces follow that."""
    if not (after.startswith(before) and whole.startswith(after)):
        raise ConfigError(
            f"{where}: the chat template writes a turn otherwise once another follows it, so its "
            "answers cannot be told apart",
            allowed="a template under which every conversation begins with what it was a turn "
            "before, or one that marks answers by {% generation %}",
            next_step="put {% generation %} and {% endgeneration %} around the answers in the "
            "template, or let each conversation end with its only answer",
        )
    marks = [found.end() for found in _special(tokenizer).finditer(after, len(before))]
    end = marks[-1] if marks and not after[marks[-1] :].strip() else len(after)
    return len(before), end


def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds the tokens that are no text: special ones, the ends of turns among them."""
    added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    names = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _require_all_shown(text: str, messages: list[dict[str, Any]], tools: Any, where: str) -> None:
    """ConfigError where the template left out a turn, a call or the tools: the model would be
    taught answers to what it never saw."""
    for place, each in enumerate(messages, start=1):
        calls = [call["function"]["name"] for call in each.get("tool_calls", ())]
        said = each["content"].strip() if each["role"] != ANSWERS else ""
        for part, what in (
            (said, f"what {each['role']!r} says"),
            *((c, "its call") for c in calls),
        ):
            if part not in text:
                raise _left_out(f"{where}: message {place}", what)
    for tool in tools or ():
        name = (tool.get("function") or tool).get("name", "")
        if name not in text:
            raise _left_out(where, f"the tool {name!r}")


def _left_out(where: str, what: str) -> ConfigError:
    return ConfigError(
        f"{where}: the chat template leaves out {what}",
        allowed="roles, tools and calls that the template writes",
        next_step="leave such rows out, or take a tokenizer whose template has them",
    )
