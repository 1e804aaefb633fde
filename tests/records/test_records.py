"""Metrics, tables, whole files, and the stream of events."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from workbench.errors import ConfigError, StageError
from workbench.files import digest_json, digest_path, replacing, write_json
from workbench.pilot.resolve import resolve
from workbench.records.events import Progress, follow
from workbench.records.metric import Metric
from workbench.records.run import open_run
from workbench.records.stage_record import RECORD, StageRecord
from workbench.records.terminal import describe


def test_a_missing_figure_needs_a_reason_and_a_value_must_be_finite() -> None:
    with pytest.raises(ValueError, match="reason"):
        Metric("energy_j", None, "J", how="", kind="not measured")
    with pytest.raises(ValueError, match="not finite"):
        Metric("speedup", float("inf"), "x", how="ratio")
    with pytest.raises(ValueError, match="not measured"):
        Metric("speedup", 1.0, "x", how="ratio", kind="not measured", reason="no meter")
    with pytest.raises(ValueError, match="kind"):
        Metric("speedup", 1.0, "x", how="ratio", kind="guessed")  # type: ignore[arg-type]


def test_a_record_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    record = StageRecord("train_qat", tmp_path, key="k")
    record.measured(
        "loss", 1.5, "nats", "mean over 3 documents", n=3, lo=1.4, hi=1.6, arm="ternary"
    )
    record.missing("energy_j", "J", "no meter was found", arm="ternary")
    record.save_table("rows", pd.DataFrame({"step": [1, 2]}))
    record.save()
    loaded = StageRecord.load(tmp_path)
    assert loaded == record
    assert loaded.metric("loss", arm="ternary").value == 1.5
    assert loaded.metric("loss", arm="full_precision") is None
    assert loaded.table("rows")["step"].tolist() == [1, 2]


def test_the_same_figure_twice_is_refused(tmp_path: Path) -> None:
    record = StageRecord("readiness", tmp_path)
    record.measured("speed", 1.0, "x", "ratio", arm="ternary")
    record.measured("speed", 1.0, "x", "ratio", arm="full_precision")
    with pytest.raises(ValueError, match="already"):
        record.measured("speed", 2.0, "x", "ratio", arm="ternary")


def test_a_torn_record_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('{"stage": "train_q')
    with pytest.raises(StageError, match=RECORD):
        StageRecord.load(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "value.json"
    write_json(target, {"a": 1})
    with pytest.raises(RuntimeError), replacing(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert json.loads(target.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(ValueError):
        write_json(target, {"a": float("nan")})


def test_digests_depend_on_content_alone(tmp_path: Path) -> None:
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same")
    assert digest_path(tmp_path / "x") == digest_path(tmp_path / "y")
    (tmp_path / "y" / "file").write_text("other")
    assert digest_path(tmp_path / "x") != digest_path(tmp_path / "y")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system refuses such names")
def test_a_folder_s_digest_is_the_one_it_always_was_and_takes_any_name(tmp_path: Path) -> None:
    (tmp_path / "é").write_text("same")
    content = hashlib.sha256(b"same").digest()
    assert digest_path(tmp_path) == hashlib.sha256("é\0".encode() + content).hexdigest()[:16]
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff")).write_text("same")
    both = "é\0".encode() + content + b"\xff\0" + content
    assert digest_path(tmp_path) == hashlib.sha256(both).hexdigest()[:16]


def test_an_input_that_may_not_be_read_is_named_with_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "secret.txt").write_text("text")
    (tmp_path / "pilot.yaml").write_text("name: a\nquestion: q\ndata: {corpus: corpus}\n")
    resolved = resolve(tmp_path / "pilot.yaml")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    opened = Path.open

    def refused(path: Path, *how: str, **more: Any) -> Any:
        if path.name == "secret.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ConfigError, match=r"data\.corpus: .*secret\.txt cannot be read: Perm"):
        open_run(resolved)


def test_events_are_read_back_and_a_torn_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    heard: list[dict] = []
    progress = Progress(path, "train_qat", heard.append)
    progress.event("started")
    for done in range(100):
        progress.step("training", done, 100)
    progress.step("training", 100, 100, text="loss 2.1")
    with path.open("a") as file:
        file.write('{"time": 1, "stage": "train')
    events = list(follow(path, None))
    assert events == heard
    assert events[0]["kind"] == "started"
    assert events[-1]["done"] == 100
    assert len(events) < 20, "steps that come too fast are merged"
    assert "training 100/100 steps" in describe(events[-1])
    assert "loss 2.1" in describe(events[-1])


def test_following_begins_where_asked_and_ends_when_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    progress = Progress(path, "readiness")
    progress.note("one")
    start = path.stat().st_size
    progress.note("two")
    assert [e["text"] for e in follow(path, lambda: True, start)] == ["two"]
    assert list(follow(tmp_path / "never", lambda: True)) == []
