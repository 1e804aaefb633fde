"""``workbench watch``: a run of another process, seen from its beginning until it ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from workbench.errors import ConfigError, StageError
from workbench.files import write_json
from workbench.pilot.resolve import resolve
from workbench.records.events import Progress
from workbench.records.run import Run, find_run, open_run
from workbench.runner.watch_run import watch_run
from workbench.stages.execute import FAILURE


@pytest.fixture
def run(monkeypatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    pilot = tmp_path / "watched.yaml"
    pilot.write_text("name: watched\nquestion: Is it seen from elsewhere?\n")
    return open_run(resolve(pilot))


def test_what_was_and_what_comes_is_shown_until_nobody_is_at_work(run: Run, capsys) -> None:
    progress = Progress(run.events, "readiness")
    progress.event("started", text="before the watch")
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with run.working():
            begun.set()
            go_on.wait(10)
            progress.note("during the watch")

    worker = threading.Thread(target=work)
    worker.start()
    assert begun.wait(10)
    assert run.at_work()
    threading.Timer(0.3, go_on.set).start()
    with pytest.raises(StageError, match=r"nobody is at work on watched/.*; finished: nothing"):
        watch_run(run)
    worker.join()
    said = capsys.readouterr().err
    assert said.index("before the watch") < said.index("during the watch")
    assert not run.at_work()


def test_a_killed_process_is_at_work_no_longer(run: Run) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from workbench.records.run import open_folder\n"
        "with open_folder(Path(sys.argv[1])).working():\n"
        "    print('at work', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "at work\n"
        assert run.at_work()
        child.kill()
        child.wait()
    assert not run.at_work()


def test_it_ends_as_the_run_did(run: Run) -> None:
    run.stage_folder("readiness").mkdir(parents=True)
    failure = {"got": "no room", "allowed": "room", "next_step": "make some", "exit_code": 3}
    write_json(run.stage_folder("readiness") / FAILURE, failure)
    with pytest.raises(StageError, match="no room"):
        watch_run(run)


def test_an_unknown_run_is_said_with_those_that_there_are(run: Run) -> None:
    with pytest.raises(ConfigError, match=f"no run has that name(.|\n)*runs: {run.name}"):
        find_run("nowhere")
