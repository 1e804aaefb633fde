"""A canary in front of servers of others: texts go through, and what disappears loses nothing."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as Path
from typer.testing import CliRunner

from workbench.cli.serving import commands
from workbench.errors import ConfigError, StageError
from workbench.serve import served_run
from workbench.serve.app import make_app
from workbench.serve.canary import CanaryPlan
from workbench.serve.connections import DrainingServer, server_config
from workbench.serve.kept_route import TOKEN_HEADER, KeptRoute
from workbench.serve.main import listen, serve
from workbench.serve.process import ServerProcess, server_process
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.routed import Route, ServedArm
from workbench.serve.router import Router
from workbench.serve.served_run import rule_of, serve_run
from workbench.serve.service import Service
from workbench.serve.spec import Ready, ServeSpec, UpstreamSpec
from workbench.serve.upstream import Upstream
from workbench.serve.upstream_options import UpstreamOptions, upstreams_of


@dataclass
class Foreign:
    """Somebody's server: says ``word`` so many times. broken: the status it answers with instead.
    cut_after: events after which a stream breaks off. step_s: between events. text: what it says to
    a prompt, instead."""

    word: str
    step_s: float = 0.002
    broken: int | None = None
    cut_after: int | None = None
    text: Callable[[str], str] | None = None
    seen: list[dict] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    address: str = ""
    close: Callable[[], None] = lambda: None

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Path("/v1/models", self._models, methods=["GET"]),
                Path("/v1/completions", self._complete, methods=["POST"]),
                Path("/v1/chat/completions", self._complete, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        self.keys.add(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": []})

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append(body)
        if self.broken:
            return JSONResponse({"error": {"message": "no"}}, self.broken)
        if body.get("stream"):
            return StreamingResponse(self._events(body), media_type="text/event-stream")
        await asyncio.sleep(self.step_s)
        said = self.text(body["prompt"]) if self.text else self.word * body["max_tokens"]
        usage = {"prompt_tokens": 1, "completion_tokens": body["max_tokens"]}
        counted = {"usage": usage} if body.get("counted") else {}
        return JSONResponse({"choices": [{"text": said}], "own": 7, **counted})

    async def _events(self, body: dict):
        for number in range(body["max_tokens"]):
            if number == self.cut_after:
                return
            await asyncio.sleep(self.step_s)
            yield f"data: {json.dumps({'choices': [{'text': self.word}], 'own': 7})}\r\n\r\n"
        yield 'data: {"choices": [{"text": "", "finish_reason": "length"}]}\n\n'
        yield "data: [DONE]\n\n"


def running(stack: ExitStack, app: Starlette, upstreams=()) -> tuple[str, Callable[[], None]]:
    """A server in a thread; its address, and what ends it at once."""
    sock, server = listen("127.0.0.1", 0), DrainingServer(server_config(app, drain_s=0))

    async def serve() -> None:
        for upstream in upstreams:
            await upstream.start()
        await server.serve(sockets=[sock])
        for upstream in upstreams:
            await upstream.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()

    def close() -> None:
        server.should_exit = server.force_exit = True
        thread.join(5)
        sock.close()

    stack.callback(close)
    return f"http://127.0.0.1:{sock.getsockname()[1]}", close


@dataclass
class Front:
    client: httpx.Client
    service: Service
    today: Foreign
    candidate: Foreign

    def complete(self, **fields) -> httpx.Response:
        return self.client.post("/v1/completions", json={"prompt": "x", "max_tokens": 3, **fields})


@pytest.fixture
def fronted() -> Iterator[Callable[..., Front]]:
    """Starts a front before two servers: today's says A, the candidate B."""
    with ExitStack() as stack:
        yield lambda **options: _front(stack, **options)


def _front(stack: ExitStack, silence_s: float = 300.0, **options) -> Front:
    servers = {"today": Foreign("A"), "candidate": Foreign("B")}
    for server in servers.values():
        server.address, server.close = running(stack, server.app())
    upstreams = {
        name: Upstream(
            name,
            UpstreamSpec(server.address, f"{name}-model", silence_s=silence_s, health_s=0.1),
        )
        for name, server in servers.items()
    }
    routing = {"fallback": "today", "route": Route("candidate"), "deadline_s": 20.0, **options}
    router = Router([ServedArm(name, each, 32) for name, each in upstreams.items()], **routing)
    for name, upstream in upstreams.items():
        upstream.on_out = partial(router.put_out, name)
        upstream.on_back = partial(router.bring_back, name)
    service = Service(router, None, "pilot", 2**16, 0)
    address, _ = running(stack, make_app(service), upstreams.values())
    client = stack.enter_context(httpx.Client(base_url=address, trust_env=False, timeout=20))
    return Front(client, service, servers["today"], servers["candidate"])


