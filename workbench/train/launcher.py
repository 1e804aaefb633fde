"""``python -m workbench.train.launcher FOLDER PROCESSES [NODES RANK ADDRESS PORT ID]``: torch's
elastic launcher, of one machine or of one of several.

It starts the processes, gives each its rank, and ends all of them when one fails. Which of them
were killed is left in a file for :mod:`workbench.train.processes`; what they said is in theirs.
Of several machines each has one, and they meet at the address and port of the first.
"""

from __future__ import annotations

import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from workbench.files import write_json
from workbench.train.processes import KILLED

TOGETHER_S = 10.0
"""Who was killed later than this after the first end was killed by the launcher itself."""
MEET_S = 300
"""For the other machines' launchers to come."""


def main(folder: Path, processes: int, *others: str) -> int:
    config = LaunchConfig(
        nproc_per_node=processes,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
        **_meeting(*others),
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


def _meeting(
    nodes: str = "1", rank: str = "0", address: str = "localhost", port: str = "0", name: str = ""
) -> dict[str, Any]:
    if nodes == "1":
        return {
            "min_nodes": 1,
            "max_nodes": 1,
            "run_id": uuid.uuid4().hex,
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "localhost:0",  # a free port
            "local_addr": "localhost",
        }
    return {
        "min_nodes": int(nodes),
        "max_nodes": int(nodes),
        "run_id": name,
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{address}:{port}",
        "rdzv_configs": {"rank": int(rank), "timeout": MEET_S},
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
