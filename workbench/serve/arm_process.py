"""An arm's own process: a model, its scheduler, and a channel to the server that it answers to.

The channel is a pair of sockets; both ways go lines of JSON.

- From the server: ``{"ask": id, "request": {...}}``, ``{"cancel": id}``, and in a drill
  ``{"fault": kind, "seconds": s}``.
- To it: first ``{"ready": {...}}``, or ``{"unusable": {...}}`` and the end; then a line for each
  round of the scheduler, ``{"tokens": [[id, token], ...], "ended": [[id, reason, error], ...]}``,
  and where log probabilities were asked for ``"scores": [[id, "prompt", [score, ...]],
  [id, "token", score], [id, "end", score]]``, each ``[token, logprob, [[token, logprob], ...]]``;
  between them ``{"alive": [rounds, busy], "gpu_bytes": n}`` as a sign of life, of an arm that is
  drafted with its counts, ``"speculation": {...}``; and
  ``{"failed": why}`` and the end once the engine answers nothing more.

It ends when the channel does, so it outlives no server, however that ended; where it is stopped and
could not see that, the system kills it with its parent, the process that arms are forked from,
which ends with the server. Signals that are meant for the server (Ctrl-C, a service manager's
SIGTERM to all) do not end it, because answers under way are to be finished.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import StageError, WorkbenchError
from workbench.machine.device import DeviceName
from workbench.paths import shown
from workbench.pilot.sections.readiness import Packing
from workbench.serve.spec import ArmReady
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from workbench.engine.scheduler import Scheduler, SubmittedRequest
    from workbench.engine.scores import ScoredToken, TokenScore

WARM_TOKENS = 4
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: a signal to this process when its parent ends."""
BEAT_S = 0.25
"""Between signs of life."""
PRELOADED = (
    "workbench.serve.fork_parent",
    "workbench.serve.arm_process",
    "workbench.engine.build",
    "workbench.engine.scheduler",
)
"""What an arm imports. The process that all arms are forked from does it once."""


@dataclass(frozen=True)
class ArmSpec:
    """What an arm's process loads; fields as of :meth:`Engine.load`. faults: it takes orders to
    fail, for a drill. drafted: its tokens are guessed by the model in ``draft``, where there is
    one, and by the text so far."""

    folder: Path
    slots: int
    context: int
    threads: int
    device: DeviceName
    faults: bool = False
    drafted: bool = False
    draft: Path | None = None
    core: str = "auto"
    packing: Packing = field(default_factory=Packing)


def run_arm(channel: socket.socket, spec: ArmSpec) -> None:
    """Load the arm, warm it, and answer until the channel or the engine ends."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    end_with_parent()
    answers = _Answers(channel)
    try:
        arm = load_arm(spec, answers)
    except WorkbenchError as error:
        given = {"got": error.got, "allowed": error.allowed, "next_step": error.next_step}
        answers.say({"unusable": {"kind": type(error).__name__, **given}})
        return
    except Exception as error:  # whatever a library raises over a damaged folder
        got = f"{shown(spec.folder)} cannot be served: {type(error).__name__}: {error}"
        answers.say({"unusable": {"kind": "StageError", "got": got}})
        raise
    answers.say({"ready": asdict(arm.ready)})
    threading.Thread(target=_beat, args=(answers, arm.scheduler), daemon=True).start()
    try:
        with channel.makefile("rb") as orders:
            for line in orders:
                _follow(json.loads(line), arm, answers)
    finally:
        os._exit(0)  # the engine's threads may be anywhere, and nothing is to be kept


def end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, though it be stopped (Linux)."""
    with suppress(OSError, AttributeError):  # another system: the channel's end must do
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class LoadedModel:
    """faults: it takes orders to fail."""

    scheduler: Scheduler
    ready: ArmReady
    faults: bool

    def close(self) -> None:
        self.scheduler.close()
        self.scheduler.engine.close()


