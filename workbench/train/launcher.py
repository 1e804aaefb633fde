"""``python -m workbench.train.launcher FOLDER PROCESSES``: torch's elastic launcher.

It starts the processes, gives each its rank, and ends all of them when one fails. Which of them
were killed is left in a file for :mod:`workbench.train.processes`; what they said is in theirs.
"""

from __future__ import annotations

import signal
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from workbench.files import write_json
from workbench.train.processes import KILLED

TOGETHER_S = 10.0
"""Who was killed later than this after the first end was killed by the launcher itself."""


def main(folder: Path, processes: int) -> int:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "workbench.train.worker", str(folder))
    except ChildFailedError as error:
        first = min(failure.timestamp for failure in error.failures.values())
        killed = {
            str(rank): -failure.exitcode
            for rank, failure in error.failures.items()
            if failure.exitcode < 0
            and failure.exitcode != -signal.SIGTERM  # what it asks the others to end with
            and failure.timestamp <= first + TOGETHER_S
        }
        if killed:
            write_json(folder / KILLED, killed)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
