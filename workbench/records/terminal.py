"""Events as a person watches them: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from workbench.records.events import follow

LINE_EVERY_S = 15.0
"""Between two progress lines of one task where the output is a log, not a terminal."""


def describe(event: dict[str, Any]) -> str:
    """One event in one line: what, how far, how fast, how long still."""
    if event["kind"] != "step":
        detail = event.get("text") or ""
        if event["kind"] == "finished":
            detail = f"in {event['duration_s']:.0f} s"
        return f"{event['stage']}: {event['kind']} {detail}".rstrip()
    parts = [f"{event['stage']}: {event['task']} {event['done']}/{event['total']} {event['unit']}"]
    if event.get("rate_per_s"):
        parts.append(f"{event['rate_per_s']:.3g}/s")
    if event.get("left_s"):
        parts.append(f"{_clock(event['left_s'])} left")
    if event.get("text"):
        parts.append(event["text"])
    return " · ".join(parts)


@contextmanager
def watching(events: Path) -> Iterator[None]:
    """Show what is appended to ``events`` while the block runs, on standard error."""
    stop = threading.Event()
    seen = events.stat().st_size if events.exists() else 0
    viewer = _bars if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=viewer, args=(events, seen, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _lines(events: Path, seen: int, stop: threading.Event) -> None:
    last: dict[str, float] = {}
    for event in follow(events, stop.is_set, start=seen):
        if event["kind"] == "step":
            task, now = f"{event['stage']} {event['task']}", time.monotonic()
            if now - last.setdefault(task, now) < LINE_EVERY_S:
                continue
            last[task] = now
        print(describe(event), file=sys.stderr, flush=True)


def _bars(events: Path, seen: int, stop: threading.Event) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bars:
        current, bar = "", None
        for event in follow(events, stop.is_set, start=seen):
            if event["kind"] != "step":
                bars.console.print(describe(event), highlight=False, markup=False)
                continue
            name = f"{event['stage']}: {event['task']}"
            if name != current:
                if bar is not None:
                    bars.remove_task(bar)
                current, bar = name, bars.add_task(name, total=event["total"], state="")
            state = describe(event).removeprefix(name).lstrip()
            bars.update(bar, completed=event["done"], total=event["total"], state=state)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
