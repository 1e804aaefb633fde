"""What the monitors of pairs see of a run's own arms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.pilot.resolve import resolve
from workbench.records.run import Run, open_run
from workbench.records.stage_record import StageRecord
from workbench.serve import calibration
from workbench.serve.comparison import pair_values


@pytest.fixture
def judged_run(arms, tokenizer, tmp_path, monkeypatch) -> Run:
    """Its INT8 arm is full precision itself, its hybrid another model."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    (tmp_path / "trial.yaml").write_text("name: trial\nquestion: is it as good?\n")
    run = open_run(resolve(tmp_path / "trial.yaml"))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    full, hybrid = str(arms["full_precision"]), str(arms["hybrid"])
    same = {"full_precision": full, "int8": full, "tokenizer": str(tmp_path / "tokenizer")}
    for stage, artefacts in (("train_qat", same), ("hybrid_plan", {"hybrid": hybrid})):
        folder = run.stage_folder(stage)
        folder.mkdir(parents=True)
        record = StageRecord(stage, folder, artefacts=artefacts)
        if stage == "train_qat":
            texts = [f"def f{i}(x): return x + {i}" for i in range(12)]
            record.save_table("heldout", pd.DataFrame({"text": [*texts, " "]}))
        record.save()
    return run


def test_an_arm_that_is_full_precision_differs_in_nothing(judged_run, capsys) -> None:
    assert calibration.main([str(judged_run.folder)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {(row["arm"], row["monitor"]): row for row in rows}
    assert list(found) == [
        (arm, monitor) for arm in ("int8", "hybrid") for monitor in ("disagreement", "unlikely")
    ]
    for monitor in ("disagreement", "unlikely"):
        same = found["int8", monitor]
        assert (same["mean"], same["pairs"], same["taken_back"]) == (0.0, 12, 0.0)
        assert same["median_delay"] is None
    other = found["hybrid", "disagreement"]
    assert other["mean"] > 0.5 and other["taken_back"] == 1.0 and other["median_delay"] < 200


def test_the_lives_take_back_what_exceeds_the_limit_alone() -> None:
    rng = np.random.default_rng(3)
    worse, better = ((rng.random(400) < share).astype(float) for share in (0.5, 0.1))
    assert calibration._lives(worse, 0.2, 0.0, 0.05)[0] == 1.0
    found, delay = calibration._lives(better, 0.2, 0.0, 0.05)
    assert found <= 0.05 and delay is None


def test_a_run_that_is_not_trained_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    (tmp_path / "trial.yaml").write_text("name: trial\nquestion: is it as good?\n")
    run = open_run(resolve(tmp_path / "trial.yaml"))
    assert calibration.main([str(run.folder)]) == 1
    assert "train_qat" in capsys.readouterr().err
    assert calibration.main([]) == 2


def test_an_empty_answer_differs_from_one_with_tokens_and_is_not_unlikely() -> None:
    read = [(-0.5, True)]
    assert pair_values((), read, unlikely_nats=1.0) == {"disagreement": 1.0}
    assert pair_values((), (), unlikely_nats=1.0) == {"disagreement": 0.0}
    assert pair_values([(-2.0, False)], read, unlikely_nats=1.0) == {
        "disagreement": 1.0, "unlikely": 1.0,
    }  # fmt: skip
