"""The runs of a sweep on this machine, so many at a time on each of its devices.

A device is a GPU, or the processor where no GPU computes. Runs beside each other each keep to
their share of the cores, so that each counts those as its own and none starts more threads than it
has; memory and its bandwidth they share all the same, which is why one at a time is the default.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from workbench.errors import ConfigError
from workbench.machine.cpu import cpu
from workbench.machine.gpu import visible_gpus
from workbench.pilot.spec import Pilot
from workbench.records.sweep import KeptRun
from workbench.sweep.attempts import RunEnd, attempt, log_of, tried_again, why
from workbench.sweep.one_run import INTERRUPTED
from workbench.wording.counts import number_of

SIBLINGS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Slot:
    """Where one run at a time goes. cores: hardware threads, ``0,1``; empty: all there are."""

    name: str
    cores: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def slots_of(pilots: Sequence[Pilot], jobs: int) -> list[Slot]:
    """``jobs`` slots on each device; a GPU for each of the processes that train together.

    Raises ConfigError for no jobs, and for more than there are hardware threads.
    """
    computing = any(pilot.readiness.device != "cpu" for pilot in pilots)
    gpus = visible_gpus() if computing else ()
    together = max(pilot.train.launch.processes for pilot in pilots)
    groups = [gpus[n : n + together] for n in range(0, len(gpus) - together + 1, together)]
    count = jobs * max(1, len(groups))
    most = os.cpu_count() or 1
    if not 1 <= count <= most:
        raise ConfigError(
            f"--jobs {jobs}"
            + (f" on each of {number_of(len(groups), 'device')}" if len(groups) > 1 else ""),
            allowed=f"1 or more at a time, and at most one a hardware thread, of which {most}",
        )
    shares = _shares(_cores(count), count)
    if not groups:
        return [Slot(f"processor, place {n + 1}", shares[n]) for n in range(count)]
    return [
        Slot(
            f"GPU {'+'.join(str(gpu.index) for gpu in group)}, place {job + 1}",
            shares[place * jobs + job],
            {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in group)},
        )
        for place, group in enumerate(groups)
        for job in range(jobs)
    ]


def run_here(
    plan: Path,
    waiting: Sequence[KeptRun],
    slots: Sequence[Slot],
    say: Callable[[str], None],
    notebooks: bool | None = None,
) -> list[RunEnd]:
    """Every run of ``waiting``, each tried once more where it fails; how each ended.

    plan: the kept sweep. Raises KeyboardInterrupt once all runs at work have ended in order.
    """
    left, outcomes, stop = deque(waiting), [], threading.Event()

    def work(slot: Slot) -> None:
        while left and not stop.is_set():
            try:
                kept = left.popleft()
            except IndexError:
                return
            outcomes.append(_done(plan, kept, slot, say, notebooks, stop))

    with ThreadPoolExecutor(len(slots)) as pool:
        tasks = [pool.submit(work, slot) for slot in slots]
        try:
            for task in tasks:
                task.result()
        except KeyboardInterrupt:
            say("stopping the runs at work in order")
            raise
        finally:
            stop.set()
    return sorted(outcomes, key=lambda outcome: outcome.number)


def _done(
    plan: Path,
    kept: KeptRun,
    slot: Slot,
    say: Callable[[str], None],
    notebooks: bool | None,
    stop: threading.Event,
) -> RunEnd:
    began, tried = time.monotonic(), 0
    while True:
        tried += 1
        log = log_of(plan, kept.number, tried)
        say(f"run {kept.number}: begun, {slot.name}")
        code = attempt(
            plan, kept.number, log, notebooks=notebooks, cores=slot.cores,
            environment=slot.environment, stop=stop,
        )  # fmt: skip
        outcome = RunEnd(kept.number, code, tried, time.monotonic() - began, log)
        if stop.is_set():
            return RunEnd(kept.number, INTERRUPTED, tried, outcome.seconds, log)
        if outcome.is_finished:
            return outcome
        again = tried_again(code, tried)
        say(f"run {kept.number}: {why(code, log)}" + ("\n  tried once more" if again else ""))
        if not again:
            return outcome


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
