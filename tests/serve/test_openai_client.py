"""OpenAI's own client, unchanged, over arms that compute their answers."""

from __future__ import annotations

import json

import httpx
import jsonschema
import numpy as np
import openai
import pytest
import torch

from workbench.data.tokenizer import encode
from workbench.serve.wire import MOST_ALTERNATIVES

CLOSE = 0.05
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kinds": {"type": "array", "items": {"enum": ["ä", "b"]}, "maxItems": 2},
    },
    "required": ["name", "count", "kinds"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(answering):
    with openai.OpenAI(
        base_url=f"{answering.address}/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.Client(trust_env=False, timeout=30),
    ) as made:
        yield made


def right_scores(answering, tokens: list[int]) -> np.ndarray:
    """[len(tokens) - 1, V]"""
    logits = torch.from_numpy(answering.engine.logits(tokens)[:-1].astype(np.float64))
    return torch.log_softmax(logits, dim=-1).numpy()


def test_models(client) -> None:
    assert [card.id for card in client.models.list()] == ["pilot", "full_precision", "hybrid"]
    assert client.models.retrieve("hybrid").id == "hybrid"
    with pytest.raises(openai.NotFoundError, match="allowed: pilot, full_precision, hybrid"):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize("most", [0, 1, 5])
def test_an_echo_scores_the_prompt_as_evaluation_harnesses_ask(client, answering, most) -> None:
    """lm-evaluation-harness: token ids, echo, logprobs and max_tokens 1; others ask for 0."""
    text = "def f(x):\n    return x  # 日"
    prompt = encode(answering.tokenizer, [text])[0]
    asked = {"model": "pilot", "temperature": 0, "logprobs": 1, "echo": True}
    choice = client.completions.create(prompt=[prompt], max_tokens=most, **asked).choices[0]
    said = choice.logprobs
    assert len(said.tokens) == len(prompt) + most and choice.finish_reason == "length"
    assert said.token_logprobs[0] is None and said.top_logprobs[0] is None
    assert choice.text.startswith(text) or most
    right = right_scores(answering, prompt)
    for place, token in enumerate(prompt[1:], 1):
        assert said.token_logprobs[place] == pytest.approx(right[place - 1, token], abs=CLOSE)
        best = max(said.top_logprobs[place].values())
        assert best == pytest.approx(right[place - 1].max(), abs=CLOSE)
    for place, offset in enumerate(said.text_offset[: len(prompt)]):
        name = said.tokens[place]
        assert name.startswith("bytes:") or text[offset:].startswith(name)
    if most == 0:
        assert choice.text == text


def test_a_text_is_scored_behind_the_token_that_starts_it(client, answering) -> None:
    choice = client.completions.create(
        model="pilot", prompt="def", max_tokens=2, echo=True, logprobs=0, temperature=0
    ).choices[0]
    start = answering.tokenizer.bos_token
    assert choice.logprobs.tokens[0] == start and choice.text.startswith("def")
    assert choice.logprobs.text_offset[:2] == [0, 0]
    assert [len(top) for top in choice.logprobs.top_logprobs[1:]] == [1] * (
        len(choice.logprobs.tokens) - 1
    )


def test_a_chat_has_its_logprobs_whole_and_in_a_stream(client, answering) -> None:
    asked = {
        "model": "pilot",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": MOST_ALTERNATIVES,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    content = whole.logprobs.content
    assert len(content) == 6
    assert (
        b"".join(bytes(each.bytes) for each in content).decode(errors="replace")
        == whole.message.content
        or "\ufffd" in whole.message.content
    )
    for each in content:
        assert len(each.top_logprobs) == MOST_ALTERNATIVES
        assert each.top_logprobs[0].token == each.token  # it is greedy
        assert each.top_logprobs[0].logprob == each.logprob
    streamed = [
        each
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for each in chunk.choices[0].logprobs.content
    ]
    assert [each.token for each in streamed] == [each.token for each in content]
    assert [each.logprob for each in streamed] == pytest.approx(
        [each.logprob for each in content], abs=CLOSE
    )


def test_several_answers_to_several_prompts(client) -> None:
    asked = {"model": "pilot", "prompt": ["def", "return"], "n": 3, "max_tokens": 5, "seed": 7}
    answer = client.completions.create(**asked, temperature=1.0)
    assert [choice.index for choice in answer.choices] == list(range(6))
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts[:3])) > 1, "each has a seed of its own"
    assert answer.usage.completion_tokens <= 30
    alone = client.completions.create(**{**asked, "prompt": "def", "n": 1}, temperature=1.0)
    assert alone.choices[0].text == texts[0] and alone.usage.prompt_tokens * 3 > 3
    parts: dict[int, list[str]] = {}
    arms, reasons, counts = set(), {}, []
    for chunk in client.completions.create(
        **asked, temperature=1.0, stream=True, stream_options={"include_usage": True}
    ):
        arms.add(chunk.system_fingerprint)
        if chunk.usage:
            counts.append(chunk.usage)
        for choice in chunk.choices:
            parts.setdefault(choice.index, []).append(choice.text)
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert ["".join(parts[index]) for index in range(6)] == texts
    assert len(arms) == 1, "all answers of a body are one arm's"
    assert set(reasons) == set(range(6))
    assert counts == [answer.usage]


