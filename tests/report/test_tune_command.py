"""``workbench tune``: asks for a sweep of a finished run, and says what it found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from workbench.errors import ConfigError, StageError
from workbench.runner import tune_run as command
from workbench.serve.rate_search import LargestRate, Point
from workbench.serve.tuning import Searched, Setting

ASKED = (60.0, [4], [0.0, 20.0], [1])


def test_a_finished_run_is_tuned_and_the_settings_are_printed(
    make_run, monkeypatch, capsys
) -> None:
    run, seen = make_run(), []

    def sweep(pilot, records, device, folder, step):
        seen.append((pilot.deploy_rollback.tuning, set(records), folder))
        folder.mkdir(parents=True)
        step(0, 1, "hybrid, profile")
        held = LargestRate("found", 9.0, 10.0, True, "held", (Point(9.0, "held", 5.0, 60, 9.0),))
        none = LargestRate("none", None, 5.0, False, "failed at 5")
        return [
            Searched("hybrid", "profile", Setting(4, 20.0), held),
            Searched("full_precision", "profile", Setting(4), none),
        ]

    monkeypatch.setattr(command, "tune", sweep)
    profile = SimpleNamespace(rate_per_s=2.0)
    monkeypatch.setattr(command.LoadProfile, "from_record", lambda record: profile)
    command.tune_run(str(run.folder), *ASKED)
    ((tuning, records, folder),) = seen
    assert (tuning.budget_s, tuning.slots, tuning.batch_wait_ms) == (60.0, [4], [0.0, 20.0])
    assert records == {"profile_load", "train_qat", "hybrid_plan"}
    assert folder.parent == run.folder / "tuning"
    printed = capsys.readouterr()
    assert f"workbench serve {run.name} --slots 4 --batch-wait-ms 20" in printed.out
    assert "full_precision, --slots 4 --batch-wait-ms 0: failed at 5" in printed.out
    assert "tune: 0/1 search, hybrid, profile" in printed.err
    for name in ("settings.txt", "searches.parquet", "points.parquet"):
        assert (folder / name).exists()
    assert run.record("deploy_rollback").metric("lost_requests"), "its records are as they were"


def test_what_cannot_be_tuned_is_said(make_run) -> None:
    run = make_run(stages=("readiness", "profile_load"))
    with pytest.raises(StageError, match="no finished train_qat, hybrid_plan"):
        command.tune_run(str(run.folder), *ASKED)
    for wrong in (
        (60.0, [0], [0.0], [1]),
        (60.0, [4], [-1.0], [1]),
        (60.0, [], [0.0], [1]),
        (7.0, *ASKED[1:]),
    ):
        with pytest.raises(ConfigError, match="tune: "):
            command.tune_run(str(run.folder), *wrong)
