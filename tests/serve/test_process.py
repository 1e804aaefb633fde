"""The real thing: two tiny models in a server process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from ternary_kernels import available_isas

from workbench.cli import main
from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.errors import ConfigError, StageError
from workbench.files import read_json, write_json
from workbench.load.piece import PlannedRequest
from workbench.machine.memory import Memory
from workbench.pilot.resolve import resolve
from workbench.pilot.sections.readiness import Packing
from workbench.records.run import FIELDS, HEADER, Run, open_run
from workbench.records.stage_record import StageRecord
from workbench.serve.arm import ArmProcess
from workbench.serve.arm_process import ArmSpec, load_arm, sign_of_life
from workbench.serve.canary import CanaryPlan
from workbench.serve.front_options import FrontOptions
from workbench.serve.kept_route import TOKEN_HEADER, KeptRoute, change_route, route_file
from workbench.serve.main import listen, serve
from workbench.serve.process import server_process
from workbench.serve.replay import load_client
from workbench.serve.routed import Switch
from workbench.serve.served_run import arms_of, serve_run
from workbench.serve.spec import Ready, ServeSpec

PROMPT = list(range(5, 25))
TURNS = [{"role": "user", "content": "Hello"}]


def spec(arms: dict[str, Path], **changes) -> ServeSpec:
    fields = {"fallback": "full_precision", "route": "hybrid", "slots": 2, "threads": 1}
    return ServeSpec(arms, **{**fields, "context": 128, "hold_s": 0.01, **changes})


@pytest.fixture(scope="module")
def server(arms, tmp_path_factory):
    front = FrontOptions(log="json")
    with server_process(spec(arms, front=front), tmp_path_factory.mktemp("server")) as running:
        yield running


def expected(folder: Path, count: int) -> str:
    from workbench.data.tokenizer import load_tokenizer

    request = GenerationRequest(tuple(PROMPT), count, min_tokens=count, ignore_eos=True)
    with Engine.load(folder, context=128, threads=1) as engine:
        tokens = engine.generate(request).tokens
    return load_tokenizer(str(folder)).decode(tokens, skip_special_tokens=True)


def asked(count: int) -> dict:
    fields = {"prompt": PROMPT, "max_tokens": count, "min_tokens": count, "ignore_eos": True}
    return {**fields, "temperature": 0}


def test_answers_under_swinging_routes_are_those_of_their_own_weights(arms, server) -> None:
    """Greedy answers are known in advance, so a cache or weights of the other arm would show."""
    count = 40
    texts = {name: expected(folder, count) for name, folder in arms.items()}
    assert texts["full_precision"] != texts["hybrid"]

    with httpx.Client(base_url=server.address, trust_env=False, timeout=30) as client:

        def one(number: int) -> tuple[str, str]:
            if number % 4 == 0:
                arm = ("full_precision", "hybrid")[number // 4 % 2]
                order = {"arm": arm, "force": True}
                headers = {TOKEN_HEADER: server.token}
                answer = client.post("/workbench/route", json=order, headers=headers)
                assert answer.status_code == 200
            body = client.post("/v1/completions", json=asked(count)).json()
            return body["system_fingerprint"], body["choices"][0]["text"]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(one, range(48)))
    assert {arm for arm, _ in answers} == set(texts)
    assert all(text == texts[arm] for arm, text in answers)


@pytest.mark.parametrize("arm", ["full_precision", "hybrid"])
def test_log_probabilities_and_json_come_from_the_arm_s_own_process(arms, server, arm) -> None:
    fields = {**asked(5), "model": arm, "echo": True, "logprobs": 2}
    text = {"prompt": "a", "model": arm, "temperature": 0, "max_tokens": 60}
    with httpx.Client(base_url=server.address, trust_env=False, timeout=60) as client:
        said = client.post("/v1/completions", json=fields).json()["choices"][0]["logprobs"]
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [7, 8]}}}
        made = client.post("/v1/completions", json={**text, "response_format": form}).json()
    with Engine.load(arms[arm], context=128, threads=1) as engine:
        logits = engine.logits(PROMPT)
    right = logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
    wanted = [right[place, token] for place, token in enumerate(PROMPT[1:])]
    assert said["token_logprobs"][0] is None
    assert said["token_logprobs"][1 : len(PROMPT)] == pytest.approx(wanted, abs=0.05)
    assert len(said["token_logprobs"]) == len(PROMPT) + 5
    for logprob, top in zip(said["token_logprobs"][-5:], said["top_logprobs"][-5:], strict=True):
        assert logprob == max(top.values()) and len(top) == 2
    choice = made["choices"][0]
    assert choice["finish_reason"] == "stop" and json.loads(choice["text"]) in (7, 8)


def test_both_arms_are_loaded_and_warm_before_it_answers(server) -> None:
    assert set(server.ready.arms) == {"full_precision", "hybrid"}
    ternary, full = server.ready.arms["hybrid"], server.ready.arms["full_precision"]
    assert 0 < ternary.weight_bytes < full.weight_bytes
    assert server.resident_bytes > 50 * 2**20


def test_every_line_of_the_log_is_an_object(server) -> None:
    path = "/v1/completions"
    connection = HTTPConnection(server.ready.host, server.ready.port, timeout=10)
    with closing(connection):
        headers = {"content-type": "application/json", "x-request-id": "line-1"}
        body = json.dumps({"prompt": PROMPT, "max_tokens": 3, "ignore_eos": True})
        connection.request("POST", path, body, headers)
        assert connection.getresponse().read()
    for _ in range(100):
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        own = [line for line in lines if line.get("request_id") == "line-1"]
        if own:
            break
        time.sleep(0.05)
    (line,) = own
    assert (line["path"], line["status"], line["output_tokens"]) == (path, 200, 3)
    assert line["arm"] == "hybrid" and line["ttft_s"] > 0


def test_a_replay_keeps_its_times_and_forces_its_lengths(server) -> None:
    schedule = [
        PlannedRequest(i, 0.02 * i, 4 + i, 1 + i % 5, "interactive", False) for i in range(20)
    ]

    async def play():
        async with load_client(server.address) as client:
            client.start()
            return await client.replay(schedule, lambda planned: PROMPT[:1] * planned.prompt_tokens)

    outcomes = asyncio.run(play())
    assert [o.id for o in outcomes] == list(range(20))
    for planned, outcome in zip(schedule, outcomes, strict=True):
        assert (outcome.status, outcome.error) == ("ok", None)
        assert outcome.output_tokens == planned.output_tokens
        assert outcome.intended_s == planned.intended_s <= outcome.sent_s
        assert outcome.sent_s < outcome.first_token_s <= outcome.last_token_s <= outcome.end_s


def test_sigterm_lets_the_answers_finish(arms, tmp_path) -> None:
    with (
        server_process(spec(arms), tmp_path) as server,
        httpx.Client(base_url=server.address, trust_env=False, timeout=30) as client,
        client.stream("POST", "/v1/completions", json={**asked(100), "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert len(rest) == 100 + 1  # 99 tokens, the finish reason, the end
        server.process.wait(10)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.address}/health", trust_env=False)


def test_no_server_outlives_a_killed_parent(arms, tmp_path) -> None:
    """SIGKILL gives the parent no chance to clean up, nor the server, whose arms end too."""
    spec(arms).save(tmp_path / "given.json")
    code = """
