"""What a sweep keeps: ``sweeps/<name>/sweep.json`` beside the runs, which run is which.

The runs themselves lie where every run lies and know nothing of it; they are found by what they
ask, on whichever machine they were made. So a sweep has no state that could be half-written: what
is finished is told by the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, WorkbenchError
from workbench.files import read_json, write_json
from workbench.paths import runs_root, shown
from workbench.pilot.problems import did_you_mean, validated
from workbench.records.run import Run, find_run, runs_that_ask
from workbench.roadmap import STAGES

SWEEP = "sweep:"
"""Before the name of a sweep where names of runs are taken."""
FILE = "sweep.json"


@dataclass(frozen=True)
class KeptRun:
    """number: from 1. differences: field -> value, of this run alone. pilot_file, overrides: as
    ``workbench run`` takes them. pilot, digest, files: what the run is found by."""

    number: int
    differences: dict[str, Any]
    pilot_file: str
    overrides: list[str]
    pilot: str
    digest: str
    files: dict[str, str]

    def run(self) -> Run | None:
        """The newest finished run that asks this, else the newest from here, else none."""
        found = runs_that_ask(self.pilot, self.digest, self.files)[::-1]
        here = (run for run in found if run.is_from_here)
        return next((run for run in found if is_finished(run)), next(here, None))


@dataclass(frozen=True)
class KeptSweep:
    """name, question, and the runs in the order of the sweep file."""

    name: str
    question: str
    sweep_file: str
    runs: list[KeptRun]

    @property
    def folder(self) -> Path:
        return sweep_folder(self.name)

    def save(self) -> None:
        write_json(self.folder / FILE, asdict(self))

    def found(self) -> list[Run]:
        """The runs that have begun, in order."""
        return [run for kept in self.runs if (run := kept.run())]


def sweep_folder(name: str) -> Path:
    return runs_root() / "sweeps" / name


def load_sweep(path: Path) -> KeptSweep:
    """Raises ConfigError for a file that is not there or is damaged."""
    try:
        return validated(KeptSweep, read_json(path), shown(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{shown(path)}: cannot be read: {error}",
            next_step="workbench sweep SWEEP.yaml writes it anew",
        ) from error


def is_finished(run: Run) -> bool:
    """Whether all stages are finished and the page is written."""
    try:
        return set(run.records()) == set(STAGES) and run.report.exists()
    except WorkbenchError:  # damaged: not a run to skip
        return False


def find_runs(names: Sequence[str]) -> list[Run]:
    """Runs by any name that :func:`find_run` takes; ``sweep:NAME`` stands for those of a sweep."""
    return [run for name in names for run in _named(name)]


def _named(name: str) -> list[Run]:
    if not name.startswith(SWEEP):
        return [find_run(name)]
    bare = name.removeprefix(SWEEP)
    known = sorted(path.parent.name for path in sweep_folder("").glob(f"*/{FILE}"))
    if bare not in known:
        raise ConfigError(
            f"{name}: no sweep has that name{did_you_mean(bare, known) if known else ''}",
            next_step="workbench sweep SWEEP.yaml makes one",
        )
    found = load_sweep(sweep_folder(bare) / FILE).found()
    if not found:
        raise ConfigError(f"{name}: none of its runs has begun", next_step="start it first")
    return found
