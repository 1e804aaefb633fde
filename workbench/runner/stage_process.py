"""One stage in a process of its own, so that a notebook that is closed takes nothing with it.

``python -m workbench.runner.stage_process RUN_FOLDER STAGE`` is what notebook 02 starts. SIGTERM
stops it as Ctrl-C does: what is finished is kept, and the stage goes on from there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.records.run import Run, open_folder
from workbench.runner.pilot_run import terminable
from workbench.stages.execute import execute


def start(run: Run, stage: str) -> subprocess.Popen[bytes]:
    """The process at work on ``stage``; it outlives this one. Its output lies in the run's folder,
    in ``<stage>.log``."""
    with (run.folder / f"{stage}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(run.folder), stage],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def main(folder: str, stage: str) -> int:
    run = open_folder(Path(folder))
    try:
        with terminable():
            execute(stage, run.resolved(), run)
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
