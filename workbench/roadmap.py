"""The roadmap: which stages there are, what decides their results, and in which order.

Only names and orders: a stage's code is found by :mod:`workbench.stages.find`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError
from workbench.pilot.problems import did_you_mean


@dataclass(frozen=True)
class Stage:
    """One step of the roadmap.

    sections: the parts of the pilot file that decide its result, whole sections or one field of a
        section; they go into its key.
    after: stages whose records it reads; their keys go into its key.
    on_machine: its result is about this machine, so the machine goes into its key as well.
    adoptable: costly and not about speed: another run of the pilot may take over the result.
    """

    number: int
    name: str
    decides: str
    sections: tuple[str, ...]
    after: tuple[str, ...] = ()
    on_machine: bool = True
    adoptable: bool = False

    @property
    def notebook(self) -> str:
        return f"{self.number:02d}_{self.name}.ipynb"


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            0,
            "readiness",
            "is the pilot worth starting here",
            ("readiness", "model", "data", "train", "measure_ab"),
        ),
        Stage(
            1,
            "profile_load",
            'what "representative" means',
            ("profile_load",),
            on_machine=False,
        ),
        Stage(
            2,
            "train_qat",
            "does ternary train",
            ("data", "model", "train", "readiness.device"),
            adoptable=True,
        ),
        Stage(
            3,
            "measure_ab",
            "what is gained, what is lost",
            (
                "readiness.device",
                "readiness.threads",
                "readiness.core",
                "readiness.packing",
                "measure_ab",
                "prompts",
                "tasks",
            ),
            ("profile_load", "train_qat"),
        ),
        Stage(
            4,
            "hybrid_plan",
            "what stays precise",
            ("hybrid_plan", "readiness.device"),
            ("train_qat",),
            adoptable=True,
        ),
        Stage(
            5,
            "deploy_rollback",
            "can it run, and be taken back",
            (
                "readiness.device",
                "readiness.threads",
                "readiness.core",
                "readiness.packing",
                "deploy_rollback",
            ),
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


ONLY_SHOWN = {"train.trackers", "train.launch"}
"""Fields of these sections that decide no result: they are asked for again without computing."""


def deciding(stage: str) -> set[str]:
    """The pilot's sections, or fields of them, that decide a stage, through the stages before it
    as well."""
    own = {"seed", *STAGES[stage].sections}
    return own.union(*(deciding(before) for before in STAGES[stage].after))


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """What decides in a section, or the one value that ``section.field`` names."""
    *sections, last = name.split(".")
    for part in sections:
        values = values[part]
    value = values[last]
    if not isinstance(value, Mapping):
        return value
    return {field: v for field, v in value.items() if f"{name}.{field}" not in ONLY_SHOWN}


def place_of(stage: str) -> str:
    """``stage 3 of 7``; empty for what is no stage of the roadmap (a study)."""
    return f"stage {STAGES[stage].number + 1} of {len(STAGES)}" if stage in STAGES else ""


def stage_named(text: str) -> Stage:
    """A stage by name, notebook name or number: ``train_qat``, ``02_train_qat``, ``2``.

    Raises ConfigError naming the stages there are.
    """
    bare = text.removesuffix(".ipynb")
    for stage in STAGES.values():
        if bare in (stage.name, f"{stage.number:02d}_{stage.name}", str(stage.number)):
            return stage
    raise ConfigError(f"stage {text}: unknown{did_you_mean(text, STAGES)}")
