"""What a client may send: the OpenAI fields this server honours, and clear refusals.

A field that would change the answer and is not supported (``n``, ``logprobs``, ``tools``, ...)
is refused rather than ignored; a field that only carries information (``user``, ``metadata``)
is ignored. ``null`` means "not given", as in OpenAI's own clients.
"""

from __future__ import annotations

import json
import reprlib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "guided_json": ("",),
    "guided_regex": ("",),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "min_p": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structural_tag": (),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_k": (0, -1),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
"""Fields that change the answer, each with the values that ask for nothing besides ``null``."""


class ApiError(Exception):
    """An answer other than 200, in OpenAI's form.

    kind: OpenAI's ``type``. code: a word a program can tell apart. param: the field at fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str = "invalid_value",
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code = status, message, kind, code
        self.param, self.headers = param, headers or {}

    def body(self) -> dict[str, Any]:
        fields = {"message": self.message, "type": self.kind, "param": self.param}
        return {"error": {**fields, "code": self.code}}


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(_Wire):
    include_usage: bool = Field(False, description="a last chunk with the token counts")


Token = Annotated[int, Field(ge=0)]
Stop = Annotated[str, Field(min_length=1)]
MOST_TURNS = 10_000
"""Messages of a chat, and parts of a message: hundreds of thousands take seconds to check."""
# A list's first fault is enough: a report of each of its millions would hold up the server.
TokenIds = Annotated[list[Token], Field(min_length=1, fail_fast=True)]


class CommonFields(_Wire):
    """The fields that both endpoints share."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="newer name of max_tokens")
    min_tokens: int = Field(0, ge=0, description="no end or stop before this many tokens")
    ignore_eos: bool = Field(False, description="go on after an end-of-text token")
    temperature: float = Field(1.0, ge=0.0, le=2.0, description="0: always the likeliest token")
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def fields_agree(self) -> CommonFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true only")
        if self.wanted_tokens is not None and self.min_tokens > self.wanted_tokens:
            raise ValueError(
                f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.wanted_tokens})"
            )
        return self


class CompletionRequest(CommonFields):
    """POST /v1/completions. ``prompt``: one text, or the token ids of one prompt."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=1, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=1, fail_fast=True)]
    )

    @property
    def only_prompt(self) -> str | list[int]:
        """The prompt; a list of one prompt is that prompt."""
        first = self.prompt[0] if isinstance(self.prompt, list) else None
        return first if isinstance(first, (str, list)) else self.prompt  # type: ignore[return-value]


class TextPart(_Wire):
    type: str = Field(pattern="^text$")
    text: str


class Message(_Wire):
    role: str = Field(min_length=1, max_length=64)
    content: str | Annotated[list[TextPart], Field(max_length=MOST_TURNS, fail_fast=True)]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(CommonFields):
    """POST /v1/chat/completions, text only."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_TURNS, fail_fast=True)


UNSUPPORTED_BY_KIND: dict[type[_Wire], dict[str, tuple[Any, ...]]] = {
    # A number there: so many alternatives beside the chosen token's own logprob, so 0 asks too.
    CompletionRequest: {"add_special_tokens": (True,), "logprobs": (False,)},
    ChatRequest: {"add_special_tokens": (False,), "logprobs": (False, 0)},
}
"""The same, where the two endpoints differ."""


def parse(kind: type[_Wire], fields: Any) -> Any:
    """``fields`` (decoded JSON) as ``kind``. Raises ApiError 400 that names the field."""
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is a JSON {type(fields).__name__}; allowed: an object")
    given = {name: value for name, value in fields.items() if value is not None}
    for name, nothing in {**UNSUPPORTED, **UNSUPPORTED_BY_KIND.get(kind, {})}.items():
        if name in given and not any(_same(given[name], value) for value in nothing):
            instead = json.dumps(nothing[0] if nothing else None)
            raise ApiError(
                400,
                f"{name} is not supported here; leave it out (or send {instead})",
                code="unsupported_parameter",
                param=name,
            )
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _first_problem(kind, error) from None


def _same(given: Any, value: Any) -> bool:
    """Equal, and 0 is not False."""
    return given == value and isinstance(given, bool) == isinstance(value, bool)


def _first_problem(kind: type[_Wire], error: ValidationError) -> ApiError:
    problem = error.errors(include_url=False, include_context=False)[0]
    name = str(problem["loc"][0]) if problem["loc"] else None
    if name == "prompt" and problem["type"] != "missing":
        # A union reports one line for each member; this is what they amount to.
        rule = "one text, or one non-empty list of token ids (whole numbers from 0)"
        return ApiError(400, f"prompt: allowed is {rule}; one prompt a request", param="prompt")
    if name == "stop":
        return ApiError(400, "stop: allowed is a text or up to 16 texts, none empty", param="stop")
    place = ".".join(str(part) for part in problem["loc"])
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return ApiError(400, f"{place}: required", code="missing_required_parameter", param=name)
    got = "" if isinstance(problem["input"], dict) else f", got {reprlib.repr(problem['input'])}"
    return ApiError(400, f"{place}: {said}{got}" if place else said, param=name)
