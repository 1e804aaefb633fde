"""The versions a run was made with, for ``environment.json`` of the run."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import workbench
from workbench.machine.describe import describe_machine
from workbench.machine.identity import machine_digest
from workbench.paths import PROJECT


def describe_environment() -> dict[str, Any]:
    """Code, interpreter, packages, operating system and machine, as plain data."""
    return {
        "workbench": workbench.__version__,
        "git": git_state(),
        "python": sys.version.split()[0],
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": package_versions(),
        "machine_digest": machine_digest(),
        "machine": describe_machine(),
    }


def git_state() -> dict[str, Any]:
    """``commit`` and ``dirty`` of the checkout; both None outside of one, with the reason."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != PROJECT:
            return {"commit": None, "dirty": None, "reason": "installed without its checkout"}
        commit = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return {"commit": None, "dirty": None, "reason": said.strip().splitlines()[0]}
    return {"commit": commit, "dirty": dirty}


def package_versions() -> dict[str, str]:
    """Every installed distribution and its version, sorted by name."""
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(PROJECT), *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout.strip()
