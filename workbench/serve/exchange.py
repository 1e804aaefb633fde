"""One request over a connection of its own, kept as bytes with their times and read afterwards.

What reads the answers shares a processor with what gives them, and a client that is busy takes
its own time for the server's. So while tokens come nothing is done but to note the time and to
keep the bytes: no tasks are woken, nothing is parsed. The connection is opened before the request
is due, so that neither a handshake nor a pool's queue is part of a latency.
"""

from __future__ import annotations

import asyncio
import errno
import select
import selectors
import ssl
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import h11

Fault = Literal[
    "refused",
    "hung",
    "queue_full",
    "http_error",
    "server_error",
    "broken_off",
    "broken_sse",
    "short",
]
"""Why a request was not answered in full. refused: no connection. hung: no byte for too long.
queue_full: 429. http_error: any other answer but 200. server_error: an error within the stream.
broken_off: the connection ended first. broken_sse: what came is no stream of events, or not
the one that was asked for. short: a proper end after too few tokens."""
FAULTS: tuple[Fault, ...] = get_args(Fault)
LAST_CHUNK = b"0\r\n\r\n"
OWN_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS)
"""Connections that this machine cannot open are no fault of the server."""
LINGER_S = 0.5
"""For a server to close the connection after its answer, before somebody looks at the answer."""


class Faulty(Exception):
    """What a server answered is not an answer."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass
class Raw:
    """What came of one request. Times: ``time.monotonic()``. times_s: of each of ``pieces``."""

    sent_s: float
    end_s: float
    pieces: Sequence[bytes]
    times_s: array[float]
    failed: Faulty | None = None


@dataclass
class Answer:
    """An HTTP answer. body: (when, bytes). ended: the head's framing says that it is whole."""

    status: int
    headers: dict[str, str]
    body: list[tuple[float, bytes]] = field(default_factory=list)
    ended: bool = False

    @property
    def text(self) -> str:
        return b"".join(piece for _, piece in self.body).decode(errors="replace")


class Exchange(asyncio.Protocol):
    """Made when its connection is opened; :meth:`fire` sends the request when it is due.

    silence_s: without a byte for this long it has hung.
    """

    def __init__(self, request: bytes, silence_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._request, self._silence_s = request, silence_s
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self._times_s = array("d")
        self._framed = False
        self._sent_s: float | None = None
        self._end_s = 0.0
        self._failed: Faulty | None = None
        self._over = self._loop.create_future()

    async def run(self, where: tuple[str, int], due_s: float, tls: TlsName | None) -> Raw:
        """Connect now, send at ``due_s``, and return what came once the connection is over."""
        due = self._loop.call_at(due_s, self.fire)
        more: dict[str, Any] = {"ssl": tls.context, "server_hostname": tls.name} if tls else {}
        try:
            try:
                async with asyncio.timeout(self._silence_s):
                    await self._loop.create_connection(lambda: self, *where, **more)
            except TimeoutError:
                self._fail(Faulty("hung", f"no connection within {self._silence_s:g} s"))
            except OSError as error:
                if error.errno in OWN_LIMITS:
                    raise
                self._fail(Faulty("refused", f"{type(error).__name__}: {error}"))
            await self._over
        finally:
            due.cancel()
            if self._transport is not None:
                self._transport.abort()
        assert self._sent_s is not None
        return Raw(self._sent_s, self._end_s, self._pieces, self._times_s, self._failed)

    def fire(self) -> None:
        """It is due; what waits for the connection goes out with it."""
        self._sent_s = time.monotonic()
        if self._end_s:  # it had failed before
            self._finish()
            return
        if self._transport is not None:
            self._transport.write(self._request)
        self._loop.call_later(self._silence_s, self._listen)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._sent_s is not None:
            transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._times_s.append(time.monotonic())
        self._pieces.append(data)
        if len(self._pieces) == 1:
            self._framed = b"content-length:" in data.lower()
        if self._framed or data.endswith(LAST_CHUNK):
            self._loop.call_later(LINGER_S, self._look_for_the_end, len(self._pieces))

    def _look_for_the_end(self, pieces: int) -> None:
        """Of a server that keeps the connection in spite of "close": it must not be waited for."""
        if not self._end_s and pieces == len(self._pieces) and _is_whole(self._pieces):
            self._end_s = self._times_s[-1]
            self._finish()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self._failed is None:
            self._failed = Faulty("broken_off", f"{type(error).__name__}: {error}")
        self._finish()

    def _listen(self) -> None:
        """Look at the silence now and then, because a timer for every byte would cost more."""
        if self._end_s:
            return
        heard_s = self._times_s[-1] if self._times_s else self._sent_s or 0.0
        left_s = heard_s + self._silence_s - time.monotonic()
        if left_s > 0:
            self._loop.call_later(left_s, self._listen)
        else:
            self._fail(Faulty("hung", f"no byte for {self._silence_s:g} s"))

    def _fail(self, failed: Faulty) -> None:
        self._failed = failed
        self._finish()

    def _finish(self) -> None:
        """It is over, though it counts from the moment it was due."""
        self._end_s = self._end_s or time.monotonic()
        if self._sent_s is not None and not self._over.done():
            self._end_s = max(self._end_s, self._sent_s)
            self._over.set_result(None)


@dataclass(frozen=True)
class TlsName:
    context: ssl.SSLContext
    name: str


def read_answer(pieces: Sequence[bytes], times_s: Sequence[float], closed: bool = True) -> Answer:
    """The HTTP answer in ``pieces`` that came at ``times_s``. closed: nothing more will come.

    What is missing at its end leaves ``ended`` false. Raises Faulty for what is no HTTP answer.
    """
    connection, answer = h11.Connection(h11.CLIENT), None
    asked = h11.Request(method="POST", target="/", headers=[("host", "-"), ("content-length", "0")])
    connection.send(asked)
    connection.send(h11.EndOfMessage())
    # An empty piece is the end of the connection.
    came = [
        *zip(times_s, pieces, strict=True),
        *([(times_s[-1], b"")] if closed and pieces else []),
    ]
    for came_s, piece in came:
        try:
            connection.receive_data(piece)
            while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                match event:
                    case h11.Response():
                        headers = {
                            k.decode("latin-1"): v.decode("latin-1") for k, v in event.headers
                        }
                        answer = Answer(event.status_code, headers)
                    case h11.Data() if answer:
                        answer.body.append((came_s, bytes(event.data)))
                    case h11.EndOfMessage() if answer:
                        answer.ended = True
                        return answer
                    case h11.ConnectionClosed():
                        break
        except h11.RemoteProtocolError as error:
            if piece:
                raise Faulty("broken_sse", f"no HTTP answer: {error}") from None
            break  # it ended within
    if answer is None:
        raise Faulty("broken_off", "the connection ended before an answer's head")
    return answer


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _is_whole(pieces: Sequence[bytes]) -> bool:
    try:
        return read_answer(pieces, [0.0] * len(pieces), closed=False).ended
    except Faulty:
        return False


class FineSelector(selectors.DefaultSelector):
    """A selector whose waits end when they should.

    ``epoll`` counts in milliseconds and Python rounds up, so every request would be sent up to
    1 ms late; ``select`` on the epoll's own descriptor counts in microseconds.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout and timeout > 0 and hasattr(select, "epoll") and self.fileno() < 1024:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def fine_loop() -> asyncio.AbstractEventLoop:
    """An event loop that keeps time to some microseconds."""
    return asyncio.SelectorEventLoop(FineSelector())
