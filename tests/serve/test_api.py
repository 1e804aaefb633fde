"""The HTTP contract: what OpenAI's clients and benchmark clients rely on."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import ValidationError

from workbench.data.tokenizer import encode
from workbench.serve.wire import ChatRequest, CompletionRequest

JSON = {"content-type": "application/json"}


def events(answer: httpx.Response) -> list[dict]:
    """The chunks of a stream; asserts its framing."""
    lines = [line for line in answer.text.split("\n\n") if line]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error(answer: httpx.Response) -> dict:
    body = answer.json()["error"]
    assert {"message", "type", "code"} <= set(body)
    assert body["message"]
    return body


def test_a_completion_says_who_gave_it(serve) -> None:
    answer = serve().complete(max_tokens=5, temperature=0, top_p=0.9, seed=3, min_tokens=2)
    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["x-workbench-arm"] == body["system_fingerprint"] == "hybrid"
    assert body["object"] == "text_completion" and body["model"] == "pilot"
    assert body["choices"] == [
        {"index": 0, "text": "BBBBB", "logprobs": None, "finish_reason": "length"}
    ]
    assert body["usage"]["completion_tokens"] == 5
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 5


def test_fields_reach_the_engine(serve) -> None:
    served = serve()
    served.complete(
        prompt=[5, 6, 7],
        max_completion_tokens=4,
        min_tokens=3,
        ignore_eos=True,
        temperature=0.5,
        top_p=0.25,
        seed=9,
    )
    asked = served.schedulers["hybrid"].seen[0].request
    assert asked.prompt_tokens == (5, 6, 7)
    assert (asked.max_tokens, asked.min_tokens, asked.ignore_eos) == (4, 3, True)
    assert (asked.temperature, asked.top_p, asked.seed) == (0.5, 0.25, 9)


def test_a_text_prompt_stands_behind_the_document_start(serve, tokenizer) -> None:
    served = serve()
    served.complete(prompt=["def f"], max_tokens=1)
    tokens = served.schedulers["hybrid"].seen[0].request.prompt_tokens
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens[1:]) == "def f"


def test_a_stream_has_a_chunk_a_token_and_the_counts_last(serve) -> None:
    answer = serve().complete(max_tokens=3, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-workbench-arm"] == "hybrid"
    *tokens, last, counts = events(answer)
    assert [chunk["choices"][0]["text"] for chunk in tokens] == ["B", "B", "B"]
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in tokens)
    assert all(chunk["usage"] is None for chunk in [*tokens, last])
    assert last["choices"][0]["finish_reason"] == "length"
    assert counts["choices"] == [] and counts["usage"]["completion_tokens"] == 3
    assert len({chunk["id"] for chunk in [*tokens, last, counts]}) == 1


def test_each_chunk_has_the_counts_so_far_where_they_are_asked_for(serve) -> None:
    """guidellm sends it, as vLLM has it."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = serve().complete(max_tokens=3, stream=True, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in events(answer)]
    assert counts == [1, 2, 3, 3, 3]


def test_a_stream_without_the_option_has_no_counts(serve) -> None:
    chunks = events(serve().complete(max_tokens=2, stream=True))
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat(serve, tokenizer, stream: bool) -> None:
    served = serve()
    answer = served.client.post(
        "/v1/chat/completions",
        json={
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            ],
            "max_completion_tokens": 2,
            "stream": stream,
        },
    )
    asked = served.schedulers["hybrid"].seen[0].request
    said = tokenizer.decode(asked.prompt_tokens[1:])
    assert said == "system: Be brief.\nuser: Hi\nassistant:"
    if stream:
        first, second, last = (chunk["choices"][0] for chunk in events(answer))
        assert first["delta"] == {"role": "assistant", "content": "B"}
        assert second["delta"] == {"content": "B"}
        assert last["finish_reason"] == "length"
    else:
        body = answer.json()
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"] == {"role": "assistant", "content": "BB"}


