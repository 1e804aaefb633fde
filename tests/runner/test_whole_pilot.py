"""A whole small pilot: interrupted and killed three times it ends with the same numbers; its exit
codes. Only two are run, for each takes half a minute: one undisturbed, and (in the slow suite) one
that is disturbed at every moment and whose gate fails in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ternary_kernels import backend

from workbench import cli
from workbench.figures.page import stage_figures
from workbench.records.run import Run, open_folder
from workbench.report.gate_check import fits
from workbench.report.html import write_html
from workbench.roadmap import STAGES
from workbench.wording.vocabulary import FIGURES

ROOT = Path(__file__).parents[2]
PILOT = ROOT / "pilots" / "smoke.yaml"
SMALL = [
    "--set=readiness.probe.largest=tiny-1m",
    "--set=data.max_bytes=400000",
    "--set=train.steps=24",
    "--set=train.save_every=4",
    "--set=measure_ab.interactive_output_tokens=[2]",
    "--set=measure_ab.in_cores={elsewhere: {core: transformers}}",
    "--set=deploy_rollback.duration_s=2.0",
]
GATE = "--set=report.gates=[{metric: memory_ratio, at_least: 1000.0, on_fail: stop}]"
"""Decides nothing before the report, so that all other numbers stay as they are without it."""
COMMAND = [sys.executable, "-m", "workbench.cli", "run", str(PILOT), "--no-notebooks", *SMALL]
QUALITY = ("final_bits_per_byte", "bits_per_byte", "quality_gap_bits_per_byte", "share_zero",
           "hybrid_quality_loss_bits_per_byte", "hybrid_size_ratio")  # fmt: skip

pytestmark = pytest.mark.timeout(600)


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


def started(
    runs: Path, reached: Callable[[dict], bool], errors: int = subprocess.DEVNULL
) -> subprocess.Popen:
    """The command whose gate fails, once an event of this attempt fits. errors: takes stderr."""
    already = len(events_of(runs))
    process = subprocess.Popen(
        [*COMMAND, GATE],
        env=environment(runs),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not any(reached(event) for event in events_of(runs)[already:]):
        assert process.poll() is None, "the run ended before the moment to kill it came"
        assert time.monotonic() < deadline, "the moment to kill it never came"
        time.sleep(0.02)
    return process


def kill_when(runs: Path, reached: Callable[[dict], bool]) -> None:
    """kill -9 the whole group of the command at that moment."""
    process = started(runs, reached)
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


@dataclass(frozen=True)
class Disturbed:
    """One run, interrupted once and killed three times. code, errors: of the interrupted attempt;
    stages: finished at that time. done: the attempt that was let to its end."""

    runs: Path
    code: int
    errors: str
    stages: set[str]
    done: subprocess.CompletedProcess


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory) -> Disturbed:
    runs = tmp_path_factory.mktemp("disturbed")
    interrupted = started(runs, lambda e: e["stage"] == "profile_load", subprocess.PIPE)
    interrupted.send_signal(signal.SIGTERM)
    _, errors = interrupted.communicate(timeout=60)
    stages = set(only_run(runs).records())
    kill_when(runs, training(6))
    kill_when(runs, lambda e: e["stage"] == "measure_ab" and e["kind"] == "step")
    kill_when(runs, lambda e: e["stage"] == "hybrid_plan" and e["kind"] == "step")
    return Disturbed(runs, interrupted.returncode, errors, stages, run_to_the_end(runs, GATE))


@pytest.mark.slow
def test_an_interruption_ends_with_130_and_loses_nothing(disturbed) -> None:
    assert disturbed.code == 130, disturbed.errors
    assert "interrupted" in disturbed.errors
    assert "readiness" in disturbed.stages and "train_qat" not in disturbed.stages


@pytest.mark.slow
def test_killed_at_three_moments_it_ends_with_the_same_numbers(undisturbed, disturbed) -> None:
    killed, whole = only_run(disturbed.runs), only_run(undisturbed)
    assert set(killed.records()) == set(STAGES), disturbed.done.stderr
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


def test_every_figure_stands_in_the_list_with_its_labels(undisturbed) -> None:
    run = only_run(undisturbed)
    pilot = run.resolved().pilot
    for stage, record in run.records().items():
        for m in record.metrics:
            assert m.name in FIGURES and fits(m.labels, m.name, pilot), (stage, m.name, m.labels)


def test_an_arm_in_another_core_is_measured_and_named_like_any_other(undisturbed) -> None:
    record = only_run(undisturbed).record("measure_ab")
    for name in ("memory_ratio", "throughput_ratio", "quality_gap_bits_per_byte", "e2e_speedup"):
        assert any(m.matches(name, {"arm": "elsewhere"}) and m.value for m in record.metrics), name
    units = record.facts["units"]
    assert units.pop("elsewhere") == [] and all(units.values()) == (backend().name == "native")
    assert any("elsewhere: transformers on cpu" in (m.how or "") for m in record.metrics)
    assert any(note.startswith("elsewhere is the model of ternary") for note in record.notes)


def test_every_arm_ends_where_its_tokenizer_s_documents_end(undisturbed) -> None:
    """A configuration's own default is 2: in a vocabulary made here a letter like any other."""
    folder = only_run(undisturbed).folder / "stages" / "train_qat"
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    ends = {token["id"] for token in tokenizer["added_tokens"]}
    for arm in ("full_precision", "ternary", "int8", "int4", "post_training"):
        for name in ("config.json", "generation_config.json"):
            file = folder / arm / name
            assert not file.exists() or json.loads(file.read_text())["eos_token_id"] in ends, file


def test_its_russian_page_has_no_english(undisturbed, english_of) -> None:
    """The sentences of a run that ran, not those that a test made up."""
    page = write_html(only_run(undisturbed).folder, stage_figures, "ru").read_text("utf-8")
    found = english_of(page, "elsewhere")
    assert not found, "\n".join(found)


def test_run_again_it_loads_everything(undisturbed) -> None:
    before = {s: r.started for s, r in only_run(undisturbed).records().items()}
    already = len(events_of(undisturbed))
    done = run_to_the_end(undisturbed)
    assert done.returncode == 0, done.stderr
    assert {s: r.started for s, r in only_run(undisturbed).records().items()} == before
    later = events_of(undisturbed)[already:]
    assert not [event for event in later if event["kind"] in ("started", "step")]


@pytest.mark.slow
def test_a_gate_that_must_hold_ends_the_run_with_4(disturbed) -> None:
    done = disturbed.done
    assert done.returncode == 4, done.stderr
    assert "Memory saving against full precision" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].endswith("report.html")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--only", "measure_ab"), 3, "needs profile_load, train_qat"),
        (("--set", "train.stepz=3"), 2, "did you mean steps"),
    ],
)
def test_a_missing_stage_before_ends_with_3_and_a_wrong_key_with_2(
    tmp_path, monkeypatch, capsys, options: tuple[str, str], code: int, says: str
) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    command = ["workbench", "run", str(PILOT), "--no-notebooks", *SMALL, *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*/stages/*/record.json"))
