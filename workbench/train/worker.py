"""``python -m workbench.train.worker FOLDER``: one of the processes that train together.

torch's launcher says by the environment which one it is.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

from workbench.errors import StageError, WorkbenchError, reason_of
from workbench.files import replacing
from workbench.paths import shown
from workbench.train.arm import run_training
from workbench.train.disk_space import reporting_full_disk
from workbench.train.processes import LOG, take_over
from workbench.train.quiet import quiet_transformers


def main(folder: Path) -> None:
    threading.Thread(target=_end_with_parent, name="parent-watchdog", daemon=True).start()
    try:
        training, progress = take_over(folder)
        with quiet_transformers(), reporting_full_disk(training.folder):
            run_training(training, progress)
        torch.distributed.destroy_process_group()
    except BaseException as error:
        traceback.print_exc()
        _write_failure(folder, error)
        os._exit(1)  # at once: the others wait for this process, and an orderly end for them


def _end_with_parent() -> None:
    """The standard input ends when the process that waits for the training does."""
    while os.read(sys.stdin.fileno(), 1):  # not buffered: no lock that Python waits for at its end
        pass
    os._exit(1)


def _write_failure(folder: Path, error: BaseException) -> None:
    rank, processes = os.environ["RANK"], os.environ["WORLD_SIZE"]
    with replacing(folder / f"failure-{rank}.pickle") as partial:
        partial.write_bytes(
            pickle.dumps((time.time(), _as_workbench_error(error, rank, processes, folder)))
        )


def _as_workbench_error(
    error: BaseException, rank: str, processes: str, folder: Path
) -> WorkbenchError:
    if isinstance(error, WorkbenchError):
        return error
    who, goes_on = f"process {rank} of {processes}", "the same command goes on from the checkpoint"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return StageError(
            f"training, {who}: out of memory: {reason_of(error)}",
            next_step="lower train.batch_size, data.sequence_length or the model's preset, set "
            f"train.gradient_checkpointing, or close other programs; {goes_on}",
        )
    return StageError(
        f"training, {who} failed: {type(error).__name__}: {reason_of(error)}",
        next_step=f"the traceback is in {shown(folder / LOG)}; {goes_on}",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
