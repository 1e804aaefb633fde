"""The kernel that executes a notebook: this interpreter's own, whatever Jupyter is told elsewhere.

A kernelspec is looked up by name in folders that the environment names, so ``python3`` may be any
interpreter; IPython runs whatever startup files the user's profile holds; ports are chosen before
they are bound, so another process may take one in between. None of that is asked here: the
interpreter that runs the command is started with an empty profile, and is spoken to through files
of a folder of its own. What it says on standard error is kept, to be quoted if it dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop

from workbench.paths import HEADLESS, PROJECT

LONGEST_FOLDER = 80
"""Characters; a socket's whole path may have little more than 100."""
FOREIGN = ("JUPYTER_PATH", "PYTHONSTARTUP")
"""Of the environment: what would bring code of other installations into the kernel."""
LOGGERS = ("papermill", "traitlets")


class OwnKernel(AsyncKernelManager):
    """Starts this interpreter. folder: for its sockets, its profile and what it says on stderr.

    A class of its own for each notebook (:func:`own_kernel`), because nbclient makes the manager.
    """

    folder: ClassVar[Path]
    ended_with: ClassVar[int | None]
    """Exit code, negative for a signal; None while it runs, or where it was stopped by us."""

    def __init__(self, **options: Any) -> None:
        options |= {"transport": "ipc", "connection_file": str(self.folder / "kernel.json")}
        super().__init__(**options)
        self._kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3 (ipykernel)",
            language="python",
        )

    async def start_kernel(self, **options: Any) -> None:
        """Raises OSError if the interpreter cannot be started."""
        with self.stderr.open("wb") as file:
            await super().start_kernel(
                **options, env=_environment(self.folder), stdout=file, stderr=file
            )

    async def _async_is_alive(self) -> bool:
        process = getattr(self.provisioner, "process", None)
        alive = await super()._async_is_alive()
        if not alive and process is not None:
            type(self).ended_with = process.poll()
        return alive

    is_alive = _async_is_alive

    @property
    def stderr(self) -> Path:
        return self.folder / "stderr.txt"


@contextmanager
def own_kernel() -> Iterator[type[OwnKernel]]:
    """The manager's class for one notebook; its folder is gone afterwards.

    What goes wrong is an exception, and :func:`death_of` says more: what Jupyter logs besides, and
    the tracebacks that asyncio prints of the tasks an interruption leaves behind, are dropped.
    """
    temporary = tempfile.gettempdir()
    where = temporary if len(temporary) <= LONGEST_FOLDER else "/tmp"
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="workbench-", dir=where) as folder,
            _leftovers_dropped(ensure_event_loop()),
        ):
            yield type("OwnKernel", (OwnKernel,), {"folder": Path(folder), "ended_with": None})
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def death_of(kernel: type[OwnKernel]) -> str:
    """How the kernel ended, as far as it is known, in one line."""
    code = kernel.ended_with
    if code is not None and code < 0:
        how = f"was killed by {_signal_name(-code)}"
    else:
        how = "ended" if code is None else f"ended with exit code {code}"
    said = _last_words(kernel.folder / "stderr.txt")
    return f"the kernel of {sys.executable} {how}{f': {said}' if said else ''}"


def _environment(folder: Path) -> dict[str, str]:
    """This process's, with an empty IPython profile, and before all others the code that runs."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    paths = [str(PROJECT), str(PROJECT / "kernels"), kept.get("PYTHONPATH", "")]
    return kept | {
        "IPYTHONDIR": str(folder / "ipython"),
        HEADLESS: "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(stderr: Path) -> str:
    """The last line that is not empty: of a traceback, the error."""
    try:
        lines = stderr.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextmanager
def _leftovers_dropped(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Afterwards the tasks that an interruption left in ``loop`` are cancelled, and none reports.

    One that runs already is another's: nbclient then has a thread and a loop of its own.
    """
    if loop.is_running():
        yield
        return
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda *_: None)
    try:
        yield
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.set_exception_handler(handler)
