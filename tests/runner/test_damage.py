"""Runs whose folders were damaged, locked or removed: said by name, and no hindrance to others."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from workbench.errors import ConfigError, StageError
from workbench.files import write_json
from workbench.pilot.resolve import ResolvedPilot, resolve
from workbench.records.run import all_runs, find_run, open_run
from workbench.runner import pilot_run
from workbench.stages.execute import execute


@pytest.fixture
def runs(monkeypatch, tmp_path: Path) -> Path:
    """The runs folder; training takes no time and leaves a table."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    module = ModuleType("train_qat")
    module.run = lambda context: context.record.save_table("loss", pd.DataFrame({"step": [1]}))
    monkeypatch.setitem(sys.modules, "workbench.stages.train_qat", module)
    return tmp_path / "runs"


def pilot(runs: Path, *overrides: str) -> ResolvedPilot:
    path = runs.parent / "pilot.yaml"
    path.write_text("name: trial\nquestion: Does it survive?\n")
    return resolve(path, overrides)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"digest": 1'])
def test_a_damaged_run_is_named_and_left_out(runs, caplog, text: str) -> None:
    damaged, other = pilot(runs), pilot(runs, "hybrid_plan.sequences=3")
    broken = open_run(damaged)
    execute("train_qat", damaged, broken)
    (broken.folder / "run.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        run = open_run(other)
        execute("train_qat", other, run)
        assert [found.name for found in all_runs()] == [run.name]
    assert "run.json is damaged" in caplog.text
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        find_run(str(broken.folder))


@pytest.mark.parametrize("harm", ["record", "table"])
def test_what_is_damaged_elsewhere_is_not_taken_over(runs, harm: str) -> None:
    first, other = pilot(runs), pilot(runs, "hybrid_plan.sequences=3")
    record = execute("train_qat", first, open_run(first))
    path = record.folder / ("record.json" if harm == "record" else "loss.parquet")
    path.write_text("{") if harm == "record" else path.unlink()
    assert not execute("train_qat", other, open_run(other)).notes


def test_a_table_that_is_gone_says_how_it_comes_back(runs) -> None:
    resolved = pilot(runs)
    record = execute("train_qat", resolved, open_run(resolved))
    (record.folder / "loss.parquet").unlink()
    with pytest.raises(StageError, match=r"loss\.parquet is gone.*\n.*stage train_qat .*--force"):
        record.table("loss")


def test_a_run_without_a_readable_environment_is_reported_all_the_same(runs, caplog) -> None:
    run = open_run(pilot(runs))
    (run.folder / "environment.json").write_text("")
    assert run.environment() == {} and "environment.json cannot be read" in caplog.text


def test_a_runs_folder_that_is_none_is_the_users_to_change(runs, monkeypatch) -> None:
    runs.write_text("a file")
    with pytest.raises(ConfigError, match=r"the runs folder .*: Not a directory\n.*\n.*WORKBENCH"):
        open_run(pilot(runs))
    runs.unlink()
    runs.mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda _: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(ConfigError, match=r"the runs folder .*: no"):
        all_runs()


def test_a_folder_removed_under_a_stage_is_said_and_stays_away(runs, monkeypatch) -> None:
    resolved = pilot(runs)
    run = open_run(resolved)

    def removed(context) -> None:
        shutil.rmtree(run.folder)
        write_json(context.folder.parent / "x" / "y.json", {})
        raise FileNotFoundError(context.folder / "tokens.npy")

    monkeypatch.setattr(sys.modules["workbench.stages.train_qat"], "run", removed)
    with pytest.raises(StageError, match=r"train_qat: its folder .* was removed while it ran"):
        execute("train_qat", resolved, run)
    assert not run.stage_folder("train_qat").exists()


def test_what_a_kernel_could_not_say_is_said_before_it_starts(runs, monkeypatch) -> None:
    resolved = pilot(runs)
    run = open_run(resolved)
    monkeypatch.setattr("workbench.runner.papermill_run.execute_notebook", lambda *_: 1 / 0)
    with pytest.raises(StageError, match="hybrid_plan needs train_qat"):
        pilot_run._notebook("hybrid_plan", resolved, run)
    with run.lock("train_qat"), pytest.raises(StageError, match="worked on by another process"):
        pilot_run._notebook("train_qat", resolved, run)
