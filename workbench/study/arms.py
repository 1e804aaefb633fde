"""All arms of a study, as jobs of a sweep: what is not trained yet, a teacher before its students.

``arms.json`` in the folder of the study's record says what each job trains, and its logs lie beside
it; the arms themselves go where all studies find them. So it may be written anew at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from workbench.errors import StageError
from workbench.files import read_json, write_json
from workbench.paths import shown
from workbench.pilot.problems import validated
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.study.arm import StudyArm
from workbench.study.setup import training_setup
from workbench.study.training import arm_folder, data_folder, finished_arm
from workbench.sweep.attempts import JobArray, JobEnd
from workbench.wording.counts import number_of

FILE = "arms.json"
DoJobs = Callable[[JobArray, Callable[[str], None]], Sequence[JobEnd]]
"""(jobs, what is told how they go): how each ended."""


@dataclass(frozen=True)
class KeptArms:
    """Arms to train, by their keys; job n trains the n-th. root: of all studies. events, stage:
    where each says how far it is."""

    root: Path
    events: Path
    stage: str
    arms: dict[str, StudyArm]

    def save(self, path: Path) -> None:
        write_json(path, TypeAdapter(KeptArms).dump_python(self, mode="json"))


def load_arms(path: Path) -> KeptArms:
    """Raises ConfigError for a damaged file."""
    return validated(KeptArms, read_json(path), shown(path))


def train_all(
    root: Path, folder: Path, arms: Sequence[StudyArm], progress: Progress, do: DoJobs
) -> list[StageRecord]:
    """The records of ``arms``, in their order; those that are finished are loaded.

    folder: of the study's record. do: a function that does the jobs of an array, here or elsewhere.
    Raises StageError once all are tried, where trainings failed.
    """
    waiting: dict[str, StudyArm] = {}
    for arm in arms:
        for needed in (arm.teacher, arm):
            if needed and finished_arm(root, needed) is None:
                waiting.setdefault(needed.key, needed)
    if waiting and len(waiting) < len(arms):
        progress.note(
            f"{len(arms) - len(waiting)} of {number_of(len(arms), 'arm')} are trained already"
        )
    for arm in {arm.data_key: arm for arm in waiting.values()}.values():
        training_setup(arm, data_folder(root, arm), progress)  # once, not by each process
    KeptArms(root, progress.path, progress.stage, waiting).save(folder / FILE)
    for distilled in (False, True):  # a teacher before its students
        names = {
            number: arm.label
            for number, arm in enumerate(waiting.values(), 1)
            if (arm.teacher is not None) == distilled
        }
        if names:
            array = JobArray("workbench.study.one_arm", folder / FILE, names)
            raise_failed(array, do(array, progress.note))
    return [StageRecord.load(arm_folder(root, arm)) for arm in arms]


def raise_failed(array: JobArray, ends: Sequence[JobEnd]) -> None:
    """StageError with what each of the trainings said that failed twice."""
    failed = [end for end in ends if not end.is_finished]
    if failed:
        raise StageError(
            f"{len(failed)} of {number_of(len(array.names), 'training')} did not finish:\n"
            + "\n".join(f"{array.names[end.number]}: {end.said}" for end in failed),
            next_step=f"their logs lie in {shown(array.logs)}; the same command goes on from the "
            "last checkpoints",
        )
