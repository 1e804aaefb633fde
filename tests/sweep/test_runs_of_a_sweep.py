"""What becomes of the runs of a sweep: skipped, tried once more, stopped, compared."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.errors import ConfigError, StageError
from workbench.measure.noise import IN_COMPANY
from workbench.paths import runs_root
from workbench.pilot.resolve import resolve
from workbench.records import sweep as kept_sweeps
from workbench.records.run import open_run
from workbench.records.stage_record import StageRecord
from workbench.records.sweep import FILE, find_runs, load_sweep
from workbench.report.compare import compare
from workbench.sweep import command, here
from workbench.sweep.attempts import JobEnd, attempt, why
from workbench.sweep.command import jobs_of
from workbench.sweep.here import Slot, run_here, slots_of
from workbench.sweep.one_run import do
from workbench.sweep.slurm import slurm_script, write_script

QUIET = [].append


def ending(monkeypatch, codes):
    """Runs that end with these codes, one attempt after the other; what was begun."""
    begun = []

    def fake(array, number, tried, **how):
        begun.append((number, how.get("cores", "")))
        array.logs.mkdir(parents=True, exist_ok=True)
        log = array.log(number, tried)
        log.write_text("noise\nworkbench: the disk is full\n  next:    free some\n")
        return codes[number].pop(0)

    monkeypatch.setattr(here, "attempt", fake)
    return begun


def test_a_failed_run_is_tried_once_more_and_one_that_is_wrong_is_not(sweep_of, monkeypatch):
    kept, _ = sweep_of("grid: {seed: [1, 2, 3, 4, 5]}")
    begun = ending(monkeypatch, {1: [0], 2: [3, 0], 3: [-9, 3], 4: [2], 5: [4]})
    said: list[str] = []
    ends = run_here(jobs_of(kept, kept.runs, None), [Slot("a"), Slot("b")], said.append)
    assert [(end.number, end.code, end.attempts) for end in ends] == [
        (1, 0, 1), (2, 0, 2), (3, 3, 2), (4, 2, 1), (5, 4, 1),
    ]  # fmt: skip
    assert sorted(number for number, _ in begun) == [1, 2, 2, 3, 3, 4, 5]
    assert [end.number for end in ends if end.is_finished] == [1, 2, 5]
    assert any(re.match(r"run 2: the disk is full\n.*\n  tried once more", s, re.S) for s in said)
    with pytest.raises(StageError, match=r"2 of 5 runs did not finish: 3, 4"):
        command.raise_failed(kept, ends, None)


def test_no_more_runs_at_a_time_than_there_are_places(sweep_of, monkeypatch):
    kept, _ = sweep_of("grid: {seed: [1, 2, 3, 4, 5, 6]}")
    at_work, most, lock = set(), [], threading.Lock()

    def fake(array, number, tried, cores="", **how):
        with lock:
            at_work.add(cores)
            most.append(len(at_work))
        time.sleep(0.02)
        with lock:
            at_work.discard(cores)
        return 0

    monkeypatch.setattr(here, "attempt", fake)
    places = [Slot("a", "0"), Slot("b", "1")]
    assert len(run_here(jobs_of(kept, kept.runs, None), places, QUIET)) == 6
    assert max(most) == 2, "each place has one run at a time"


def test_places_share_the_cores_and_one_place_has_them_all(monkeypatch):
    pilots = [resolve("workbench:smoke", ["readiness.device=cpu"]).pilot]
    monkeypatch.setattr(here, "_cores", lambda count: [0, 1, 2, 3, 4])
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert [slot.cores for slot in slots_of(pilots, 1)] == [""]
    two = slots_of(pilots, 2)
    assert [slot.cores for slot in two] == ["0,1", "2,3,4"]
    alone = slots_of(pilots, 1)[0].environment
    assert IN_COMPANY in two[0].environment and IN_COMPANY not in alone
    monkeypatch.setattr(here, "cpu", lambda: SimpleNamespace(usable_cores=3))
    assert [slot.cores for slot in slots_of(pilots, 0)] == ["0", "1,2", "3,4"], "one a core"
    for jobs in (-1, 6):
        with pytest.raises(ConfigError, match=f"--jobs {jobs}"):
            slots_of(pilots, jobs)


def test_each_gpu_has_its_runs_and_a_training_on_two_has_two(monkeypatch):
    from workbench.machine.gpu import Gpu

    gpus = tuple(Gpu(n, f"GPU-{n}", "H200", 140_000) for n in range(4))
    monkeypatch.setattr(here, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(here, "_cores", lambda count: list(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    pilot = resolve("workbench:smoke").pilot
    two = resolve("workbench:smoke", ["train.processes=2"]).pilot
    seen = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots_of([pilot], 2)]
    assert seen == ["GPU-0", "GPU-0", "GPU-1", "GPU-1", "GPU-2", "GPU-2", "GPU-3", "GPU-3"]
    seen = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots_of([pilot, two], 1)]
    assert seen == ["GPU-0,GPU-1", "GPU-2,GPU-3"]
    assert len(slots_of([pilot], 0)) == 4, "one on each"
    on_cpu = resolve("workbench:smoke", ["readiness.device=cpu"]).pilot
    assert [slot.environment for slot in slots_of([on_cpu], 1)] == [{}]


def finish(kept, number):
    """A run folder that counts as finished."""
    one = kept.runs[number - 1]
    run = open_run(resolve(one.pilot_file, one.overrides))
    (run.folder / "report.html").write_text("")
    for stage in kept_sweeps.STAGES:
        StageRecord(stage, run.stage_folder(stage), "k", started="2026-11-29T12:00:00").save()
    return run


def test_a_finished_run_is_skipped_and_all_are_found_by_the_sweeps_name(sweep_of, monkeypatch):
    kept, path = sweep_of("grid: {seed: [1, 2, 3]}")
    done = [finish(kept, number) for number in (1, 2)]
    begun = ending(monkeypatch, {3: [3, 3]})
    monkeypatch.setattr(command, "compare_page", lambda runs, language: f"{len(runs)} runs")
    with pytest.raises(StageError, match="did not finish: 3"):
        command.run_sweep(path)
    assert [number for number, _ in begun] == [3, 3]
    assert (kept.folder / "compare.html").read_text() == "2 runs"
    assert [run.name for run in find_runs(["sweep:tiny"])] == [run.name for run in done]
    assert compare(find_runs(["sweep:tiny"])).runs == tuple(run.name for run in done)
    with pytest.raises(ConfigError, match="did you mean tiny"):
        find_runs(["sweep:tiyn"])
    do(kept.runs[0], notebooks=False)  # finished: at once
    foreseen = SimpleNamespace(
        whole_s=lambda: (60.0, 90.0),
        memory_bytes=2e9,
        memory_free_bytes=8 * 10**9,
        kept_bytes=3e7,
        disk_free_bytes=10**10,
    )
    monkeypatch.setattr(command, "forecast", lambda pilot, known: foreseen)
    lines = command.dry_run(path, jobs=2)
    assert "finished, skipped" in lines[0] and lines[2] == "   3  seed=3: 1:00 min to 1:30 min"
    assert "about 4 GB with 2 runs" in lines[-2] and "about 0.03 GB kept" in lines[-1]
    assert [run.name for run in find_runs(["sweep:tiny"])] == [run.name for run in done]


def test_a_pilot_changed_under_a_sweep_is_not_run_in_its_name(sweep_of, tmp_path):
    pilot = tmp_path / "mine.yaml"
    pilot.write_text("extends: workbench:smoke\nname: mine\nquestion: Is it mine?\n")
    (tmp_path / "my.yaml").write_text("pilot: mine.yaml\ngrid: {seed: [1]}\n")
    kept = command.keep(command.read_sweep(tmp_path / "my.yaml"))
    pilot.write_text(pilot.read_text() + "train: {steps: 3}\n")
    with pytest.raises(ConfigError, match="was changed since the sweep began"):
        do(kept.runs[0], notebooks=False)
    assert not (runs_root() / "mine").exists()


def test_what_is_kept_reads_back_and_a_damaged_file_is_named(sweep_of):
    kept, _ = sweep_of("runs: [{seed: 1}, {train: {lr: 1e-3}}]")
    assert load_sweep(kept.folder / FILE) == kept
    (kept.folder / FILE).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_sweep(kept.folder / FILE)


def test_why_a_run_ended(tmp_path):
    log = tmp_path / "1.log"
    assert "killed by signal 9" in why(-9, log)
    log.write_text("a\nworkbench: no disk\n  next:    free some\n")
    assert why(3, log) == "no disk\n  next:    free some"
    log.write_text("Traceback\nKeyError: 3\n")
    assert "ended with code 1" in why(1, log) and "KeyError: 3" in why(1, log)
    assert JobEnd(1, 4, 1, 2.0).is_finished and not JobEnd(1, 130, 1, 2.0).is_finished


def test_the_slurm_script_runs_one_run_an_element_and_tries_it_once_more(sweep_of, tmp_path):
    kept, _ = sweep_of("grid: {seed: [1, 2, 3, 4]}\nresources: {cpus: 2, gpus: 1, hours: 1.5}")
    waiting = [kept.runs[n] for n in (0, 1, 3)]
    asked = command.read_sweep(tmp_path / "tiny.yaml").resources
    array = jobs_of(kept, waiting, notebooks=False)
    text = slurm_script(array, kept.name, asked, ["--partition=gpu"])
    wanted = {"--array=1-2,4", "--cpus-per-task=2", "--gres=gpu:1", "--time=90", "--requeue",
              "--partition=gpu", "--signal=TERM@120"}  # fmt: skip
    assert wanted <= set(re.findall(r"^#SBATCH (\S+)$", text, re.M))
    script = write_script(kept.folder / FILE, text)
    # The script as Slurm would start an element of it, with a python that fails first.
    (tmp_path / "srun").write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n'
        f"[ $(wc -l < {tmp_path}/calls) -gt 1 ] || exit 3\n"
    )
    (tmp_path / "srun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(script)], env={**environment, "SLURM_ARRAY_TASK_ID": "4"}, check=False
    )
    calls = (tmp_path / "calls").read_text().splitlines()
    assert done.returncode == 0 and len(calls) == 2 and len(set(calls)) == 1
    assert calls[0].endswith(f"-m workbench.sweep.one_run {kept.folder / FILE} 4 --no-notebooks")
    with pytest.raises(ConfigError, match="bash -n refuses the script"):
        write_script(kept.folder / FILE, "for x in; do")


def at_work_on(run):
    """The process that began the run's newest stage."""
    events = [json.loads(line) for line in run.events.read_text().splitlines()]
    return next(event["pid"] for event in events[::-1] if "pid" in event)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_sweep_leaves_nothing_at_work_and_the_same_command_goes_on(sweep_of, tmp_path):
    """SIGKILL to the sweep in mid-run, then to a run of it: the runs end in order, the record of
    what was finished stays, and at the end all are compared."""
    kept, path = sweep_of("grid: {seed: [1, 2]}")
    words = [sys.executable, "-m", "workbench.cli", "sweep", str(path), "--no-notebooks"]

    def begun():
        return [run for one in kept.runs if (run := one.run())]

    def until(holds, what, wait_s=240):
        deadline = time.monotonic() + wait_s
        while not holds():
            assert time.monotonic() < deadline, what
            time.sleep(0.1)

    first = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    until(lambda: begun() and begun()[0].records(), "a first stage is finished")
    first.kill()
    first.wait()
    until(lambda: not begun()[0].at_work(), "the run ends with the sweep that was killed")
    before = begun()[0].records()["readiness"].started

    gone = at_work_on(begun()[0])

    second = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: at_work_on(begun()[0]) != gone, "the run goes on with a stage")
        os.kill(at_work_on(begun()[0]), signal.SIGKILL)
        out, err = second.communicate(timeout=700)
    finally:
        second.kill()
    assert second.returncode == 0, err
    assert "tried once more" in err
    assert begun()[0].records()["readiness"].started == before
    assert all(kept_sweeps.is_finished(run) for run in begun()) and len(begun()) == 2
    assert Path(out.strip()).read_text().count(begun()[1].name)
    assert not list(runs_root().rglob("*.partial")), "nothing half-written"


def test_a_run_that_is_asked_to_stop_ends_in_order(sweep_of):
    """The child of a sweep that goes: its standard input ends, and it leaves as by Ctrl-C."""
    kept, _ = sweep_of("grid: {seed: [1]}")
    stop = threading.Event()
    stop.set()
    assert attempt(jobs_of(kept, kept.runs, None), 1, 1, stop=stop) == 130
