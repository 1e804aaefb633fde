"""The executor: load instead of compute, keep what is finished, say what failed."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from workbench.errors import ConfigError, StageError
from workbench.pilot.resolve import ResolvedPilot, resolve
from workbench.records.events import follow
from workbench.records.run import all_runs, find_run, open_run
from workbench.report.environment_view import environment_view
from workbench.roadmap import stage_named
from workbench.runner.pilot_run import run_stage
from workbench.stages.execute import execute, finished, recorded_failure
from workbench.wording.text import Texts


@pytest.fixture
def calls(monkeypatch, tmp_path: Path) -> list[str]:
    """Replaces three stages by ones that note their name; runs go to a folder of their own."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    made: list[str] = []
    for name in ("profile_load", "train_qat", "hybrid_plan"):
        module = ModuleType(name)

        def run(context, name=name) -> None:
            made.append(name)
            context.record.measured("figure", float(len(made)), "x", "counted")
            (context.folder / "artefact.txt").write_text(name)

        module.run = run
        monkeypatch.setitem(sys.modules, f"workbench.stages.{name}", module)
    return made


def pilot(folder: Path, *overrides: str) -> ResolvedPilot:
    path = folder / "pilot.yaml"
    path.write_text("name: trial\nquestion: does it execute?\n")
    return resolve(path, overrides)


def failing(monkeypatch, name: str, error: BaseException) -> None:
    module = ModuleType(name)

    def run(context) -> None:
        (context.folder / "half.txt").write_text("half")
        raise error

    module.run = run
    monkeypatch.setitem(sys.modules, f"workbench.stages.{name}", module)


def test_a_finished_stage_is_loaded(calls: list[str], tmp_path: Path) -> None:
    resolved = pilot(tmp_path)
    run = open_run(resolved)
    first = execute("train_qat", resolved, run)
    again = execute("train_qat", resolved, open_run(resolved))
    assert calls == ["train_qat"]
    assert again == first
    assert [e["kind"] for e in follow(run.events, None)] == ["started", "finished"]


def test_a_changed_value_makes_a_new_run_that_takes_over_the_training(calls, tmp_path) -> None:
    resolved = pilot(tmp_path)
    execute("train_qat", resolved, open_run(resolved))
    other = pilot(tmp_path, "hybrid_plan.sequences=3")
    run = open_run(other)
    assert run.folder != open_run(resolved).folder
    record = execute("train_qat", other, run)
    assert calls == ["train_qat"]
    assert "taken over from run" in record.notes[-1]
    assert (record.folder / "artefact.txt").read_text() == "train_qat"
    changed = pilot(tmp_path, "train.lr=0.5")
    execute("train_qat", changed, open_run(changed))
    assert calls == ["train_qat", "train_qat"]


def test_a_changed_input_file_makes_a_new_run(calls, tmp_path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("one")
    resolved = pilot(tmp_path, f"profile_load.trace={trace}")
    run = open_run(resolved)
    execute("train_qat", resolved, run)
    execute("profile_load", resolved, run)
    trace.write_text("two")
    changed = open_run(resolved)
    assert changed.folder != run.folder
    execute("train_qat", resolved, changed)
    execute("profile_load", resolved, changed)
    assert calls == ["train_qat", "profile_load", "profile_load"]
    assert run.record("profile_load").metric("figure").value == 2


def test_a_version_that_computes_otherwise_does_not_load(calls, tmp_path, monkeypatch) -> None:
    resolved = pilot(tmp_path)
    run = open_run(resolved)
    execute("train_qat", resolved, run)
    monkeypatch.setattr("workbench.__version__", "99.0")
    assert finished("train_qat", resolved, run) is None
    execute("train_qat", resolved, run)
    kept = [p.name for p in run.folder.joinpath("stages").iterdir()]
    assert calls == ["train_qat"] * 2
    assert len(kept) == 2, "the earlier result is moved aside, not deleted"


def test_what_only_shows_a_training_is_no_part_of_its_key(calls, tmp_path) -> None:
    run = open_run(pilot(tmp_path))
    execute("train_qat", pilot(tmp_path), run)
    watched = pilot(tmp_path, "train.trackers=[tensorboard]")
    assert finished("train_qat", watched, run)
    assert not finished("train_qat", pilot(tmp_path, "train.steps=7"), run)


def test_a_run_is_read_on_another_machine_but_not_gone_on_with(
    calls, tmp_path, monkeypatch
) -> None:
    resolved = pilot(tmp_path)
    run = open_run(resolved)
    execute("train_qat", resolved, run)
    monkeypatch.setattr("workbench.records.run.machine_digest", lambda: "another")
    assert execute("train_qat", run.resolved(), run).metric("figure").value == 1
    with pytest.raises(StageError, match="made on another machine"):
        execute("hybrid_plan", run.resolved(), run)
    assert open_run(resolved).folder != run.folder


def test_a_stage_that_needs_another_says_which(calls, tmp_path) -> None:
    resolved = pilot(tmp_path)
    with pytest.raises(StageError, match="hybrid_plan needs train_qat") as caught:
        execute("hybrid_plan", resolved, open_run(resolved))
    assert "workbench stage train_qat" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.parquet"), "no space left"),
        (MemoryError(), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried 3 GiB"), "out of memory"),
        (StageError("the loss is NaN at step 7", next_step="lower train.lr"), "NaN at step 7"),
        (ZeroDivisionError("division by zero"), "a fault of the program"),
    ],
)
def test_a_failure_is_told_and_kept_and_the_work_stays(
    calls, tmp_path, monkeypatch, error: Exception, expected: str
) -> None:
    failing(monkeypatch, "train_qat", error)
    resolved = pilot(tmp_path)
    run = open_run(resolved)
    with pytest.raises(StageError) as caught:
        execute("train_qat", resolved, run)
    assert expected in str(caught.value)
    assert str(recorded_failure(run, "train_qat")) == str(caught.value)
    assert (run.stage_folder("train_qat") / "half.txt").exists(), "a checkpoint would be kept"
    assert finished("train_qat", resolved, run) is None
    assert list(follow(run.events, None))[-1]["kind"] == "failed"


