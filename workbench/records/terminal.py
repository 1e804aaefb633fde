"""Events as a person watches them: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from workbench.records.events import watched
from workbench.roadmap import place_of
from workbench.wording.counts import number_of

LINE_EVERY_S = 15.0
"""Between two progress lines of one task where the output is a log, not a terminal."""
SLOW_S = 1.0
"""A command that has said nothing for so long says what it does."""


Whole = Callable[[dict[str, Any]], str]
"""Of an event, what is known about the whole run; empty where there is nothing to say."""


def describe(event: dict[str, Any]) -> str:
    """One event in one line: which stage, what, how far, how fast, how long still."""
    name = _named(event["stage"])
    if event["kind"] != "step":
        detail = event.get("text") or ""
        if event["kind"] == "finished":
            attempts = event.get("attempts", 1)
            detail = f"in {event['duration_s']:.0f} s"
            detail += f", {number_of(attempts, 'attempt')} together" if attempts > 1 else ""
        return f"{name}: {event['kind']} {detail}".rstrip()
    parts = [f"{name}: {event['task']} {event['done']}/{event['total']} {event['unit']}"]
    if event.get("rate_per_s"):
        parts.append(f"{event['rate_per_s']:.3g}/s")
    if event.get("left_s"):
        parts.append(f"{clock(event['left_s'])} left")
    if event.get("text"):
        parts.append(event["text"])
    return " · ".join(parts)


def watching(events: Path, whole: Whole = lambda _: "") -> AbstractContextManager[None]:
    """Show what is appended to ``events`` while the block runs, on standard error."""
    return watched(events, lambda found: show_events(found, whole))


def show_events(found: Iterable[dict[str, Any]], whole: Whole = lambda _: "") -> None:
    """Show events as they come, on standard error."""
    (_bars if sys.stderr.isatty() else _lines)(found, whole)


def clock(seconds: float) -> str:
    """``48 s``, ``3:05 min``, ``2:05 h``."""
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"


def _named(stage: str) -> str:
    return f"{place} · {stage}" if (place := place_of(stage)) else stage


def _with_whole(event: dict[str, Any], whole: Whole) -> str:
    said = whole(event)
    return f"{describe(event)} · {said}" if said else describe(event)


def _lines(found: Iterable[dict[str, Any]], whole: Whole) -> None:
    last: dict[str, float] = {}
    for event in found:
        line = _with_whole(event, whole)
        if event["kind"] == "step":
            task, now = f"{event['stage']} {event['task']}", time.monotonic()
            if now - last.setdefault(task, now) < LINE_EVERY_S:
                continue
            last[task] = now
        print(line, file=sys.stderr, flush=True)


def _bars(found: Iterable[dict[str, Any]], whole: Whole) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bars:
        shown = TaskBar(bars)
        for event in found:
            line = _with_whole(event, whole)
            if event["kind"] == "step":
                shown.step(event, line)
                continue
            if event["kind"] not in ("note", "warning"):
                shown.clear()
            bars.console.print(line, highlight=False, markup=False)


class TaskBar:
    """The bar of the task at work; gone once that is done, so that no finished one stays."""

    def __init__(self, bars: Progress) -> None:
        self._bars, self._name = bars, ""
        self._task: TaskID | None = None

    def step(self, event: dict[str, Any], line: str) -> None:
        """line: the event as a line of text, which begins with the task's name."""
        name = f"{_named(event['stage'])}: {event['task']}"
        if name != self._name or event["done"] >= event["total"]:
            self.clear()
        if event["done"] >= event["total"]:
            return
        if self._task is None:
            self._name, self._task = name, self._bars.add_task(name, state="")
        state = line.removeprefix(name).lstrip()
        self._bars.update(self._task, completed=event["done"], total=event["total"], state=state)

    def clear(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._name, self._task = "", None


@contextmanager
def said_when_slow(text: str) -> Iterator[None]:
    """Says ``text`` once on standard error where what is done takes longer than ``SLOW_S``, as on a
    crowded machine the imports alone do."""
    timer = threading.Timer(SLOW_S, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
