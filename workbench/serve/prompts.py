"""From a request to prompt tokens, and what a request may ask for in length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from workbench.data.tokenizer import document_start, encode
from workbench.engine.request import GenerationRequest
from workbench.serve.wire import ApiError, ChatRequest, CommonFields, CompletionRequest

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
                f"{characters} characters; allowed: {self.context} tokens of prompt and output "
                f"together, which hold {self.characters} at most",
                code="context_length_exceeded",
                param=field,
            )


def completion_tokens(
    tokenizer: PreTrainedTokenizerBase, request: CompletionRequest, limit: PromptLimit
) -> list[int]:
    """Token ids as they are; a text as in training, behind the token that starts a document."""
    prompt = request.only_prompt
    if isinstance(prompt, list):
        return prompt
    limit.check(len(prompt), "prompt")
    start = document_start(tokenizer)
    return ([] if start is None else [start]) + encode(tokenizer, [prompt])[0]


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase, request: ChatRequest, limit: PromptLimit
) -> list[int]:
    """By the tokenizer's chat template; without one, ``role: text`` lines, since a base model
    knows no other form."""
    limit.check(sum(len(m.role) + len(m.text) for m in request.messages), "messages")
    if tokenizer.chat_template is None:
        lines = [f"{message.role}: {message.text}\n" for message in request.messages]
        start = document_start(tokenizer)
        text = "".join([*lines, "assistant:"])
        return ([] if start is None else [start]) + encode(tokenizer, [text])[0]
    turns = [{"role": message.role, "content": message.text} for message in request.messages]
    try:
        return tokenizer.apply_chat_template(
            turns, tokenize=True, add_generation_prompt=True, return_dict=False
        )
    except Exception as error:  # a template raises what its author chose
        raise ApiError(400, f"messages: the chat template refused: {error}") from None


def generation_request(
    fields: CommonFields, prompt: Sequence[int], *, context: int, vocab_size: int
) -> GenerationRequest:
    """What the engine is asked. context: tokens of prompt and output together.

    Raises ApiError for a token that is not in the vocabulary or a length that does not fit.
    """
    if bad := next((token for token in prompt if token >= vocab_size), None):
        allowed = f"0 to {vocab_size - 1}"
        raise ApiError(400, f"prompt: token {bad}; allowed: {allowed}", param="prompt")
    room = context - len(prompt)
    chat = isinstance(fields, ChatRequest)
    wanted = fields.wanted_tokens or max(1, room if chat else min(DEFAULT_TOKENS, room))
    if wanted > room:
        raise ApiError(
            400,
            f"{len(prompt)} prompt tokens and {wanted} output tokens; allowed: {context} together",
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
        seed=None if fields.seed is None else fields.seed % 2**63,
    )
