"""The roadmap's stages. Each is a module with ``run(context)``; none needs Jupyter or Plotly."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.stages.context import StageContext


@dataclass(frozen=True)
class Stage:
    """One step of the roadmap.

    sections: the parts of the pilot file that decide its result; they go into its key.
    after: stages whose records it reads; their keys go into its key.
    on_machine: its result is about this machine, so the machine goes into its key as well.
    """

    number: int
    name: str
    decides: str
    sections: tuple[str, ...]
    after: tuple[str, ...] = ()
    on_machine: bool = True

    @property
    def notebook(self) -> str:
        return f"{self.number:02d}_{self.name}.ipynb"

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"workbench.stages.{self.name}")

    @property
    def run(self) -> Callable[[StageContext], None]:
        return self.module.run


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(0, "readiness", "is the pilot worth starting here", ("readiness",)),
        Stage(
            1,
            "profile_load",
            'what "representative" means',
            ("profile_load",),
            on_machine=False,
        ),
        Stage(2, "train_qat", "does ternary train", ("data", "model", "train")),
        Stage(
            3,
            "measure_ab",
            "what is gained, what is lost",
            ("readiness", "measure_ab"),
            ("train_qat",),
        ),
        Stage(
            4,
            "hybrid_plan",
            "what stays precise",
            ("hybrid_plan",),
            ("train_qat",),
        ),
        Stage(
            5,
            "deploy_rollback",
            "can it run, and be taken back",
            ("readiness", "deploy_rollback"),
            ("profile_load", "train_qat", "hybrid_plan"),
        ),
        Stage(
            6,
            "report",
            "go or no go",
            ("report",),
            (
                "readiness",
                "profile_load",
                "train_qat",
                "measure_ab",
                "hybrid_plan",
                "deploy_rollback",
            ),
        ),
    )
}
