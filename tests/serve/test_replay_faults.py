"""The client against a scripted server: what goes wrong has its kind, and a stall is seen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from workbench.load.piece import PlannedRequest
from workbench.serve.rehearsal import phase_latencies, requests_table
from workbench.serve.replay import Outcome, load_client

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
    b"x-workbench-arm: hybrid\r\ncontent-length: 100000\r\n\r\n"
)
CLOSED_HEAD = HEAD.replace(b"content-length: 100000\r\n", b"")
"""Its body ends where the connection does."""


def event(finish: str | None = None, **more) -> bytes:
    choice = {"text": 'a "finish_reason": null', "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


TOKEN, LAST = event(), event("length")
COUNT = b'data: {"choices": [], "usage": {"completion_tokens": 4}}\n\n'
END = b"data: [DONE]\n\n"
WHOLE = 4 * TOKEN + LAST + COUNT + END


def says(*pieces: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return answer


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60.0)


def play(answer: Answer, count: int = 1, gap_s: float = 0.0, silence_s: float = 5.0):
    """Outcomes of ``count`` requests of four tokens, one every ``gap_s``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        try:
            await answer(writer)
        finally:
            writer.close()

    async def go() -> list[Outcome]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        schedule = [PlannedRequest(i, gap_s * i, 3, 4, "interactive", False) for i in range(count)]
        async with load_client(f"http://127.0.0.1:{port}", silence_s) as client:
            client.start()
            outcomes = await client.replay(schedule, lambda planned: [5, 6, 7])
        server.close()
        return outcomes

    return asyncio.run(go())


def test_a_whole_answer_however_it_is_cut_into_pieces() -> None:
    cut = [WHOLE[at : at + 7] for at in range(0, len(WHOLE), 7)]
    for pieces in ([WHOLE], cut, [WHOLE.replace(b"\n", b"\r\n")]):
        (outcome,) = play(says(CLOSED_HEAD, *pieces))
        assert (outcome.status, outcome.fault, outcome.error) == ("ok", None, None)
        assert (outcome.output_tokens, outcome.arm) == (4, "hybrid")


@pytest.mark.parametrize(
    ("answer", "fault", "status", "tokens"),
    [
        (says(CLOSED_HEAD, 2 * TOKEN), "broken_off", "truncated", 2),
        (says(HEAD, 2 * TOKEN), "broken_off", "truncated", 2),
        (says(CLOSED_HEAD), "broken_off", "failed", 0),
        (says(b""), "broken_off", "failed", 0),
        (says(CLOSED_HEAD, TOKEN, b"data: {nonsense\n\n", END), "broken_sse", "truncated", 1),
        (says(CLOSED_HEAD, b"<html>\n\n"), "broken_sse", "failed", 0),
        (says(CLOSED_HEAD, b"data: \xff\n\n"), "broken_sse", "failed", 0),
        (says(CLOSED_HEAD, b"data: [1]\n\n", END), "broken_sse", "failed", 0),
        (says(CLOSED_HEAD, 3 * TOKEN + LAST + COUNT + END), "broken_sse", "truncated", 3),
        (
            says(CLOSED_HEAD, 3 * TOKEN + LAST + COUNT.replace(b"4", b"3") + END),
            "short", "truncated", 3,
        ),
        (
            says(CLOSED_HEAD, TOKEN + b'data: {"error": {"message": "gone"}}\n\n' + END),
            "server_error", "truncated", 1,
        ),
        (
            says(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy"),
            "http_error", "failed", 0,
        ),
        (says(b"HTTP/1.1 429 Full\r\ncontent-length: 0\r\n\r\n"), "queue_full", "rejected", 0),
    ],
)  # fmt: skip
def test_a_fault_has_its_kind(answer: Answer, fault: str, status: str, tokens: int) -> None:
    (outcome,) = play(answer)
    assert (outcome.fault, outcome.status, outcome.output_tokens) == (fault, status, tokens)
    assert outcome.error and outcome.end_s is not None


def test_a_server_that_hangs_is_given_up() -> None:
    (outcome,) = play(hang, silence_s=0.05)
    assert (outcome.fault, outcome.status) == ("hung", "failed")


def test_a_server_that_is_not_there_refuses() -> None:
    async def go() -> list[Outcome]:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with load_client(f"http://127.0.0.1:{port}") as client:
            one = [PlannedRequest(0, 0.0, 3, 4, "interactive", False)]
            return await client.replay(one, lambda planned: [5, 6, 7])

    (outcome,) = asyncio.run(go())
    assert (outcome.fault, outcome.status) == ("refused", "failed")


def test_a_stall_stands_in_the_reported_tail() -> None:
    """The server stops for 0.5 s; the requests that were due meanwhile waited for it."""
    stalled_until: list[float] = []

    async def stall(writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time()
        if not stalled_until:
            stalled_until.append(now + 0.5)
        await asyncio.sleep(stalled_until[0] - now)
        await says(CLOSED_HEAD, WHOLE)(writer)

    outcomes = play(stall, count=120, gap_s=0.01)
    assert {o.status for o in outcomes} == {"ok"}
    requests = requests_table(outcomes)
    found = {
        (name, labels["quantile"]): estimate.value
        for name, estimate, labels in phase_latencies(requests, np.array(["before"] * 120))
        if labels["phase"] == "before"
    }
    assert found["ttft_ms", "p99"] > 450.0