class _Answers:
    """What the scheduler gives, sent a round at a time. Used from several threads."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._lock = channel, threading.Lock()
        self._tokens: list[tuple[int, int]] = []
        self._ended: list[tuple[int, str, str | None]] = []
        self._scores: list[tuple[int, str, Any]] = []
        self.scheduler: Scheduler | None = None
        self.open: dict[int, SubmittedRequest] = {}

    def token(self, number: int, token: int) -> None:
        self._tokens.append((number, token))

    def scored_token(self, number: int, token: ScoredToken) -> None:
        self._scores.append((number, "token", token.score.plain()))

    def prompt(self, number: int, scores: list[TokenScore]) -> None:
        self._scores.append((number, "prompt", [score.plain() for score in scores]))

    def done(self, number: int, submitted: SubmittedRequest) -> None:
        self.open.pop(number, None)
        if submitted.end_score is not None:
            self._scores.append((number, "end", submitted.end_score.plain()))
        self._ended.append((number, submitted.finish_reason or "error", submitted.error))

    def round(self) -> None:
        """Send what there is. An engine that has failed says so instead of an end for each
        request: the server ends them, once it knows that the arm is out."""
        failed = self.scheduler.failed if self.scheduler is not None else None
        if failed:
            self._ended = [each for each in self._ended if each[1] != "error"]
        if self._tokens or self._ended or self._scores:
            scores = {"scores": self._scores} if self._scores else {}
            self.say({"tokens": self._tokens, "ended": self._ended, **scores})
            self._tokens, self._ended, self._scores = [], [], []
        if failed:
            self.say({"failed": failed})
            os._exit(1)

    def refused(self, number: int, why: str) -> None:
        """A request that the scheduler did not take."""
        self.say({"tokens": [], "ended": [(number, "error", why)]})

    def say(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._channel.sendall(line)
        except OSError:
            os._exit(0)  # the server is gone


def load_arm(spec: ArmSpec, answers: _Answers | None = None) -> LoadedModel:
    """The arm, warm: it has answered a request, so no first user pays for caches and pages.

    Raises StageError where the model does not load, fit or answer.
    """
    import psutil

    from workbench.data.tokenizer import load_tokenizer
    from workbench.engine.engine import Engine
    from workbench.engine.grammar import Grammars
    from workbench.engine.request import GenerationRequest
    from workbench.engine.scheduler import Scheduler
    from workbench.engine.speculative import SpeculativeEngine

    before = psutil.Process().memory_info().rss
    try:
        load = partial(SpeculativeEngine.load_pair, draft=spec.draft)
        engine: Engine = (load if spec.drafted else Engine.load)(
            spec.folder,
            slots=spec.slots,
            context=spec.context,
            threads=spec.threads,
            device=spec.device,
            core=spec.core,
            packing=spec.packing,
        )
    except MemoryError as error:
        raise StageError(
            f"{shown(spec.folder)} with {number_of(spec.slots, 'slot')} does not fit: {error}",
            next_step="lower slots (workbench serve: --slots, a pilot: deploy_rollback.slots)",
        ) from None
    engine.warm()
    on_round = answers.round if answers else lambda: None
    grammars = Grammars(
        partial(load_tokenizer, str(spec.folder)), engine.vocab_size, engine.eos_tokens
    )
    scheduler = Scheduler(engine, queue_limit=spec.slots, on_round=on_round, grammars=grammars)
    tokens = min(WARM_TOKENS, spec.context // 2)
    warm = GenerationRequest((0,) * tokens, max_tokens=tokens, ignore_eos=True)
    for request in [scheduler.submit(warm) for _ in range(spec.slots)]:
        request.wait()
        if request.error:
            raise StageError(
                f"{shown(spec.folder)} was loaded, and its first request failed: {request.error}",
                next_step="check the model folder; the log of the server says more",
            )
    if answers:
        answers.scheduler = scheduler
    ready = ArmReady(
        engine.backend,
        engine.weight_bytes,
        engine.kv_bytes,
        psutil.Process().memory_info().rss - before,
        engine.notes,
        vocab_size=engine.vocab_size,
    )
    return LoadedModel(scheduler, ready, spec.faults)


def _follow(order: dict[str, Any], arm: LoadedModel, answers: _Answers) -> None:
    from workbench.engine.request import GenerationRequest

    if (number := order.get("cancel")) is not None:
        if submitted := answers.open.get(number):
            submitted.cancel()
        return
    if (fault := order.get("fault")) is not None:
        from workbench.serve.faults import inject

        if arm.faults:
            inject(arm.scheduler.engine, fault, order["seconds"])
        return
    number, fields = order["ask"], order["request"]
    try:
        request = GenerationRequest(
            **{**fields, **{name: tuple(fields[name]) for name in ("prompt_tokens", "stop_tokens")}}
        )
        on_token = answers.token if request.logprobs is None else answers.scored_token
        submitted = arm.scheduler.submit(
            request,
            partial(on_token, number),
            partial(answers.done, number),
            partial(answers.prompt, number),
        )
    except (ValueError, RuntimeError) as error:  # QueueFull is one
        answers.refused(number, f"{type(error).__name__}: {error}")
        return
    answers.open[number] = submitted
    if submitted.finish_reason:  # it ended before it stood there
        answers.open.pop(number, None)


def _beat(answers: _Answers, scheduler: Scheduler) -> None:
    while True:
        answers.say(sign_of_life(scheduler))
        time.sleep(BEAT_S)


def sign_of_life(scheduler: Scheduler) -> dict[str, Any]:
    """See the module's text."""
    import torch

    from workbench.engine.speculative import SpeculativeEngine

    message: dict[str, Any] = {
        "alive": [scheduler.rounds, bool(scheduler.running or scheduler.waiting)],
        "gpu_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else None,
    }
    if isinstance(scheduler.engine, SpeculativeEngine):
        message["speculation"] = asdict(scheduler.engine.counts)
    return message