def test_force_computes_again_and_keeps_the_old_result(calls, tmp_path) -> None:
    resolved = pilot(tmp_path)
    run = open_run(resolved)
    execute("train_qat", resolved, run)
    assert execute("train_qat", resolved, run, force=True).metric("figure").value == 2
    kept = [p.name for p in run.folder.joinpath("stages").iterdir() if "until" in p.name]
    assert len(kept) == 1


def _hold(folder: Path, runs: Path, ready, release) -> None:
    import os

    os.environ["WORKBENCH_RUNS"] = str(runs)
    with open_run(pilot(folder)).lock("train_qat"):
        ready.set()
        release.wait(30)


def test_two_processes_never_work_on_one_stage(calls, tmp_path) -> None:
    resolved = pilot(tmp_path)
    run = open_run(resolved)
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, tmp_path / "runs", ready, release))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(StageError, match="being worked on by another process"):
            execute("train_qat", resolved, run)
    finally:
        release.set()
        holder.join(30)
    assert execute("train_qat", resolved, run).metric("figure").value == 1


def test_locks_ask_only_for_what_nfs_grants(calls, tmp_path, monkeypatch) -> None:
    """There a shared lock needs the file open for reading, and one for oneself for writing."""
    lock, modes = fcntl.flock, set()

    def flock(file, operation: int) -> None:
        how = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        needed = os.O_RDONLY if operation & fcntl.LOCK_SH else os.O_WRONLY
        assert how in (needed, os.O_RDWR)
        modes.add(operation)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    run = open_run(pilot(tmp_path))
    with run.lock("train_qat"):
        assert run.at_work()
    assert not run.at_work() and modes == {fcntl.LOCK_SH, fcntl.LOCK_EX | fcntl.LOCK_NB}


def test_a_file_system_without_locks_is_said_to_be_one(calls, tmp_path, monkeypatch) -> None:
    def flock(file, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    run = open_run(pilot(tmp_path))
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StageError, match="keeps no locks: No locks available"), run.lock("report"):
        pass


def test_runs_are_found_by_name_part_and_pilot(calls, tmp_path) -> None:
    resolved = pilot(tmp_path)
    run = open_run(resolved)
    other = open_run(pilot(tmp_path, "seed=7"))
    assert [r.name for r in all_runs()] == sorted([run.name, other.name])
    assert find_run(run.name).folder == run.folder
    assert find_run(run.folder.name[-6:]).folder == run.folder
    assert find_run(str(other.folder)).folder == other.folder
    with pytest.raises(ConfigError, match="no run has that name"):
        find_run("absent")


@pytest.mark.parametrize("text", ["train_qat", "02_train_qat", "2", "02_train_qat.ipynb"])
def test_stages_answer_to_name_notebook_and_number(text: str) -> None:
    assert stage_named(text).name == "train_qat"


def test_an_unknown_stage_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="did you mean train_qat"):
        stage_named("train_qt")


def test_a_record_keeps_the_software_that_made_it_and_not_what_finds_it(
    calls, tmp_path: Path, monkeypatch
) -> None:
    def code(commit: str) -> None:
        monkeypatch.setattr(
            "workbench.machine.environment.git_state", lambda: {"commit": commit, "dirty": False}
        )

    code("first")
    resolved = pilot(tmp_path)
    run = run_stage("train_qat", resolved) and open_run(resolved)
    code("second")
    run_stage("train_qat", resolved)
    run_stage("profile_load", resolved)
    assert run.environment()["git"]["commit"] == "first"
    commits = {name: made["git"]["commit"] for name, made in run.software().items()}
    assert commits == {"profile_load": "second", "train_qat": "first"}
    (run.folder / "environment.json").unlink()
    assert run.environment() == {}
    rows = dict(environment_view(run, Texts())["rows"])
    assert rows["Commit"] == "second: Load profile; first: Training"