def test_a_chat_without_a_length_takes_the_rest_of_the_context(serve) -> None:
    served = serve()
    answer = served.client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]}
    )
    assert answer.json()["usage"]["total_tokens"] == served.service.context


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(serve, stream: bool) -> None:
    served = serve(texts={"hybrid": "return x # end"})
    answer = served.complete(max_tokens=40, stop=["x #", "never"], stream=stream)
    if stream:
        choices = [chunk["choices"][0] for chunk in events(answer)]
        text, reason = "".join(c["text"] for c in choices), choices[-1]["finish_reason"]
    else:
        choice = answer.json()["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    assert (text, reason) == ("return ", "stop")
    served.until(lambda: served.service.router.running == 0)
    assert served.schedulers["hybrid"].seen[0].finish_reason == "cancelled"


@pytest.mark.parametrize(("fewest", "text"), [(0, ""), (1, ""), (2, "B"), (5, "BBBB")])
def test_a_stop_text_waits_for_the_fewest_tokens(serve, fewest: int, text: str) -> None:
    answer = serve().complete(max_tokens=9, min_tokens=fewest, stop="B").json()
    assert answer["choices"][0]["text"] == text
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] >= fewest


def test_models_have_an_id_and_a_root(plain) -> None:
    cards = plain.client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["pilot", "full_precision", "hybrid"]
    assert all(card["root"] == card["id"] for card in cards)


def test_an_arm_as_model_pins_the_request(serve) -> None:
    answer = serve().complete(model="full_precision", max_tokens=1)
    assert answer.headers["x-workbench-arm"] == "full_precision"
    assert answer.json()["choices"][0]["text"] == "A"


def test_health_and_metrics(serve) -> None:
    served = serve()
    served.complete(max_tokens=3)
    served.client.post("/workbench/route", json={"arm": "full_precision"})
    health = served.client.get("/health").json()
    assert health["status"] == "ok" and health["resident_bytes"] > 0
    text = served.client.get("/metrics").text
    labels = 'arm="hybrid",model_name="pilot"'
    assert f"vllm:generation_tokens_total{{{labels}}} 3.0" in text
    assert f"vllm:num_requests_running{{{labels}}} 0.0" in text
    assert 'vllm:num_requests_waiting{model_name="pilot"} 0.0' in text
    for name, count in (
        ("time_to_first_token", 1), ("inter_token_latency", 2), ("e2e_request_latency", 1),
        ("request_time_per_output_token", 1), ("request_queue_time", 1),
    ):  # fmt: skip
        assert f"vllm:{name}_seconds_count{{{labels}}} {count}.0" in text
    assert 'workbench_http_responses_total{path="/v1/completions",status="200"} 1.0' in text
    assert 'workbench_requests_total{arm="hybrid",finish_reason="length"} 1.0' in text
    switches = 'cause="order",from_arm="hybrid",to_arm="full_precision"'
    assert f"workbench_switches_total{{{switches}}} 1.0" in text
    assert 'workbench_route_weight{arm="full_precision"} 1.0' in text


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": "5"}, "invalid_value", "max_tokens"),
        ({"max_tokens": True}, "invalid_value", "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "invalid_value", "min_tokens (6)"),
        ({"max_tokens": 1000}, "context_length_exceeded", "64 together"),
        ({"temperature": -1}, "invalid_value", "temperature"),
        ({"temperature": 2.5}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"stop": ""}, "invalid_value", "stop"),
        ({"stop": [1]}, "invalid_value", "stop"),
        ({"seed": 2**70}, "invalid_value", "seed"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream: true"),
        ({"n": 0}, "invalid_value", "n: "),
        ({"n": 2, "best_of": 2}, "unsupported_parameter", "best_of"),
        ({"n": 65, "prompt": ["a", "b"]}, "invalid_value", "128 answers together"),
        ({"logprobs": 21}, "invalid_value", "0 to 20"),
        ({"logprobs": True}, "invalid_value", "0 to 20"),
        ({"top_logprobs": 2}, "unsupported_parameter", "top_logprobs"),
        ({"top_k": -2}, "invalid_value", "top_k"),
        ({"presence_penalty": 2.1}, "invalid_value", "presence_penalty"),
        ({"max_tokens": 0, "echo": 1}, "invalid_value", "echo"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "invalid_value", "differ"),
        ({"tools": [{}]}, "unsupported_parameter", "tools"),
        ({"nonsense": 1}, "unsupported_parameter", "nonsense is not supported here"),
        ({"prompt_logprobs": 0}, "unsupported_parameter", "prompt_logprobs"),
        ({"min_p": 0.1}, "unsupported_parameter", "or send 0)"),
        ({"bad_words": ["no"]}, "unsupported_parameter", "bad_words"),
        ({"allowed_token_ids": [5]}, "unsupported_parameter", "allowed_token_ids"),
        ({"guided_choice": ["a"]}, "unsupported_parameter", "guided_choice"),
        ({"guided_grammar": "root"}, "unsupported_parameter", "guided_grammar"),
        ({"guided_regex": "a+"}, "unsupported_parameter", "guided_regex"),
        ({"structured_outputs": {"regex": "a"}}, "unsupported_parameter", "or send null)"),
        ({"truncate_prompt_tokens": 4}, "unsupported_parameter", "truncate_prompt_tokens"),
        ({"skip_special_tokens": False}, "unsupported_parameter", "or send true)"),
        ({"add_special_tokens": False}, "unsupported_parameter", "add_special_tokens"),
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": ["a", 1]}, "invalid_value", "prompt: allowed is"),
        ({"prompt": ["a", ""], "n": 200}, "invalid_value", "n: "),
        ({"prompt": [1, -2]}, "invalid_value", "prompt"),
        ({"prompt": [1, 100_000]}, "invalid_value", "token 100000"),
        ({"prompt": 7}, "invalid_value", "prompt"),
    ],
)
def test_wrong_fields_are_named(plain, fields: dict, code: str, says: str) -> None:
    answer = plain.complete(**fields)
    assert answer.status_code == 400
    said = error(answer)
    assert said["code"] == code and says in said["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"logprobs": None},
        {"logprobs": False},
        {"user": "me"},
        {"echo": False},
        {"max_tokens": None},
        {"min_p": 0.0, "top_k": -1, "repetition_penalty": 1.0},
        {"skip_special_tokens": True, "structured_outputs": None},
    ],
)
def test_fields_that_ask_for_nothing_are_taken(plain, fields: dict) -> None:
    assert plain.complete(**fields).status_code == 200


