"""One stream of events on disk, from which every view of progress is made.

A stage writes to it through :class:`Progress`; the terminal bar, the notebook's live block
and a later reader all follow the same file. Each line is one JSON object with ``time``
(seconds since the epoch), ``stage``, ``kind`` and, for kind ``step``, ``task``, ``done``,
``total``, ``unit``, ``rate_per_s``, ``left_s`` and ``text``.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
MIN_GAP_S = 0.25
"""Steps closer together than this are merged, so that a fast loop does not flood the file."""


class Progress:
    """Writes one stage's events. ``listener`` sees each event as well (a live notebook block)."""

    def __init__(
        self,
        path: Path,
        stage: str,
        listener: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.path, self.stage, self.listener = path, stage, listener
        self._task: str | None = None
        self._began = self._last = 0.0
        self._first_done = 0
        path.parent.mkdir(parents=True, exist_ok=True)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event: ``started``, ``finished``, ``failed``, ``note``, ``warning``, ..."""
        line = {"time": round(time.time(), 3), "stage": self.stage, "kind": kind, **fields}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        if self.listener:
            self.listener(line)

    def note(self, text: str) -> None:
        self.event("note", text=text)

    def warning(self, text: str) -> None:
        self.event("warning", text=text)

    def step(
        self,
        task: str,
        done: int,
        total: int,
        unit: str = "steps",
        text: str = "",
        **figures: float,
    ) -> None:
        """Report ``done`` of ``total``; the first report of a task starts its clock.

        figures: what a live view draws beside it, such as ``loss``.
        """
        now = time.monotonic()
        if task != self._task:
            self._task, self._began, self._first_done, self._last = task, now, done, 0.0
        if now - self._last < MIN_GAP_S and done < total:
            return
        self._last = now
        elapsed, gained = now - self._began, done - self._first_done
        rate = gained / elapsed if elapsed > 0 and gained else None
        left = (total - done) / rate if rate else None
        self.event(
            "step",
            task=task,
            done=done,
            total=total,
            unit=unit,
            rate_per_s=rate and round(rate, 4),
            left_s=left if left is None else round(left, 1),
            text=text,
            **figures,
        )

    def each(self, task: str, items: Iterable[Item], unit: str = "steps") -> Iterator[Item]:
        """Iterate over ``items`` and report each as a step."""
        listed = list(items)
        self.step(task, 0, len(listed), unit)
        for index, item in enumerate(listed):
            yield item
            self.step(task, index + 1, len(listed), unit)


def attempts_s(path: Path, stage: str, key: str) -> list[float]:
    """How long each attempt at a stage's result ``key`` took, s, since it was last finished.

    One that was killed counts to its last event: nothing of it says when it ended.
    """
    spans: list[list[float]] = []
    for event in follow(path, None) if path.exists() else ():
        if event.get("stage") != stage:
            continue
        if event["kind"] == "started":
            ours = event.get("key") == key
            spans = [*spans, [event["time"], event["time"]]] if ours else []
        elif event["kind"] == "finished":
            spans = []
        elif spans:
            spans[-1][1] = event["time"]
    return [last - first for first, last in spans]


@contextmanager
def watched(path: Path, show: Callable[[Iterator[dict[str, Any]]], None]) -> Iterator[None]:
    """``show`` is given, in a thread, what any process appends to ``path`` within the block."""
    stop = threading.Event()
    seen = path.stat().st_size if path.exists() else 0
    thread = threading.Thread(
        target=lambda: show(follow(path, stop.is_set, start=seen)), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def follow(path: Path, stop: Callable[[], bool] | None, start: int = 0) -> Iterator[dict[str, Any]]:
    """Events from byte ``start`` of the file on; with ``stop``, new ones until it is True. A line
    that a crash cut off is skipped."""
    while stop and not path.exists():
        if stop():
            return
        time.sleep(0.1)
    with path.open(encoding="utf-8") as file:
        file.seek(start)
        pending = ""
        while True:
            ending = stop is None or stop()
            pending += file.read()
            *lines, pending = pending.split("\n")
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue
            if ending:
                return
            time.sleep(0.1)
