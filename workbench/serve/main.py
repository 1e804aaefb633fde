"""The server's process: start the arms, listen, drain on SIGTERM.

Each arm runs in a process of its own (:mod:`.arm`); this one has the HTTP side, the router and
the rule. ``serve`` is what ``workbench serve`` calls. A stage starts the same thing as a process
of its own, ``python -m workbench.serve.main SPEC READY PARENT``: the client that measures must
not share the interpreter lock with the server, and a crash must not take the stage along.
That process ends by itself when its parent does, however the parent ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from workbench.child import allow_open_files
from workbench.errors import ConfigError, WorkbenchError
from workbench.serve.kept_route import route_token
from workbench.serve.log import write_log
from workbench.serve.spec import ArmReady, Ready, ServeSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.serve.arm import ArmProcess
    from workbench.serve.comparison import Comparisons
    from workbench.serve.routed import Switch
    from workbench.serve.router import Router
    from workbench.serve.service import Service

DRAIN_S = 60
"""Answers under way at SIGTERM may take this long; then they are cut."""
EVIDENCE_S = 10.0
"""So much of it a server that is killed may lose."""
PASSED_CONTEXT = 2**18
"""Tokens that the length of a body is bounded by where it goes to an upstream."""


def serve(
    spec: ServeSpec,
    announce: Callable[[Ready], None],
    token: str | None = None,
    on_switch: Callable[[Switch], None] = lambda switch: None,
    on_evidence: Callable[[dict[str, Any] | None], None] = lambda evidence: None,
) -> None:
    """Load, warm, listen; returns when the server was told to stop and has drained.

    token: what an order to change the route must carry. on_switch: told of each change.
    on_evidence: told now and then, and at the end, what there is against the candidate.
    Raises ConfigError or StageError with what is wrong; nothing is served then.
    """
    allow_open_files()
    spec.front.check()
    write_log(spec.front.log)
    with listen(spec.host, spec.port) as listener:  # before the seconds that these imports take
        if spec.arms:
            from workbench.serve.arm import import_ahead

            import_ahead()
        asyncio.run(_serve(spec, listener, announce, token, on_switch, on_evidence))


async def _serve(
    spec: ServeSpec,
    listener: socket.socket,
    announce: Callable[[Ready], None],
    token: str | None,
    on_switch: Callable[[Switch], None],
    on_evidence: Callable[[dict[str, Any] | None], None],
) -> None:
    from workbench.machine.memory import process_tree_bytes
    from workbench.serve.canary import Canary
    from workbench.serve.energy_count import energy_count
    from workbench.serve.routed import Route, ServedArm
    from workbench.serve.router import Router
    from workbench.serve.service import Service

    async with AsyncExitStack() as open_things:
        arms, shared = await _started(spec, open_things)
        router = Router(
            [ServedArm(name, arm, spec.all_slots) for name, arm in arms.items()],
            fallback=spec.fallback,
            route=Route(spec.route, spec.weight),
            queue=spec.queue,
            hold_s=spec.hold_s,
            held_s=spec.held_s,
            batch_wait_s=spec.batch_wait_s,
            rule=spec.rule,
            short_tokens=spec.short_tokens,
            kept_slots=spec.short_slots,
            deadline_s=spec.deadline_s,
            on_lost_stream=spec.on_lost_stream,
        )
        for name, arm in arms.items():
            arm.on_out = partial(router.put_out, name)
            arm.on_back = partial(router.bring_back, name)
        processes = {} if spec.upstreams else arms
        service = Service(
            router,
            shared.tokenizer,
            spec.model,
            shared.context,
            shared.vocab_size,
            token,
            processes,
            spec.faults,
            api_key=spec.front.api_key(),
            max_body_bytes=spec.front.max_body_bytes,
            sticky_user=spec.sticky_user,
        )
        counting = await asyncio.to_thread(energy_count, spec.meters)
        if spec.upstreams:
            from workbench.serve.replicas import replica_families

            service.metrics.replicas = partial(replica_families, list(arms.values()))
        service.metrics.energy = open_things.enter_context(counting).families
        told = [router.on_switch, on_switch]
        if spec.canary:
            comparisons = _comparisons(spec, router, shared)
            service.canary = canary = Canary(
                spec.canary, router, comparisons, candidate=spec.candidate
            )
            told.append(canary.switched)
            router.on_finished = _each(router.on_finished, canary.finished)
            if comparisons:
                comparing = asyncio.create_task(comparisons.run())
                open_things.callback(comparing.cancel)
        router.on_switch = _each(*told)
        if spec.evidence:
            router.trial.go_on_from(spec.evidence)
        telling = asyncio.create_task(_telling(router, on_evidence))
        open_things.callback(telling.cancel)
        host, port = listener.getsockname()[:2]
        held_bytes, ready = process_tree_bytes(), shared.ready
        sizes = shared.context, shared.vocab_size, held_bytes
        at_start = partial(announce, Ready(host, port, *sizes, ready, spec.front.scheme))
        await _listening(
            service, listener, spec, at_start, lambda: on_evidence(router.trial.kept())
        )


def _each(*told: Callable[[Any], None]) -> Callable[[Any], None]:
    """Tells all of them, in order."""

    def tell(what: Any) -> None:
        for each in told:
            each(what)

    return tell


async def _telling(router: Router, on_evidence: Callable[[dict[str, Any] | None], None]) -> None:
    while True:
        await asyncio.sleep(EVIDENCE_S)
        on_evidence(router.trial.kept())


def _comparisons(spec: ServeSpec, router: Router, shared: _Shared) -> Comparisons | None:
    """What compares the answers of a canary's arms; None where nothing shall be."""
    from workbench.serve.comparison import Comparisons, probe_requests

    assert spec.canary
    if not spec.canary.compared_share:
        return None
    probes = probe_requests(spec.probes, shared.tokenizer, shared.context)
    share, probe_s = spec.canary.compared_share, spec.canary.probe_s
    return Comparisons(router, share, probes, probe_s, candidate=spec.candidate)


