"""``python -m workbench.study.one_arm ARMS.json NUMBER``: one arm of a study, as its own process.

An arm that is trained ends at once; one that another process trains, for another study or because
it was killed and is about to end, is waited for.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.errors import ConfigError
from workbench.records.events import Progress
from workbench.sweep.job import as_job, job_parser


def do(plan: Path, number: int) -> None:
    """Train arm ``number`` of the ones kept in ``plan``, or go on with it.

    Raises what a training raises, and ConfigError where what decides it was changed meanwhile.
    """
    from workbench.study.arms import load_arms
    from workbench.study.training import arm_folder, train_study_arm

    kept = load_arms(plan)
    key, arm = list(kept.arms.items())[number - 1]
    if arm.key != key:
        raise ConfigError(
            f"{arm.label}: a file that the pilot names was changed since the study began",
            next_step="start the study again: what is finished stays, as arms of the old files",
        )
    progress = Progress(kept.events, kept.stage)
    with alone(arm_folder(kept.root, arm), arm.label, progress):
        train_study_arm(kept.root, arm, progress)


@contextmanager
def alone(folder: Path, label: str, progress: Progress) -> Iterator[None]:
    """One process at a time trains an arm, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note(f"{label}: another process trains it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str]) -> int:
    asked = job_parser("workbench.study.one_arm").parse_args(arguments)
    return as_job(asked, lambda: do(asked.plan, asked.number))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
