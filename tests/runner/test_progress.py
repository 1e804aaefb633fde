"""What a person who waits is told: which stage of how many, how long still, how long it took."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from workbench.files import read_json, write_json
from workbench.pilot.resolve import ResolvedPilot, resolve
from workbench.records.events import attempts_s, follow
from workbench.records.run import all_runs, open_run
from workbench.records.run_list import run_lines
from workbench.records.terminal import TaskBar, describe, watching
from workbench.report.views import stage_view
from workbench.roadmap import STAGES
from workbench.runner.time_left import TimeLeft, time_left
from workbench.stages import execute as execute_module
from workbench.stages.execute import execute
from workbench.wording.text import Texts


@pytest.fixture
def stages(monkeypatch, tmp_path: Path) -> dict:
    """Stages that take no time; ``seconds`` and ``failing`` say how long by the clock, and which
    is interrupted."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    how = {"seconds": 10.0, "failing": None, "now": 1_000_000.0}

    class Clock:
        time = staticmethod(lambda: how["now"])
        monotonic = staticmethod(lambda: how["now"])
        strftime = staticmethod(lambda *_: "2026-11-28T12:00:00+0000")

    for name in STAGES:
        module = ModuleType(name)

        def run(context, name=name) -> None:
            how["now"] += how["seconds"]
            context.progress.note("at work")
            if how["failing"] == name:
                raise KeyboardInterrupt

        module.run = run
        monkeypatch.setitem(sys.modules, f"workbench.stages.{name}", module)
    monkeypatch.setattr(execute_module, "time", Clock)
    monkeypatch.setattr("workbench.records.events.time", Clock)
    return how


def pilot(folder: Path, *overrides: str) -> ResolvedPilot:
    (folder / "pilot.yaml").write_text("name: trial\nquestion: How long?\n")
    return resolve(folder / "pilot.yaml", overrides)


def test_took_counts_every_attempt(stages, tmp_path) -> None:
    resolved = pilot(tmp_path)
    run = open_run(resolved)
    stages["failing"] = "train_qat"
    for seconds in (100.0, 30.0):
        stages["seconds"] = seconds
        with pytest.raises(KeyboardInterrupt):
            execute("train_qat", resolved, run)
        stages["now"] += 5000  # nobody was at work
    stages |= {"failing": None, "seconds": 7.0}
    record = execute("train_qat", resolved, run)
    assert (record.duration_s, record.attempts) == (137.0, 3)
    assert run.record("train_qat").attempts == 3
    assert "in 137 s, 3 attempts together" in describe(list(follow(run.events, None))[-1])
    assert stage_view("train_qat", record, Texts())["took"] == "took 2 min 17 s in 3 attempts"
    again = execute("train_qat", resolved, run, force=True)
    assert (again.duration_s, again.attempts) == (7.0, 1), "begun anew, nothing was kept"


