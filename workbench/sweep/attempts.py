"""A run of a sweep as a child process, and whether it is tried once more."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workbench.child import child, end_of_log, how_it_ended
from workbench.sweep.one_run import DONE, FINAL, GATE, INTERRUPTED

ATTEMPTS = 2
STOP_S = 60.0
"""For a run to end in order: a stage keeps its checkpoint, the server's arms go."""
POLL_S = 0.2
SAYS = "workbench: "


@dataclass(frozen=True)
class RunEnd:
    """code: exit code of the last attempt. seconds: of all attempts."""

    number: int
    code: int
    attempts: int
    seconds: float
    log: Path | None = None

    @property
    def is_finished(self) -> bool:
        return self.code in (DONE, GATE)


def attempt(
    plan: Path,
    number: int,
    log: Path,
    *,
    notebooks: bool | None = None,
    cores: str = "",
    environment: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Run ``number`` of the sweep kept in ``plan`` in a process of its own; its exit code.

    log: takes what it prints. cores: hardware threads that it keeps to, ``0,1``; empty: all.
    stop: once set, the run ends in order and goes on another time.
    """
    words = [str(plan), str(number), "--with-parent", "--cores", cores]
    if notebooks is not None:
        words.append("--notebooks" if notebooks else "--no-notebooks")
    log.parent.mkdir(parents=True, exist_ok=True)
    stop = stop or threading.Event()
    with child(
        "workbench.sweep.one_run", *words, log=log, environment=environment, own_session=True,
        stop_s=STOP_S,
    ) as process:  # fmt: skip
        while process.poll() is None:
            if stop.wait(POLL_S):
                return INTERRUPTED
        return int(process.returncode)


def log_of(plan: Path, number: int, tried: int) -> Path:
    """tried: from 1."""
    again = f"-{tried}" if tried > 1 else ""
    return plan.parent / "logs" / f"{number:04d}{again}.log"


def tried_again(code: int, tried: int) -> bool:
    """Whether a run that ended with ``code`` at its ``tried``-th attempt gets another one."""
    return code not in FINAL and tried < ATTEMPTS


def why(code: int, log: Path) -> str:
    """What a run that ended early said last, or how it ended."""
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    place = said.rfind(f"\n{SAYS}") + 1 if f"\n{SAYS}" in said else said.find(SAYS)
    if place >= 0 and said[place:].startswith(SAYS):
        return said[place + len(SAYS) :].strip()
    return f"{how_it_ended(code)}; the end of {log}:\n    {end_of_log(log) if said else ''}".strip()
