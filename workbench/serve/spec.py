"""What a server is to serve: given to its process as JSON, and told back when it is ready."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from workbench.files import read_json, write_json
from workbench.machine.device import DeviceName
from workbench.pilot.sections.readiness import Packing
from workbench.serve.canary import CanaryPlan
from workbench.serve.endpoint import Endpoint
from workbench.serve.front_options import DEFAULT_FRONT, FrontOptions
from workbench.serve.rollback_rule import RollbackRule

SHORT_TOKENS = 64
"""A request that wants more output is a long one."""
SLOTS_A_SHORT_ONE = 4
"""An arm has a slot more for short requests alone for so many slots, and at least one."""


ProbePrompt = str | list[dict[str, str]]
"""A text to be gone on with, or a conversation to be answered: turns with role and content."""


def fair_slots(slots: int) -> int:
    """Slots for short requests besides ``slots``, so that none waits for the end of long ones."""
    return max(1, slots // SLOTS_A_SHORT_ONE)


@dataclass(frozen=True)
class UpstreamSpec:
    """A server as an arm, or several that are one.

    address: base URL, as OpenAI's clients take it. others: those of further replicas. model: its
    name there; None leaves the client's out. api_key_env: the environment variable with its key.
    connect_s: to open a connection. silence_s: without a byte for this long an answer has hung.
    health_s: between looks at its health, and what one may take.
    """

    address: str
    model: str | None = None
    api_key_env: str | None = None
    connect_s: float = 5.0
    silence_s: float = 300.0
    health_s: float = 2.0
    others: tuple[str, ...] = ()

    @property
    def replicas(self) -> list[UpstreamSpec]:
        """One for each address."""
        return [replace(self, address=each, others=()) for each in (self.address, *self.others)]

    @property
    def endpoint(self) -> Endpoint:
        """Raises ConfigError for what is no address, and for a key that is not set."""
        return Endpoint(self.address, self.model, self.api_key_env, allow_remote=True)


@dataclass(frozen=True)
class ServeSpec:
    """A server with its arms.

    arms: name -> packed or Hugging Face folder; or, instead, upstreams: name -> another server.
    fallback: the arm that the way back leads to.
    route: the arm that answers at first, weight: its share of the requests. model: the name
    under which the route answers.
    slots: requests that run together in each arm; short_slots: besides, for those of at most
    ``short_tokens`` output alone. queue: requests that may wait.
    context: tokens of prompt and output together; None takes what the models were made for.
    threads: of each arm, 0 for all usable cores. core: what computes them, but for those of
    ``cores``. packing: how their weights lie in memory.
    hold_s, held_s, batch_wait_s, deadline_s, on_lost_stream: see :class:`Router`.
    silence_s, step_s: see :mod:`.arm`.
    evidence: against the candidate, from before a restart (:meth:`.trial.Trial.kept`).
    drain_notice_s: before it stops to listen, ``/ready`` says so that long. faults: a drill may
    order arms to fail. canary: how the route's share grows from ``weight``. sticky_user: all
    requests of a ``user`` go to one arm while the weight stays. probes: prompts that both arms of
    a canary are asked at intervals. front: how it meets its clients. meters: the pilot's section,
    whose energy it counts; None counts none. drafts: arm -> the model folder that guesses its
    tokens beside the text itself, None: the text alone (:mod:`workbench.engine.speculative`).
    """

    arms: dict[str, Path]
    fallback: str
    route: str
    model: str = "workbench"
    host: str = "127.0.0.1"
    port: int = 0
    slots: int = 4
    queue: int = 256
    context: int | None = None
    threads: int = 0
    device: DeviceName = "cpu"
    core: str = "auto"
    packing: Packing = field(default_factory=Packing)
    hold_s: float = 30.0
    held_s: float = 0.0
    evidence: dict[str, Any] | None = None
    batch_wait_s: float = 0.0
    rule: RollbackRule | None = None
    weight: float = 1.0
    short_tokens: int = SHORT_TOKENS
    short_slots: int = 0
    deadline_s: float | None = 600.0
    on_lost_stream: Literal["end", "continue"] = "end"
    silence_s: float = 10.0
    step_s: float = 60.0
    drain_notice_s: float = 0.0
    faults: bool = False
    upstreams: dict[str, UpstreamSpec] = field(default_factory=dict)
    canary: CanaryPlan | None = None
    front: FrontOptions = DEFAULT_FRONT
    meters: dict[str, Any] | None = None
    sticky_user: bool = False
    probes: tuple[ProbePrompt, ...] = ()
    drafts: dict[str, Path | None] = field(default_factory=dict)
    cores: dict[str, str] = field(default_factory=dict)

    @property
    def candidate(self) -> str:
        """What a canary brings forward: the route's arm; where that is the fallback, the last of
        the others, once somebody orders it."""
        others = [name for name in (*self.arms, *self.upstreams) if name != self.fallback]
        return others[-1] if self.route == self.fallback and others else self.route

    @property
    def all_slots(self) -> int:
        """Of each arm."""
        return self.slots + self.short_slots

    def save(self, path: Path) -> None:
        write_json(path, asdict(self) | {"packing": self.packing.model_dump()})

    @classmethod
    def load(cls, path: Path) -> ServeSpec:
        fields = read_json(path)
        arms = {name: Path(folder) for name, folder in fields.pop("arms").items()}
        drafts = {arm: of and Path(of) for arm, of in fields.pop("drafts").items()}
        rule, upstreams, canary = (fields.pop(name) for name in ("rule", "upstreams", "canary"))
        if canary:
            canary = CanaryPlan(**(canary | {"steps": tuple(canary["steps"])}))
        return cls(
            arms=arms,
            drafts=drafts,
            probes=tuple(fields.pop("probes")),
            rule=RollbackRule(**rule) if rule else None,
            canary=canary,
            packing=Packing(**fields.pop("packing")),
            front=FrontOptions(**fields.pop("front")),
            upstreams={
                name: UpstreamSpec(**(each | {"others": tuple(each["others"])}))
                for name, each in upstreams.items()
            },
            **fields,
        )


@dataclass(frozen=True)
class ArmReady:
    """An arm that is loaded and has answered once. resident_bytes: growth of its process's own
    memory by loading and warming it."""

    backend: str
    weight_bytes: int
    kv_bytes: int
    resident_bytes: int
    notes: list[str] = field(default_factory=list)
    vocab_size: int = 0


@dataclass(frozen=True)
class Ready:
    """What a server says when it listens. resident_bytes: of all its processes together; pages
    that they share count once (where the system can tell)."""

    host: str
    port: int
    context: int
    vocab_size: int
    resident_bytes: int
    arms: dict[str, ArmReady]
    scheme: str = "http"

    @property
    def address(self) -> str:
        """Where it answers, e.g. ``http://127.0.0.1:8000``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Ready:
        fields: dict[str, Any] = read_json(path)
        arms = {name: ArmReady(**arm) for name, arm in fields.pop("arms").items()}
        return cls(arms=arms, **fields)