def test_a_killed_attempt_counts_to_its_last_event(tmp_path) -> None:
    lines = [
        {"time": 0.0, "stage": "a", "kind": "started", "key": "old"},
        {"time": 9.0, "stage": "a", "kind": "step"},
        {"time": 10.0, "stage": "a", "kind": "started", "key": "k"},
        {"time": 13.0, "stage": "a", "kind": "step"},
        {"time": 14.0, "stage": "b", "kind": "step"},
        {"time": 20.0, "stage": "a", "kind": "started", "key": "k"},
        {"time": 21.5, "stage": "a", "kind": "failed"},
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert attempts_s(path, "a", "k") == [3.0, 1.5]
    assert attempts_s(path, "a", "other") == []
    assert attempts_s(tmp_path / "none.jsonl", "a", "k") == []


def test_a_line_says_which_stage_of_how_many() -> None:
    event = {"stage": "train_qat", "kind": "started", "text": "does ternary train"}
    assert describe(event) == "stage 3 of 7 · train_qat: started does ternary train"
    assert describe(event | {"stage": "study_size"}).startswith("study_size: started")


def step(done: int, left_s: float | None = None, at: float = 0.0, stage: str = "train_qat") -> dict:
    return {
        "time": at, "stage": stage, "kind": "step", "task": "training", "done": done, "total": 10,
        "unit": "steps", "left_s": left_s,
    }  # fmt: skip


def test_the_time_left_in_all_is_what_is_known_and_says_what_is_not() -> None:
    started = {"time": 0.0, "stage": "train_qat", "kind": "started"}
    known = TimeLeft({"train_qat": 100.0, "measure_ab": 60.0})
    assert known(started) == "about 2:40 min left in all"
    assert known(step(5, 20.0, at=90.0)) == "about 1:20 min left in all", "the task knows better"
    assert known(step(5, 20.0, at=300.0)) == (
        "at least 1:20 min left in all, 1 of the stages unknown"
    ), "longer than ever before"
    part = TimeLeft({"train_qat": None, "measure_ab": 60.0, "hybrid_plan": None})
    assert part(step(5, 30.0)) == "at least 1:30 min left in all, 2 of the stages unknown"
    none = TimeLeft({"train_qat": None, "measure_ab": None})
    assert none(started) == "left in all: unknown, nothing like it was run here yet"
    assert none({"time": 0.0, "stage": "train_qat", "kind": "note"}) == ""
    assert none(step(1, stage="study_size")) == ""


def test_earlier_runs_tell_how_long_a_stage_takes_if_the_same_decides_it(stages, tmp_path) -> None:
    first = pilot(tmp_path)
    run = open_run(first)
    for name in ("readiness", "profile_load", "train_qat", "measure_ab", "hybrid_plan"):
        execute(name, first, run)
    other = pilot(tmp_path, "hybrid_plan.sequences=3")
    expected = time_left(other, open_run(other), tuple(STAGES)).expected
    assert expected == {
        "readiness": 10.0, "profile_load": 10.0, "train_qat": 0.0, "measure_ab": 10.0,
        "hybrid_plan": None, "deploy_rollback": None, "report": None,
    }  # fmt: skip
    longer = pilot(tmp_path, "train.steps=9")
    expected = time_left(longer, open_run(longer), ("profile_load", "train_qat")).expected
    assert expected == {"profile_load": 10.0, "train_qat": None}
    assert list(time_left(first, run, tuple(STAGES)).expected) == ["deploy_rollback", "report"]


def test_no_bar_of_a_finished_task_stays() -> None:
    bars = Bars(console=Console(file=io.StringIO()))
    shown = TaskBar(bars)
    line = describe(step(3, 20.0))
    shown.step(step(3, 20.0), f"{line} · about 9 s left in all")
    (task,) = bars.tasks
    assert task.description == "stage 3 of 7 · train_qat: training"
    assert task.fields["state"] == "3/10 steps · 20 s left · about 9 s left in all"
    shown.step(step(10), describe(step(10)))
    assert bars.tasks == []
    shown.step(step(4), describe(step(4)))
    assert len(bars.tasks) == 1
    shown.clear()
    assert bars.tasks == []


def test_a_log_has_the_whole_run_s_time_too(tmp_path, capsys) -> None:
    events = tmp_path / "events.jsonl"
    with watching(events, TimeLeft({"train_qat": 90.0})):
        event = {"time": 0.0, "stage": "train_qat", "kind": "started", "text": "does it"}
        events.write_text(json.dumps(event) + "\n")
    assert "stage 3 of 7 · train_qat: started does it · about 1:30 min left in all" in (
        capsys.readouterr().err
    )


def test_runs_are_listed_by_date_with_their_duration(stages, tmp_path) -> None:
    dates = {"b": "2026-01-02T10:00:00+0000", "a": "2026-11-03T10:00:00+0000", "c": "when?"}
    for name, date in dates.items():
        (tmp_path / "p.yaml").write_text(f"name: {name}\nquestion: Why {name}?\n")
        resolved = resolve(tmp_path / "p.yaml")
        run = open_run(resolved)
        write_json(run.folder / "run.json", read_json(run.folder / "run.json") | {"created": date})
        if name == "a":
            for stage in ("readiness", "profile_load"):
                execute(stage, resolved, run)
    head, *lines = run_lines(all_runs())
    assert head.split() == ["begun", "took", "run", "state", "question"]
    assert [line.split()[-1] for line in lines] == ["c?", "b?", "a?"]
    assert lines[2].startswith("2026-11-03 10:00  20 s  a/")
    assert "2/7 stages" in lines[2] and lines[0].startswith("unknown")
    painted = run_lines(all_runs(), lambda state: f"<{state}>")
    assert "  <2/7 stages>  " in painted[3]
    assert run_lines([]) == ["no runs yet; make pilot, or workbench run PILOT.yaml"]
