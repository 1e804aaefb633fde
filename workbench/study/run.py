"""One study from its pilot to its record: the arms trained or loaded, compared, kept.

The record of a study lies in a run's folder like a stage's, and the arms beside the runs in
``studies/``, because runs share them. Tables: ``arms`` (arm, seed, kind, weights, width,
parameters, linear_parameters, model_bytes, linear_bytes, training_tokens, seconds,
teacher_seconds, teacher_tokens, rate, bits_per_byte), ``excerpts`` (arm, seed, id, nats, bytes) and
``loss`` (arm, seed, step, tokens, loss). The last metric is the headline.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any, Literal

import pandas as pd

from workbench.errors import ConfigError
from workbench.files import digest_json
from workbench.machine.cpu import cpu
from workbench.machine.device import choose_device
from workbench.paths import runs_root
from workbench.pilot.problems import did_you_mean
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.events import Progress
from workbench.records.run import open_run
from workbench.records.stage_record import StageRecord
from workbench.study import checkpoint, parity, recipe, size
from workbench.study.arm import StudyArm
from workbench.study.arms import DoJobs, train_all
from workbench.sweep.file import Resources
from workbench.sweep.here import run_here, slots_of
from workbench.sweep.on_ray import resources_of, run_on_ray
from workbench.train.preflight import require_trainable
from workbench.train.quality import bits_per_byte
from workbench.wording.counts import number_of

STUDIES: dict[str, ModuleType] = {
    "recipe": recipe,
    "parity": parity,
    "size": size,
    "checkpoint": checkpoint,
}
LOSS_POINTS = 400
"""Rows of an arm's loss that the study's own table keeps."""


def run_study(
    name: str,
    resolved: ResolvedPilot,
    *,
    jobs: int = 1,
    on: Literal["here", "ray"] = "here",
    ray_address: str | None = None,
) -> StageRecord:
    """The record of study ``name`` of a pilot; what is finished is loaded.

    jobs: trainings at a time on each device, each a process of its own; 0 takes one on each GPU, or
    one a core. on: ``ray`` makes them tasks of a cluster, each with a job's share of this machine's
    cores. Raises ConfigError before anything starts, StageError when a training failed twice; the
    arms that are finished stay.
    """
    if name not in STUDIES:
        raise ConfigError(f"study {name}: unknown{did_you_mean(name, STUDIES)}")
    arms = STUDIES[name].arms(resolved)
    for arm in arms:
        require_trainable(arm.pilot)
    do = _on_ray(arms, jobs, ray_address) if on == "ray" else _here(arms, jobs)
    run = open_run(resolved)
    stage = f"study_{name}"
    folder, key = run.stage_folder(stage), _key(name, arms)
    record = StageRecord.load(folder)
    if record and record.key == key:
        return record
    began = time.monotonic()
    record = StageRecord(stage, folder, key, time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    progress = Progress(run.events, stage)
    with run.lock(stage):
        progress.event("started", text=f"{number_of(len(arms), 'training')}")
        records = train_all(runs_root() / "studies", folder, arms, progress, do)
        _compare(STUDIES[name], record, arms, records)
        record.duration_s = round(time.monotonic() - began, 2)
        record.save()
        progress.event("finished", duration_s=record.duration_s)
    return record


def _here(arms: list[StudyArm], jobs: int) -> DoJobs:
    slots = slots_of([arm.pilot for arm in arms], jobs)
    return lambda array, say: run_here(array, slots, say)


def _on_ray(arms: list[StudyArm], jobs: int, address: str | None) -> DoJobs:
    share = Resources(cpus=max(1, cpu().usable_cores // jobs) if jobs else 1)
    resources = resources_of(share, [arm.pilot for arm in arms])
    return lambda array, say: run_on_ray(array, resources, say, address=address)


def _compare(
    study: ModuleType, record: StageRecord, arms: list[StudyArm], records: list[StageRecord]
) -> None:
    pairs = list(zip(arms, records, strict=True))
    excerpts = pd.concat([_excerpts(*pair) for pair in pairs], ignore_index=True)
    found = pd.DataFrame([row for pair in pairs for row in _rows(*pair)])
    losses = [
        kept.table("loss")[["step", "tokens", "loss"]].assign(arm=arm.name, seed=arm.seed)
        for arm, kept in pairs
        if arm.kind != "checkpoint"
    ]
    thinned = [rows.iloc[:: max(1, len(rows) // LOSS_POINTS)] for rows in losses]
    record.save_table("arms", found)
    record.save_table("excerpts", excerpts)
    record.save_table("loss", pd.concat(thinned, ignore_index=True))
    record.facts["corpus"] = arms[0].pilot.data.described
    record.facts["device"] = choose_device(arms[0].pilot.readiness.device).name
    study.figures(record, found, excerpts)


def _excerpts(arm: StudyArm, kept: StageRecord) -> pd.DataFrame:
    """Of each weights an arm has; untrained ones are an arm of their own in the study."""
    rows = kept.table("excerpts")
    name = rows["weights"].map(lambda weights: _name(arm, weights))
    return rows[["id", "nats", "bytes"]].assign(arm=name, seed=arm.seed)


def _rows(arm: StudyArm, kept: StageRecord) -> list[dict[str, Any]]:
    facts, table = kept.facts, kept.table("excerpts")
    rows = []
    for weights, sizes in facts["sizes"].items():
        own = table[table["weights"] == weights]
        trained = weights == "trained"
        row = {
            "arm": _name(arm, weights),
            "seed": arm.seed,
            "kind": arm.kind if trained else weights,
            "weights": weights,
            "width": arm.pilot.model.overrides.get("hidden_size"),
            "parameters": facts["parameters"],
            "linear_parameters": facts["linear_parameters"],
            "model_bytes": sizes["model"],
            "linear_bytes": sizes["linear"],
            "training_tokens": facts["training_tokens"],
            "seconds": facts["seconds"],
            "teacher_seconds": facts.get("teacher_seconds"),
            "teacher_tokens": facts.get("teacher_tokens"),
            "rate": facts.get("rate") or arm.pilot.train.ternary_lr or arm.pilot.train.lr,
            "bits_per_byte": bits_per_byte(own),
        }
        rows.append(row)
    return rows


def _name(arm: StudyArm, weights: str) -> str:
    if weights == "trained":
        return arm.name
    return weights if arm.kind == "checkpoint" else arm.name.replace("full_precision", weights)


def _key(name: str, arms: list[StudyArm]) -> str:
    return digest_json({"study": name, "arms": [[arm.name, arm.key] for arm in arms]})
