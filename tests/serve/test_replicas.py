"""An arm of several servers: the least busy is asked, and one that goes loses nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from workbench.errors import ConfigError, StageError
from workbench.serve.replicas import Replicas, replica_families
from workbench.serve.routed import Route, RoutedRequest, ServedArm
from workbench.serve.router import Router
from workbench.serve.spec import ServeSpec, UpstreamSpec
from workbench.serve.upstream import PassedRequest
from workbench.serve.upstream_options import UpstreamOptions, upstreams_of

HEALTH_S = 0.05


class Server:
    """An OpenAI-compatible server on the test's own loop. name: what it answers. begins: an answer
    has its first byte only once this is set. broken: the status it answers with instead."""

    def __init__(self, name: str) -> None:
        self.name, self.begins, self.broken = name, asyncio.Event(), 0
        self.asked, self.port = 0, 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def die(self) -> None:
        """As a killed process does: nothing listens, and every connection breaks."""
        assert self._server
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.sleep(0)

    @property
    def spec(self) -> UpstreamSpec:
        return UpstreamSpec(f"http://127.0.0.1:{self.port}", health_s=HEALTH_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        length = re.search(rb"content-length: *(\d+)", head.lower())
        if length:
            await reader.readexactly(int(length[1]))
            self.asked += 1
            await self.begins.wait()
        status = self.broken if length and self.broken else 200
        body = json.dumps({"choices": [{"text": self.name}]}).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()


def fleet(test: Callable) -> Callable[[], None]:
    """The test with three servers A, B and C as one arm, and a router before it and a fallback."""

    async def run() -> None:
        servers = [await Server(name).start() for name in "ABC"]
        fallback = await Server("fallback").start()
        for server in (*servers, fallback):
            server.begins.set()
        arms = {
            "fleet": Replicas("fleet", [server.spec for server in servers]),
            "today": Replicas("today", [fallback.spec]),
        }
        for arm in arms.values():
            await arm.start()
        router = Router(
            [ServedArm(name, arm, 64) for name, arm in arms.items()],
            fallback="today", route=Route("fleet"), hold_s=0.0, deadline_s=20.0,
        )  # fmt: skip
        for name, arm in arms.items():
            arm.on_out = partial(router.put_out, name)
            arm.on_back = partial(router.bring_back, name)
        try:
            async with asyncio.timeout(20):
                await test(router, arms["fleet"], servers)
        finally:
            for arm in arms.values():
                await arm.close()
            for server in (*servers, fallback):
                await server.die()

    return lambda: asyncio.run(run())


def ask(router: Router) -> RoutedRequest:
    return router.submit(PassedRequest("completions", {"max_tokens": 1}, stream=False))  # type: ignore[arg-type]


async def said(routed: RoutedRequest) -> str:
    whole = b"".join([piece async for piece in routed.stream() if isinstance(piece, bytes)])
    return json.loads(whole)["choices"][0]["text"] if whole else f"error: {routed.error}"


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


@fleet
async def _the_least_busy(router: Router, arm: Replicas, servers: list[Server]) -> None:
    a, b, c = servers
    assert Counter([await said(ask(router)) for _ in range(9)]) == {"A": 3, "B": 3, "C": 3}
    for server in servers:
        server.begins.clear()
    held = [ask(router) for _ in range(6)]
    await until(lambda: [each.asked for each in servers] == [5, 5, 5])
    b.begins.set()  # its two end: what comes now goes there
    await until(lambda: sum(each.finish_reason is not None for each in held) == 2)
    assert [await said(ask(router)) for _ in range(4)] == ["B"] * 4
    metrics = {
        (s.name, s.labels["replica"].rpartition(":")[2]): s.value
        for family in replica_families([arm])
        for s in family.samples
    }
    assert metrics["workbench_replica_requests", str(a.port)] == 2
    assert metrics["workbench_replica_requests", str(b.port)] == 0
    a.begins.set(), c.begins.set()
    assert Counter([await said(each) for each in held]) == {"A": 2, "B": 2, "C": 2}


@fleet
async def _one_goes(router: Router, arm: Replicas, servers: list[Server]) -> None:
    a, b, _ = servers
    b.begins.clear()
    held = [ask(router) for _ in range(30)]
    await until(lambda: b.asked == 10)
    await b.die()
    assert Counter([await said(each) for each in held]) == {"A": 15, "C": 15}
    assert router.saved == 10 and not router.arms["fleet"].out and router.route.arm == "fleet"
    b.begins.set()
    await b.start()
    await until(lambda: all(each.failed is None for each in arm.replicas))
    assert {await said(ask(router)) for _ in range(3)} == {"A", "B", "C"}
    a.broken = 503  # it is loading again
    assert {await said(ask(router)) for _ in range(6)} == {"B", "C"}


@fleet
async def _all_go(router: Router, arm: Replicas, servers: list[Server]) -> None:
    for server in servers:
        server.begins.clear()
    held = [ask(router) for _ in range(6)]
    await until(lambda: sum(each.asked for each in servers) == 6)
    for server in servers:
        await server.die()
    assert {await said(each) for each in held} == {"fallback"}
    assert "none of 3 replicas answers" in (router.arms["fleet"].out or "")
    assert router.route.arm == "today"
    servers[2].begins.set()
    await servers[2].start()
    await until(lambda: router.arms["fleet"].out is None)
    router.switch("fleet")
    assert await said(ask(router)) == "C"


@pytest.mark.parametrize("case", [_the_least_busy, _one_goes, _all_go], ids=lambda c: c.__name__)
def test_a_fleet(case: Callable[[], None]) -> None:
    case()


def test_one_that_does_not_answer_at_the_start_is_waited_for_and_none_is_refused(caplog) -> None:
    async def run() -> None:
        here, later = await Server("A").start(), await Server("B").start()
        await later.die()
        arm = Replicas("fleet", [later.spec, here.spec])
        await arm.start()
        assert arm.failed is None and "other replicas answer for it" in caplog.text
        await later.start()
        await until(lambda: all(each.failed is None for each in arm.replicas))
        await arm.close()
        await here.die()
        await later.die()
        with pytest.raises(StageError, match="does not answer"):
            await Replicas("fleet", [later.spec, here.spec]).start()

    asyncio.run(run())


def test_a_name_given_again_is_a_replica_and_options_are_of_all_of_them(tmp_path) -> None:
    given = ["today=http://a:1/v1", "new=http://b:1", "new=http://c:1", "new=http://d:1"]
    found = upstreams_of(given, UpstreamOptions(models=["new=chat"], health_s=["new=3"]))
    new = found["new"].replicas
    assert [each.address for each in new] == ["http://b:1", "http://c:1", "http://d:1"]
    assert {(each.model, each.health_s) for each in new} == {("chat", 3.0)}
    assert len(found["today"].replicas) == 1
    spec = ServeSpec({}, fallback="today", route="new", upstreams=found)
    spec.save(tmp_path / "spec.json")
    assert ServeSpec.load(tmp_path / "spec.json").upstreams == found
    with pytest.raises(ConfigError, match="twice"):
        upstreams_of([*given, "new=http://c:1"])
    with pytest.raises(ConfigError, match="no base URL"):
        upstreams_of([*given, "new=ftp://c:1"])
