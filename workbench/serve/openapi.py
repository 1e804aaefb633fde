"""What this server answers to, as an OpenAPI 3.1 document: ``/openapi.json``.

Bodies are described by the classes that check them (:mod:`.wire`, and those of the route), so the
document cannot promise what they refuse. A field of another server that is known and not supported
stands there with the values that ask for nothing. Answers are described here; the slow tests hold
both to the document by schemathesis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import workbench
from workbench.serve.answers import ARM_HEADER
from workbench.serve.kept_route import TOKEN_HEADER
from workbench.serve.routed import Cause
from workbench.serve.wire import ChatRequest, CompletionRequest, Wire

Json = dict[str, Any]
TEMPLATE = "#/components/schemas/{model}"
NULL = {"type": "null"}
TEXT, COUNT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "number"}
FINISH = {"enum": ["stop", "length"]}
ERRORS = {
    400: "a field or its value that is not supported, named in the message",
    401: "the server asks for a key, and this is not it",
    403: "the route is changed from this machine, with the server's token",
    404: "no such model",
    409: "a larger share was asked for too soon after a rollback",
    413: "the body is too long",
    415: "the content type is not application/json",
    429: "the queue is full; Retry-After says when to come again",
    500: "the engine failed before a token",
    502: "the upstream gave no answer",
    503: "no arm can answer now",
    504: "no answer within the deadline",
}


OPENAI_BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
}


def document(
    paths: Iterable[tuple[str, str]], bodies: Mapping[str, type[BaseModel]], *, passed: bool
) -> Json:
    """Of a server with these (path, method)s. bodies: what a path's POST takes, besides OpenAI's.
    passed: its arms are upstreams, so bodies and answers go through and are what those say."""
    own: dict[str, type[BaseModel]] = {
        "/v1/completions": CompletionRequest,
        "/v1/chat/completions": ChatRequest,
    }
    taken: dict[str, type[BaseModel]] = {**({} if passed else own), **bodies}
    refs, definitions = models_json_schema(
        [(kind, "validation") for kind in taken.values()], ref_template=TEMPLATE
    )
    schemas = {name: _described(each) for name, each in definitions["$defs"].items()}
    by_name = {kind.__name__: kind for kind in _all_kinds(taken.values())}
    for name, schema in schemas.items():
        kind = by_name.get(name)
        if kind and issubclass(kind, Wire):
            _add_unsupported(schema, kind)
    operations: Json = {}
    for path, method in paths:
        operation = _operation(path, method, passed)
        if method == "POST":
            schema = refs[taken[path], "validation"] if path in taken else PASSED_BODY
            content = {"application/json": {"schema": schema}}
            operation["requestBody"] = {"required": True, "content": content}
        operations.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Ternary Workbench",
            "version": workbench.__version__,
            "description": "An OpenAI-compatible server with two arms and a route between them.",
        },
        "paths": operations,
        "components": {
            "schemas": {**schemas, **ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _all_kinds(kinds: Iterable[type[BaseModel]]) -> set[type[BaseModel]]:
    """They and all that derive from the class of bodies: a nested one is of those."""
    found: set[type[BaseModel]] = set()
    left: list[type[BaseModel]] = [*kinds, Wire]
    while left:
        kind = left.pop()
        found.add(kind)
        left += kind.__subclasses__()
    return found


def _described(schema: Json) -> Json:
    """A class's schema; ``null`` stands for a field that is not given, so each may be null that
    need not be there."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        if name not in required and not _takes_null(field):
            kept = {key: field.pop(key) for key in ("default", "description") if key in field}
            field.pop("title", None)
            schema["properties"][name] = {"anyOf": [field, NULL], **kept}
    return schema


def _takes_null(field: Json) -> bool:
    return NULL in field.get("anyOf", ())


def _add_unsupported(schema: Json, kind: type[Wire]) -> None:
    for name, nothing in kind.unsupported.items():
        schema.setdefault("properties", {}).setdefault(
            name, {"enum": [*nothing, None], "description": "not supported: null, or left out"}
        )


def _ref(name: str) -> Json:
    return {"$ref": TEMPLATE.format(model=name)}


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(of: Json) -> Json:
    return {"type": "array", "items": of}


def _or_null(of: Json) -> Json:
    return {"anyOf": [of, NULL]}


USAGE = _object(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT)
TOKEN = _object(token=TEXT, logprob=NUMBER, bytes=_list(COUNT))
SCORED = _object(**TOKEN["properties"], top_logprobs=_list(TOKEN))
COMPLETION_LOGPROBS = _object(
    tokens=_list(TEXT),
    token_logprobs=_list(_or_null(NUMBER)),
    top_logprobs=_list(_or_null({"type": "object", "additionalProperties": NUMBER})),
    text_offset=_list(COUNT),
)
CHAT_LOGPROBS = _object(content=_list(SCORED), refusal=NULL)


def _answer(kind: str, choice: Json, **more: Json) -> Json:
    head: Json = {"id": TEXT, "object": {"const": kind}, "created": COUNT, "model": TEXT}
    return _object(**head, system_fingerprint=TEXT, choices=_list(choice), **more)


def _choice(logprobs: Json, finish: Json, **content: Json) -> Json:
    return _object(index=COUNT, **content, logprobs=_or_null(logprobs), finish_reason=finish)


