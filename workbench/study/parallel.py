"""All arms of a study, several at a time.

A network of a study is small: one thread works as fast on it as two, so two trainings beside
each other take half the time of one after the other. Each is a process of its own; one that
is killed leaves its checkpoints, and the same command goes on from them.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from workbench.errors import StageError
from workbench.machine.cpu import cpu
from workbench.records.events import Progress
from workbench.records.stage_record import StageRecord
from workbench.study.arm import StudyArm
from workbench.study.setup import training_setup
from workbench.study.training import arm_folder, data_folder, finished_arm, train_study_arm
from workbench.wording.counts import number_of


def train_all(
    root: Path, arms: Sequence[StudyArm], progress: Progress, jobs: int = 1
) -> list[StageRecord]:
    """The records of ``arms``, in their order; those that are finished are loaded.

    jobs: trainings at a time, each on its share of the cores; one where a training has several
    processes (``train.launch``), which share the machine themselves.
    """
    if any(not arm.pilot.train.launch.is_single for arm in arms):
        jobs = 1
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
    if jobs == 1:
        for arm in waiting.values():
            train_study_arm(root, arm, progress)
    elif waiting:
        for distilled in (False, True):  # a teacher before its students
            some = [arm for arm in waiting.values() if (arm.teacher is not None) == distilled]
            _train_in_parallel(root, some, progress, jobs)
    return [StageRecord.load(arm_folder(root, arm)) for arm in arms]


def _train_in_parallel(root: Path, arms: list[StudyArm], progress: Progress, jobs: int) -> None:
    # Spawned: threads of torch do not survive a fork.
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_share_cores, initargs=(jobs,)
    ) as pool:
        tasks = [pool.submit(_train, root, arm, progress.path, progress.stage) for arm in arms]
        try:
            for task in as_completed(tasks):
                task.result()
        except BrokenProcessPool as error:
            raise StageError(
                "the process of a training was killed",
                next_step="often the memory was full: use --jobs 1; the same command goes on "
                "from the last checkpoints",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _share_cores(jobs: int) -> None:
    torch.set_num_threads(max(1, cpu().usable_cores // jobs))


def _train(root: Path, arm: StudyArm, events: Path, stage: str) -> None:
    train_study_arm(root, arm, Progress(events, stage))
