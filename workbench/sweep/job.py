"""A job of a sweep or a study in its own process: started with its plan and number, ended in order.

``python -m MODULE PLAN NUMBER [--cores 0,1] [--with-parent]``, from a local slot, a Ray task or an
element of a Slurm array alike. SIGTERM ends it as Ctrl-C does; with ``--with-parent`` so does the
end of its standard input, which happens however its parent ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from workbench.errors import WorkbenchError

DONE, WRONG, GATE, INTERRUPTED = 0, 2, 4, 130
FINAL = (DONE, WRONG, GATE)
"""Exit codes that a second try would not change: 2 is the pilot's fault, and with 4 everything ran
and a gate failed."""


def job_parser(module: str) -> argparse.ArgumentParser:
    """Of what every job is started with."""
    parser = argparse.ArgumentParser(prog=module)
    parser.add_argument("plan", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("--cores", default="")
    parser.add_argument("--with-parent", action="store_true")
    return parser


def as_job(asked: argparse.Namespace, do: Callable[[], None]) -> int:
    """The exit code of ``do``, on its own cores. What counts the cores is imported within it."""
    keep_to(asked.cores)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if asked.with_parent:
        end_with_parent()
    try:
        do()
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def end_with_parent() -> None:
    """SIGTERM to this process when its standard input ends: an orderly end, as by Ctrl-C."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):  # not buffered: no lock that Python waits for
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watchdog", daemon=True).start()


def keep_to(cores: str) -> None:
    """This process and its children on these hardware threads alone, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
