"""Where things lie: the checkout's folders, and the folder that keeps the runs."""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = PROJECT / "notebooks"


def runs_root() -> Path:
    """``$WORKBENCH_RUNS`` if set, else ``runs/`` of the checkout (of the working folder when
    the package was installed without its checkout)."""
    chosen = os.environ.get("WORKBENCH_RUNS")
    if chosen:
        return Path(chosen).expanduser().resolve()
    return (PROJECT if NOTEBOOKS.is_dir() else Path.cwd()) / "runs"


def shown(path: Path) -> str:
    """A path as a person would type it: relative to the working folder where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
