"""The jobs of a sweep or a study on this machine, so many at a time on each of its devices.

A device is a GPU, or the processor where no GPU computes. Jobs beside each other each keep to
their share of the cores, so that each counts those as its own and none starts more threads than it
has, and none waits for a quiet machine; memory and its bandwidth they share all the same, which is
why one at a time is the default.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench.errors import ConfigError
from workbench.machine.cpu import cpu
from workbench.machine.gpu import visible_gpus
from workbench.measure.noise import IN_COMPANY
from workbench.pilot.spec import Pilot
from workbench.sweep.attempts import JobArray, JobEnd, attempt, tried_again, why
from workbench.sweep.job import INTERRUPTED
from workbench.wording.counts import number_of

SIBLINGS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Slot:
    """Where one job at a time goes. cores: hardware threads, ``0,1``; empty: all there are."""

    name: str
    cores: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def slots_of(pilots: Sequence[Pilot], jobs: int) -> list[Slot]:
    """``jobs`` slots on each device; a GPU for each of the processes that train together.

    jobs: 0 takes one on each GPU, or one a core. Raises ConfigError for more than there are
    hardware threads.
    """
    computing = any(pilot.readiness.device != "cpu" for pilot in pilots)
    gpus = visible_gpus() if computing else ()
    together = max(pilot.train.launch.processes for pilot in pilots)
    groups = [gpus[n : n + together] for n in range(0, len(gpus) - together + 1, together)]
    if not jobs:
        jobs = 1 if groups or together > 1 else cpu().usable_cores
    count = jobs * max(1, len(groups))
    most = os.cpu_count() or 1
    if not 1 <= count <= most:
        raise ConfigError(
            f"--jobs {jobs}"
            + (f" on each of {number_of(len(groups), 'device')}" if len(groups) > 1 else ""),
            allowed=f"1 or more at a time, at most one a hardware thread, of which {most}; 0: one "
            "on each GPU, or one a core",
        )
    shares = _shares(_cores(count), count)
    company = {IN_COMPANY: "1"} if count > 1 else {}
    if not groups:
        return [Slot(f"processor, place {n + 1}", shares[n], company) for n in range(count)]
    return [
        Slot(
            f"GPU {'+'.join(str(gpu.index) for gpu in group)}, place {job + 1}",
            shares[place * jobs + job],
            {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in group), **company},
        )
        for place, group in enumerate(groups)
        for job in range(jobs)
    ]


def run_here(array: JobArray, slots: Sequence[Slot], say: Callable[[str], None]) -> list[JobEnd]:
    """Every job of ``array``, each tried once more where it fails; how each ended, in order.

    Raises KeyboardInterrupt once all jobs at work have ended in order.
    """
    left, ends, stop = deque(array.names), [], threading.Event()

    def work(slot: Slot) -> None:
        while left and not stop.is_set():
            try:
                number = left.popleft()
            except IndexError:
                return
            ends.append(_done(array, number, slot, say, stop))

    with ThreadPoolExecutor(len(slots)) as pool:
        tasks = [pool.submit(work, slot) for slot in slots]
        try:
            for task in tasks:
                task.result()
        except KeyboardInterrupt:
            say("stopping the jobs at work in order")
            raise
        finally:
            stop.set()
    return sorted(ends, key=lambda end: end.number)


def _done(
    array: JobArray, number: int, slot: Slot, say: Callable[[str], None], stop: threading.Event
) -> JobEnd:
    began, tried, name = time.monotonic(), 0, array.names[number]
    while True:
        tried += 1
        say(f"{name}: begun, {slot.name}")
        code = attempt(
            array, number, tried, cores=slot.cores, environment=slot.environment, stop=stop
        )
        seconds = time.monotonic() - began
        if stop.is_set():
            return JobEnd(number, INTERRUPTED, tried, seconds)
        end = JobEnd(number, code, tried, seconds)
        if end.is_finished:
            return end
        said, again = why(code, array.log(number, tried)), tried_again(code, tried)
        say(f"{name}: {said}" + ("\n  tried once more" if again else ""))
        if not again:
            return replace(end, said=said)


def _cores(count: int) -> list[int]:
    """Hardware threads to share out: one a physical core where that is enough for ``count``."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    firsts: dict[str, int] = {}
    for thread in allowed:
        siblings = SIBLINGS / f"cpu{thread}" / "topology" / "thread_siblings_list"
        core = siblings.read_text() if siblings.exists() else str(thread)
        firsts.setdefault(core, thread)
    physical = list(firsts.values())
    return physical[: max(count, cpu().usable_cores)] if len(physical) >= count else allowed


def _shares(cores: Sequence[int], count: int) -> list[str]:
    """``cores`` in ``count`` parts; empty ones where there is nothing to share."""
    if count == 1 or not cores:
        return [""] * count
    if len(cores) < count:
        return [str(cores[n % len(cores)]) for n in range(count)]
    ends = [n * len(cores) // count for n in range(count + 1)]
    return [",".join(map(str, cores[a:b])) for a, b in itertools.pairwise(ends)]
