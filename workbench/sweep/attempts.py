"""The jobs that a sweep or a study starts alike: each a child process, tried once more."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.child import child, end_of_log, how_it_ended
from workbench.sweep.job import DONE, FINAL, GATE, INTERRUPTED

ATTEMPTS = 2
STOP_S = 60.0
"""For a job to end in order: a stage keeps its checkpoint, the server's arms go."""
POLL_S = 0.2
SAYS = "workbench: "


@dataclass(frozen=True)
class JobArray:
    """Numbered jobs, each ``python -m module plan NUMBER words``, which ends as
    :func:`workbench.sweep.job.as_job` does. names: number -> what the job is called.

    plan: a file that says what each is about; the logs lie beside it.
    """

    module: str
    plan: Path
    names: Mapping[int, str]
    words: tuple[str, ...] = ()

    @property
    def logs(self) -> Path:
        return self.plan.parent / "logs"

    def log(self, number: int, tried: int) -> Path:
        """tried: from 1."""
        again = f"-{tried}" if tried > 1 else ""
        return self.logs / f"{number:04d}{again}.log"


@dataclass(frozen=True)
class JobEnd:
    """code: of the last attempt. seconds: of all attempts. said: why it is not finished."""

    number: int
    code: int
    attempts: int
    seconds: float
    said: str = ""

    @property
    def is_finished(self) -> bool:
        return self.code in (DONE, GATE)


def attempt(
    array: JobArray,
    number: int,
    tried: int,
    *,
    cores: str = "",
    environment: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Job ``number`` in a process of its own, for the ``tried``-th time; its exit code.

    What it prints goes to its log. cores: hardware threads that it keeps to, ``0,1``; empty: all.
    stop: once set, the job ends in order and goes on another time.
    """
    array.logs.mkdir(parents=True, exist_ok=True)
    stop = stop or threading.Event()
    with child(
        array.module, str(array.plan), str(number), *array.words, "--with-parent", "--cores", cores,
        log=array.log(number, tried), environment=environment, own_session=True, stop_s=STOP_S,
    ) as process:  # fmt: skip
        while process.poll() is None:
            if stop.wait(POLL_S):
                return INTERRUPTED
        return int(process.returncode)


def tried_again(code: int, tried: int) -> bool:
    """Whether a job that ended with ``code`` at its ``tried``-th attempt gets another one."""
    return code not in FINAL and tried < ATTEMPTS


def why(code: int, log: Path) -> str:
    """What a job that ended early said last, or how it ended."""
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    place = said.rfind(f"\n{SAYS}") + 1 if f"\n{SAYS}" in said else said.find(SAYS)
    if place >= 0 and said[place:].startswith(SAYS):
        return said[place + len(SAYS) :].strip()
    return f"{how_it_ended(code)}; the end of {log}:\n    {end_of_log(log) if said else ''}".strip()
