"""The server's process: load the arms, warm them, listen, drain on SIGTERM.

``serve_run`` is what ``workbench serve`` calls. A stage starts the same thing as a process of
its own, ``python -m workbench.serve.main SPEC READY PARENT``: the client that measures must
not share the interpreter lock with the engines, and a crash must not take the stage along.
That process ends by itself when its parent does, however the parent ended.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.child import allow_open_files
from workbench.errors import ConfigError, StageError, WorkbenchError
from workbench.machine.cpu import measurement_threads
from workbench.machine.gpu import torch_gpu, torch_gpu_memory
from workbench.machine.memory import memory
from workbench.paths import shown
from workbench.serve.kept_route import TOKEN_HEADER, KeptRoute, route_token
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.spec import ArmReady, Ready, ServeSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from workbench.engine.scheduler import Scheduler
    from workbench.records.run import Run
    from workbench.serve.router import Switch

DRAIN_S = 60
"""Answers under way at SIGTERM may take this long; then they are cut."""
WARM_TOKENS = 4
MB, GB = 1e6, 1e9


def serve_run(
    folders: Sequence[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    slots: int = 4,
    queue: int = 256,
    batch_wait_ms: float = 0.0,
    threads: int = 0,
    device: str = "cpu",
    route: str | None = None,
    weight: float | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    A run is served by its pilot's rollback rule and hold, and goes on with the route that it had
    when it was served last.

    folders: one run, by its folder or its name (its full-precision model is the fallback, its
        hybrid the route), or model folders, packed or Hugging Face: the first is the fallback,
        the last the route.
    Raises ConfigError or StageError with what is wrong; nothing is served then.
    """
    measurement_threads(threads, "--threads")
    arms = arms_of(folders)
    names = list(arms)
    run = _served_run(folders)
    kept = KeptRoute.of(run) if run else None
    if route is not None and route not in arms:
        raise ConfigError(f"--route {route}", allowed=", ".join(arms))
    if route is None and weight is None and kept and kept.arm in arms:
        route, weight, reason = kept.arm, kept.weight, kept.reason
    else:
        route, reason = route or names[-1], "at the start"
    spec = ServeSpec(
        arms,
        fallback=names[0],
        route=route,
        weight=1.0 if weight is None or route == names[0] else weight,
        host=host,
        port=port,
        slots=slots,
        queue=queue,
        batch_wait_s=batch_wait_ms / 1e3,
        threads=threads,
        device=device,
        **_pilot_s_rule(run),
    )
    token = route_token() or secrets.token_urlsafe()

    def keep(address: str, arm: str, weight: float, reason: str) -> KeptRoute:
        now = KeptRoute(arm, weight, reason, spec.fallback, address, token)
        if run:
            now.keep(run.folder)
        return now

    def announce(ready: Ready) -> None:
        now = keep(ready.address, spec.route, spec.weight, reason)
        print(f"serving {', '.join(names)} on {ready.address}/v1: {now.said()}")
        how = f"workbench route {run.name} --back" if run else f"{TOKEN_HEADER}: {token}"
        print(f"the way back: {how}", flush=True)
        addresses.append(ready.address)

    def switched(switch: Switch) -> None:
        now = keep(addresses[0], switch.to_arm, switch.weight, switch.reason)
        print(f"route: {now.said()}", flush=True)

    addresses: list[str] = []
    serve(spec, announce, token, switched)


def _pilot_s_rule(run: Run | None) -> dict[str, Any]:
    """When the run's pilot would go back, and how long a share stays lowered."""
    if run is None:
        return {}
    section = run.resolved().pilot.deploy_rollback
    rule = RollbackRule(**section.rollback_rule.model_dump()) if section.rollback_rule else None
    return {"rule": rule, "hold_s": section.hold_s}


def _served_run(folders: Sequence[Path]) -> Run | None:
    from workbench.records.run import HEADER, find_run

    if len(folders) == 1 and (not folders[0].is_dir() or (folders[0] / HEADER).exists()):
        return find_run(str(folders[0]))
    return None


def arms_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Names and model folders; see :func:`serve_run`."""
    if run := _served_run(folders):
        arms = {}
        for arm, stage in (("full_precision", "train_qat"), ("hybrid", "hybrid_plan")):
            record = run.record(stage)
            if record is None:
                raise StageError(
                    f"{run.name} has no finished {stage}, which makes the arm {arm}",
                    next_step="finish that run with workbench run, or name model folders",
                )
            arms[arm] = record.artefact(arm)
        return arms
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{shown(folder)} is neither a run nor a model folder",
                allowed="a run's folder, or folders with config.json, weights and tokenizer",
                next_step="workbench runs lists the runs",
            )
    for folder in folders:
        _require_text(folder.resolve().name)
    arms = {folder.resolve().name: folder for folder in folders}
    if not folders or len(arms) < len(folders):
        raise ConfigError(
            f"{len(folders)} folders with {len(arms)} different names",
            allowed="one or more model folders whose last parts differ: they name the arms",
        )
    return arms


def _require_text(name: str) -> None:
    """ConfigError for a folder's name that no answer could carry: it becomes the arm's name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"the model folder {name!a} has bytes in its name that are no UTF-8",
            allowed="a name in UTF-8: the arm is called by it",
            next_step="rename the folder, or give a link to it",
        ) from None


