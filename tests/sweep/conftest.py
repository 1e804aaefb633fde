"""A sweep whose runs are kept in an empty folder of runs."""

from pathlib import Path

import pytest

from workbench.records.sweep import KeptSweep
from workbench.sweep.command import keep
from workbench.sweep.file import read_sweep

TINY = """\
pilot: workbench:smoke
values:
  readiness.probe.enabled: false
  train: {steps: 4, evaluations: 1}
  measure_ab: {load: {blocks: 0}}
  hybrid_plan: {sequences: 1}
  deploy_rollback: {duration_s: 1, drill: {ways: []}}
  report.gates: []
"""


@pytest.fixture
def sweep_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A kept sweep and its file, from the lines that say its runs."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))

    def make(runs: str) -> tuple[KeptSweep, Path]:
        path = tmp_path / "tiny.yaml"
        path.write_text(TINY + runs + "\n")
        return keep(read_sweep(path)), path

    return make
