"""What a server is to serve: given to its process as JSON, and told back when it is ready."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workbench.files import read_json, write_json
from workbench.serve.rollback_rule import RollbackRule


@dataclass(frozen=True)
class ServeSpec:
    """A server with its arms.

    arms: name -> packed or Hugging Face folder. fallback: the arm that the way back leads to.
    route: the arm that answers at first, weight: its share of the requests. model: the name
    under which the route answers.
    slots: requests that run together in each arm. queue: requests that may wait.
    context: tokens of prompt and output together; None takes what the models were made for.
    threads: of each arm, 0 for all usable cores. hold_s, batch_wait_s: see :class:`Router`.
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
    device: str = "cpu"
    hold_s: float = 30.0
    batch_wait_s: float = 0.0
    rule: RollbackRule | None = None
    weight: float = 1.0

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> ServeSpec:
        fields = read_json(path)
        arms = {name: Path(folder) for name, folder in fields.pop("arms").items()}
        rule = fields.pop("rule")
        return cls(arms=arms, rule=RollbackRule(**rule) if rule else None, **fields)


@dataclass(frozen=True)
class ArmReady:
    """An arm that is loaded and has answered once. resident_bytes: growth of the process's own
    memory by loading and warming it."""

    backend: str
    weight_bytes: int
    kv_bytes: int
    resident_bytes: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ready:
    """What a server says when it listens. resident_bytes: of the whole process, both arms."""

    host: str
    port: int
    context: int
    vocab_size: int
    resident_bytes: int
    arms: dict[str, ArmReady]

    @property
    def address(self) -> str:
        """Where it answers, e.g. ``http://127.0.0.1:8000``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Ready:
        fields: dict[str, Any] = read_json(path)
        arms = {name: ArmReady(**arm) for name, arm in fields.pop("arms").items()}
        return cls(arms=arms, **fields)
