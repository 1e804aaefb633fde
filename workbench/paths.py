"""Where things lie: the checkout's folders, and the folder that keeps the runs."""

from __future__ import annotations

import os
from pathlib import Path

from workbench.errors import ConfigError

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = PROJECT / "notebooks"
HEADLESS = "WORKBENCH_HEADLESS"
"""Set in the kernels that ``workbench run`` executes notebooks in: nobody moves a widget there."""

SHIPPED = "workbench:"
"""Before the name of a pilot that the workbench ships, without its ending."""
BASE = f"{SHIPPED}base"
"""What the other pilots share."""


def runs_root() -> Path:
    """``$WORKBENCH_RUNS`` if set, else ``runs/`` of the checkout (of the working folder when
    the package was installed without its checkout)."""
    chosen = os.environ.get("WORKBENCH_RUNS")
    if chosen:
        return expanded(Path(chosen), "WORKBENCH_RUNS: ").resolve()
    return (PROJECT if NOTEBOOKS.is_dir() else Path.cwd()) / "runs"


def shipped_pilots() -> Path:
    """The folder of the pilots that come with the workbench: ``pilots/`` of a checkout, the same
    folder of the package where it was installed without one."""
    packaged = Path(__file__).parent / "pilots"
    return packaged.resolve() if packaged.is_dir() else PROJECT / "pilots"


def shipped_names() -> list[str]:
    """Of those pilots, without ``workbench:`` and without their ending."""
    return sorted(path.stem for path in shipped_pilots().glob("*.yaml"))


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


def located(folder: Path, name: str) -> tuple[Path, str]:
    """The path that ``name`` means in a file of ``folder``, and why nothing can be found there
    (empty where something is)."""
    try:
        path = (folder / expanded(Path(name))).resolve()
        return path, "" if path.exists() else f"no such file or folder: {shown(path)}"
    except ConfigError as error:
        return folder / name, error.got
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return folder / name, f"cannot be looked at: {name!r}: {why}"


def shown(path: Path) -> str:
    """A path as a person would type it: relative to the working folder where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