CARD = _object(id=TEXT, object={"const": "model"}, created=COUNT, owned_by=TEXT)
PASSED_BODY: Json = {
    "type": "object",
    "properties": {"model": _or_null(TEXT), "stream": _or_null({"type": "boolean"})},
}
ANSWERS: Json = {
    "Error": _object(
        error=_object(message=TEXT, type=TEXT, param=_or_null(TEXT), code=_or_null(TEXT))
    ),
    "Completion": _answer(
        "text_completion", _choice(COMPLETION_LOGPROBS, FINISH, text=TEXT), usage=USAGE
    ),
    "CompletionChunk": _answer(
        "text_completion", _choice(COMPLETION_LOGPROBS, _or_null(FINISH), text=TEXT)
    ),
    "ChatCompletion": _answer(
        "chat.completion",
        _choice(CHAT_LOGPROBS, FINISH, message=_object(role={"const": "assistant"}, content=TEXT)),
        usage=USAGE,
    ),
    "ChatCompletionChunk": _answer(
        "chat.completion.chunk",
        _choice(CHAT_LOGPROBS, _or_null(FINISH), delta=_object(content=TEXT)),
    ),
    "Model": CARD,
    "Models": _object(object={"const": "list"}, data=_list(_ref("Model"))),
    "Health": _object(
        status={"enum": ["ok", "degraded", "failed"]},
        out={"type": "object", "additionalProperties": TEXT},
        arms={"type": "object", "additionalProperties": _object(state={"enum": ["up", "out"]})},
        resident_bytes=COUNT,
        gpu_bytes=_or_null(COUNT),
        running={"type": "object", "additionalProperties": COUNT},
        waiting=COUNT,
    ),
    "Ready": _object(ready={"type": "boolean"}, arms=_list(TEXT), draining={"type": "boolean"}),
    "RouteState": _object(
        arm=TEXT,
        weight={"type": "number", "minimum": 0, "maximum": 1},
        fallback=TEXT,
        arms=_list(TEXT),
        switches=_list(
            _object(
                time_s=NUMBER,
                from_arm=TEXT,
                to_arm=TEXT,
                weight=NUMBER,
                reason=TEXT,
                cause={"enum": list(get_args(Cause))},
                held_s=NUMBER,
            )
        ),
    ),
    "Drilled": _object(arm=TEXT, fault=TEXT),
}
STREAMED = {"/v1/completions": "CompletionChunk", "/v1/chat/completions": "ChatCompletionChunk"}
SAID = {
    ("/v1/completions", "POST"): ("text to go on with", "Completion"),
    ("/v1/chat/completions", "POST"): ("the next message of a chat", "ChatCompletion"),
    ("/v1/models", "GET"): ("the route's name and those of the arms", "Models"),
    ("/v1/models/{model}", "GET"): ("one of them", "Model"),
    ("/health", "GET"): ("whether the server lives, and which arms are out", "Health"),
    ("/ready", "GET"): ("whether requests are answered now", "Ready"),
    ("/metrics", "GET"): ("Prometheus metrics", None),
    ("/openapi.json", "GET"): ("this document", None),
    ("/workbench/route", "GET"): ("which arm answers which share", "RouteState"),
    ("/workbench/route", "POST"): ("order another route, from this machine", "RouteState"),
    ("/workbench/drill", "POST"): ("let an arm fail, in a drill", "Drilled"),
}
"""(path, method) -> what it is for, and what it answers with."""


def _operation(path: str, method: str, passed: bool) -> Json:
    summary, answer = SAID[path, method]
    answers_text = path in STREAMED
    schema = {} if passed and answers_text else _ref(answer) if answer else {"type": "object"}
    content: Json = {"application/json": {"schema": schema}}
    if path == "/metrics":
        content = {"text/plain": {"schema": TEXT}}
    said: Json = {"description": "answered", "content": content}
    if answers_text:
        events = f"events, each a {STREAMED[path]}, then [DONE]"
        content["text/event-stream"] = {"schema": _object(data={**TEXT, "description": events})}
        said["headers"] = {ARM_HEADER: {"description": "which arm answered", "schema": TEXT}}
    operation: Json = {"summary": summary, "responses": {"200": said}}
    if path.startswith("/v1/"):
        operation["security"] = [{}, {"key": []}]
    for status in _errors(path, method, passed):
        operation["responses"][str(status)] = _error(status)
    if path == "/ready":
        body = {"application/json": {"schema": _ref("Ready")}}
        operation["responses"]["503"] = {"description": ERRORS[503], "content": body}
    if path == "/v1/models/{model}":
        operation["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": TEXT}
        ]
    if path.startswith("/workbench/") and method == "POST":
        token = "as workbench serve says; it may be asked for"
        operation["parameters"] = [
            {"name": TOKEN_HEADER, "in": "header", "schema": TEXT, "description": token}
        ]
    return operation


def _errors(path: str, method: str, passed: bool) -> list[int]:
    if path in STREAMED:
        return [400, 401, 404, 413, 415, 429, *([500, 502] if passed else [500]), 503, 504]
    if path.startswith("/v1/models"):
        return [401, 404] if path.endswith("{model}") else [401]
    if path == "/workbench/route" and method == "POST":
        return [400, 403, 409, 413, 415]
    return [400, 403, 413, 415] if method == "POST" else []


def _error(status: int) -> Json:
    said: Json = {
        "description": ERRORS[status],
        "content": {"application/json": {"schema": _ref("Error")}},
    }
    if status in (409, 429, 503):
        said["headers"] = {"Retry-After": {"description": "seconds", "schema": TEXT}}
    return said
