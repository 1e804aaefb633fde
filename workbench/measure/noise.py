"""What else this machine did while something was measured, and waiting until it is quiet.

Read from Linux: the CPU time of all processes and what a hypervisor took (``/proc/stat``), the
time in which somebody waited for a CPU (pressure stall information, ``/proc/pressure/cpu``), the
clock and the temperature. This process's own CPU time and that of named others (a server that
is being measured) are taken off. What a system does not tell is None and disturbs nothing; the
record says that it was not read.

A job that a sweep runs beside others does not wait for them to end, nor does it look.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from workbench.errors import StageError
from workbench.pilot.sections.readiness import Quiet

T = TypeVar("T")
LOOK_S = 1.0
"""A look at a machine before a session: CPU times are counted in hundredths of a second."""
IN_COMPANY = "WORKBENCH_IN_COMPANY"
"""The variable that is set for jobs of a sweep which run beside each other."""


@dataclass(frozen=True)
class Counters:
    """Readings that only grow, all in seconds; None where the system does not tell.

    busy_s, steal_s: of all CPUs. own_s: of this process and the named others.
    """

    wall_s: float
    cpus: int
    own_s: float
    busy_s: float | None
    steal_s: float | None
    pressure_s: float | None

    @classmethod
    def read(cls, processes: Sequence[int] = (), proc: Path = Path("/proc")) -> Counters:
        """processes: ids of others that are part of the measurement."""
        busy_s, steal_s = _cpu_times(proc)
        own = os.times()
        own_s = own.user + own.system + own.children_user + own.children_system
        own_s += sum(_process_s(proc, each) for each in processes)
        cpus = os.cpu_count() or 1
        return cls(time.monotonic(), cpus, own_s, busy_s, steal_s, _pressure_s(proc))


@dataclass(frozen=True)
class Noise:
    """What others did between two readings. Shares are of all CPUs, pressure of the time."""

    seconds: float
    others_share: float | None
    steal_share: float | None
    pressure_share: float | None
    clock_mhz: float | None
    temperature_c: float | None

    @classmethod
    def between(cls, before: Counters, after: Counters) -> Noise:
        seconds = max(1e-9, after.wall_s - before.wall_s)
        available = seconds * after.cpus

        def share(
            now: float | None, then: float | None, of: float, less: float = 0.0
        ) -> float | None:
            if now is None or then is None:
                return None
            return min(1.0, max(0.0, now - then - less) / of)

        own_s = after.own_s - before.own_s
        return cls(
            seconds,
            share(after.busy_s, before.busy_s, available, own_s),
            share(after.steal_s, before.steal_s, available),
            share(after.pressure_s, before.pressure_s, seconds),
            _clock_mhz(),
            _temperature_c(),
        )

    def disturbances(self, limits: Quiet) -> list[str]:
        """What was above its limit, in words; empty for a quiet machine."""
        return [
            f"{name} {got:.0%} (at most {limit:.0%})"
            for name, got, limit in (
                ("other processes took", self.others_share, limits.max_others_share),
                ("the hypervisor took", self.steal_share, limits.max_steal_share),
                ("processes waited for a CPU in", self.pressure_share, limits.max_pressure_share),
            )
            if got is not None and got > limit
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def require_quiet(limits: Quiet, say: Callable[[str], None]) -> Noise:
    """Look at the machine before a session and do what the pilot says if it is not quiet.

    say: takes a sentence for the record. Raises StageError where ``action`` is ``refuse``.
    """
    if os.environ.get(IN_COMPANY) and limits.action != "refuse":
        say(
            "other jobs of the sweep run beside this one: whether the machine is quiet was not "
            "looked at, and disturbed blocks are marked"
        )
        return Noise(0.0, None, None, None, _clock_mhz(), _temperature_c())
    deadline = time.monotonic() + limits.wait_s
    waited = False
    while True:
        before = Counters.read()
        time.sleep(LOOK_S)
        noise = Noise.between(before, Counters.read())
        found = noise.disturbances(limits)
        if not found:
            if waited:
                say("the machine was busy and became quiet before the measurement")
            return noise
        if limits.action != "wait" or time.monotonic() > deadline:
            break
        waited = True
    text = f"the machine is not quiet: {'; '.join(found)}"
    if limits.action == "refuse":
        raise StageError(
            text,
            allowed="a quiet machine, because readiness.quiet.action is refuse",
            next_step="end what else runs, or set readiness.quiet.action to wait or warn",
        )
    say(f"{text}; it is measured all the same, and disturbed blocks are marked")
    return noise


REPEATING_SHARE, MOST_ATTEMPTS = 0.25, 3
"""Of a session's time, for measuring disturbed blocks again, and how often one is measured: a
machine that is busy all the time is not made quiet by measuring longer."""
NOISE_COLUMNS = [
    "block", "attempt", "seconds", "others_share", "steal_share", "pressure_share", "clock_mhz",
    "temperature_c", "disturbed", "kept",
]  # fmt: skip
Attempt = dict[str, Any]
"""A row of a table with ``NOISE_COLUMNS``."""


def in_quiet(
    measure: Callable[[], T],
    block: int,
    limits: Quiet,
    left_s: float,
    processes: Callable[[], Sequence[int]] = tuple,
) -> tuple[T, list[Attempt]]:
    """What ``measure`` gave for a block, as often as it was disturbed; the last is the one kept.

    left_s: for attempts at it. processes: others that are part of the measurement.
    """
    attempts: list[Attempt] = []
    while True:
        before = Counters.read(processes())
        found = measure()
        noise = Noise.between(before, Counters.read(processes()))
        disturbed = "; ".join(noise.disturbances(limits))
        at = {"block": block, "attempt": len(attempts), **noise.to_json()}
        attempts.append({**at, "disturbed": disturbed, "kept": False})
        late = sum(one["seconds"] for one in attempts) > left_s
        if not disturbed or late or len(attempts) == MOST_ATTEMPTS:
            break
    attempts[-1]["kept"] = True
    return found, attempts


class NoiseWatch:
    """What else the machine did in each stretch of something that is measured once, such as a
    rollback under load: a disturbed stretch cannot be measured again and is marked."""

    def __init__(
        self, limits: Quiet, processes: Callable[[], Sequence[int]], each_s: float
    ) -> None:
        """processes: others that are part of the measurement. each_s: length of a stretch."""
        # Those wait for processors too, and pressure stall information does not say who waited.
        self._limits = limits.model_copy(update={"max_pressure_share": 1.0})
        self._processes, self._each_s = processes, max(LOOK_S, each_s)
        self._stretches: list[Attempt] = []
        self._before = Counters.read(processes())

    def look(self, last: bool = False) -> None:
        """Close the stretch that has lasted long enough; last: or half as long, at the end."""
        lasted_s = time.monotonic() - self._before.wall_s
        if lasted_s < (self._each_s / 2 if last else self._each_s):
            return
        now = Counters.read(self._processes())
        noise = Noise.between(self._before, now)
        disturbed = "; ".join(noise.disturbances(self._limits))
        at = {"block": len(self._stretches), "attempt": 0, **noise.to_json()}
        self._stretches.append({**at, "disturbed": disturbed, "kept": True})
        self._before = now

    def table(self) -> pd.DataFrame:
        """Table ``noise``: a row a stretch, as of a session's block."""
        return pd.DataFrame(self._stretches, columns=NOISE_COLUMNS)