def test_bodies_and_answers_go_through_as_they_are(fronted) -> None:
    front = fronted()
    asked = {"logprobs": 3, "tools": [{"x": 1}], "n": 1}
    whole = front.complete(**asked)
    assert whole.json() == {"choices": [{"text": "BBB"}], "own": 7}
    assert whole.headers["x-workbench-arm"] == "candidate"
    stream = front.complete(**asked, stream=True)
    events = [line for line in stream.text.split("\n\n") if line]
    assert [json.loads(e[6:])["choices"][0]["text"] for e in events[:-1]] == ["B", "B", "B", ""]
    assert json.loads(events[0][6:])["own"] == 7 and events[-1] == "data: [DONE]"
    for body in front.candidate.seen:
        assert body["tools"] == [{"x": 1}] and body["model"] == "candidate-model"
    text = front.client.get("/metrics").text
    labels = 'arm="candidate",model_name="pilot"'
    # Two answers, of which one had a first token of its own, and none was counted there.
    assert f"vllm:e2e_request_latency_seconds_count{{{labels}}} 2.0" in text
    assert f"vllm:time_to_first_token_seconds_count{{{labels}}} 1.0" in text
    assert f"vllm:generation_tokens_total{{{labels}}} 0.0" in text
    front.complete(counted=True)
    text = front.client.get("/metrics").text
    assert f"vllm:generation_tokens_total{{{labels}}} 3.0" in text
    assert f"vllm:prompt_tokens_total{{{labels}}} 1.0" in text
    assert front.candidate.seen.pop()["counted"]
    chat = front.client.post("/v1/chat/completions", json={"messages": [], "max_tokens": 1})
    assert chat.status_code == 200
    assert front.complete(model="today").json()["choices"][0]["text"] == "AAA"
    assert front.complete(model="else").status_code == 404


def test_an_upstream_that_disappears_loses_nothing_that_had_not_begun(fronted) -> None:
    """A stream that had begun ends with a declared error; 20 requests that come as it goes, and
    all later ones, are answered by the fallback."""
    front = fronted()
    front.candidate.step_s = 0.02
    cut: list[str] = []
    with (
        ThreadPoolExecutor(20) as pool,
        front.client.stream(
            "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 400, "stream": True}
        ) as answer,
    ):
        lines = answer.iter_lines()
        cut.append(next(lines))
        asked = [pool.submit(front.complete, stream=i % 2 == 0) for i in range(20)]
        front.candidate.close()
        cut += [line for line in lines if line]
        answers = [future.result() for future in asked]
    assert "error" in json.loads(cut[-2][6:]) and cut[-1] == "data: [DONE]"
    assert [answer.status_code for answer in answers] == [200] * 20
    assert front.complete().headers["x-workbench-arm"] == "today"
    state = front.client.get("/workbench/route").json()
    assert state["arm"] == "today" and "candidate is out" in state["switches"][-1]["reason"]
    assert front.client.get("/ready").json()["arms"] == ["today"]


def test_an_upstream_that_is_loading_is_out_until_it_answers(fronted) -> None:
    front = fronted()
    front.candidate.broken = 503
    assert front.complete().headers["x-workbench-arm"] == "today"
    assert front.service.router.saved == 1
    front.candidate.broken = None
    for _ in range(100):
        if not front.service.router.arms["candidate"].out:
            break
        threading.Event().wait(0.05)
    assert front.complete(model="candidate").json()["choices"][0]["text"] == "BBB"


def test_a_client_s_own_fault_goes_back_to_it_and_says_nothing_of_the_arm(fronted) -> None:
    front = fronted(rule=RollbackRule(max_error_share=0.1))
    front.candidate.broken = 422
    for _ in range(6):
        answer = front.complete()
        assert answer.status_code == 422 and answer.json() == {"error": {"message": "no"}}
    assert front.service.router.switches == []