import sys, time
from pathlib import Path
from workbench.serve.process import server_process
from workbench.serve.spec import ServeSpec
with server_process(ServeSpec.load(Path(sys.argv[1])), Path(sys.argv[2])) as server:
    print(*server.process_ids, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "given.json"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    below = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(below) >= 3, "the server and two arms"
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    limit = time.monotonic() + 30
    for child in below:
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < limit, "a process of the server outlived its parent"
            time.sleep(0.05)


def test_the_route_is_changed_with_the_token_alone(server) -> None:
    """A proxy sends from this machine and names it as Host; behind it may be anybody."""
    with httpx.Client(base_url=server.address, trust_env=False, timeout=30) as client:
        order = {"arm": "full_precision", "force": True}
        for headers in ({}, {TOKEN_HEADER: "wrong"}):
            answer = client.post("/workbench/route", json=order, headers=headers)
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "no_token"


@pytest.fixture
def served_run(arms, tmp_path, monkeypatch) -> Run:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    path = tmp_path / "trial.yaml"
    path.write_text(
        "name: trial\nquestion: is it kept?\n"
        "readiness: {packing: {tables: mixed}}\n"
        "deploy_rollback: {hold_s: 7.0, weight: 0.2, on_lost_stream: continue, "
        "rollback_rule: {max_error_share: 0.2}}\n"
        "prompts: {file: asked.jsonl}\n"
    )
    asked = [{"prompt": "Say yes.", "contains": "yes"}, {"messages": TURNS}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    run = open_run(resolve(path))
    for stage, arm in (("train_qat", "full_precision"), ("hybrid_plan", "hybrid")):
        folder = run.stage_folder(stage)
        folder.mkdir(parents=True)
        StageRecord(stage, folder, artefacts={arm: str(arms[arm])}).save()
    return run


def test_a_served_run_goes_on_with_the_route_that_it_had(served_run, monkeypatch, capsys) -> None:
    started: list[ServeSpec] = []

    def start(given: ServeSpec, announce, token, on_switch, *more) -> None:
        started.append(given)
        announce(Ready("127.0.0.1", 9, 1, 1, 1, {}))
        if len(started) == 1:
            on_switch(Switch(0.0, "hybrid", "full_precision", 1.0, "rule: 5 of 9 failed"))

    monkeypatch.setattr("workbench.serve.served_run.serve", start)
    folder = [served_run.folder]
    with pytest.raises(ConfigError, match="never served"):
        change_route(served_run, None, 1.0)
    serve_run(folder)
    serve_run(folder)
    packing = {"ternary": "base3"}
    serve_run(folder, route="hybrid", weight=0.05, on_lost_stream="end", packing=packing)
    assert [(given.route, given.weight) for given in started] == [
        ("hybrid", 0.2), ("full_precision", 1.0), ("hybrid", 0.05),
    ]  # fmt: skip
    assert [given.on_lost_stream for given in started] == ["continue", "continue", "end"]
    assert {given.hold_s for given in started} == {7.0}
    assert {given.rule.max_error_share for given in started} == {0.2}
    packings = [given.packing.model_dump() for given in started]
    assert packings[0] == packings[1] == {"tables": "mixed", "ternary": "two_bits"}
    assert packings[2] == {"tables": "mixed", "ternary": "base3"}
    assert {(given.slots, given.short_slots) for given in started} == {(4, 1)}, "a fair share"
    said = capsys.readouterr().out
    assert said.count("full_precision answers 100% of the requests (rule: 5 of 9 failed)") == 2
    assert f"workbench route {served_run.name} --back" in said
    kept = KeptRoute.of(route_file(served_run))
    assert kept.token not in said
    assert (served_run.folder / "serving.json").stat().st_mode & 0o077 == 0

    assert "hybrid answers 5%" in change_route(served_run, None, 1.0)
    assert "will start so: full_precision" in change_route(served_run, None, 1.0, back=True)
    serve_run(folder)
    assert started[-1].route == "full_precision"
    with pytest.raises(ConfigError, match="ternery"):
        serve_run(folder, route="ternery")
    with pytest.raises(ConfigError, match="ternery"):
        change_route(served_run, "ternery", 1.0)


def test_a_canary_asks_the_pilot_s_own_prompts(served_run, tmp_path, monkeypatch) -> None:
    """As a record keeps them; those that are gone are no reason not to serve."""
    started: list[ServeSpec] = []
    monkeypatch.setattr("workbench.serve.served_run.serve", lambda given, *_: started.append(given))
    plan = CanaryPlan()
    serve_run([served_run.folder], canary=plan)
    serve_run([served_run.folder], canary=plan, probes=tmp_path / "asked.jsonl")
    assert [given.probes for given in started] == [("Say yes.", TURNS)] * 2
    started[0].save(tmp_path / "spec.json")
    assert ServeSpec.load(tmp_path / "spec.json").probes == ("Say yes.", TURNS)
    (tmp_path / "asked.jsonl").unlink()
    serve_run([served_run.folder], canary=plan)
    assert started[-1].probes == ()


def test_a_route_that_cannot_be_kept_has_changed_all_the_same(
    served_run, monkeypatch, capsys
) -> None:
    """A full disk must not turn the order's answer into an error: the route is the new one."""

    def start(given: ServeSpec, announce, token, on_switch, *more) -> None:
        announce(Ready("127.0.0.1", 9, 1, 1, 1, {}))
        on_switch(Switch(0.0, "hybrid", "full_precision", 1.0, "ordered"))

    def keep(self: KeptRoute, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("workbench.serve.served_run.serve", start)
    monkeypatch.setattr(KeptRoute, "keep", keep)
    serve_run([served_run.folder])
    said = capsys.readouterr().out
    assert said.count("could not be kept") == 2 and "No space left" in said
    assert "route: full_precision answers 100%" in said


def test_the_route_of_a_running_server_is_changed_by_its_run(served_run, server) -> None:
    at_first = ("hybrid", 1.0, "at the start", "full_precision")
    KeptRoute(*at_first, server.address, server.token).keep(route_file(served_run))
    assert "full_precision answers 100%" in change_route(served_run, None, 1.0, back=True)
    again = change_route(served_run, "hybrid", 0.25, force=True)
    assert again.startswith("hybrid answers 25% of the requests, the rest to full_precision")
    with pytest.raises(StageError, match="ternery"):
        change_route(served_run, "ternery", 1.0)
    assert "hybrid answers 100%" in change_route(served_run, "hybrid", 1.0, force=True)


def test_a_server_that_cannot_start_says_why(arms, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(StageError) as caught,
            server_process(spec(arms, port=port), tmp_path),
        ):
            pass
    said = caught.value.got
    assert "ended with code 2; the end of its log" in said
    assert f"cannot listen on 127.0.0.1:{port}" in said and "Traceback" not in said


def test_weights_that_are_cut_off_are_said(arms, tmp_path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in arms["hybrid"].iterdir():
        (broken / file.name).write_bytes(
            file.read_bytes()[: 1000 if "safetensors" in file.name else None]
        )
    with pytest.raises(StageError, match="broken"):
        serve(spec({**arms, "hybrid": broken}), print)


def test_slots_beyond_the_memory_are_said_before_anything_is_loaded(arms, monkeypatch) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr("workbench.serve.arm.ArmProcess.start", loaded)
    free = Memory(2 * 10**9, 10**9, None)
    monkeypatch.setattr("workbench.serve.room.memory", lambda: free)
    with Engine.load(arms["hybrid"], slots=1, context=128, threads=1) as engine:
        slot_bytes = 2 * engine.kv_bytes
    fitting = 10**9 // slot_bytes
    with pytest.raises(ConfigError) as caught:
        serve(spec(arms, slots=fitting + 1), print)
    assert caught.value.got.startswith(f"{fitting + 1} slots keep 1.0 GB of keys and values")
    assert caught.value.allowed.startswith(f"at most {fitting}, and the weights come on top")
    assert "--slots, a pilot: deploy_rollback.slots" in caught.value.next_step
    with pytest.raises(AssertionError, match="it was loaded"):
        serve(spec(arms, slots=fitting), print)


def test_a_cache_that_the_system_refuses_is_said(arms) -> None:
    with pytest.raises(StageError, match=r"100000000 slots does not fit") as caught:
        load_arm(ArmSpec(arms["hybrid"], 10**8, 128, 1, "cpu"))
    assert "lower slots" in caught.value.next_step


@pytest.mark.parametrize("by", ["hybrid", None])
def test_an_arm_that_another_drafts_answers_as_alone_and_holds_both(arms, by) -> None:
    request = GenerationRequest((5, 6, 7, 5, 6), max_tokens=12, ignore_eos=True)
    answers, sizes = [], []
    for spec in (
        ArmSpec(arms["full_precision"], 2, 128, 1, "cpu"),
        ArmSpec(arms["full_precision"], 2, 128, 1, "cpu", False, True, by and arms[by]),
    ):
        arm = load_arm(spec)
        submitted = [arm.scheduler.submit(request) for _ in range(2)]
        assert all(each.wait(20) for each in submitted)
        answers += [each.tokens for each in submitted]
        sizes.append(arm.ready.weight_bytes)
        seen = ArmProcess("arm", spec)  # as the server hears of it
        seen.heard(json.loads(json.dumps(sign_of_life(arm.scheduler))))
        if spec.drafted:
            counts = arm.scheduler.engine.counts
            assert seen.speculation == counts and counts.verifications and counts.guessed
            assert list(counts.drafts) == (["model", "prompt_lookup"] if by else ["prompt_lookup"])
        else:
            assert seen.speculation is None
        arm.close()
    assert answers == [answers[0]] * 4
    assert (sizes[1] > sizes[0]) == (by is not None)


@pytest.mark.skipif(not available_isas(), reason="no native library")
def test_an_arm_s_weights_lie_in_its_process_as_asked(arms) -> None:
    spec = ArmSpec(arms["hybrid"], 1, 64, 1, "cpu")
    packing = Packing(tables="int4", ternary="base3")
    for each, dense in ((spec, ""), (replace(spec, packing=packing), "int4 tables, base 3")):
        arm = load_arm(each)
        assert arm.ready.backend.endswith(dense or "1 thread")
        arm.close()


def test_a_port_in_use_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("a" * 80, 0), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_is_said(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:{port}: "):
        listen(host, port)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--port", "99999", "65535"),
        ("--port", "-1", "equal to 0"),
        ("--slots", "0", "equal to 1"),
        ("--slots", "100000000", "equal to 4096"),
        ("--queue", "-1", "equal to 0"),
        ("--queue", "10000000000", "equal to 1000000"),
        ("--threads", "-3", "equal to 0"),
        ("--threads", "100000000", "runs "),
        ("--device", "foo", "'cpu', 'cuda'"),
    ],
)
def test_options_out_of_range_are_wrong_commands(
    arms, monkeypatch, capsys, option: str, value: str, says: str
) -> None:
    def started(*given: object, **options: object) -> None:
        raise AssertionError("it started")

    monkeypatch.setattr("workbench.serve.served_run.serve", started)
    monkeypatch.setattr("sys.argv", ["workbench", "serve", str(arms["hybrid"]), option, value])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert option in said and says in said


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "http://127.0.0.1:80"), ("::1", "http://[::1]:80")]
)
def test_an_address_is_a_url(host: str, address: str) -> None:
    assert Ready(host, 80, 1, 1, 1, {}).address == address


