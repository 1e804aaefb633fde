"""From a request to prompt tokens, and what a request may ask for in length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from workbench.data.tokenizer import document_start, encode
from workbench.engine.request import GenerationRequest
from workbench.serve.wire import (
    ApiError,
    ChatRequest,
    CommonFields,
    CompletionRequest,
    Message,
    Tool,
)
from workbench.wording.counts import number_of

DEFAULT_TOKENS = 16
"""Output of a completion that does not say how long; OpenAI's default. A chat takes the rest
of the context."""


@dataclass(frozen=True)
class PromptLimit:
    """What can be told of a text before it is encoded, which takes seconds for a long one.

    context: tokens. characters: more cannot be in so many tokens, each as long as the longest.
    """

    context: int
    characters: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, context: int) -> PromptLimit:
        return cls(context, context * max(map(len, tokenizer.get_vocab())))

    def check(self, characters: int, field: str) -> None:
        """Raise ApiError for a text that cannot fit."""
        if characters > self.characters:
            raise ApiError(
                400,
                f"{number_of(characters, 'character')}; allowed: "
                f"{number_of(self.context, 'token')} of prompt and output together, which hold "
                f"{self.characters} at most",
                code="context_length_exceeded",
                param=field,
            )


def completion_tokens(
    tokenizer: PreTrainedTokenizerBase, request: CompletionRequest, limit: PromptLimit
) -> list[list[int]]:
    """Of each prompt. Token ids as they are; a text as in training, behind the token that starts a
    document."""
    start = document_start(tokenizer)
    found = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            limit.check(len(prompt), "prompt")
            prompt = ([] if start is None else [start]) + encode(tokenizer, [prompt])[0]
        found.append(prompt)
    return found


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase, request: ChatRequest, limit: PromptLimit
) -> list[int]:
    """By the tokenizer's chat template; without one, ``role: text`` lines, since a base model
    knows no other form."""
    limit.check(sum(len(m.role) + len(m.text) for m in request.messages), "messages")
    if tokenizer.chat_template is None:
        shown = {"tools": bool(request.tools) and request.tool_choice != "none"}
        for field in ("name", "tool_calls", "tool_call_id"):
            shown[field] = any(getattr(message, field) for message in request.messages)
        if absent := next((name for name, given in shown.items() if given), None):
            raise _not_shown(absent)
        lines = [f"{message.role}: {message.text}\n" for message in request.messages]
        start = document_start(tokenizer)
        text = "".join([*lines, "assistant:"])
        return ([] if start is None else [start]) + encode(tokenizer, [text])[0]
    turns = [_turn(message, place) for place, message in enumerate(request.messages)]
    tools = [each.model_dump(exclude_unset=True) for each in _seen_tools(request)]
    text = _templated(tokenizer, turns, tools)
    for field in ("tools", "name", "tool_calls"):
        without = [{k: v for k, v in turn.items() if k != field} for turn in turns]
        if (field == "tools" and not tools) or (field != "tools" and without == turns):
            continue
        if _templated(tokenizer, without, [] if field == "tools" else tools) == text:
            raise _not_shown(field)
    # The template writes special tokens as text, so here they are tokens.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _seen_tools(request: ChatRequest) -> list[Tool]:
    return [] if request.tool_choice == "none" else request.tools


def _turn(message: Message, place: int) -> dict[str, Any]:
    """As templates read it: a call's arguments as an object."""
    turn: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [call.model_dump() for call in message.tool_calls]
        for number, call in enumerate(turn["tool_calls"]):
            try:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            except ValueError as error:
                where = f"messages.{place}.tool_calls.{number}.function.arguments"
                raise ApiError(400, f"{where}: no JSON: {error}", param="messages") from None
    return turn


def _templated(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> str:
    shown: list[dict[Any, Any] | Callable[..., Any]] = [*tools]
    try:
        text = tokenizer.apply_chat_template(
            turns, tools=shown or None, tokenize=False, add_generation_prompt=True
        )
        return str(text)
    except Exception as error:  # a template raises what its author chose
        raise ApiError(400, f"messages: the chat template refused: {error}") from None


def _not_shown(field: str) -> ApiError:
    """Of something that would reach the model by the template alone."""
    return ApiError(
        400,
        f"{field} is not supported here: this model's chat template does not show it; leave it out",
        code="unsupported_parameter",
        param=field if field == "tools" else "messages",
    )


def generation_requests(
    fields: CommonFields,
    prompts: Sequence[Sequence[int]],
    *,
    context: int,
    vocab_size: int,
    grammar: str | None = None,
) -> Iterator[GenerationRequest]:
    """What the engine is asked, ``n`` times for each prompt, each with a seed of its own.

    context: tokens of prompt and output together. Raises ApiError for a token that is not in the
    vocabulary or a length that does not fit.
    """
    for prompt in prompts:
        wanted = replace(_generation_request(fields, prompt, context, vocab_size), grammar=grammar)
        for number in range(fields.n):
            seed = None if fields.seed is None else (fields.seed + number) % 2**63
            yield replace(wanted, seed=seed)


def _generation_request(
    fields: CommonFields, prompt: Sequence[int], context: int, vocab_size: int
) -> GenerationRequest:
    if bad := next((token for token in prompt if token >= vocab_size), None):
        allowed = f"0 to {vocab_size - 1}"
        raise ApiError(400, f"prompt: token {bad}; allowed: {allowed}", param="prompt")
    room = context - len(prompt)
    chat = isinstance(fields, ChatRequest)
    wanted = fields.wanted_tokens
    if wanted is None:
        wanted = max(1, room if chat else min(DEFAULT_TOKENS, room))
    if wanted > room:
        raise ApiError(
            400,
            f"{number_of(len(prompt), 'prompt token')} and {number_of(wanted, 'output token')}; "
            f"allowed: {context} together",
            code="context_length_exceeded",
            param="messages" if chat else "prompt",
        )
    if fields.min_tokens > wanted:
        message = f"min_tokens ({fields.min_tokens}) exceeds the {wanted} that can be made"
        raise ApiError(400, message, param="min_tokens")
    return GenerationRequest(
        prompt_tokens=tuple(prompt),
        max_tokens=wanted,
        min_tokens=fields.min_tokens,
        ignore_eos=fields.ignore_eos,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=max(0, fields.top_k),
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        logprobs=fields.alternatives,
        prompt_logprobs=fields.alternatives if getattr(fields, "echo", False) else None,
    )
