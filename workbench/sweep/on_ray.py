"""The jobs of a sweep or a study as tasks of Ray, each with the resources it asks for.

A task starts its job as a process of its own and waits for it. A worker that is killed takes its
job along in order, since the job's standard input ends with it, and the job is tried once more.
Every node needs the same environment, the pilot's files and the runs' folder at the same paths.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from workbench.errors import ConfigError, reason_of
from workbench.measure.noise import IN_COMPANY
from workbench.pilot.spec import Pilot
from workbench.records.store import places_of_runs
from workbench.sweep.attempts import JobArray, JobEnd, attempt, tried_again, why
from workbench.sweep.file import Resources
from workbench.sweep.job import INTERRUPTED
from workbench.wording.counts import number_of

GB = 1e9
JOINED_AT_MOST = 2
"""Times that a local cluster is begun: on a busy machine the first one is often too slow."""


def run_on_ray(
    array: JobArray,
    resources: Resources,
    say: Callable[[str], None],
    *,
    address: str | None = None,
) -> list[JobEnd]:
    """Every job of ``array``, each tried once more where it fails or its worker goes.

    address: of a cluster; None takes ``$RAY_ADDRESS``, or a local cluster for these jobs alone.
    Raises ConfigError without Ray, and where no node could ever hold a job.
    """
    ray = _ray()
    began_here = not ray.is_initialized()
    if began_here:
        _join(ray, address)
    try:
        _refuse_what_never_fits(ray, resources)
        return sorted(_all(ray, array, resources, say), key=lambda end: end.number)
    finally:
        if began_here:
            ray.shutdown()


def _all(
    ray: Any, array: JobArray, resources: Resources, say: Callable[[str], None]
) -> Iterator[JobEnd]:
    task = ray.remote(_task).options(**_options(resources))
    environment, began = places_of_runs(), time.monotonic()

    def begin(number: int, tried: int) -> Any:
        return task.remote(array, number, tried, resources.cpus, environment)

    at_work = {begin(number, 1): (number, 1) for number in array.names}
    while at_work:
        (ready,), _ = ray.wait(list(at_work), num_returns=1)
        number, tried = at_work.pop(ready)
        try:
            code = int(ray.get(ready))
            said = why(code, array.log(number, tried))
        except ray.exceptions.RayError as error:
            code, said = INTERRUPTED, f"its worker is gone ({type(error).__name__})"
        end = JobEnd(number, code, tried, time.monotonic() - began, said)
        name = array.names[number]
        if end.is_finished or not tried_again(code, tried):
            say(f"{name}: " + ("finished" if end.is_finished else said))
            yield end
            continue
        say(f"{name}: {said}\n  tried once more")
        at_work[begin(number, tried + 1)] = (number, tried + 1)


def _task(array: JobArray, number: int, tried: int, cpus: int, environment: dict[str, str]) -> int:
    """On a worker: the exit code of the job."""
    company = {IN_COMPANY: "1"} if cpus < (os.cpu_count() or 1) else {}
    with own_cores(cpus) as cores:
        return attempt(array, number, tried, cores=cores, environment=environment | company)


@contextmanager
def own_cores(count: int) -> Iterator[str]:
    """``count`` hardware threads of this machine that no other task has, as ``0,1``; empty, for
    all, where so many are not free. Ray counts cores and does not say which.

    A lock on a file each: it goes with the process that holds it, however that ends.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with ExitStack() as held:
        taken: list[int] = []
        for core in allowed:
            if len(taken) == count:
                break
            path = Path(gettempdir()) / f"workbench-{os.getuid()}-core-{core}.lock"
            file = held.enter_context(path.open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                taken.append(core)
            except OSError:
                continue
        yield ",".join(map(str, taken)) if len(taken) == count else ""


def resources_of(asked: Resources, pilots: Sequence[Pilot]) -> Resources:
    """With a GPU for each of the processes that train together, where the pilots want GPUs."""
    wanted = [pilot for pilot in pilots if pilot.readiness.device == "cuda"]
    gpus = max((pilot.train.launch.processes for pilot in wanted), default=0)
    return asked.model_copy(update={"gpus": max(asked.gpus, gpus)})


def _options(resources: Resources) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": 0
    }  # fmt: skip
    if resources.memory_gb is not None:
        found["memory"] = int(resources.memory_gb * GB)
    return found


def _refuse_what_never_fits(ray: Any, resources: Resources) -> None:
    """Ray would wait for such a node for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {
        "CPU": resources.cpus, "GPU": resources.gpus, "memory": (resources.memory_gb or 0) * GB
    }  # fmt: skip
    if not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
        largest = {k: max((node.get(k, 0) for node in nodes), default=0) for k in wanted}
        raise ConfigError(
            f"resources: a job asks for {number_of(resources.cpus, 'core')}, "
            f"{number_of(resources.gpus, 'GPU')} and {resources.memory_gb or 0:g} GB, and no node "
            "of the Ray cluster has them",
            allowed=f"at most {number_of(largest['CPU'], 'core', form='g')}, "
            f"{number_of(largest['GPU'], 'GPU', form='g')}, {largest['memory'] / GB:.3g} GB of the "
            f"largest of {number_of(len(nodes), 'node')}",
            next_step="lower resources in the sweep file, or join another cluster",
        )


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            f"--on ray: {error}", next_step="pip install -c constraints.txt -e .[ray]"
        ) from error
    return ray


def _join(ray: Any, address: str | None) -> None:
    how: dict[str, Any] = {
        "include_dashboard": False, "log_to_driver": False, "logging_level": "warning"
    }  # fmt: skip
    for left in reversed(range(JOINED_AT_MOST)):
        try:
            ray.init(**({"address": address} | how if address else how))
            return
        except Exception as error:  # Ray says by a bare Exception that a node was slow to begin
            ray.shutdown()
            if left and address is None and type(error) is Exception:
                continue
            raise ConfigError(
                f"--ray-address {address or 'of a local cluster'}: {reason_of(error)}",
                allowed="the address of a cluster's head, HOST:PORT, or auto",
                next_step="ray status shows whether it answers; a local cluster has 30 s to begin, "
                "which a busy machine may not give it: try again",
            ) from error