def test_no_logprobs_of_a_chat_are_nothing(plain) -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    for value, status in ((0, 200), (False, 200), (2, 400)):
        answer = plain.client.post("/v1/chat/completions", json={**asked, "logprobs": value})
        assert answer.status_code == status
        assert status == 400 or answer.json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"prompt": "a", "temperature": NaN}', "application/json", 400),
        (b'{"prompt": "a"}', "text/plain", 415),
    ],
)
def test_bad_bodies_are_errors_of_the_client(plain, content, kind, status) -> None:
    answer = plain.client.post("/v1/completions", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    error(answer)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionRequest, {"prompt": [-1] * 1000}),
        (CompletionRequest, {"prompt": [[-1] * 1000]}),
        (CompletionRequest, {"prompt": "a", "stop": [1] * 1000}),
        (ChatRequest, {"messages": [1] * 1000}),
        (ChatRequest, {"messages": [{"role": "user", "content": ""}] * 20_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 1000}]}),
    ],
)
def test_a_list_of_faults_is_one_fault(kind, fields: dict) -> None:
    """Kept one by one, those of an 8 MB body took 18 s and 3.4 GB."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(fields)
    assert caught.value.error_count() < 10


def asked_texts(text: str) -> list[tuple[str, dict]]:
    chat = [{"role": "user", "content": text}]
    return [("/v1/completions", {"prompt": text}), ("/v1/chat/completions", {"messages": chat})]


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(plain, monkeypatch) -> None:
    monkeypatch.setattr("workbench.serve.prompts.encode", None)
    for path, fields in asked_texts("word " * 1000):
        said = plain.client.post(path, json=fields)
        assert said.status_code == 400
        assert error(said)["code"] == "context_length_exceeded"
        assert "64 tokens" in error(said)["message"]


def test_the_others_go_on_while_a_text_is_encoded(serve, monkeypatch) -> None:
    served, go_on = serve(), threading.Event()

    def slowly(tokenizer, texts: list[str]) -> list[list[int]]:
        assert go_on.wait(10)
        return encode(tokenizer, texts)

    monkeypatch.setattr("workbench.serve.prompts.encode", slowly)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(served.client.post, p, json=f) for p, f in asked_texts("def")]
        assert served.client.get("/health").json()["status"] == "ok"
        assert not any(future.done() for future in waiting)
        go_on.set()
        assert [future.result().status_code for future in waiting] == [200, 200]


HALF = "\ud800"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": HALF}),
        ("/v1/completions", {"prompt": "a", "stop": [HALF]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": f"a{HALF}"}]}),
        ("/v1/chat/completions", {"messages": [{"role": HALF, "content": "a"}]}),
        ("/workbench/route", {"arm": "hybrid", "reason": HALF}),
    ],
)
def test_half_a_character_is_an_error_of_the_client(plain, path: str, fields: dict) -> None:
    answer = plain.client.post(path, content=json.dumps(fields), headers=JSON)
    assert answer.status_code == 400
    assert "half a character, '\\ud800'" in error(answer)["message"]


def test_a_pair_of_escapes_is_a_character(plain) -> None:
    content = b'{"prompt": "\\uD83D\\uDE00 and \\\\ud800", "max_tokens": 1}'
    assert plain.client.post("/v1/completions", content=content, headers=JSON).status_code == 200


def test_a_body_without_end_is_refused(serve, monkeypatch) -> None:
    monkeypatch.setattr("workbench.serve.app.LEAST_BODY_BYTES", 1024)
    assert serve().complete(prompt="a" * 2000).status_code == 413


def test_a_body_of_nested_lists_is_bounded_and_read_beside_the_loop(serve, monkeypatch) -> None:
    """16 MB of them held the interpreter, and with it everybody's streams, for seconds."""
    seen = []

    def decoded(body: bytearray):
        seen.append(threading.current_thread().name)
        return json.loads(body)

    monkeypatch.setattr("workbench.serve.app._decoded", decoded)
    served, longest = serve(), 2**20
    for size, status in ((16 * longest, 413), (longest, 400)):
        content = b"[" + b"[]," * ((size - 4) // 3) + b"[]]"
        answer = served.client.post("/v1/completions", content=content, headers=JSON)
        assert answer.status_code == status
    (name,) = seen
    assert name.startswith("prompts")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("DELETE", "/health", 405)],
)
def test_wrong_paths_and_methods(plain, method: str, path: str, status: int) -> None:
    answer = plain.client.request(method, path)
    assert answer.status_code == status
    error(answer)


