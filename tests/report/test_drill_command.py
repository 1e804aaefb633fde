"""``workbench drill``: takes the ways back of a finished run, and says what each cost.

The drill itself is played in ``tests/serve``; on a real server the command is run by
``tests/docs/test_commands_run.py``.
"""

from __future__ import annotations

import json

import pytest

from workbench.cli import main
from workbench.errors import ConfigError, GateError, StageError
from workbench.runner import drill_run as command
from workbench.serve.drill import WAYS, Taken

GOOD = Taken("monitor", 40, first_fallback_token_s=0.21, p99_ms=250.4, reason="first tokens late")
CUT = Taken("kill", 40, truncated=3, back_s=2.25)
LOST = Taken("command", 40, failed_without_token=2)
SKIPPED = Taken("upstream", skipped="too few requests")


@pytest.fixture
def takes(monkeypatch):
    """Plays the ways back; what was asked for stands in the list."""
    asked = []

    def play(*taken: Taken) -> list:
        def drilled(pilot, records, ways, folder):
            asked.append((ways, pilot.deploy_rollback.drill.way_s, set(records), folder))
            return list(taken)

        monkeypatch.setattr(command, "_taken", drilled)
        return asked

    return play


def test_what_each_way_cost_is_printed_and_kept(make_run, takes, capsys, tmp_path) -> None:
    run, out = make_run(), tmp_path / "drill.jsonl"
    asked = takes(GOOD, CUT, SKIPPED)
    records = sorted(run.folder.rglob("record.json"))
    before = [path.read_bytes() for path in records]
    command.drill_run(str(run.folder), ["upstream", "monitor", "kill"], 0.8, out)
    folder = run.folder / "drill"
    stages = {"profile_load", "train_qat", "hybrid_plan"}
    assert asked == [(["monitor", "kill", "upstream"], 0.8, stages, folder)]
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["way", "requests", "lost", "cut"]
    assert [line.split()[0] for line in lines] == ["monitor", "kill", "upstream"]
    assert "first tokens late" in lines[0] and "too few requests" in lines[2]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["way"], row["holds"], row["way_s"]) for row in rows] == [
        ("monitor", True, 0.8), ("kill", True, 0.8), ("upstream", None, 0.8)
    ]  # fmt: skip
    assert all(row["name"] == "drill" and row["run"] == run.name for row in rows)
    assert all(row["commit"] and row["machine"] for row in rows)
    command.drill_run(str(run.folder), [], 0.8, None)
    assert asked[-1][0] == list(WAYS), "none named means all"
    assert len((folder / "drill.jsonl").read_text().splitlines()) == 6, "those before are kept"
    assert [path.read_bytes() for path in records] == before and len(records) == 7


def test_a_way_that_cost_more_than_it_may_fails_the_command(make_run, takes, monkeypatch) -> None:
    run = make_run()
    takes(GOOD, LOST, CUT)
    with pytest.raises(GateError, match="the way back command lost requests") as caught:
        command.drill_run(str(run.folder), [], 0.8, None)
    assert "server.log" in str(caught.value)
    assert len((run.folder / "drill" / "drill.jsonl").read_text().splitlines()) == 3
    monkeypatch.setattr("sys.argv", ["workbench", "drill", run.name, "--way", "kill"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == GateError.exit_code == 4


def test_what_cannot_be_drilled_is_said(make_run, monkeypatch, capsys) -> None:
    run = make_run(stages=("readiness", "profile_load"))
    with pytest.raises(ConfigError, match="drill: fire") as caught:
        command.drill_run(str(run.folder), ["kill", "fire"], 1.0, None)
    assert "command, monitor, crash" in str(caught.value)
    with pytest.raises(StageError, match="no finished train_qat, hybrid_plan"):
        command.drill_run(str(run.folder), [], 1.0, None)
    monkeypatch.setattr("sys.argv", ["workbench", "drill", run.name, "--way-s", "0.1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "--way-s" in capsys.readouterr().err
