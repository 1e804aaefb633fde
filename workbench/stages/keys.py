"""A stage's key: a digest of all that decides its result.

Its sections of the pilot, the seed, the content of the files they name, the keys of the
stages before it, the version of the workbench and, where the result is about this machine,
the machine. Two equal keys mean that the finished result may be loaded instead.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import workbench
from workbench.machine.identity import machine_digest
from workbench.pilot.resolve import ResolvedPilot, path_fields
from workbench.pilot.spec import Pilot
from workbench.records.files import digest_json, digest_path
from workbench.stages import STAGES


def stage_key(name: str, resolved: ResolvedPilot) -> str:
    """The key that ``name`` must have to count as finished for this pilot on this machine."""
    stage = STAGES[name]
    files = {
        ".".join(map(str, keys)): _content(Path(value))
        for keys, _ in path_fields(Pilot)
        if keys[0] in stage.sections and (value := _at(resolved, keys))
        if Path(value).is_absolute()
    }
    return digest_json(
        {
            "stage": name,
            "version": workbench.__version__,
            "python": sys.version_info[:3] if stage.on_machine else None,
            "machine": machine_digest() if stage.on_machine else None,
            "seed": resolved.values["seed"],
            "sections": {section: resolved.values[section] for section in stage.sections},
            "files": files,
            "after": {before: stage_key(before, resolved) for before in stage.after},
        }
    )


@functools.lru_cache(maxsize=64)
def _content(path: Path) -> str:
    return digest_path(path)


def _at(resolved: ResolvedPilot, keys: tuple[str | int, ...]) -> str | None:
    value = resolved.values
    for key in keys:
        value = value[key]
    return value if isinstance(value, str) else None