def repeating_left_s(budget_s: float, attempts: Iterable[Attempt]) -> float:
    """Time that a session of ``budget_s`` still has for measuring disturbed blocks again."""
    return REPEATING_SHARE * budget_s - sum(a["seconds"] for a in attempts if not a["kept"])


def _cpu_times(proc: Path) -> tuple[float | None, float | None]:
    """(user, nice, system and interrupts; steal) of all CPUs, in seconds."""
    try:
        fields = (proc / "stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = (int(x) for x in fields[:8])
    except (OSError, ValueError):
        return None, None
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


def _process_s(proc: Path, process: int) -> float:
    """CPU time of a process, its threads included; 0 where it cannot be read."""
    try:
        fields = (proc / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pressure_s(proc: Path) -> float | None:
    try:
        some = (proc / "pressure" / "cpu").read_text().split("\n", 1)[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):
        return None


def _clock_mhz() -> float | None:
    """Mean of the CPUs' present clocks."""
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    clocks = [value / 1e3 for value in map(_number, files) if value is not None]
    return statistics.fmean(clocks) if clocks else None


def _temperature_c() -> float | None:
    """The hottest zone."""
    zones = (_number(each) for each in Path("/sys/class/thermal").glob("thermal_zone*/temp"))
    return max((value / 1e3 for value in zones if value is not None), default=None)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
