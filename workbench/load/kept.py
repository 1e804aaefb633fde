"""Profiles of traces, kept below the runs folder: a trace is read once, whatever asks for it.

A pilot is checked before it starts, run, shown in a notebook and run again with other values: each
would read a trace of gigabytes. So what one pass found lies in ``runs/traces/<key>``; the key
digests the file's place, size and time of change, the fields of ``profile_load`` that say how it is
read, and the version of the workbench. Any such folder may be removed: it is made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import workbench
from workbench.errors import ConfigError
from workbench.files import digest_json, read_json, write_json
from workbench.load.profile import GRID, REQUESTS, SUMMARY, LoadProfile
from workbench.load.servegen import read_servegen
from workbench.load.summary import VERSION
from workbench.load.trace import Trace, read_trace
from workbench.paths import runs_root, shown
from workbench.pilot.sections.profile_load import ProfileLoad

READING = (
    *("format", "columns", "pattern", "time_unit", "time_format", "time_zone", "delimiter"),
    *("decimal", "max_bad_share", "reorder_s", "interactive_max_output_tokens", "window_s"),
)
"""Fields of ``profile_load`` that decide what a trace is read as."""
PASS = "pass.json"


def profile_of_trace(
    section: ProfileLoad,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LoadProfile:
    """The profile of ``section.trace``, read now or kept from before.

    progress: is told bytes read and bytes in all. seed: of what ServeGen's windows draw.
    Raises ConfigError as :func:`workbench.load.trace.read_trace`.
    """
    path = Path(section.trace)
    folder = runs_root() / "traces" / _key(path, section, seed)
    if (folder / PASS).exists():
        return LoadProfile.at(folder)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the runs folder {shown(runs_root())}: {error.strerror or error}",
            allowed="a folder that can be written",
            next_step="set WORKBENCH_RUNS to one",
        ) from error
    try:
        if path.is_dir():
            trace = read_servegen(path, section, seed, partial / REQUESTS)
        else:
            trace = read_trace(path, section, partial / REQUESTS, progress)
        LoadProfile.of(trace, section.window_s, partial)
        write_json(partial / PASS, pass_facts(trace))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return LoadProfile.at(folder)


def pass_facts(trace: Trace) -> dict[str, Any]:
    """What the pass over the file found beside its requests."""
    return {
        "format": trace.format,
        "sha256": trace.sha256,
        "rows": trace.rows,
        "seconds": round(trace.seconds, 3),
        "failed": trace.failed or {},
        "bad_lines": trace.bad_lines,
    }


def facts_of(profile: LoadProfile) -> dict[str, Any]:
    """The facts of the pass that made a kept profile."""
    return read_json(profile.folder / PASS)


def put(profile: LoadProfile, folder: Path) -> LoadProfile:
    """The same profile with its files in ``folder``: linked, or copied where links are not."""
    for name in (REQUESTS, GRID, SUMMARY):
        target = folder / name
        target.unlink(missing_ok=True)
        try:
            os.link(profile.folder / name, target)
        except OSError:
            shutil.copyfile(profile.folder / name, target)
    return LoadProfile.at(folder)


def _key(path: Path, section: ProfileLoad, seed: int) -> str:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    try:
        states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise ConfigError(
            f"{shown(path)}: cannot be read: {error.strerror}",
            allowed="a readable trace file",
            next_step="correct profile_load.trace",
        ) from None
    values = section.model_dump(mode="json")
    return digest_json(
        {
            "path": str(path.resolve()),
            "states": states,
            "seed": seed if path.is_dir() else None,
            "reading": {name: values[name] for name in READING},
            "version": [workbench.__version__, VERSION],
        }
    )
