"""Where a run was made and with what, in words, and the command that makes it again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workbench.paths import PROJECT
from workbench.records.run import Run
from workbench.wording.numbers import moment
from workbench.wording.reasons import reason_words
from workbench.wording.text import Texts


def environment_view(run: Run, texts: Texts) -> dict[str, Any]:
    """Where the run was made, with what, and the command that makes it again."""
    environment = run.environment()
    readiness = run.record("readiness")  # knows what only torch and the kernels can tell
    machine = (readiness.facts.get("machine") if readiness else None) or {}
    machine |= environment.get("machine") or {}
    cpu, memory = machine.get("cpu") or {}, machine.get("memory") or {}
    unknown = texts("page.unknown")
    created = moment(run.header.get("created", unknown), texts.language)
    rows: list[tuple[str, str]] = [(texts("page.created"), created)]
    software = run.software() or {"": environment}
    rows.append((texts("page.commit"), _by_stage(software, texts, lambda it: _commit(it, texts))))
    if cpu:
        cores = texts("page.cores", cores=cpu["cores"], usable=cpu["usable_cores"])
        rows.append((texts("page.processor"), f"{cpu['model']} · {cores}"))
        rows.append((texts("page.features"), ", ".join(cpu["features"]) or texts("page.none")))
    if memory:
        gb = {k: memory[f"{k}_bytes"] / 1e9 for k in ("total", "available")}
        rows.append((texts("page.memory"), texts("page.memory_of", **gb)))
    gpus = [gpu["name"] for gpu in machine.get("gpus") or []]
    no_gpu = machine.get("no_torch_gpu_because")
    absent = texts("page.none") + (f" ({reason_words(no_gpu, texts)})" if no_gpu else "")
    rows.append((texts("page.gpus"), ", ".join(gpus) or absent))
    compiler = machine.get("compiler")
    if isinstance(compiler, dict):
        rows.append((texts("page.compiler"), " ".join(str(v) for v in compiler.values() if v)))
    rows.append((texts("page.system"), environment.get("system", unknown)))
    rows.append(
        (texts("page.python"), _by_stage(software, texts, lambda it: it.get("python", unknown)))
    )
    return {
        "rows": rows,
        "command": command_of(run),
        "packages": environment.get("packages") or {},
        "version": environment.get("workbench", unknown),
    }


def _by_stage(software: Mapping[str, Mapping], texts: Texts, tell: Callable[[Mapping], str]) -> str:
    """What all stages have in common, or which stages have what."""
    told: dict[str, list[str]] = {}
    for stage, it in software.items():
        told.setdefault(tell(it), []).append(texts.get(f"stage.{stage}", stage))
    if len(told) == 1:
        return next(iter(told))
    return "; ".join(f"{value}: {', '.join(stages)}" for value, stages in told.items())


def _commit(software: Mapping[str, Any], texts: Texts) -> str:
    git = software.get("git") or {}
    if not (commit := git.get("commit")):
        return git.get("reason", texts("page.unknown"))
    return f"{commit} ({texts('page.dirty')})" if git.get("dirty") else commit


def command_of(run: Run) -> str:
    """The command that repeats the run, the pilot's path relative to the checkout."""
    shown = in_checkout(run.header.get("pilot_file", "PILOT.yaml"))
    sets = [part for text in run.header.get("overrides", []) for part in ("--set", text)]
    return shlex.join(["workbench", "run", shown, *sets])


def in_checkout(path: str) -> str:
    """Relative to the checkout, where it lies there: what else is named stays as it is."""
    return str(Path(path).relative_to(PROJECT)) if Path(path).is_relative_to(PROJECT) else path
