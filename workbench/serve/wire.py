"""What a client may send: the fields this server honours, and refusals that name the others.

Nothing is ignored, at no level of a body: a field that is not known here is refused by its place
(``messages.0.content.1.image_url``), and so is one whose value asks for something that is not
supported, unless that value asks for nothing (``min_p: 0``). What only carries information
(``user``, ``metadata``) is known, and changes no answer. ``null`` means "not given", as in OpenAI's
own clients. The same classes describe the bodies in ``/openapi.json``.
"""

from __future__ import annotations

import json
import reprlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from workbench.wording.counts import number_of

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
    "parallel_tool_calls": (True,),
    "prediction": (),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "store": (False,),
    "structural_tag": (),
    "structured_outputs": (),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of other servers, each with the values that ask for nothing besides ``null``."""
NO_COMPLETION: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
}
NO_CHAT: dict[str, tuple[Any, ...]] = {"add_special_tokens": (False,), "echo": (False,)}
"""The same, where the two endpoints differ."""
MOST_TURNS = 10_000
"""Messages of a chat, and parts of a message: hundreds of thousands take seconds to check."""
MOST_ANSWERS = 128
"""Answers to one body: its prompts, ``n`` times each."""
MOST_ALTERNATIVES = 20
"""Tokens beside the chosen one whose log probabilities may be asked for."""
MOST_TOOLS = 128


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


class Wire(BaseModel):
    """A JSON object of a body. unsupported: fields that it may have only with these values."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def nothing_is_ignored(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        given = {name: value for name, value in fields.items() if value is not None}
        for name in [each for each in given if each in cls.unsupported]:
            nothing = cls.unsupported[name]
            if not any(_same(given[name], value) for value in nothing):
                instead = json.dumps(nothing[0] if nothing else None)
                said = f"is not supported here; leave it out (or send {instead})"
                raise PydanticCustomError("not_supported", "{said}", {"said": said, "field": name})
            del given[name]
        return given


class StreamOptions(Wire):
    unsupported = {"include_obfuscation": (False,)}
    include_usage: bool = Field(False, description="a last chunk with the token counts")
    continuous_usage_stats: bool = Field(
        False, description="with include_usage, as vLLM has it: each chunk has the counts so far"
    )

    @model_validator(mode="after")
    def fields_agree(self) -> StreamOptions:
        if self.continuous_usage_stats and not self.include_usage:
            raise ValueError("continuous_usage_stats goes with include_usage: true only")
        return self


Token = Annotated[int, Field(ge=0)]
Stop = Annotated[str, Field(min_length=1)]
# A list's first fault is enough: a report of each of its millions would hold up the server.
TokenIds = Annotated[list[Token], Field(min_length=1, fail_fast=True)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class JsonSchemaFormat(Wire):
    """strict: an answer keeps to the schema in either case."""

    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = True


class ResponseFormat(Wire):
    """What the answer must be. json_object: any JSON object; json_schema: what the schema says."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def fields_agree(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and that with it")
        return self

    @property
    def json_as(self) -> dict[str, Any] | None:
        """The schema of the answer; None where it may be any text."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


class CommonFields(Wire):
    """The fields that both endpoints share."""

    unsupported = UNSUPPORTED
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="newer name of max_tokens")
    min_tokens: int = Field(0, ge=0, description="no end or stop before this many tokens")
    ignore_eos: bool = Field(False, description="go on after an end-of-text token")
    temperature: float = Field(1.0, ge=0.0, le=2.0, description="0: always the likeliest token")
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=-1, le=2**31, description="of so many likeliest tokens; 0, -1: of all")
    presence_penalty: Penalty = Field(0.0, description="off the logit of what was put out already")
    frequency_penalty: Penalty = Field(0.0, description="the same, for each time that it was")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="of n answers: the first's")
    n: int = Field(1, ge=1, le=MOST_ANSWERS, description="answers to each prompt")
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] = []
    response_format: ResponseFormat | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="information: it changes no answer")
    metadata: dict[str, str] | None = Field(None, description="information: kept nowhere")
    safety_identifier: str | None = Field(None, description="information")
    prompt_cache_key: str | None = Field(None, description="information")

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def usage_so_far(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def json_as(self) -> dict[str, Any] | None:
        return None if self.response_format is None else self.response_format.json_as

    @property
    def alternatives(self) -> int | None:
        """Of the answer's tokens; None: no log probabilities are asked for."""
        raise NotImplementedError

    @model_validator(mode="after")
    def fields_agree(self) -> CommonFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true only")
        if self.max_tokens is not None and self.wanted_tokens != self.max_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        if self.wanted_tokens is not None and self.min_tokens > self.wanted_tokens:
            raise ValueError(
                f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.wanted_tokens})"
            )
        if self.json_as is not None and (self.min_tokens or self.ignore_eos):
            raise ValueError(
                "response_format says where an answer ends: send neither min_tokens nor ignore_eos"
            )
        return self


