"""The jobs of a sweep as a Slurm array: the script that sbatch takes.

Every element is one job, started with srun so that Slurm's TERM reaches it before the time limit:
it ends in order, and the same array submitted again goes on from there. An element that fails is
tried once more within the same allocation, one whose node goes is requeued by Slurm.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.errors import ConfigError
from workbench.files import write_text
from workbench.paths import shown
from workbench.records.store import places_of_runs
from workbench.sweep.attempts import ATTEMPTS, JobArray
from workbench.sweep.file import Resources
from workbench.sweep.job import FINAL

NAME = "sweep.sbatch"
WARNED_S = 120
"""Before the time limit."""
MINUTES = 60


def slurm_script(
    array: JobArray, name: str, resources: Resources, options: Sequence[str] = ()
) -> str:
    """The text of the script for all jobs of ``array``. options: further ones of sbatch."""
    directives = [
        f"--job-name={name}",
        f"--array={_ranges(list(array.names))}",
        "--ntasks=1",
        f"--cpus-per-task={resources.cpus}",
        f"--output={array.logs / '%a-%A.log'}",
        f"--signal=TERM@{WARNED_S}",
        "--requeue",
    ]
    if resources.gpus:
        directives.append(f"--gres=gpu:{resources.gpus}")
    if resources.memory_gb is not None:
        directives.append(f"--mem={round(resources.memory_gb * 1000)}M")
    if resources.hours is not None:
        directives.append(f"--time={max(1, round(resources.hours * MINUTES))}")
    before = shlex.join([sys.executable, "-m", array.module, str(array.plan)])
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {directive}" for directive in (*directives, *options)),
        *(f"export {name}={shlex.quote(value)}" for name, value in places_of_runs().items()),
        f"for attempt in {' '.join(str(n + 1) for n in range(ATTEMPTS))}; do",
        f'  srun {before} "$SLURM_ARRAY_TASK_ID" {shlex.join(array.words)}'.rstrip(),
        "  code=$?",
        f"  case $code in {'|'.join(map(str, FINAL))}) exit $code ;; esac",
        "done",
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def write_script(plan: Path, text: str) -> Path:
    """Keep the script beside the sweep, once it is found right: by the shell, and by sbatch
    --test-only where there is one. Raises ConfigError with what they say."""
    path = plan.parent / NAME
    (plan.parent / "logs").mkdir(parents=True, exist_ok=True)
    _refused_by(["bash", "-n"], text)
    if shutil.which("sbatch"):
        _refused_by(["sbatch", "--test-only"], text)
    write_text(path, text)
    return path


def submission(path: Path, sweep_file: str) -> list[str]:
    """What a person types then."""
    return [
        f"sbatch {shlex.quote(shown(path))}",
        f"workbench sweep {shlex.quote(shown(Path(sweep_file)))} --compare   # once it has ended",
    ]


def _refused_by(command: list[str], text: str) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(
            f"{' '.join(command)} refuses the script: {done.stderr.strip()}",
            next_step="correct slurm: and resources: in the sweep file",
        )


def _ranges(numbers: Sequence[int]) -> str:
    """``1-4,7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
