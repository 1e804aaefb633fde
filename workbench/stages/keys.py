"""A stage's key: a digest of all that decides its result.

Its sections of the pilot, the seed, the content of the files they name, the keys of the
stages before it, the version of the workbench and, where the result is about a machine, the
machine of the run. Two equal keys mean that the finished result may be loaded instead.
"""

from __future__ import annotations

import workbench
from workbench.files import digest_json
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.run import Run
from workbench.roadmap import STAGES, value_of


def stage_key(name: str, resolved: ResolvedPilot, run: Run) -> str:
    """The key that stage ``name`` must have to count as finished in ``run``."""
    stage = STAGES[name]
    files = run.header["files"]
    return digest_json(
        {
            "stage": name,
            "version": workbench.__version__,
            "machine": run.header["machine"] if stage.on_machine else None,
            "seed": resolved.values["seed"],
            "sections": {name: value_of(resolved.values, name) for name in stage.sections},
            "files": {k: v for k, v in files.items() if k.split(".")[0] in stage.sections},
            "after": {before: stage_key(before, resolved, run) for before in stage.after},
        }
    )