class CompletionRequest(CommonFields):
    """POST /v1/completions. ``prompt``: one text or several, or the token ids of one or several."""

    unsupported = UNSUPPORTED | NO_COMPLETION
    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_ANSWERS, fail_fast=True)]
    )
    max_tokens: int | None = Field(None, ge=0, description="0 only with echo: the prompt is read")
    echo: bool = Field(False, description="the prompt comes before the answer, with its logprobs")
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | Literal[False] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt

    @property
    def alternatives(self) -> int | None:
        return None if self.logprobs is False else self.logprobs

    @model_validator(mode="after")
    def numbers_agree(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0; allowed: at least 1, or 0 with echo: true")
        if len(self.prompts) * self.n > MOST_ANSWERS:
            raise ValueError(
                f"{number_of(len(self.prompts), 'prompt')}, n {self.n}; allowed: {MOST_ANSWERS} "
                "answers together"
            )
        return self


class TextPart(Wire):
    type: Literal["text"]
    text: str


class CalledFunction(Wire):
    """arguments: JSON of an object."""

    name: str
    arguments: str


class ToolCall(Wire):
    id: str
    type: Literal["function"]
    function: CalledFunction


TEXT, PARTS = "a text", "a list of parts"


def _text_or_parts(content: Any) -> str:
    return PARTS if isinstance(content, list) else TEXT


class Message(Wire):
    """name, tool_calls: given to the chat template, and refused where that does not show them.
    tool_call_id: which call a tool's message answers."""

    unsupported = {"refusal": (), "audio": (), "function_call": ()}
    role: str = Field(min_length=1, max_length=64)
    content: (
        Annotated[
            Annotated[str, Tag(TEXT)]
            | Annotated[list[TextPart], Field(max_length=MOST_TURNS, fail_fast=True), Tag(PARTS)],
            Discriminator(_text_or_parts),
        ]
        | None
    ) = None
    name: str | None = Field(None, max_length=64)
    tool_calls: list[ToolCall] | None = Field(None, max_length=MOST_TOOLS, min_length=1)
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)

    @model_validator(mode="after")
    def it_says_something(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("missing", "required", {"field": "content"})
        return self


class Function(Wire):
    """parameters: a JSON schema, for the model to read."""

    unsupported = {"strict": (False,)}
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Wire):
    type: Literal["function"]
    function: Function


class ChatRequest(CommonFields):
    """POST /v1/chat/completions, text only. ``tools`` are given to the chat template; what the
    model then says of calling one is its answer's text."""

    unsupported = UNSUPPORTED | NO_CHAT
    messages: list[Message] = Field(min_length=1, max_length=MOST_TURNS, fail_fast=True)
    logprobs: bool | Literal[0] = False
    top_logprobs: int = Field(0, ge=0, le=MOST_ALTERNATIVES)
    tools: list[Tool] = Field([], max_length=MOST_TOOLS, fail_fast=True)
    tool_choice: Literal["none", "auto"] = Field(
        "auto", description="none: the model sees no tools"
    )

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @model_validator(mode="after")
    def logprobs_agree(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true only")
        return self


def parse(kind: type[BaseModel], fields: Any) -> Any:
    """``fields`` (decoded JSON) as ``kind``. Raises ApiError 400 that names the field."""
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is a JSON {type(fields).__name__}; allowed: an object")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _first_problem(error) from None


def _same(given: Any, value: Any) -> bool:
    """Equal, and 0 is not False."""
    return given == value and isinstance(given, bool) == isinstance(value, bool)


RULES = {
    "prompt": f"one text or up to {MOST_ANSWERS}, or the token ids (whole numbers from 0) of one "
    f"prompt or of up to {MOST_ANSWERS}; none empty",
    "stop": "a text or up to 16 texts, none empty",
    "tool_choice": "none or auto; a call cannot be forced here",
    "logprobs": f"a chat's is true or false; otherwise a number of alternatives, 0 to "
    f"{MOST_ALTERNATIVES}",
}
"""Of fields that may be one thing or another, where a line for each does not help."""


def _first_problem(error: ValidationError) -> ApiError:
    """The first that names a field: a list's or union's member says more than the whole."""
    problem = error.errors(include_url=False)[0]
    context = problem.get("ctx", {})
    # Which member of a union it is taken for says nothing to a client.
    parts = [part for part in problem["loc"] if part not in (TEXT, PARTS)]
    if problem["type"] in ("not_supported", "missing") and "field" in context:
        parts.append(context["field"])
    name = str(parts[0]) if parts else None
    place = ".".join(str(part) for part in parts)
    if problem["type"] == "missing":
        return ApiError(400, f"{place}: required", code="missing_required_parameter", param=name)
    if problem["type"] == "not_supported":
        said = f"{place} {context['said']}"
        return ApiError(400, said, code="unsupported_parameter", param=place)
    if problem["type"] == "extra_forbidden":
        said = f"{place} is not supported here; leave it out"
        return ApiError(400, said, code="unsupported_parameter", param=place)
    if name in RULES:
        return ApiError(400, f"{name}: allowed is {RULES[name]}", param=name)
    said = problem["msg"].removeprefix("Value error, ")
    got = "" if isinstance(problem["input"], dict) else f", got {reprlib.repr(problem['input'])}"
    return ApiError(400, f"{place}: {said}{got}" if place else said, param=name)
