"""What a soak does with a server and sees of it: a client's connection, answers, memory.

Bare sockets, because hundreds of streams share two cores with the server that they load.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.machine.memory import process_tree_bytes
from workbench.serve.kept_route import TOKEN_HEADER
from workbench.serve.process import ServerProcess

MB = 1e6


@dataclass
class Seen:
    """first_s, gap_s: first tokens and gaps between pieces, s. first_of: arm -> when each of its
    first tokens came. undeclared: cut without an error that says so. errors: sentences."""

    requests: int = 0
    tokens: int = 0
    truncated: int = 0
    undeclared: int = 0
    failed_without_token: int = 0
    first_s: list[float] = field(default_factory=list)
    first_of: dict[str, list[float]] = field(default_factory=dict)
    worst_gap_s: float = 0.0
    errors: list[str] = field(default_factory=list)

    def take(self, reply: Reply, wanted: int) -> None:
        """wanted: tokens that were asked for."""
        self.requests += 1
        self.tokens += reply.tokens
        if reply.first_s is not None:
            self.first_s.append(reply.first_s)
            self.first_of.setdefault(reply.arm, []).append(reply.first_at)
            self.worst_gap_s = max(self.worst_gap_s, reply.worst_gap_s)
        if reply.error:
            self.errors.append(f"HTTP {reply.status}: {reply.error}")
        if reply.tokens < wanted:
            self.failed_without_token += reply.tokens == 0
            self.truncated += reply.tokens > 0
            self.undeclared += not reply.error

    def row(self, way: str, memory: Memory) -> dict[str, Any]:
        """What every row says."""
        return {
            "name": "soak", "way": way, "requests": self.requests, "tokens": self.tokens,
            "failed_without_token": self.failed_without_token, "truncated": self.truncated,
            "undeclared": self.undeclared, "first_fallback_token_s": None,
            "errors": len(self.errors), "first_error": self.errors[0] if self.errors else None,
            "p50_ms": 1e3 * float(np.quantile(self.first_s, 0.5)),
            "p99_ms": 1e3 * float(np.quantile(self.first_s, 0.99)),
            "worst_gap_ms": 1e3 * self.worst_gap_s,
            "memory_mb": memory.latest_mb(), "memory_growth_mb": memory.growth_mb(),
        }  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """status 0: no answer. first_s: from the send to the first piece, which came at first_at."""

    status: int
    tokens: int
    first_s: float | None
    worst_gap_s: float
    error: str | None = None
    retry_after_s: float | None = None
    arm: str = ""
    first_at: float = 0.0


class Client:
    """One connection, kept, and opened again after an error."""

    def __init__(self, server: ServerProcess) -> None:
        self._at = server.ready.host, server.ready.port
        self._token = server.token
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> Reply:
        try:
            return await self._post(path, json.dumps(body).encode())
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError) as error:
            await self.aclose()
            return Reply(0, 0, None, 0.0, f"{type(error).__name__}: {error}")

    async def aclose(self) -> None:
        if self._pair:
            (_, writer), self._pair = self._pair, None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _post(self, path: str, body: bytes) -> Reply:
        if self._pair is None:
            self._pair = await asyncio.open_connection(*self._at)
        reader, writer = self._pair
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"{TOKEN_HEADER}: {self._token}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        began = time.monotonic()
        writer.write(head.encode() + body)
        status = int((await reader.readline()).split()[1])
        headers: dict[bytes, bytes] = {}
        while (line := await reader.readline()).strip():
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        if b"content-length" in headers:
            text = await reader.readexactly(int(headers[b"content-length"]))
            again = headers.get(b"retry-after")
            error = None if status == 200 else text[:200].decode(errors="replace")
            return Reply(status, 0, None, 0.0, error, float(again) if again else None)
        arm = headers.get(b"x-workbench-arm", b"").decode()
        return await _read_stream(reader, status, began, arm)


async def _read_stream(reader: asyncio.StreamReader, status: int, began: float, arm: str) -> Reply:
    first_s, latest, worst_s, tokens, error = None, began, 0.0, 0, None
    while (line := await reader.readline()) != b"0\r\n":
        if not line:
            raise ValueError("the answer broke off")
        if not line.startswith(b"data: {"):
            continue
        now = time.monotonic()
        if first_s is None:
            first_s = now - began
        else:
            worst_s = max(worst_s, now - latest)
        latest = now
        said = json.loads(line[6:])
        error = error or ("error" in said and json.dumps(said["error"])) or None
        ended = any(choice["finish_reason"] for choice in said.get("choices", ()))
        tokens += "error" not in said and not ended
    await reader.readline()
    first_at = began + (first_s or 0.0)
    return Reply(status, tokens, first_s, worst_s, error, arm=arm, first_at=first_at)


class Memory:
    """Of the server and all of its processes, bytes, every second."""

    def __init__(self, pid: int) -> None:
        self._pid, self.samples = pid, list[tuple[float, int]]()

    async def watch(self) -> None:
        while True:
            held = await asyncio.to_thread(process_tree_bytes, self._pid)
            self.samples.append((time.monotonic(), held))
            await asyncio.sleep(1.0)

    def growth_mb(self) -> float:
        """Median of the last tenth above that of the second one: the first one warms caches up."""
        held = [held for _, held in self.samples]
        tenth = max(1, len(held) // 10)
        return (statistics.median(held[-tenth:]) - statistics.median(held[tenth : 2 * tenth])) / MB

    def latest_mb(self) -> float:
        return self.samples[-1][1] / MB


@asynccontextmanager
async def watched(server: ServerProcess) -> AsyncIterator[Memory]:
    memory = Memory(server.process.pid)
    watching = asyncio.create_task(memory.watch())
    try:
        yield memory
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