def test_json_of_a_schema_comes_from_a_model_that_knows_none(client) -> None:
    """Its weights are random: only the grammar can have made it."""
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    asked = {"model": "pilot", "messages": [{"role": "user", "content": "Hi"}]}
    for seed in range(3):
        choice = client.chat.completions.create(
            **asked, response_format=form, seed=seed, temperature=1.0, max_tokens=100
        ).choices[0]
        if choice.finish_reason == "stop":
            assert choice.message.content.endswith("}")
            jsonschema.validate(json.loads(choice.message.content), SCHEMA)
        else:
            assert choice.message.content.lstrip().startswith("{")
    small = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
             "additionalProperties": False}  # fmt: skip
    form["json_schema"]["schema"] = small
    for stream in (False, True):
        given = client.chat.completions.create(
            **asked, response_format=form, seed=1, max_tokens=100, stream=stream, logprobs=True
        )
        if stream:
            choices = [chunk.choices[0] for chunk in given]
            text = "".join(choice.delta.content for choice in choices)
            reason = choices[-1].finish_reason
        else:
            text, reason = given.choices[0].message.content, given.choices[0].finish_reason
        assert reason == "stop" and json.loads(text)["a"] in (1, 2)


def test_a_json_object_is_one(client) -> None:
    answer = client.completions.create(
        model="pilot", prompt="def", max_tokens=60, temperature=1.0, seed=2,
        extra_body={"response_format": {"type": "json_object"}},
    )  # fmt: skip
    choice = answer.choices[0]
    assert choice.text.lstrip().startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.text), dict)


def test_penalties_and_top_k_reach_the_model(client) -> None:
    asked = {"model": "pilot", "prompt": "def", "max_tokens": 40, "temperature": 0}

    def tokens(**more) -> list[str]:
        answer = client.completions.create(**asked, logprobs=0, **more)
        return answer.choices[0].logprobs.tokens

    plain = tokens()
    assert len(set(tokens(presence_penalty=2.0, frequency_penalty=2.0))) > len(set(plain))
    assert tokens(extra_body={"top_k": 1}) == plain
    drawn = {**asked, "temperature": 2.0}
    first = client.completions.create(**drawn, extra_body={"top_k": 1}, logprobs=0)
    assert first.choices[0].logprobs.tokens == plain, "of one likeliest token the likeliest"


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stream": True, "stream_options": {"include_usage": True, "x": 1}}, "stream_options.x"),
        ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, "messages.0.weight"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            "messages.0.content.0.x",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0",
        ),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {},
                                                                        "description": "b"}}},
            "response_format.json_schema.description",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "name": "a", "schema": {"type": "array", "uniqueItems": True}}}},
            "response_format.json_schema.schema: Unimplemented keys",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "name": "a", "schema": {"x-guidance": {"lenient": True}}}}},
            "x-guidance",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
            "tools.0.function.strict",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "name is not supported"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content: required"),
        ({"logprobs": False, "top_logprobs": 1}, "top_logprobs goes with"),
        ({"extra_body": {"min_tokens": 1}, "response_format": {"type": "json_object"}},
         "response_format says where an answer ends"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named_at_every_level(client, more: dict, place: str) -> None:
    asked = {"model": "pilot", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**asked, **more})
    assert place in refused.value.body["message"]


TEMPLATE = (
    "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.x }}]"
    "{% endfor %};{% endfor %}"
)


def test_tools_are_given_to_the_chat_template(serve, tokenizer, monkeypatch) -> None:
    served = serve()
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 5}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "b", "tool_call_id": "1"},
    ]

    def said(**more):
        fields = {"messages": messages, "max_tokens": 1, "tools": [tool], **more}
        return served.client.post("/v1/chat/completions", json=fields)

    def seen() -> str:
        return tokenizer.decode(served.schedulers["hybrid"].seen[-1].request.prompt_tokens)

    assert said().status_code == 200
    assert seen() == "<f>user:a;assistant:[f 5];tool:b;"
    assert said(tool_choice="none").status_code == 200
    assert seen() == "user:a;assistant:[f 5];tool:b;"
    call["function"]["arguments"] = "{"
    assert "messages.1.tool_calls.0.function.arguments: no JSON" in said().text
    messages[1:] = [{"role": "user", "content": "a", "name": "n"}]
    assert "name is not supported here: this model's chat template" in said().text