def test_a_wrong_method_hears_of_all_right_ones(plain) -> None:
    """A path that takes two was two paths, and named the first one's method alone."""
    allowed = plain.client.request("OPTIONS", "/workbench/route").headers["allow"]
    assert set(allowed.replace(" ", "").split(",")) == {"GET", "HEAD", "POST"}
    assert plain.client.head("/health").status_code == 200


def test_an_unknown_model(plain) -> None:
    answer = plain.complete(model="gpt-9")
    assert answer.status_code == 404
    assert error(answer)["code"] == "model_not_found"


def test_a_failing_engine_is_a_500(serve) -> None:
    served = serve()
    served.schedulers["hybrid"].broken = "out of memory"
    for stream in (False, True):
        answer = served.complete(stream=stream)
        assert answer.status_code == 500
        assert "out of memory" in error(answer)["message"]


def test_a_failure_in_a_stream_is_said_in_the_stream(serve) -> None:
    served = serve()
    served.schedulers["hybrid"].broken, served.schedulers["hybrid"].fail_after = "lost it", 2
    *tokens, last = events(served.complete(max_tokens=5, stream=True))
    assert [chunk["choices"][0]["text"] for chunk in tokens] == ["B", "B"]
    assert "lost it" in last["error"]["message"]


def test_text_in_many_bytes_comes_whole(serve) -> None:
    text = "naïve 日本語 🧪 Ω Приве́т 🫠"
    served = serve(texts={"hybrid": text})
    count = len(served.schedulers["hybrid"].script)
    assert count > len(text), "the script must cut characters"
    chunks = events(served.complete(max_tokens=count, stream=True))
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(pieces) == text
    assert len(pieces) == count + 1
    assert "\ufffd" not in "".join(pieces)


def test_line_breaks_of_unicode_do_not_break_a_stream(serve) -> None:
    text = "a\u2028b\u2029c\x85d"
    served = serve(texts={"hybrid": text})
    asked = {"prompt": "def", "max_tokens": len(served.schedulers["hybrid"].script), "stream": True}
    with served.client.stream("POST", "/v1/completions", json=asked) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/comp",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_request_that_does_not_come_whole_is_given_up(serve, monkeypatch, sent: bytes) -> None:
    monkeypatch.setattr("workbench.serve.connections.REQUEST_S", 0.05)
    served = serve()
    host, port = urlsplit(served.address).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as half:
        half.sendall(sent)
        while half.recv(1000):
            continue  # an error, if any, then the end


def test_a_whole_request_may_take_its_time(serve, monkeypatch) -> None:
    """Its answer is not timed."""
    monkeypatch.setattr("workbench.serve.connections.REQUEST_S", 0.05)
    served = serve(step_s=0.02)
    for _ in range(2):
        assert served.complete(max_tokens=8).status_code == 200
