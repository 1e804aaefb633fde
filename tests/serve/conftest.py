"""A server in a thread, over schedulers that answer from a script instead of a model."""

from __future__ import annotations

import asyncio
import importlib.util
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from workbench.data.document import Document
from workbench.data.tokenizer import encode, train_tokenizer
from workbench.engine.engine import Engine
from workbench.engine.grammar import Grammars
from workbench.engine.request import GenerationRequest
from workbench.engine.scheduler import Scheduler
from workbench.engine.scores import ScoredToken, TokenScore
from workbench.serve.app import make_app
from workbench.serve.connections import DrainingServer, server_config
from workbench.serve.front_options import DEFAULT_FRONT, FrontOptions
from workbench.serve.main import listen
from workbench.serve.routed import Route, ServedArm
from workbench.serve.router import Router
from workbench.serve.service import Service

CONTEXT = 64


def _loaded(name: str) -> ModuleType:
    """A module of this folder, as a command of this folder finds it."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_loaded("stepped_loop")  # for several files of tests


@dataclass(eq=False)
class ScriptedRequest:
    """What the router holds of a request."""

    request: GenerationRequest
    on_token: Callable[[int], None]
    on_done: Callable[[ScriptedRequest], None]
    finish_reason: str | None = None
    error: str | None = None
    cancelled: bool = False
    given: int = 0

    def cancel(self) -> None:
        self.cancelled = True


class ScriptedScheduler:
    """Answers every request with the same tokens, round and round, one a step.

    gate: no token comes while it is closed. broken: the error that requests end with.
    fail_after: tokens before that error. fail(): its engine is gone.
    """

    def __init__(self, script: Sequence[int], step_s: float = 0.002) -> None:
        self.script, self.step_s = list(script), step_s
        self.gate = threading.Event()
        self.gate.set()
        self.broken: str | None = None
        self.failed: str | None = None
        self.fail_after = 0
        self.seen: list[ScriptedRequest] = []
        self._running: list[ScriptedRequest] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def submit(self, request, on_token, on_done) -> ScriptedRequest:
        handle = ScriptedRequest(request, on_token, on_done)
        self.seen.append(handle)
        self._running.append(handle)
        return handle

    def fail(self, why: str) -> None:
        self.broken = self.failed = why

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._closing.wait(self.step_s):
            for handle in list(self._running):
                self._step(handle)

    def _step(self, handle: ScriptedRequest) -> None:
        if handle.cancelled:
            return self._end(handle, "cancelled")
        if self.broken and handle.given >= self.fail_after:
            handle.error = self.broken
            return self._end(handle, "error")
        if not self.gate.is_set():
            return None
        token = self.script[handle.given % len(self.script)]
        scored = handle.request.logprobs is not None
        handle.on_token(ScoredToken(TokenScore(token, -0.5)) if scored else token)
        handle.given += 1
        if handle.given >= handle.request.max_tokens:
            self._end(handle, "length")
        return None

    def _end(self, handle: ScriptedRequest, reason: str) -> None:
        self._running.remove(handle)
        handle.finish_reason = reason
        handle.on_done(handle)


@dataclass
class Served:
    """A running server. schedulers: arm -> its script."""

    address: str
    service: Service
    schedulers: dict[str, ScriptedScheduler]
    client: httpx.Client
    tokenizer: object = field(repr=False)
    loop: asyncio.AbstractEventLoop = field(repr=False)

    def in_loop(self, work: Callable[..., object], *given: object) -> None:
        """Call ``work(*given)`` where the router lives."""

        async def call() -> None:
            work(*given)

        asyncio.run_coroutine_threadsafe(call(), self.loop).result(5)

    def complete(self, **fields) -> httpx.Response:
        return self.client.post("/v1/completions", json={"prompt": "def", **fields})

    def until(self, holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
        limit = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < limit, "it never happened"
            time.sleep(0.005)


@pytest.fixture(scope="session")
def tokenizer():
    text = "def f(x):\n    return x  # café, 日本語, 😀\n" * 40
    return train_tokenizer([Document("one", "test", text)], 400)


@pytest.fixture(scope="session")
def soak() -> ModuleType:
    """soak.py, which is a command as well, beside what it imports."""
    _loaded("soak_client")
    return _loaded("soak")


@pytest.fixture(scope="session")
def arms(soak, tokenizer, tmp_path_factory) -> dict[str, Path]:
    """A full-precision model and another one, ternary, so that their answers differ."""
    return soak.arms_in(tmp_path_factory.mktemp("arms"), tokenizer)


@pytest.fixture
def serve(tokenizer) -> Iterator[Callable[..., Served]]:
    """Starts servers with the arms full_precision (says "A") and hybrid (says "B")."""
    with ExitStack() as stack:
        yield lambda **options: _start(stack, tokenizer, **options)


@pytest.fixture(scope="module")
def plain(tokenizer) -> Iterator[Served]:
    """One server for tests that leave it as it is."""
    with ExitStack() as stack:
        yield _start(stack, tokenizer)


@dataclass
class Answering:
    """A server whose arms are one small model. engine: of its own, to look things up in."""

    address: str
    service: Service
    engine: Engine = field(repr=False)
    tokenizer: object = field(repr=False)
    client: httpx.Client = field(repr=False)


@pytest.fixture(scope="session")
def answering(tokenizer, arms) -> Iterator[Answering]:
    """It computes its answers; for tests that leave it as it is."""
    with ExitStack() as stack:
        served = []
        for name in arms:
            engine = stack.enter_context(
                Engine.load(arms["full_precision"], slots=4, context=128, threads=1)
            )
            grammars = Grammars(lambda: tokenizer, engine.vocab_size, engine.eos_tokens)
            scheduler = stack.enter_context(Scheduler(engine, grammars=grammars))
            served.append(ServedArm(name, scheduler, 4))
        router = Router(served, fallback="full_precision", route=Route("hybrid", 0.5))
        service = Service(router, tokenizer, "pilot", 128, engine.vocab_size)
        address = stack.enter_context(_listening(service)).address
        client = stack.enter_context(httpx.Client(base_url=address, trust_env=False, timeout=30))
        own = stack.enter_context(
            Engine.load(arms["full_precision"], slots=1, context=128, threads=1)
        )
        yield Answering(address, service, own, tokenizer, client)


def _start(
    stack: ExitStack,
    tokenizer,
    *,
    slots: int = 2,
    texts: dict[str, str] | None = None,
    step_s: float = 0.002,
    front: FrontOptions = DEFAULT_FRONT,
    **router,
) -> Served:
    texts = {"full_precision": "A", "hybrid": "B", **(texts or {})}
    schedulers = {
        name: ScriptedScheduler(encode(tokenizer, [text])[0], step_s)
        for name, text in texts.items()
    }
    arms = [ServedArm(name, scheduler, slots) for name, scheduler in schedulers.items()]
    options = {"fallback": "full_precision", "route": Route("hybrid"), **router}
    service = Service(
        Router(arms, **options),
        tokenizer,
        "pilot",
        CONTEXT,
        len(tokenizer),
        api_key=front.api_key(),
        max_body_bytes=front.max_body_bytes,
    )
    listening = stack.enter_context(_listening(service, front))
    address = listening.address
    verify = ssl.create_default_context(cafile=front.certificate) if front.certificate else True
    client = stack.enter_context(httpx.Client(base_url=address, trust_env=False, verify=verify))
    for scheduler in schedulers.values():
        stack.callback(scheduler.close)
    return Served(address, service, schedulers, client, tokenizer, listening.loop)


class _listening:
    def __init__(self, service: Service, front: FrontOptions = DEFAULT_FRONT) -> None:
        self._socket = listen("127.0.0.1", 0)
        self._server = DrainingServer(server_config(make_app(service), drain_s=1, front=front))
        self.address = f"{front.scheme}://127.0.0.1:{self._socket.getsockname()[1]}"
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.loop.run_until_complete(self._server.serve(sockets=[self._socket]))
        self.loop.close()

    def __enter__(self) -> _listening:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.001)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()
