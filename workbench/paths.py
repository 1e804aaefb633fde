"""Where things lie: the checkout's folders, and the folder that keeps the runs."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.errors import ConfigError

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = PROJECT / "notebooks"


def runs_root() -> Path:
    """``$WORKBENCH_RUNS`` if set, else ``runs/`` of the checkout (of the working folder when
    the package was installed without its checkout)."""
    chosen = os.environ.get("WORKBENCH_RUNS")
    if chosen:
        return expanded(Path(chosen), "WORKBENCH_RUNS: ").resolve()
    return (PROJECT if NOTEBOOKS.is_dir() else Path.cwd()) / "runs"


def expanded(path: Path, of: str = "") -> Path:
    """``path`` with ``~`` or ``~user`` at its beginning replaced by that home folder.

    of: what named the path, for the ConfigError where there is no such home.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(
            f"{of}{path}: no home folder is known for {path.parts[0]}",
            allowed="~ or ~user, for a user of this machine",
            next_step="write the path out",
        ) from None


def shown(path: Path) -> str:
    """A path as a person would type it: relative to the working folder where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