@dataclass(frozen=True)
class _Shared:
    """What arms that have started have in common. tokenizer: None of upstreams."""

    tokenizer: PreTrainedTokenizerBase | None
    context: int
    vocab_size: int
    ready: dict[str, ArmReady]


async def _started(spec: ServeSpec, open_things: AsyncExitStack) -> tuple[dict[str, Any], _Shared]:
    """The arms by name, each answering; closed with ``open_things``."""
    if spec.upstreams:
        from workbench.serve.replicas import Replicas

        arms: dict[str, Any] = {n: Replicas(n, of.replicas) for n, of in spec.upstreams.items()}
        for arm in arms.values():
            open_things.push_async_callback(arm.close)
            await arm.start()
        return arms, _Shared(None, PASSED_CONTEXT, 0, {})
    from workbench.serve.room import require_room, shared_context, shared_tokenizer

    tokenizer = shared_tokenizer(spec.arms)
    context = shared_context(spec)
    require_room(spec, context)
    arms, ready = {name: _process(name, spec, context) for name in spec.arms}, {}
    for name, arm in arms.items():  # one after the other: loading takes more memory than running
        open_things.push_async_callback(arm.close)
        ready[name] = await arm.start()
    vocab_size = min(each.vocab_size for each in ready.values())
    return arms, _Shared(tokenizer, context, vocab_size, ready)


def _process(name: str, spec: ServeSpec, context: int) -> ArmProcess:
    from workbench.serve.arm import ArmProcess
    from workbench.serve.arm_process import ArmSpec

    arm = ArmSpec(
        spec.arms[name],
        spec.all_slots,
        context,
        spec.threads,
        spec.device,
        spec.faults,
        name in spec.drafts,
        spec.drafts.get(name),
        spec.cores.get(name, spec.core),
        spec.packing,
    )
    return ArmProcess(name, arm, silence_s=spec.silence_s, step_s=spec.step_s)


async def _listening(
    service: Service,
    listener: socket.socket,
    spec: ServeSpec,
    at_start: Callable[[], None],
    at_end: Callable[[], None],
) -> None:
    """``at_start`` is called once clients are answered. Until a signal, which ends this process
    once ``at_end`` was called; after SIGTERM ``/ready`` says for ``drain_notice_s`` that this
    server goes, so that whoever shares out the requests sends no more, and only then it stops to
    take them."""
    from workbench.serve.app import make_app
    from workbench.serve.connections import DrainingServer, server_config

    class Server(DrainingServer):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                at_start()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            first, service.draining = not service.draining, True
            if first and sig == signal.SIGTERM and spec.drain_notice_s:
                loop.call_soon_threadsafe(
                    loop.call_later, spec.drain_notice_s, super().handle_exit, sig, frame
                )
            else:
                super().handle_exit(sig, frame)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            at_end()

    loop = asyncio.get_running_loop()
    config = server_config(make_app(service), DRAIN_S, spec.front)
    await Server(config).serve(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is said before minutes of loading."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's delay off only for sockets that name their protocol; with it every
    # first token of a stream would wait 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:  # no such host, port or name
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            allowed="an address of this machine and a free port; 0 takes a free one",
            next_step="choose another port",
        ) from None
    return listener


def _end_with_parent(parent: int) -> None:
    """A thread that ends this process when ``parent`` has ended, even by SIGKILL: the process
    then has another parent. Its only client was that parent, so there is nothing to drain."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watchdog", daemon=True).start()


def _child(spec_path: str, ready_path: str, parent: str) -> None:
    _end_with_parent(int(parent))
    try:
        spec = ServeSpec.load(Path(spec_path))
        serve(spec, lambda ready: ready.save(Path(ready_path)), route_token())
    except WorkbenchError as error:
        print(f"workbench serve: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _child(*sys.argv[1:])
