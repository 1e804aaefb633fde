"""Each arm in a process of its own: what falls falls alone, says so, and comes back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file

from workbench.load.planned import PlannedRequest
from workbench.serve.canary import CanaryPlan
from workbench.serve.client import load_processes
from workbench.serve.drill import Drill
from workbench.serve.endpoint import Endpoint
from workbench.serve.kept_route import TOKEN_HEADER
from workbench.serve.process import ServerProcess, server_process
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.spec import ServeSpec

PROMPT = list(range(5, 25))


@dataclass
class Running:
    """A server whose candidate is broken by one test after the other."""

    server: ServerProcess
    client: httpx.Client

    def ask(self, **fields) -> httpx.Response:
        asked = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        return self.client.post("/v1/completions", json={**asked, **fields})

    def stream(self, tokens: int, begun: Callable[[], None]) -> list[dict]:
        """The chunks of a stream; ``begun`` is called after its first one."""
        fields = {"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        chunks: list[dict] = []
        with self.client.stream("POST", "/v1/completions", json=fields) as answer:
            assert answer.headers["x-workbench-arm"] == "hybrid"
            for line in answer.iter_lines():
                if line and line != "data: [DONE]":
                    chunks.append(json.loads(line.removeprefix("data: ")))
                    if len(chunks) == 1:
                        begun()
            assert line == "" or line == "data: [DONE]"
        return chunks

    def until(self, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
        limit = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < limit, "it never happened"
            time.sleep(0.02)

    def candidate(self) -> dict:
        return self.server.arm_states()["hybrid"]

    def order(self, **order) -> None:
        headers = {TOKEN_HEADER: self.server.token}
        answer = self.client.post("/workbench/route", json=order, headers=headers)
        assert answer.status_code == 200

    def route(self) -> dict:
        return self.client.get("/workbench/route").json()


@pytest.fixture(scope="module")
def started(arms, tmp_path_factory) -> Iterator[Running]:
    spec = ServeSpec(
        arms,
        fallback="full_precision",
        route="hybrid",
        slots=4,
        threads=1,
        context=128,
        hold_s=0.01,
        silence_s=1.5,
        faults=True,
    )
    folder = tmp_path_factory.mktemp("server")
    with (
        server_process(spec, folder) as server,
        httpx.Client(base_url=server.address, trust_env=False, timeout=30) as client,
    ):
        yield Running(server, client)


@pytest.fixture
def running(started) -> Running:
    started.until(lambda: started.candidate()["state"] == "up")
    started.order(arm="hybrid", force=True)
    return started


def kill(running: Running) -> None:
    os.kill(running.candidate()["pid"], signal.SIGKILL)


def stop(running: Running) -> None:
    os.kill(running.candidate()["pid"], signal.SIGSTOP)


def crash(running: Running) -> None:
    running.server.drill("hybrid", "crash")


def nan(running: Running) -> None:
    running.server.drill("hybrid", "nan")


@pytest.mark.parametrize(
    ("way", "says"),
    [
        (kill, "killed by signal 9"),
        (stop, "it hung: no sign of life for 1.5 s"),
        (crash, "LookupError: a fault that a drill ordered"),
        (nan, "NotFiniteError"),
    ],
)
def test_what_breaks_an_arm_costs_its_started_streams_alone(running, way, says: str) -> None:
    """One stream of the candidate is under way, another one of the fallback; six requests come
    at the same moment as the fault."""
    running.server.drill("hybrid", "slow_steps", seconds=0.02)
    before = running.candidate()
    broken = threading.Event()

    def begun() -> None:
        way(running)
        broken.set()

    def late() -> str:
        broken.wait(10)
        answer = running.ask()
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 4
        return answer.headers["x-workbench-arm"]

    with ThreadPoolExecutor(8) as pool:
        other = pool.submit(running.ask, model="full_precision", max_tokens=100)
        answers = [pool.submit(late) for _ in range(6)]
        *tokens, last = running.stream(100, begun)
        assert 0 < len(tokens) < 100
        assert says in last["error"]["message"] and last["error"]["code"] == "engine_failed"
        assert set(future.result() for future in answers) <= {"full_precision", "hybrid"}
        assert other.result().json()["usage"]["completion_tokens"] == 100

    state = running.route()
    assert state["arm"] == "full_precision"
    assert says in state["switches"][-1]["reason"]
    running.until(lambda: running.candidate()["state"] == "up")
    after = running.candidate()
    assert after["restarts"] == before["restarts"] + 1 and after["pid"] != before["pid"]
    counted = f'workbench_arm_restarts_total{{arm="hybrid"}} {after["restarts"]}.0'
    assert counted in running.client.get("/metrics").text
    assert running.client.get("/health").json()["status"] == "ok"
    assert running.route()["arm"] == "full_precision", "it goes forward by order alone"
    assert running.ask(model="hybrid").headers["x-workbench-arm"] == "hybrid"


def test_health_and_readiness_say_which_arm_is_out(running) -> None:
    kill(running)
    running.until(lambda: running.candidate()["state"] == "out")
    health = running.client.get("/health").json()
    ready = running.client.get("/ready")
    if health["status"] != "ok":  # it is back after half a second
        assert health["status"] == "degraded" and "signal 9" in health["out"]["hybrid"]
    assert ready.status_code == 200 and "full_precision" in ready.json()["arms"]
    running.until(lambda: running.client.get("/ready").json()["arms"] != ["full_precision"])


def test_arms_have_processes_of_their_own(running) -> None:
    states = running.server.arm_states()
    pids = {state["pid"] for state in states.values()} | {running.server.process.pid}
    assert len(pids) == 3
    assert pids <= set(running.server.process_ids)
    assert all(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.slow
def test_a_stopped_arm_does_not_outlive_a_killed_server(arms, tmp_path) -> None:
    """It cannot see that its channel has ended; without an end by the kernel it stayed for ever."""
    spec = ServeSpec({"only": arms["hybrid"]}, "only", "only", slots=1, threads=1, context=64)
    with server_process(spec, tmp_path) as server:
        pids = server.process_ids
        arm = server.arm_states()["only"]["pid"]
        os.kill(arm, signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        limit = time.monotonic() + 10.0
        while any(psutil.pid_exists(pid) for pid in {*pids, arm} - {server.process.pid}):
            assert time.monotonic() < limit, "an orphan"
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("good", [True, False])
def test_full_precision_reads_what_a_canary_answers(arms, tmp_path, good: bool) -> None:
    """The same weights again arrive; a model that finds likely what full precision finds unlikely,
    as quick and as long in its answers, does not."""
    if good:
        candidate = arms["full_precision"]
    else:
        candidate = shutil.copytree(arms["full_precision"], tmp_path / "worse")
        weights = load_file(candidate / "model.safetensors")
        weights["model.norm.weight"] *= -1
        save_file(weights, candidate / "model.safetensors", {"format": "pt"})
    plan = CanaryPlan((0.25, 1.0), step_s=0.2, step_requests=10, compared_share=1.0)
    spec = ServeSpec(
        {**arms, "hybrid": candidate},
        fallback="full_precision",
        route="hybrid",
        weight=0.25,
        slots=4,
        threads=1,
        context=64,
        canary=plan,
        rule=RollbackRule(slower=50.0),
    )
    over = ("arrived", "taken back")
    asked = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with (
        server_process(spec, tmp_path) as server,
        httpx.Client(base_url=server.address, trust_env=False, timeout=30) as client,
    ):
        for number in range(800):
            prompt = [5 + number % 50, *range(7, 20)]
            answer = client.post("/v1/completions", json={"prompt": prompt, **asked})
            assert answer.status_code == 200
            state = client.get("/workbench/route").json()
            if state["canary"]["state"] in over:
                break
    assert state["canary"]["state"] == over[not good], state
    if not good:
        assert "of the answers differs" in (why := state["switches"][-1]["reason"]) or "nats" in why


def test_no_door_to_faults_where_no_drill_opened_it(plain) -> None:
    order = {"arm": "hybrid", "fault": "nan"}
    assert plain.client.post("/workbench/drill", json=order).status_code == 404


def test_a_drill_says_what_each_way_cost(running, tmp_path) -> None:
    schedule = [PlannedRequest(i, 0.04 * i, 12, 6, "interactive", False) for i in range(25)]
    ways = ("command", "monitor", "kill")
    running.server.drill("hybrid")
    with load_processes(Endpoint(running.server.address), tmp_path) as client:
        shares = dict.fromkeys(ways, schedule)
        drill = Drill(running.server, client, shares, lambda planned: PROMPT[:12], 1.0, tmp_path)
        command, monitor, kill = taken = drill.run(ways, 120.0)
        (late,) = drill.run(("crash",), 0.5)
    for each in taken:
        assert each.holds, each
        assert (each.requests, each.failed_without_token) == (25, 0)
        assert each.first_fallback_token_s > 0 and each.p99_ms > 0 and each.memory_mb > 50
    assert command.truncated == monitor.truncated == 0
    assert command.reason == "drill: command" and "had no first token within" in monitor.reason
    assert "killed by signal 9" in kill.reason and kill.back_s > 0
    assert late.holds is None and "raise deploy_rollback.drill.budget_s" in late.skipped


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing_without_saying_so(running, tmp_path) -> None:
    """A request is answered in full, or its stream had begun and ends with a declared error."""
    random = np.random.default_rng(20)
    schedule = [PlannedRequest(i, 0.02 * i, 12, 20, "interactive", False) for i in range(40)]
    cut = 0
    with load_processes(Endpoint(running.server.address), tmp_path) as client:
        for _ in range(20):
            running.until(lambda: running.candidate()["state"] == "up")
            running.order(arm="hybrid", force=True)
            running.server.drill("hybrid", "slow_steps", seconds=0.005)
            pid = running.candidate()["pid"]
            at_s = float(random.uniform(0.0, 0.9))
            orders = [(at_s, lambda pid=pid: os.kill(pid, signal.SIGKILL))]
            outcomes = client.replay(schedule, lambda planned: PROMPT[:12], orders=orders)
            lost = [each for each in outcomes if each.status != "ok"]
            assert {each.status for each in lost} <= {"truncated"}, lost
            assert {each.fault for each in lost} <= {"server_error"}, lost
            assert all("killed by signal 9" in str(each.error) for each in lost)
            cut += len(lost)
    assert cut > 0, "some kill must have met a stream"