def test_the_listener_does_not_wait_for_acknowledgements() -> None:
    """asyncio sets TCP_NODELAY only where the protocol is named; else tokens wait 40 ms."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_replay_stays_on_this_machine() -> None:
    async def enter() -> None:
        async with load_client("http://192.0.2.1:80"):
            pass

    with pytest.raises(ConfigError, match="loopback"):
        asyncio.run(enter())


def test_arms_are_named_by_their_folders(arms, tmp_path) -> None:
    assert arms_of(list(arms.values())) == arms
    with pytest.raises(ConfigError, match="neither a run nor a model folder"):
        arms_of([tmp_path])
    with pytest.raises(ConfigError, match="different names"):
        arms_of([arms["hybrid"], arms["hybrid"]])


def test_a_folder_whose_name_no_answer_can_carry_is_refused(arms, tmp_path, monkeypatch) -> None:
    """Its arm would be called by bytes that are no text: every answer would be an error."""
    (tmp_path / os.fsdecode(b"a\xffd")).mkdir()
    (tmp_path / os.fsdecode(b"a\xffd") / "config.json").touch()
    monkeypatch.chdir(tmp_path / os.fsdecode(b"a\xffd"))
    with pytest.raises(ConfigError, match=r"'a\\udcffd' has bytes in its name that are no UTF-8"):
        arms_of([Path(".")])


def test_a_run_is_served_by_its_name(arms, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    run = Run(tmp_path / "trial" / "20260101-000000-abcdef", {})
    for stage, arm in (("train_qat", "full_precision"), ("hybrid_plan", "hybrid")):
        folder = run.stage_folder(stage)
        folder.mkdir(parents=True)
        StageRecord(stage, folder, artefacts={arm: str(arms[arm])}).save()
    write_json(run.folder / HEADER, dict.fromkeys(FIELDS, ""))
    for name in ("trial", run.name, "abcdef", str(run.folder)):
        assert arms_of([Path(name)]) == arms
    with pytest.raises(ConfigError, match="other: no run has that name"):
        arms_of([Path("other")])


def test_a_spec_comes_back_from_its_file(arms, tmp_path) -> None:
    from workbench.serve.rollback_rule import RollbackRule

    packing = Packing(tables="mixed", ternary="base3")
    given = spec(arms, rule=RollbackRule(max_error_share=0.2, ttft_s=0.5), packing=packing)
    given.save(tmp_path / "spec.json")
    assert ServeSpec.load(tmp_path / "spec.json") == given
    assert read_json(tmp_path / "spec.json")["rule"]["max_error_share"] == 0.2


@pytest.mark.parametrize("after_s", [1.0, 2.5])
def test_ctrl_c_during_a_start_ends_in_a_sentence(arms, after_s: float) -> None:
    """The terminal sends it to the whole group, helpers that still import among them."""
    words = [sys.executable, "-m", "workbench.cli", "serve", str(arms["hybrid"]), "--port", "0"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as begun:
        time.sleep(after_s)
        os.killpg(begun.pid, signal.SIGINT)
        said, _ = begun.communicate(timeout=60)
    assert "Traceback" not in said and begun.returncode == 130
    assert "interrupted" in said
