"""``python -m workbench.sweep.one_run SWEEP.json NUMBER``: one run of a sweep, as its own process.

What a local slot, a Ray task and an element of a Slurm array start alike. It ends as ``workbench
run`` does, with its exit code; a run that is finished ends at once. With ``--with-parent`` it stops
in order when its standard input ends, which happens however the sweep ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

from workbench.errors import ConfigError, WorkbenchError
from workbench.records.run import Run, open_run
from workbench.records.sweep import KeptRun, KeptSweep, is_finished, load_sweep

DONE, WRONG, GATE, INTERRUPTED = 0, 2, 4, 130
FINAL = (DONE, WRONG, GATE)
"""Exit codes that a second try would not change: 2 is the pilot's fault, and with 4 everything ran
and a gate failed."""
WAIT_S = 120.0
"""For another process to leave the run: one that was killed takes its own children along."""


def run_of(sweep: KeptSweep, number: int) -> KeptRun:
    """Raises ConfigError for a number that the sweep does not have."""
    for kept in sweep.runs:
        if kept.number == number:
            return kept
    raise ConfigError(f"sweep {sweep.name}: no run {number}", allowed=f"1 to {len(sweep.runs)}")


def do(kept: KeptRun, *, notebooks: bool | None) -> None:
    """Run it, or go on with it; nothing where it is finished on whatever machine.

    Raises what ``workbench run`` raises, and ConfigError where the pilot file is no longer what
    the sweep was made of.
    """
    from workbench.pilot.resolve import resolve
    from workbench.records.run import identity_of
    from workbench.runner.pilot_run import raise_failed_gates, run_pilot

    done = kept.run()
    if done and is_finished(done):
        raise_failed_gates(done)
        return
    resolved = resolve(kept.pilot_file, kept.overrides)
    now = identity_of(resolved)
    if (now["digest"], now["files"]) != (kept.digest, kept.files):
        raise ConfigError(
            f"run {kept.number}: {kept.pilot_file}, or a file it names, was changed since the "
            "sweep began",
            next_step="start the sweep again: what is finished stays, as runs of the old pilot",
        )
    wait_for_others(open_run(resolved))
    raise_failed_gates(*run_pilot(resolved, notebooks=notebooks))


def wait_for_others(run: Run, wait_s: float = WAIT_S) -> None:
    """Until nobody is at work on ``run``; after ``wait_s`` the run itself says who is."""
    until = time.monotonic() + wait_s
    while run.at_work() and time.monotonic() < until:
        time.sleep(0.2)


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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="workbench.sweep.one_run")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("--notebooks", action=argparse.BooleanOptionalAction)
    parser.add_argument("--cores", default="")
    parser.add_argument("--with-parent", action="store_true")
    asked = parser.parse_args(arguments)
    keep_to(asked.cores)
    if asked.with_parent:
        end_with_parent()
    try:
        do(run_of(load_sweep(asked.sweep), asked.number), notebooks=asked.notebooks)
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