def test_a_failing_and_a_slower_candidate_are_taken_back(fronted) -> None:
    rule = RollbackRule(max_error_share=0.1, ttft_s=0.2)
    front = fronted(rule=rule)
    front.candidate.broken = 500
    assert [front.complete().status_code for _ in range(6)] == [500] * 3 + [200] * 3
    front.candidate.broken = None
    force = {"arm": "candidate", "force": True}
    assert front.client.post("/workbench/route", json=force).status_code == 200
    front.candidate.step_s = 0.3
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: front.complete(stream=True, max_tokens=1), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert "no first token within 0.2 s" in front.service.router.switches[-1].reason


def test_a_stream_that_breaks_off_says_so(fronted) -> None:
    front = fronted()
    front.candidate.cut_after = 2
    events = [line for line in front.complete(stream=True, max_tokens=5).text.split("\n\n") if line]
    assert len(events) == 4 and "broke off" in json.loads(events[2][6:])["error"]["message"]


def test_a_hung_upstream_ends_at_the_deadline(fronted) -> None:
    front = fronted(deadline_s=0.2)
    front.candidate.step_s = 5.0
    answer = front.complete()
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"


PLAN = CanaryPlan((0.25, 0.5, 1.0), step_s=0.3, step_requests=20, compared_share=0.25, probe_s=9.0)
MOST_ASKED = 1500


@dataclass
class Canaried:
    """The whole server, in a process of its own, before two of others."""

    server: ServerProcess
    client: httpx.Client
    today: Foreign
    candidate: Foreign

    def begin(self) -> None:
        for arm, weight in (("today", 1.0), ("candidate", PLAN.steps[0])):
            order = {"arm": arm, "weight": weight, "force": True}
            headers = {TOKEN_HEADER: self.server.token}
            answer = self.client.post("/workbench/route", json=order, headers=headers)
            assert answer.status_code == 200, answer.text

    def ask_until_it_is_over(self) -> tuple[int, dict]:
        """(requests, state) once the candidate has arrived or was taken back."""
        number = 0
        with ThreadPoolExecutor(8) as pool:
            while number < MOST_ASKED:
                list(pool.map(self._ask, range(number, number + 40)))
                number += 40
                state = self.client.get("/workbench/route").json()
                if state["canary"]["state"] in ("arrived", "taken back"):
                    return number, state
        raise AssertionError(state)

    def _ask(self, number: int) -> None:
        body = {"prompt": f"number {number}", "max_tokens": 3}
        assert self.client.post("/v1/completions", json=body).status_code in (200, 500)


@pytest.fixture(scope="module")
def canaried(tmp_path_factory) -> Iterator[Canaried]:
    with ExitStack() as stack:
        servers = {"today": Foreign("A", 0.01), "candidate": Foreign("A", 0.01)}
        for server in servers.values():
            server.address, server.close = running(stack, server.app())
            server.text = lambda prompt: f"a word for word answer to {prompt}"
        upstreams = {name: UpstreamSpec(server.address) for name, server in servers.items()}
        spec = ServeSpec(
            {},
            fallback="today",
            route="candidate",
            weight=PLAN.steps[0],
            slots=64,
            upstreams=upstreams,
            canary=PLAN,
            rule=RollbackRule(),
            probes=("once upon a time",),
        )
        process = stack.enter_context(server_process(spec, tmp_path_factory.mktemp("front")))
        client = httpx.Client(base_url=process.address, trust_env=False, timeout=20)
        yield Canaried(process, stack.enter_context(client), **servers)


def answer_well(candidate: Foreign) -> None:
    candidate.text = lambda prompt: f"a word for word answer to {prompt}"


def answer_slowly(candidate: Foreign) -> None:
    candidate.step_s *= 4


def fail(candidate: Foreign) -> None:
    candidate.broken = 500


def answer_nonsense(candidate: Foreign) -> None:
    """As quick, as long, and wrong."""
    candidate.text = lambda prompt: "quite other words than all of those were"


@pytest.mark.parametrize(
    ("does", "says", "within"),
    [
        (answer_well, "canary: ", MOST_ASKED),
        (answer_slowly, "1.5 times what is usual", 800),
        (fail, "requests failed", 200),
        (answer_nonsense, "of the answers differs, more than the other arm's from itself", 400),
    ],
)
def test_a_canary_advances_a_good_upstream_and_takes_back_a_worse_one(
    canaried, does: Callable[[Foreign], None], says: str, within: int
) -> None:
    """Slower by four, failing, saying something else: each within the delays of
    docs/serving.md."""
    # Where times decide they are long, beside what else a busy machine does.
    step_s = 0.04 if does is answer_slowly else 0.01
    canaried.today.step_s = canaried.candidate.step_s = step_s
    canaried.candidate.broken = None
    answer_well(canaried.candidate)
    does(canaried.candidate)
    canaried.begin()
    asked, state = canaried.ask_until_it_is_over()
    assert says in state["switches"][-1]["reason"], state
    good = does is answer_well
    assert state["canary"]["state"] == ("arrived" if good else "taken back")
    assert (state["arm"], state["weight"]) == ("candidate" if good else "today", 1.0)
    assert asked <= within


