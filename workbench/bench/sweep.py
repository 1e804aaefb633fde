"""How busy a sweep keeps the cores: ``workbench bench sweep``, on an otherwise idle machine.

So many runs of ``workbench:smoke``, differing in their seed, so many at a time, in a folder of runs
of their own that is removed afterwards. Busy is the processor time of the sweep with all its
children over that of all usable cores while it ran; what others took meanwhile stands beside it,
because a core that others held could not be kept busy.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from workbench.child import end_of_log
from workbench.errors import StageError
from workbench.machine.cpu import cpu
from workbench.machine.provenance import provenance
from workbench.wording.counts import number_of

TARGET = 0.85
SWEEP = "pilot: workbench:smoke\nname: busy\ngrid: {{seed: [{seeds}]}}\n"

STARTED = """
import sys
from pathlib import Path
from workbench.sweep.command import run_sweep
run_sweep(Path(sys.argv[1]), jobs=int(sys.argv[2]), notebooks=False)
"""
"""A process of its own: its time, with that of its children, is the sweep's."""


def bench_sweep(runs: int, jobs: int, *, out: Path | None = None) -> dict[str, object]:
    """One row: share of the usable cores' time that the sweep used, printed as JSON.

    Raises StageError where the sweep fails: then its share says nothing.
    """
    with tempfile.TemporaryDirectory(prefix="workbench-sweep-") as name:
        folder = Path(name)
        file, log = folder / "busy.yaml", folder / "sweep.log"
        file.write_text(SWEEP.format(seeds=", ".join(map(str, range(1, runs + 1)))))
        words = [sys.executable, "-c", STARTED, str(file), str(jobs)]
        environment = {**os.environ, "WORKBENCH_RUNS": str(folder / "runs")}
        own, whole, began = _children_s(), _machine_s(), time.monotonic()
        with log.open("wb") as output:
            done = subprocess.run(words, stdout=output, stderr=output, env=environment)
        wall_s = time.monotonic() - began
        if done.returncode:
            raise StageError(
                f"the sweep ended with code {done.returncode}:\n    {end_of_log(log)}",
                next_step="workbench run workbench:smoke shows whether one alone goes through",
            )
    own_s, whole_s = _children_s() - own, _machine_s() - whole
    cores_s = wall_s * cpu().usable_cores
    row: dict[str, object] = {
        "name": "sweep cores busy",
        "of": f"{number_of(runs, 'smoke pilot')}, {jobs} at a time",
        "value": round(own_s / cores_s, 3),
        "unit": "share",
        "target": TARGET,
        "others": round(max(0.0, whole_s - own_s) / cores_s, 3),
        "wall_s": round(wall_s, 1),
        "cores": cpu().usable_cores,
        **provenance("cpu"),
        "date": time.strftime("%Y-%m-%d"),
    }
    line = json.dumps(row)
    print(line)
    if out:
        with out.open("a", encoding="utf-8") as file_out:
            file_out.write(line + "\n")
    return row


def _children_s() -> float:
    """Processor time of the children that have ended, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _machine_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))
