"""``python -m workbench.sweep.one_run SWEEP.json NUMBER``: one run of a sweep, as its own process.

It ends as ``workbench run`` does, with its exit code; a run that is finished ends at once.
"""

from __future__ import annotations

import argparse
import sys
import time

from workbench.errors import ConfigError
from workbench.records.run import Run, open_run
from workbench.records.sweep import KeptRun, KeptSweep, is_finished, load_sweep
from workbench.sweep.job import as_job, job_parser

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


def main(arguments: list[str]) -> int:
    parser = job_parser("workbench.sweep.one_run")
    parser.add_argument("--notebooks", action=argparse.BooleanOptionalAction)
    asked = parser.parse_args(arguments)
    return as_job(
        asked,
        lambda: do(run_of(load_sweep(asked.plan), asked.number), notebooks=asked.notebooks),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