def serve(
    spec: ServeSpec,
    announce: Callable[[Ready], None],
    token: str | None = None,
    on_switch: Callable[[Switch], None] = lambda switch: None,
) -> None:
    """Load, warm, listen; returns when the server was told to stop and has drained.

    token: what an order to change the route must carry. on_switch: told of each change.
    """
    allow_open_files()
    listener = listen(spec.host, spec.port)  # before the seconds that these imports take
    import psutil
    import uvicorn

    from workbench.engine.build import read_config
    from workbench.serve.app import Service, make_app
    from workbench.serve.connections import server_config
    from workbench.serve.router import Route, Router, ServedArm

    with ExitStack() as open_things:
        open_things.callback(listener.close)
        tokenizer = _shared_tokenizer(spec.arms)
        configs = [read_config(folder) for folder in spec.arms.values()]
        context = _shared_context(spec, configs)
        _require_room(spec, configs, context)
        loaded = {}
        for name, folder in spec.arms.items():
            loaded[name] = _load_arm(folder, spec, context)
            open_things.callback(loaded[name].close)
        vocab_size = min(arm.scheduler.engine.vocab_size for arm in loaded.values())
        router = Router(
            [ServedArm(name, arm.scheduler, spec.slots) for name, arm in loaded.items()],
            fallback=spec.fallback,
            route=Route(spec.route, spec.weight),
            queue=spec.queue,
            hold_s=spec.hold_s,
            batch_wait_s=spec.batch_wait_s,
            rule=spec.rule,
        )
        service = Service(router, tokenizer, spec.model, context, vocab_size, token)
        counted = router.on_switch
        router.on_switch = lambda switch: (counted(switch), on_switch(switch))
        config = server_config(make_app(service), DRAIN_S)
        host, port = listener.getsockname()[:2]
        resident = psutil.Process().memory_info().rss
        arms = {name: arm.ready for name, arm in loaded.items()}
        announce(Ready(host, port, context, vocab_size, resident, arms))
        uvicorn.Server(config).run(sockets=[listener])


@dataclass
class _LoadedArm:
    scheduler: Scheduler
    ready: ArmReady

    def close(self) -> None:
        self.scheduler.close()
        self.scheduler.engine.close()


def _load_arm(folder: Path, spec: ServeSpec, context: int) -> _LoadedArm:
    """The arm, warm: it has answered a request, so no first user pays for caches and pages."""
    import psutil

    from workbench.engine.engine import Engine
    from workbench.engine.request import GenerationRequest
    from workbench.engine.scheduler import Scheduler

    before = psutil.Process().memory_info().rss
    try:
        engine = Engine.load(
            folder, slots=spec.slots, context=context, threads=spec.threads, device=spec.device
        )
    except MemoryError as error:
        raise StageError(
            f"{shown(folder)} with {spec.slots} slots does not fit: {error}",
            next_step="lower slots (workbench serve: --slots, a pilot: deploy_rollback.slots)",
        ) from None
    engine.warm()
    scheduler = Scheduler(engine, queue_limit=spec.slots)
    tokens = min(WARM_TOKENS, context // 2)
    warm = GenerationRequest((0,) * tokens, max_tokens=tokens, ignore_eos=True)
    for request in [scheduler.submit(warm) for _ in range(spec.slots)]:
        request.wait()
        if request.error:
            raise StageError(
                f"{shown(folder)} was loaded, and its first request failed: {request.error}",
                next_step="check the model folder; the log of the server says more",
            )
    grown = psutil.Process().memory_info().rss - before
    ready = ArmReady(engine.backend, engine.weight_bytes, engine.kv_bytes, grown, engine.notes)
    return _LoadedArm(scheduler, ready)


def _shared_tokenizer(arms: dict[str, Path]) -> PreTrainedTokenizerBase:
    """The tokenizer of all arms: a prompt is encoded before its arm is known."""
    from workbench.data.tokenizer import load_tokenizer

    tokenizers = {name: load_tokenizer(str(folder)) for name, folder in arms.items()}
    (first, tokenizer), *others = tokenizers.items()
    for name, other in others:
        if other.get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                f"the arms {first} and {name} have different tokenizers",
                allowed="arms of one training, which share their tokenizer",
                next_step="serve them with two servers",
            )
    return tokenizer


def _shared_context(spec: ServeSpec, configs: Sequence[PretrainedConfig]) -> int:
    """Tokens that a request may have in every arm."""
    from workbench.engine.build import LONGEST_CONTEXT

    longest = LONGEST_CONTEXT if spec.context is None else spec.context
    for config in configs:
        longest = min(longest, getattr(config, "max_position_embeddings", None) or longest)
    return longest


def _require_room(spec: ServeSpec, configs: Sequence[PretrainedConfig], context: int) -> None:
    """ConfigError unless the keys and values of all slots fit what is free; nothing of the models
    is loaded yet."""
    on_gpu = spec.device == "cuda" and torch_gpu()[0]
    free = torch_gpu_memory()[0] if on_gpu else memory().available_bytes
    slot_bytes = sum(_slot_bytes(config.get_text_config(), context) for config in configs)
    if spec.slots * slot_bytes > free:
        raise ConfigError(
            f"{spec.slots} slots keep {spec.slots * slot_bytes / GB:.1f} GB of keys and values: "
            f"{slot_bytes / MB:.1f} MB each, {context} tokens in {len(configs)} arms",
            allowed=f"at most {free // slot_bytes}, and the weights come on top: "
            f"{free / GB:.1f} GB are free",
            next_step="lower slots (workbench serve: --slots, a pilot: deploy_rollback.slots)",
        )


def _slot_bytes(config: PretrainedConfig, context: int) -> int:
    """Bytes of a conversation's keys and values, two a value; 0 of a model that keeps none."""
    heads = getattr(config, "num_attention_heads", 0)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    return 2 * 2 * config.num_hidden_layers * context * kv_heads * head_dim


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
