"""What a run was begun with, for its ``environment.json``, and what each stage was made with.

A run may go on days later with newer code, so every stage's record holds the software that
decides its figures; the machine is the same for all of a run.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import workbench
from workbench.machine.describe import describe_machine
from workbench.machine.identity import machine_digest
from workbench.paths import PROJECT

DECIDING = ("torch", "transformers", "numpy", "triton")
"""Packages whose version may change a figure."""


def describe_software() -> dict[str, Any]:
    """The code and the packages that decide figures, as a stage's record keeps them."""
    return {
        "workbench": workbench.__version__,
        "git": git_state(),
        "python": sys.version.split()[0],
        "packages": {name: found for name in DECIDING if (found := _version(name))},
    }


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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(PROJECT), *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return done.stdout.strip()