def test_a_restart_forgets_neither_evidence_nor_rollback(tmp_path) -> None:
    """The command before two servers, ended by SIGTERM and started again twice."""
    state = tmp_path / "route.json"
    options = ["--canary", "0.5,1", "--compared-share", "0", "--state", str(state), "--port", "0"]
    command = [sys.executable, "-m", "workbench.cli", "serve", *options, "--no-meters"]

    @contextmanager
    def one_life(given: list[str]) -> Iterator[httpx.Client]:
        before = KeptRoute.of(state)
        process = subprocess.Popen([*command, "--drain-notice", "0", *given])
        try:
            limit = time.monotonic() + 60
            while (now := KeptRoute.of(state)) is None or now.token == getattr(before, "token", ""):
                assert time.monotonic() < limit and process.poll() is None
                time.sleep(0.05)
            with httpx.Client(base_url=now.address, trust_env=False, timeout=20) as client:
                yield client
        finally:
            process.terminate()
            process.wait(30)

    def ask(client: httpx.Client, most: int) -> dict:
        """The state after ``most`` requests, or once the candidate was taken back."""
        for number in range(most):
            body = {"prompt": f"number {number}", "max_tokens": 1}
            client.post("/v1/completions", json=body)
            state = client.get("/workbench/route").json()
            if state["arm"] == "today":
                break
        return state

    with ExitStack() as stack:
        servers = {"today": Foreign("A"), "candidate": Foreign("B")}
        given = [f"{name}={running(stack, each.app())[0]}" for name, each in servers.items()]
        servers["candidate"].broken = 500
        with one_life(given) as client:
            assert ask(client, 10)["arm"] == "candidate", "too few to be told"
        with one_life(given) as client:
            began = client.get("/workbench/route").json()
            assert "5 of 5 requests failed" in began["canary"]["counted"]["errors"]
            assert (began["arm"], began["weight"]) == ("candidate", 0.5)
            taken_back = ask(client, 100)
            assert taken_back["arm"] == "today"
            reason = taken_back["switches"][-1]["reason"]
            failed = int(re.match(r"rule: (\d+) of \1 requests failed", reason)[1])
            assert failed > 5, "those of the first life are among them"
        with one_life(given) as client:
            state_of = client.get("/workbench/route").json()
            assert (state_of["arm"], state_of["canary"]["state"]) == ("today", "taken back")
            order = {"arm": "candidate", "weight": 0.5}
            headers = {TOKEN_HEADER: KeptRoute.of(state).token}
            held = client.post("/workbench/route", json=order, headers=headers)
            assert held.status_code == 409, "the hold has lasted over the restart"


def test_nothing_is_served_before_an_upstream_that_does_not_answer() -> None:
    with listen("127.0.0.1", 0) as unused:
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    with pytest.raises(StageError, match=r"arm today: .* does not answer"):
        serve_run([f"today={address}"], port=0)


def test_an_address_is_told_once_it_takes_connections() -> None:
    heard = []

    def announce(ready: Ready) -> None:
        socket.create_connection((ready.host, ready.port), 1).close()
        heard.append(ready.address)
        signal.raise_signal(signal.SIGINT)

    with ExitStack() as stack:
        upstreams = {"today": UpstreamSpec(running(stack, Foreign("A").app())[0])}
        with pytest.raises(KeyboardInterrupt):
            serve(ServeSpec({}, "today", "today", port=0, upstreams=upstreams), announce)
    assert len(heard) == 1


