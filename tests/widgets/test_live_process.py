"""A training in a process of its own is watched from its beginning, stopped, and kept."""

from __future__ import annotations

import pytest

from workbench.pilot.resolve import resolve
from workbench.records.run import open_run
from workbench.widgets import live

pytestmark = pytest.mark.slow
CHANGES = ["train.steps=400", "train.save_every=10"]


def test_a_training_is_attached_to_and_stopped(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    run = open_run(resolve("workbench:smoke", CHANGES))
    child = live.start(run, live.STAGE)
    try:
        watched = live.watch(run, lambda _: child.poll() is not None, every_s=0.2)
        for training in watched:
            steps, losses = training.losses.get("full_precision", ([], []))
            if len(steps) > 20:
                break
        assert steps[0] == 1 and all(loss > 0 for loss in losses)
        elsewhere = live.so_far(run)
        assert elsewhere.at_work() and elsewhere.pid == child.pid
        assert elsewhere.losses["full_precision"][0][0] == 1
        assert "was asked to stop" in live.stop_and_keep(elsewhere)
        assert child.wait(60) == 130
    finally:
        child.kill()
        child.wait()
    after = live.so_far(run)
    assert after.state == "failed" and not after.at_work()
    kept = run.stage_folder(live.STAGE).glob("full_precision_arm/checkpoints/checkpoint-*")
    assert list(kept), "it goes on from there"
