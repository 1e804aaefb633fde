"""The OpenAPI document: whole, true of the answers, and held to by schemathesis."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from workbench.serve.app import make_app
from workbench.serve.service import Service


def refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(refs, value.values()))
    return set().union(*map(refs, value)) if isinstance(value, list) else set()


@pytest.fixture(scope="module")
def described(answering) -> dict[str, Any]:
    return answering.client.get("/openapi.json").json()


@pytest.mark.parametrize("passed", [False, True])
def test_every_path_and_method_is_described(answering, passed: bool) -> None:
    mine = answering.service
    tokenizer = None if passed else mine.tokenizer
    service = Service(mine.router, tokenizer, "pilot", 128, 400, faults=True)
    app = make_app(service)
    routes = {(route.path, each) for route in app._app.routes for each in route.methods - {"HEAD"}}
    # Bodies of a drill are taken where faults are, so this app has one more path than the other.
    document = TestClient(app).get("/openapi.json").json()
    found = {(path, m.upper()) for path, methods in document["paths"].items() for m in methods}
    assert found == routes
    assert refs(document) <= {
        f"#/components/schemas/{n}" for n in document["components"]["schemas"]
    }
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def holds(document: dict[str, Any], path: str, answer, stream: bool = False) -> None:
    """The answer is as the document says."""
    method = answer.request.method.lower()
    said = document["paths"][path][method]["responses"][str(answer.status_code)]
    schema = said["content"]["application/json"]["schema"]
    whole = {**schema, "components": document["components"]}
    jsonschema.validate(answer.json(), whole)


def test_answers_are_as_described(answering, described) -> None:
    client = answering.client
    for path in ("/health", "/ready", "/v1/models", "/workbench/route"):
        holds(described, path, client.get(path))
    holds(described, "/v1/models/{model}", client.get("/v1/models/pilot"))
    holds(described, "/v1/models/{model}", client.get("/v1/models/else"))
    text = {"prompt": "a", "max_tokens": 2, "n": 2}
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    for path, fields in (
        ("/v1/completions", text),
        ("/v1/completions", {**text, "echo": True, "logprobs": 2}),
        ("/v1/completions", {**text, "n": 0}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 3}),
        ("/v1/chat/completions", {**chat, "model": "else"}),
        ("/workbench/route", {"arm": "else"}),
    ):
        holds(described, path, client.post(path, json=fields))
    schema = described["components"]["schemas"]["ChatCompletionChunk"]
    asked = {**chat, "stream": True, "logprobs": True}
    for line in client.post("/v1/chat/completions", json=asked).text.split("\n\n")[:-2]:
        chunk = json.loads(line.removeprefix("data: "))
        jsonschema.validate(chunk, {**schema, "components": described["components"]})


@pytest.mark.parametrize(
    ("name", "fields", "taken"),
    [
        ("CompletionRequest", {"prompt": "a", "min_p": 0, "n": None}, True),
        ("CompletionRequest", {"prompt": "a", "min_p": 0.1}, False),
        ("CompletionRequest", {"prompt": "a", "nonsense": 1}, False),
        ("ChatRequest", {"messages": [{"role": "a", "content": "b", "x": 1}]}, False),
        ("ChatRequest", {"messages": [{"role": "a", "content": [{"type": "x"}]}]}, False),
        (
            "ChatRequest",
            {"messages": [{"role": "a", "content": "b"}], "stream_options": None},
            True,
        ),
    ],
)
def test_bodies_are_described_as_they_are_taken(answering, described, name, fields, taken) -> None:
    schema = {**described["components"]["schemas"][name], "components": described["components"]}
    assert jsonschema.Draft202012Validator(schema).is_valid(fields) is taken
    path = "/v1/completions" if name == "CompletionRequest" else "/v1/chat/completions"
    answer = answering.client.post(path, json={**fields, "max_tokens": 1})
    assert answer.status_code == (200 if taken else 400)


ALLOWED = "\n".join(
    (
        # What a schema cannot say: a prompt that is too long, fields that do not go together.
        "[checks]",
        "positive_data_acceptance.expected-statuses = [200, 400, 403, 404, 409, 413, 429, 503]",
        "negative_data_rejection.expected-statuses = [400, 403, 404, 405, 413, 415]",
        "missing_required_header.enabled = false",
    )
)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["coverage", "fuzzing"])
def test_schemathesis_finds_nothing(answering, tmp_path, phase: str) -> None:
    """Bodies that the document allows and bodies that it does not, of every path."""
    (tmp_path / "schemathesis.toml").write_text(ALLOWED)
    command = (
        "-m", "schemathesis.cli", "run", f"{answering.address}/openapi.json", "--phases", phase,
        "--max-examples", "60", "--seed", "14", "--request-timeout", "30", "--no-color",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