def test_upstreams_are_given_by_name_and_url(monkeypatch) -> None:
    given = ["today=http://127.0.0.1:1/v1", "candidate=https://other/v1"]
    monkeypatch.setenv("SOME_KEY", "secret")
    found = upstreams_of(given, UpstreamOptions(["today=chat"], ["candidate=SOME_KEY"]))
    assert list(found) == ["today", "candidate"]
    assert found["today"].model == "chat" and found["candidate"].api_key_env == "SOME_KEY"
    spec = ServeSpec({}, "today", "candidate", upstreams=found)
    assert "secret" not in repr(spec)
    assert upstreams_of(["some/folder", "run"]) == {}
    for wrong, says in (
        ([given[0], "folder"], "folder beside upstreams"),
        (["http://127.0.0.1:1/v1"], "has no name"),
        ([given[0], given[0]], "twice"),
        (["today=ftp://127.0.0.1"], "no base URL"),
    ):
        with pytest.raises(ConfigError, match=says):
            upstreams_of(wrong)
    with pytest.raises(ConfigError, match="--upstream-model else=x"):
        upstreams_of(given, UpstreamOptions(["else=x"]))
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        upstreams_of(given, UpstreamOptions((), ["today=NO_SUCH_KEY"]))


def test_time_outs_are_of_all_upstreams_or_of_one() -> None:
    given = ["today=http://127.0.0.1:1/v1", "candidate=https://other/v1"]
    found = upstreams_of(
        given,
        UpstreamOptions(connect_s=["0.5"], silence_s=["candidate=20", "60"], health_s=["today=1"]),
    )
    times = {n: (each.connect_s, each.silence_s, each.health_s) for n, each in found.items()}
    assert times == {"today": (0.5, 60.0, 1.0), "candidate": (0.5, 20.0, 2.0)}
    for wrong in ("0", "-1", "nan", "inf", "x", "", "else=3", "today=", "today=0", "=3"):
        with pytest.raises(ConfigError, match=f"--upstream-silence-s {wrong}"):
            upstreams_of(given, UpstreamOptions(silence_s=[wrong]))
    with pytest.raises(ConfigError, match="--upstream-model, --upstream-health-s without an up"):
        upstreams_of(["some/folder"], UpstreamOptions(models=["a=b"], health_s=["3"]))


def test_the_command_line_bounds_how_long_an_upstream_may_be_silent(fronted, monkeypatch) -> None:
    """The answer fails; the upstream, whose health is good, stays."""
    given: list[ServeSpec] = []
    monkeypatch.setattr(served_run, "serve", lambda spec, *rest: given.append(spec))
    front = fronted(silence_s=0.2)
    command = ["serve", f"today={front.today.address}", "--upstream-connect-s", "1"]
    ran = CliRunner().invoke(commands, [*command, "--upstream-silence-s", "today=0.2"])
    assert ran.exit_code == 0 and given[0].upstreams["today"].silence_s == 0.2
    assert given[0].upstreams["today"].connect_s == 1.0
    front.today.step_s = 0.6
    for stream in (False, True):
        failed = front.complete(model="today", stream=stream)
        assert "ReadTimeout" in failed.text
    time.sleep(front.today.step_s)  # until its handlers have ended
    front.today.step_s = 0.0
    assert front.complete(model="today").json()["choices"][0]["text"] == "AAA"


def test_a_rule_is_given_as_numbers() -> None:
    assert rule_of("ttft_s=0.5,false_alarms=0.01") == RollbackRule(ttft_s=0.5, false_alarms=0.01)
    given = rule_of("tpot_s=1.5,e2e_s=30,slower=2,unlikely_nats=1.5")
    assert given == RollbackRule(tpot_s=1.5, e2e_s=30, slower=2, unlikely_nats=1.5)
    for wrong in ("ttft=1", "max_slow_share=1.5", "ttft_s=x", "ttft_s=-1", "false_alarms=0",
                  "slower=0.5", "e2e_s=inf"):  # fmt: skip
        with pytest.raises(ConfigError, match="--rule"):
            rule_of(wrong)


def test_a_canary_is_given_as_growing_shares(tmp_path) -> None:
    plan = CanaryPlan.parsed("0.05, 0.5,1", 60.0, 20)
    assert plan.steps == (0.05, 0.5, 1.0) and plan.next_after(0.2) == 0.5
    assert plan.next_after(1.0) is None
    for wrong in ("", "x", "0.5,0.1", "0,1", "0.5,1.05", "0.5,0.5"):
        with pytest.raises(ConfigError, match="--canary"):
            CanaryPlan.parsed(wrong, 60.0, 20)
    spec = ServeSpec({}, "today", "candidate", canary=plan)
    spec.save(tmp_path / "spec.json")
    assert ServeSpec.load(tmp_path / "spec.json").canary == plan
