"""A server that stops leaves no connection open, whenever it came."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from workbench.serve.connections import DrainingServer, server_config
from workbench.serve.main import listen
from workbench.serve.spec import UpstreamSpec
from workbench.serve.upstream import Upstream

ENDLESS = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def _endless(request) -> StreamingResponse:
    async def pieces():
        while True:
            yield b"x" * 2**16

    return StreamingResponse(pieces())


async def started(listener: socket.socket) -> DrainingServer:
    app = Starlette(routes=[Route("/", _endless)])
    server = DrainingServer(server_config(app, drain_s=0))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    return server


@pytest.mark.parametrize("turns", range(5))
def test_a_connection_that_comes_as_the_server_stops_is_closed(turns: int) -> None:
    """turns: of the loop between the connection and the order to stop; within the first ones it is
    accepted, and uvicorn does not know it yet."""

    async def play() -> None:
        listener = listen("127.0.0.1", 0)
        server = await started(listener)
        server.force_exit = True
        with socket.create_connection(listener.getsockname(), 1) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.shutdown([listener])
            assert not server.server_state.connections
            client.settimeout(1)
            with suppress(ConnectionResetError):  # it was never accepted
                assert client.recv(1) == b""

    asyncio.run(play())


def test_an_answer_that_nobody_reads_does_not_outlive_the_server() -> None:
    async def play() -> None:
        listener = listen("127.0.0.1", 0)
        server = await started(listener)
        with socket.create_connection(listener.getsockname(), 1) as client:
            client.sendall(ENDLESS)
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
            (connection,) = server.server_state.connections
            while not connection.transport.get_write_buffer_size():
                await asyncio.sleep(0.01)
            await server.shutdown([listener])
            assert not server.server_state.connections
            assert connection.transport.get_extra_info("socket").fileno() == -1

    asyncio.run(play())


def test_an_upstream_is_closed_also_where_its_closing_is_interrupted() -> None:
    """As by Ctrl-C, which cancels what runs: its connections are closed all the same."""

    async def play() -> None:
        upstream = Upstream("today", UpstreamSpec("http://127.0.0.1:1/v1"))
        upstream.watch()
        closing = asyncio.create_task(upstream.close())
        await asyncio.sleep(0)
        closing.cancel()
        with suppress(asyncio.CancelledError):
            await closing
        assert upstream._client.is_closed

    asyncio.run(play())
