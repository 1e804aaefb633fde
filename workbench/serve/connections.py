"""How the server treats connections: a request must come whole within a time, and be read in one.

Connections that send nothing, or a byte now and then, would otherwise stay for ever and take the
places of others; so would those that read nothing of their answers, with what is kept for them.
When the server stops, none is left open: also not one that came at that very moment, which uvicorn
does not know yet when it asks all others to end.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from workbench.serve.front_options import DEFAULT_FRONT, FrontOptions

REQUEST_S = 30.0
"""From a connection, or from a request's first byte on it, to the last byte of its body."""
UNREAD_S = 30.0
"""Of an answer of which nothing more is read; the connection is then cut."""
KEEP_ALIVE_S = 75
INCOMPLETE = (h11.IDLE, h11.SEND_BODY)
"""What a client is in whose request is not whole: nothing or a part of the head, then the body."""


class TimedConnection(H11Protocol):
    """One connection; closed where a request does not come whole, or an answer is not read."""

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._time()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP never comes to the application, and is counted all the same."""
        super().send_400_response(msg)
        if malformed := getattr(self.config.app, "malformed", None):
            malformed(self.client)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._read()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._read()
        super().connection_lost(exc)

    def _time(self) -> None:
        if self.conn.their_state not in INCOMPLETE:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(REQUEST_S, self.transport.close)

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _read(self) -> None:
        if self._unread:
            self._unread.cancel()
            self._unread = None


class DrainingServer(uvicorn.Server):
    """Stops to accept, lets answers under way end for as long as it may, then cuts what is left."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for listener in server.sockets:
                loop.remove_reader(listener.fileno())
        await _some_turns()  # of the loop, until what was accepted is among the connections
        await super().shutdown(sockets)
        await _some_turns()  # what was cancelled says so to its client
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await _some_turns()  # in which their sockets are closed


async def _some_turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def server_config(
    app: ASGIApp, drain_s: int, front: FrontOptions = DEFAULT_FRONT
) -> uvicorn.Config:
    """drain_s: what answers under way may take when the server is told to stop."""
    options: dict[str, Any] = {"log_level": "warning", "access_log": False}
    if front.log == "json":
        options["log_config"] = None  # its lines go where all others do
    if front.certificate:
        options |= {"ssl_certfile": front.certificate, "ssl_keyfile": front.certificate_key}
    return uvicorn.Config(
        app,
        http=TimedConnection,
        timeout_graceful_shutdown=drain_s,
        timeout_keep_alive=KEEP_ALIVE_S,
        **options,
    )
