"""A sweep as tasks of a local Ray cluster, a worker killed in the middle of it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from workbench.errors import ConfigError
from workbench.pilot.resolve import resolve
from workbench.records.sweep import is_finished
from workbench.sweep.file import Resources
from workbench.sweep.on_ray import own_cores, resources_of


def test_tasks_beside_each_other_have_cores_of_their_own():
    allowed = sorted(os.sched_getaffinity(0))
    with own_cores(1) as first, own_cores(len(allowed)) as too_many:
        assert first == str(allowed[0]) and too_many == "", "all, where so many are not free"
    with own_cores(1) as again:
        assert again == first


def test_a_pilot_for_gpus_asks_for_one_a_process():
    pilot = resolve("workbench:smoke", ["readiness.device=cuda", "train.processes=4"]).pilot
    assert resources_of(Resources(), [pilot]).gpus == 4
    assert resources_of(Resources(gpus=8), [pilot]).gpus == 8
    assert resources_of(Resources(), [resolve("workbench:smoke").pilot]).gpus == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_on_ray_survives_a_killed_worker(sweep_of):
    """Two runs on a local cluster with places for one at a time; the worker of the first one is
    killed: its run ends in order, is tried once more and finishes, as does the other."""
    pytest.importorskip("ray")
    kept, path = sweep_of("grid: {seed: [1, 2]}\nresources: {cpus: 2}")
    words = [sys.executable, "-m", "workbench.cli", "sweep", str(path), "--on", "ray"]
    sweep = subprocess.Popen(
        [*words, "--no-notebooks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RAY_NUM_CPUS": "2"},
    )  # fmt: skip
    try:
        worker = _worker_with_a_run(sweep)
        os.kill(worker.pid, signal.SIGKILL)
        out, err = sweep.communicate(timeout=700)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, err
    assert "its worker is gone" in err and "tried once more" in err
    runs = [one.run() for one in kept.runs]
    assert all(run and is_finished(run) for run in runs)
    assert out.strip().endswith("compare.html")


def _worker_with_a_run(sweep: subprocess.Popen[str]) -> psutil.Process:
    """The Ray worker whose run has begun its first stage."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        if sweep.poll() is not None:
            said = sweep.communicate()[1]
            if "a local cluster has 30 s to begin" in said:
                pytest.skip(f"Ray did not begin on this busy machine: {said}")
            raise AssertionError(said)
        for process in psutil.Process(sweep.pid).children(recursive=True):
            try:
                if "workbench.sweep.one_run" in process.cmdline():
                    time.sleep(8)
                    return process.parent()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)
    raise AssertionError("no run has begun")


def test_what_no_node_has_is_refused(monkeypatch):
    from workbench.sweep import on_ray

    class OneNode:
        @staticmethod
        def nodes():
            return [{"Alive": True, "Resources": {"CPU": 2.0, "memory": 4e9}}]

    on_ray._refuse_what_never_fits(OneNode, Resources(cpus=2, memory_gb=3))
    with pytest.raises(ConfigError, match="asks for 2 cores, 1 GPU and 0 GB"):
        on_ray._refuse_what_never_fits(OneNode, Resources(cpus=2, gpus=1))
