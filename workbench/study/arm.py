"""One training of a study: a pilot with a few values changed, and the key of its result.

An arm is looked up by its key, a digest of all that decides what it becomes. So a study that
was killed goes on with the arms it lacks, a changed recipe trains only itself, and studies
share the arms that they have in common: the full-precision baseline is trained once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import workbench
from workbench.data.tokenizer import tokenizer_name
from workbench.errors import ConfigError
from workbench.files import digest_json, digest_path
from workbench.paths import shown
from workbench.pilot.problems import did_you_mean
from workbench.pilot.recipe import on_its_own_way
from workbench.pilot.resolve import ResolvedPilot, resolved_from
from workbench.pilot.spec import Pilot
from workbench.train.schedule import TrainedArm

SECTIONS = ("train", "model")
StudyKind = Literal[TrainedArm, "checkpoint"]
"""checkpoint: the model that ``model.checkpoint`` names, judged as it came; nothing is trained."""
TERNARY_ONLY = {
    "train": (
        "ternary_lr",
        "sub_norm_warmup",
        "warmup",
        "threshold",
        "finetune",
        "second_stage",
        "rate_sweep",
        "regularisation",
        "regularisation_strength",
        "distillation",
    ),
    "model": ("threshold", "sub_norm"),
}
"""What touches neither the full-precision arm, so that no recipe trains the baseline again, nor
the post-training weights that are made of it."""


@dataclass(frozen=True)
class StudyArm:
    """name: of the arm in the study. kind: which of the trainings, or none. pilot: its ``data``,
    ``model`` and ``train`` decide, ``pilot.seed`` draws weights and batches. split_seed: of the
    documents held out, the same for all arms of a study. teacher: the full-precision arm that
    this one is distilled from, trained before it."""

    name: str
    kind: StudyKind
    pilot: Pilot
    split_seed: int
    teacher: StudyArm | None = None

    @property
    def seed(self) -> int:
        return self.pilot.seed

    @property
    def label(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def key(self) -> str:
        """Two arms with one key have one result."""
        values = self.pilot.model_dump(mode="json")
        sections = {name: dict(values[name]) for name in SECTIONS}
        if not self.pilot.train.compensated_start.sequences:
            del sections["train"]["compensated_start"]  # arms from before it are as they were
        if self.kind != "ternary":
            for section, fields in TERNARY_ONLY.items():
                for field in fields:
                    sections[section].pop(field, None)
        untrained = self.kind == "checkpoint"
        if untrained:
            decide = ("eval_sequences", "compensated_start")  # the latter its post-training weights
            sections["train"] = {k: v for k, v in sections["train"].items() if k in decide}
        return digest_json(
            {
                "version": workbench.__version__,
                "kind": self.kind,
                "seed": None if untrained else self.seed,
                "data": self.data_key,
                "files": _digest_of(self.pilot.model.checkpoint),
                "teacher": self.teacher.key if self.teacher else None,
                "device": self.pilot.readiness.device,
                **sections,
            }
        )

    @property
    def data_key(self) -> str:
        """Of the tokenizer and the tokens, which all arms on one corpus share."""
        data = self.pilot.data
        tokenizer = tokenizer_name(data, self.pilot.model.checkpoint)
        return digest_json(
            {
                "data": data.model_dump(mode="json"),
                "tokenizer": tokenizer,
                "files": [*(_digest_of(part.corpus) for part in data.parts), _digest_of(tokenizer)],
                "seed": self.split_seed,
            }
        )


def make_arm(
    resolved: ResolvedPilot, name: str, kind: StudyKind, seed: int, values: Mapping[str, Any]
) -> StudyArm:
    """The pilot with ``values`` (sections train and model) over its own.

    Raises ConfigError that names the arm when a value is not allowed.
    """
    for section in values:
        if section not in SECTIONS:
            raise ConfigError(
                f"{shown(resolved.path)}: study arm {name}: {section}: a study's arms differ in "
                f"sections{did_you_mean(section, SECTIONS)}"
            )
    under = {**resolved.values, "seed": seed}
    if resolved.pilot.train.compensated_start.sequences:
        under = _over(under, on_its_own_way(under, values))
    merged = _over(under, values)
    try:
        pilot = resolved_from(merged, resolved.path).pilot
    except ConfigError as error:
        raise ConfigError(
            f"{error.got} (study arm {name})",
            next_step=f"correct the arm {name} in {shown(resolved.path)}; nothing was started",
        ) from error
    arm = StudyArm(name, kind, pilot, resolved.pilot.seed)
    if kind == "ternary" and pilot.train.distillation.teacher == "full_precision":
        return replace(arm, teacher=replace(arm, name="teacher", kind="full_precision"))
    return arm


def _over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``under`` with the leaves of ``over`` in their places."""
    merged = dict(under)
    for key, value in over.items():
        own = merged.get(key)
        both = isinstance(own, Mapping) and isinstance(value, Mapping)
        merged[key] = _over(own, value) if both else value
    return merged


def _digest_of(name: str | None) -> str | None:
    """The content of a file or folder; a name (``python``, ``hf:...``) stands for itself."""
    if name is None or not Path(name).is_absolute():
        return name
    return digest_path(Path(name))
