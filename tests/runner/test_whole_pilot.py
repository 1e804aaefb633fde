"""A whole small pilot: killed at three moments it ends with the same numbers; its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from workbench.records.run import Run, open_folder
from workbench.roadmap import STAGES

ROOT = Path(__file__).parents[2]
PILOT = ROOT / "pilots" / "smoke.yaml"
SMALL = [
    "--set=readiness.probe.largest=tiny-1m",
    "--set=data.max_bytes=400000",
    "--set=train.steps=24",
    "--set=train.save_every=4",
    "--set=deploy_rollback.duration_s=4.0",
]
COMMAND = [sys.executable, "-m", "workbench.cli", "run", str(PILOT), "--no-notebooks", *SMALL]
QUALITY = ("final_bits_per_byte", "bits_per_byte", "quality_gap_bits_per_byte", "share_zero",
           "hybrid_quality_loss_bits_per_byte", "hybrid_size_ratio")  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def environment(runs: Path) -> dict[str, str]:
    return {**os.environ, "WORKBENCH_RUNS": str(runs), "OMP_NUM_THREADS": "2"}


def run_to_the_end(runs: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *more], env=environment(runs), capture_output=True, text=True, cwd=ROOT
    )


def events_of(runs: Path) -> list[dict]:
    for path in runs.glob("*/*/events.jsonl"):
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return []


def kill_when(runs: Path, reached: Callable[[dict], bool]) -> None:
    """Start the command and kill -9 its whole group once an event of this attempt fits."""
    already = len(events_of(runs))
    process = subprocess.Popen(
        COMMAND,
        env=environment(runs),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not any(reached(event) for event in events_of(runs)[already:]):
        assert process.poll() is None, "the run ended before the moment to kill it came"
        assert time.monotonic() < deadline, "the moment to kill it never came"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def only_run(runs: Path) -> Run:
    folders = [path.parent for path in runs.glob("*/*/run.json")]
    assert len(folders) == 1, "the same command goes on in the same run"
    return open_folder(folders[0])


def quality(run: Run) -> dict[tuple, float | None]:
    return {
        (stage, m.name, *sorted(m.labels.items())): m.value
        for stage, record in run.records().items()
        for m in record.metrics
        if m.name in QUALITY
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    done = run_to_the_end(runs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(only_run(runs).report)
    return runs


def training(arm_done: int) -> Callable[[dict], bool]:
    """The training task's step ``arm_done`` or later, counted over both arms' events."""
    seen = {"steps": 0}

    def reached(event: dict) -> bool:
        if event["stage"] == "train_qat" and event["kind"] == "step":
            seen["steps"] = max(seen["steps"], event["done"])
        return event["stage"] == "train_qat" and seen["steps"] >= arm_done

    return reached


def test_killed_at_three_moments_it_ends_with_the_same_numbers(undisturbed, tmp_path) -> None:
    kill_when(tmp_path, training(6))
    kill_when(tmp_path, lambda e: e["stage"] == "measure_ab" and e["kind"] == "step")
    kill_when(tmp_path, lambda e: e["stage"] == "hybrid_plan" and e["kind"] == "step")
    done = run_to_the_end(tmp_path)
    assert done.returncode == 0, done.stderr
    killed, whole = only_run(tmp_path), only_run(undisturbed)
    assert set(killed.records()) == set(STAGES)
    expected = quality(whole)
    assert len(expected) >= 8
    assert quality(killed) == expected
    for table in ("loss", "evaluations", "layers"):
        frames = [run.record("train_qat").table(table) for run in (killed, whole)]
        # How long a step and its teacher took is the one thing that may differ.
        clocks = ["seconds", "teacher_seconds"]
        ours, theirs = (frame.drop(columns=clocks, errors="ignore") for frame in frames)
        assert ours.equals(theirs), f"{table} differs"
    plans = [run.record("hybrid_plan").table("plan") for run in (killed, whole)]
    assert plans[0].equals(plans[1])


def test_run_again_it_loads_everything_in_seconds(undisturbed) -> None:
    before = {s: r.started for s, r in only_run(undisturbed).records().items()}
    began = time.monotonic()
    done = run_to_the_end(undisturbed)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 30
    assert {s: r.started for s, r in only_run(undisturbed).records().items()} == before


def test_a_gate_that_must_hold_ends_the_run_with_4(undisturbed, tmp_path) -> None:
    gate = "report.gates=[{metric: memory_ratio, at_least: 1000.0, on_fail: stop}]"
    for stage in ("measure_ab", "readiness"):
        assert only_run(undisturbed).record(stage)
    done = run_to_the_end(undisturbed, f"--set={gate}")
    assert done.returncode == 4, done.stderr
    assert "Memory saving against full precision" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].endswith("report.html")


def test_a_missing_stage_before_ends_with_3_and_a_wrong_key_with_2(tmp_path) -> None:
    early = run_to_the_end(tmp_path, "--only", "measure_ab")
    assert early.returncode == 3
    assert "needs train_qat" in early.stderr
    wrong = run_to_the_end(tmp_path, "--set", "train.stepz=3")
    assert wrong.returncode == 2
    assert "did you mean steps" in wrong.stderr
    assert not list(tmp_path.glob("*/*/stages/*/record.json"))


def test_an_interruption_ends_with_130_and_loses_nothing(tmp_path) -> None:
    process = subprocess.Popen(
        COMMAND, env=environment(tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not any(e["stage"] == "profile_load" for e in events_of(tmp_path)):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert only_run(tmp_path).record("readiness")
