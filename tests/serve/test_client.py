"""The client processes: what they report, what they notice, and what they hold."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from workbench.errors import ConfigError, StageError
from workbench.load.planned import PlannedRequest
from workbench.serve.client import load_processes, processes_for
from workbench.serve.endpoint import Endpoint, probe

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""(the request, where its answer goes)."""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def event(text: str | None = "a", finish: str | None = None, **more) -> bytes:
    """A chunk of a completion, as servers in general send it."""
    choices = [] if text is None else [{"text": text, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


def chat_event(delta: dict, finish: str | None = None) -> bytes:
    choice = {"delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def usage(tokens: int) -> bytes:
    return event(None, usage={"prompt_tokens": 3, "completion_tokens": tokens})


END = b"data: [DONE]\n\n"
NOBODY = "http://127.0.0.1:1"
WHOLE = HEAD + 4 * event() + event("", "length") + usage(4) + END


async def _handle(
    answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        body = await reader.readexactly(int(length or 0))
        await answer(head + body, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # a client that looks whether somebody is there, or leaves
    finally:
        writer.close()


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The address of a server in a thread."""
    ready, port = threading.Event(), 0
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        nonlocal port
        async with await asyncio.start_server(
            lambda r, w: _handle(answer, r, w), "127.0.0.1", 0
        ) as server:
            port = server.sockets[0].getsockname()[1]
            ready.set()
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def planned(count: int, gap_s: float = 0.01, tokens: int = 4) -> list[PlannedRequest]:
    return [PlannedRequest(i, gap_s * i, 3, tokens, "interactive", False) for i in range(count)]


def ids(request: PlannedRequest) -> list[int]:
    return [5, 6, 7]


def test_a_replay_is_dealt_out_to_processes_with_one_clock(serve, tmp_path: Path) -> None:
    served = serve(slots=8, step_s=0.001)
    ordered: list[float] = []
    progress: list[int] = []
    with load_processes(Endpoint(served.address), tmp_path) as client:
        outcomes = client.replay(
            planned(40),
            ids,
            processes=2,
            orders=[(0.2, lambda: ordered.append(client.now_s()))],
            on_progress=progress.append,
        )
        assert client.processes == 2
        took = client.burst(planned(8), ids, model="full_precision")
    assert [o.id for o in outcomes] == list(range(40))
    assert {(o.status, o.error, o.arm, o.counted_by) for o in outcomes} == {
        ("ok", None, "hybrid", "usage")
    }
    for outcome in outcomes:
        assert outcome.intended_s <= outcome.sent_s < outcome.first_token_s <= outcome.end_s
        assert outcome.sent_s < outcome.intended_s + 0.5
        whole_s = outcome.last_token_s - outcome.first_token_s
        assert len(outcome.gaps_s) == 3 and sum(outcome.gaps_s) == pytest.approx(whole_s, abs=1e-4)
    assert 0.2 <= ordered[0] < 1.0
    assert progress[-1] == 40
    burst, took_s = took
    assert {(o.status, o.arm, o.intended_s) for o in burst} == {("ok", "full_precision", 0.0)}
    assert took_s == max(o.end_s for o in burst)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["client-0.log", "client-1.log"]


def test_a_client_that_is_killed_is_said_and_not_waited_for(serve, tmp_path: Path) -> None:
    served = serve()
    with (
        pytest.raises(StageError, match="the load client was killed by signal 9") as caught,
        load_processes(Endpoint(served.address), tmp_path) as client,
    ):

        def kill() -> None:
            os.kill(client._children[0].pid, signal.SIGKILL)

        client.replay(planned(200), ids, orders=[(0.1, kill)])
    assert "client-0.log" in caught.value.next_step


def test_what_the_check_raises_ends_the_load(serve, tmp_path: Path) -> None:
    served = serve()
    gone = threading.Event()

    def check() -> None:
        if gone.is_set():
            raise StageError("the server was killed")

    with (
        pytest.raises(StageError, match="the server was killed"),
        load_processes(Endpoint(served.address), tmp_path, check=check) as client,
    ):
        client.replay(planned(2000), ids, orders=[(0.1, gone.set)])


def test_processes_by_the_busiest_second_and_what_is_due_at_once(monkeypatch) -> None:
    monkeypatch.setattr("workbench.serve.client.cpu", lambda: type("Cpu", (), {"usable_cores": 4}))
    assert processes_for(planned(100)) == 1
    assert processes_for(planned(1000, gap_s=0.002)) == 2
    assert processes_for(planned(100, tokens=250)) == 3
    assert processes_for(planned(1000, gap_s=0.0)) == 4


SLOW_SERVER = """
import asyncio, sys

async def answer(reader, writer):
    head = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
    await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\\r\\n")[0]))
    writer.write(HEAD)
    for _ in range(8):
        writer.write(TOKEN)
        await asyncio.sleep(0.4)
    writer.write(LAST)
    writer.close()

async def serve():
    async with await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2048) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(serve())
"""
"""A server in a process of its own: eight tokens, one every 0.4 s, to whoever asks."""


def test_a_thousand_streams_at_once(tmp_path: Path) -> None:
    """A thousand requests within one second, each answered for longer than that."""
    last = event("", "length") + usage(8) + END
    code = f"HEAD, TOKEN, LAST = {HEAD!r}, {event()!r}, {last!r}\n{SLOW_SERVER}"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        port = int(server.stdout.readline())
        with load_processes(Endpoint(f"http://127.0.0.1:{port}"), tmp_path) as client:
            outcomes = client.replay(planned(1000, gap_s=0.001, tokens=8), ids)
            processes = client.processes
        server.stdin.close()
    assert {(o.status, o.error) for o in outcomes} == {("ok", None)}
    together = max(o.first_token_s for o in outcomes), min(o.last_token_s for o in outcomes)
    assert together[0] < together[1], "all thousand were open at one moment"
    delay_ms = 1e3 * np.array([o.sent_s - o.intended_s for o in outcomes])
    print(f"{processes} processes, dispatch delay p99 {np.quantile(delay_ms, 0.99):.2f} ms")
    assert np.quantile(delay_ms, 0.5) < 50.0  # of a machine that runs other tests beside it


def test_a_stall_stands_in_the_tail_that_the_processes_report(tmp_path: Path) -> None:
    """The server stops for 0.5 s; the requests that were due meanwhile waited for it."""
    until: list[float] = []

    async def stall(request: bytes, writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time()
        if not until:
            until.append(now + 0.5)
        await asyncio.sleep(until[0] - now)
        writer.write(WHOLE)

    with (
        serving(stall) as address,
        load_processes(Endpoint(address), tmp_path) as client,
    ):
        outcomes = client.replay(planned(120), ids, processes=2)
    assert {o.status for o in outcomes} == {"ok"}
    ttft_ms = 1e3 * np.array([o.first_token_s - o.intended_s for o in outcomes])
    assert np.quantile(ttft_ms, 0.99) > 450.0


def test_faults_have_their_kinds_through_the_processes(tmp_path: Path) -> None:
    answers = {
        b"0": HEAD + event(),
        b"1": HEAD + event() + b"data: {nonsense\n\n" + END,
        b"2": b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy",
        b"3": b"HTTP/1.1 429 Full\r\ncontent-length: 0\r\n\r\n",
        b"4": HEAD + event() + b'data: {"error": {"message": "gone"}}\n\n' + END,
        b"5": HEAD + 2 * event() + event("", "length") + usage(2) + END,
        b"6": b"",
        b"7": WHOLE,
    }

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        last = json.loads(request.partition(b"\r\n\r\n")[2])["prompt"].encode()
        writer.write(answers[last])
        if last == b"6":
            await asyncio.sleep(0.4)

    with (
        serving(answer) as address,
        load_processes(Endpoint(address), tmp_path, silence_s=0.2) as client,
    ):
        outcomes = client.replay(planned(8, gap_s=0.001), lambda p: str(p.id))
    assert [(o.fault, o.status, o.output_tokens) for o in outcomes] == [
        ("broken_off", "truncated", 1),
        ("broken_sse", "truncated", 1),
        ("http_error", "failed", 0),
        ("queue_full", "rejected", 0),
        ("server_error", "truncated", 1),
        ("short", "truncated", 2),
        ("hung", "failed", 0),
        (None, "ok", 4),
    ]
    with load_processes(Endpoint(address), tmp_path) as client:
        (refused,) = client.replay(planned(1), ids)
    assert (refused.fault, refused.status) == ("refused", "failed")


def test_what_other_servers_send(tmp_path: Path, monkeypatch) -> None:
    """The last token beside the finish reason, chunks of two tokens, a role, no usage, no DONE."""
    said: list[bytes] = []
    answers: list[bytes] = []

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        said.append(request)
        writer.write(HEAD + answers[len(said) - 1])

    def one(tokens: int, prompt="a text", **options):
        endpoint = Endpoint(f"{address}/openai/v1/", "their-model", **options)
        with load_processes(endpoint, tmp_path) as client:
            (outcome,) = client.replay(planned(1, tokens=tokens), lambda p: prompt)
        return outcome

    with serving(answer) as address:
        answers.append(event() + event("ab") + event("c", "length") + usage(4) + END)
        vllm = one(4)
        answers.append(event() + event("b") + event("", "stop"))
        uncounted = one(2)
        role = chat_event({"role": "assistant", "content": ""})
        words = chat_event({"reasoning_content": "hm"}) + chat_event({"content": "a"})
        answers.append(role + words + chat_event({}, "stop") + usage(2) + END)
        monkeypatch.setenv("THEIR_KEY", "secret-12345")
        chat = one(5, chat=True, fixed_length=False, api_key_env="THEIR_KEY")
    assert (vllm.status, vllm.output_tokens, vllm.counted_by) == ("ok", 4, "usage")
    assert len(vllm.gaps_s) == 2 and vllm.arm is None
    assert (uncounted.status, uncounted.output_tokens, uncounted.counted_by) == ("ok", 2, "chunks")
    assert (chat.status, chat.output_tokens, len(chat.gaps_s)) == ("ok", 2, 1)
    heads, bodies = zip(*(request.split(b"\r\n\r\n", 1) for request in said), strict=True)
    assert heads[0].startswith(b"POST /openai/v1/completions HTTP/1.1")
    assert heads[2].startswith(b"POST /openai/v1/chat/completions HTTP/1.1")
    assert b"authorization" not in heads[0]
    assert b"authorization: Bearer secret-12345" in heads[2]
    asked, asked_chat = json.loads(bodies[0]), json.loads(bodies[2])
    assert (asked["model"], asked["prompt"], asked["min_tokens"]) == ("their-model", "a text", 4)
    assert asked_chat["messages"] == [{"role": "user", "content": "a text"}]
    assert "ignore_eos" not in asked_chat and asked_chat["max_tokens"] == 5


def test_a_key_is_never_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "secret-12345")

    async def refuse(request: bytes, writer: asyncio.StreamWriter) -> None:
        text = b"wrong key: secret-12345"
        writer.write(b"HTTP/1.1 401 No\r\ncontent-length: %d\r\n\r\n" % len(text) + text)

    with serving(refuse) as address:
        endpoint = Endpoint(address, api_key_env="THEIR_KEY")
        with load_processes(endpoint, tmp_path) as client:
            (outcome,) = client.replay(planned(1), ids)
            arguments = " ".join(map(str, client._children[0].args))
    assert outcome.error == "HTTP 401: wrong key: (the key)"
    assert "secret" not in repr(endpoint) + repr(outcome) + arguments
    assert all(b"secret" not in path.read_bytes() for path in tmp_path.iterdir())
    monkeypatch.delenv("THEIR_KEY")
    with pytest.raises(ConfigError, match="THEIR_KEY is not set"):
        Endpoint(address, api_key_env="THEIR_KEY")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://192.0.2.1:8000", "not a loopback"),
        ("http://models.example/v1", "not a loopback"),
        ("ftp://127.0.0.1", "no base URL"),
        ("127.0.0.1:8000", "no base URL"),
        ("http://user:secret@127.0.0.1", "no base URL"),
        ("http://127.0.0.1:99999", "no base URL"),
        ("http://127.0.0.1/v1?key=secret", "no base URL"),
        ("http://[::1", "no base URL"),
    ],
)
def test_an_endpoint_is_a_base_url_of_this_machine(address: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        Endpoint(address)
    assert "secret" not in str(caught.value)


def test_another_machine_is_an_endpoint_that_the_pilot_names() -> None:
    endpoint = Endpoint("https://models.example/openai", "m", allow_remote=True)
    assert (endpoint.host, endpoint.port, endpoint.base) == ("models.example", 443, "/openai")
    assert Endpoint("http://localhost:80").base == "/v1"


def test_the_network_is_probed_apart(serve) -> None:
    found = probe(Endpoint(serve().address), count=3)
    assert 0.0 < found.connect_ms < found.round_trip_ms and found.path == "/v1/models"
    with pytest.raises(StageError, match="does not answer: ConnectionRefusedError"):
        probe(Endpoint(NOBODY))


def test_a_server_that_keeps_the_connection_is_not_waited_for(tmp_path: Path) -> None:
    body = WHOLE.removeprefix(HEAD)
    framed = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked += b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"

    async def keep(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked if b'"0"' in request else framed)
        await asyncio.sleep(3.0)

    with (
        serving(keep) as address,
        load_processes(Endpoint(address), tmp_path, silence_s=60.0) as client,
    ):
        outcomes, took_s = client.burst(planned(2), lambda p: str(p.id))
    assert [(o.status, o.error) for o in outcomes] == [("ok", None)] * 2
    assert took_s < 3.0 and all(o.end_s - o.last_token_s < 0.5 for o in outcomes)


def test_the_processes_end_with_their_parent(tmp_path: Path) -> None:
    """Even if that is killed, so that nobody can end them."""

    async def hang(request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)

    with serving(hang) as address:
        code = f"""if True:
            from pathlib import Path
            from workbench.load.planned import PlannedRequest
            from workbench.serve.client import load_processes
            from workbench.serve.endpoint import Endpoint
            requests = [PlannedRequest(i, 0.1 * i, 3, 4, "batch", False) for i in range(600)]
            with load_processes(Endpoint({address!r}), Path({str(tmp_path)!r})) as client:
                say = lambda: print(client._children[0].pid, flush=True)
                client.replay(requests, lambda planned: "a", orders=[(0.1, say)])
        """
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        ) as parent:
            child = psutil.Process(int(parent.stdout.readline()))
            parent.kill()
        _, alive = psutil.wait_procs([child], timeout=5.0)
    assert not alive


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="another process's limit: Linux")
def test_connections_that_this_machine_cannot_open_are_not_the_servers_fault(
    serve, tmp_path: Path
) -> None:
    served = serve()
    with load_processes(Endpoint(served.address), tmp_path) as client:
        client.replay(planned(1), ids)
        limits = resource.prlimit(client._children[0].pid, resource.RLIMIT_NOFILE)
        resource.prlimit(client._children[0].pid, resource.RLIMIT_NOFILE, (16, limits[1]))
        with pytest.raises(StageError, match="Too many open files"):
            client.replay(planned(40, gap_s=0.0), ids, processes=1)
