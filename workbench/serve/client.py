"""A load sent from processes of its own, for code that is not asynchronous.

A client inside the process of a stage waits for that stage's interpreter, and then its own delay
stands in every latency. Here each client process has an event loop and nothing else::

    endpoint = Endpoint("http://127.0.0.1:8000/v1", model="chat", api_key_env="CHAT_KEY")
    probe(endpoint)                                     # connect_ms, round_trip_ms
    with load_processes(endpoint, folder) as client:
        outcomes, took_s = client.burst(requests, prompt_of)
        outcomes = client.replay(schedule, prompt_of)   # list[Outcome], in the schedule's order

``prompt_of(planned)`` gives token ids or a text. Another machine's address needs
``allow_remote=True``; a key stands in an environment variable, and only that variable's name is
ever written. Times of outcomes are seconds after ``client.origin_s``, a ``time.monotonic()``,
which is one clock for all processes of a machine. Token counts are the server's ``usage``;
``Outcome.counted_by`` says ``chunks`` of a server without.

A replay that one process could not hold is dealt out to several: request i goes to process
i modulo their number, and all begin at the same moment of that clock.
"""

from __future__ import annotations

import json
import math
import queue
import subprocess
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.child import child, end_of_log, how_it_ended
from workbench.errors import StageError
from workbench.load.planned import PlannedRequest
from workbench.machine.cpu import cpu
from workbench.paths import shown
from workbench.serve.client_process import GAPS, OUTCOMES, REQUESTS, ROWS, outcome_of
from workbench.serve.endpoint import Endpoint, PromptInput
from workbench.serve.replay import OPEN_AHEAD_S, SILENCE_S, Outcome

REQUESTS_PER_S, TOKENS_PER_S = 250, 10_000
"""What one client process is given at most, in the busiest second of a schedule."""
STREAMS = 500
"""Requests due at one moment that one process is given at most."""
START_S = 0.05
"""From the order to start, which finds every process ready, until the first connections are opened,
themselves some time before their requests are due."""
OPENING_S = 1e-3
"""For each connection of a burst to be opened."""
TICK_S = 0.1

PromptOf = Callable[[PlannedRequest], PromptInput]
DueOrder = tuple[float, Callable[[], Any]]
"""(when, what): called in this process at that moment of a replay, seconds after its start."""


class LoadProcesses:
    """Use :func:`load_processes`. origin_s: ``time.monotonic()`` at time 0 of the latest load.
    lead_s: idle time before it, once all is prepared, for a meter that is late (replays alone).

    A load that an error has ended may still be under way in its processes: open another client.
    """

    def __init__(
        self, endpoint: Endpoint, folder: Path, silence_s: float, check: Callable[[], None]
    ) -> None:
        self.endpoint, self._silence_s, self._check = endpoint, silence_s, check
        self._folder, self.lead_s = folder, 0.0
        self._open = ExitStack()
        self._children: list[subprocess.Popen[str]] = []
        self._logs: list[Path] = []
        self._threads: list[threading.Thread] = []
        self._said: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self.origin_s = time.monotonic()

    def close(self) -> None:
        """End the processes; their requests are given up."""
        self._open.close()
        for thread in self._threads:
            thread.join()

    def now_s(self) -> float:
        return time.monotonic() - self.origin_s

    @property
    def processes(self) -> int:
        return len(self._children)

    @property
    def process_ids(self) -> list[int]:
        return [process.pid for process in self._children]

    def replay(
        self,
        schedule: Sequence[PlannedRequest],
        prompt_of: PromptOf,
        *,
        model: str | None = None,
        orders: Sequence[DueOrder] = (),
        on_progress: Callable[[int], None] = lambda ended: None,
        processes: int | None = None,
    ) -> list[Outcome]:
        """Send every request when it is due; all outcomes, in the schedule's order.

        model: instead of the endpoint's. on_progress: called with the number of answers that have
        ended, several times a second. processes: None takes what the schedule asks for.

        Raises StageError when a client process ends, and what ``check`` raises.
        """
        return self._play(
            schedule, prompt_of, model, orders, on_progress, processes, OPEN_AHEAD_S, self.lead_s
        )

    def burst(
        self,
        requests: Sequence[PlannedRequest],
        prompt_of: PromptOf,
        *,
        model: str | None = None,
    ) -> tuple[list[Outcome], float]:
        """Send all at once, over connections that stand; outcomes and the seconds until the last
        had ended. Raises as :meth:`replay`."""
        now = [replace(planned, intended_s=0.0) for planned in requests]
        ahead_s = max(OPEN_AHEAD_S, OPENING_S * len(now))
        outcomes = self._play(now, prompt_of, model, (), lambda ended: None, None, ahead_s)
        return outcomes, max((o.end_s or 0.0 for o in outcomes), default=0.0)

    def _play(
        self,
        schedule: Sequence[PlannedRequest],
        prompt_of: PromptOf,
        model: str | None,
        orders: Sequence[DueOrder],
        on_progress: Callable[[int], None],
        processes: int | None,
        open_ahead_s: float,
        lead_s: float = 0.0,
    ) -> list[Outcome]:
        if not schedule:
            raise ValueError("a load without a request")
        count = min(processes or processes_for(schedule), len(schedule))
        self._grow(count)
        with tempfile.TemporaryDirectory(prefix="load-", dir=self._folder) as name:
            places = [Path(name) / str(number) for number in range(count)]
            for number, place in enumerate(places):
                place.mkdir()
                self._write(place, schedule[number::count], prompt_of, model)
                self._tell(number, {"play": str(place), "open_ahead_s": open_ahead_s})
            self._wait("ready", count)
            self.origin_s = time.monotonic() + START_S + open_ahead_s + lead_s
            for number in range(count):
                self._tell(number, {"origin_s": self.origin_s})
            self._wait("done", count, sorted(orders, key=lambda order: order[0]), on_progress)
            found = {o.id: o for place in places for o in _read(place)}
        return [found[planned.id] for planned in schedule]

    def _write(
        self,
        place: Path,
        requests: Sequence[PlannedRequest],
        prompt_of: PromptOf,
        model: str | None,
    ) -> None:
        """The requests for one process: rows, and the bodies one after the other."""
        rows, begin = [], 0
        with (place / REQUESTS).open("wb") as file:
            for planned in requests:
                begin += (
                    size := file.write(self.endpoint.body(planned, prompt_of(planned), model))
                )
                rows.append([*asdict(planned).values(), begin - size, size])
        (place / ROWS).write_text(json.dumps(rows), encoding="utf-8")

    def _grow(self, count: int) -> None:
        while len(self._children) < count:
            number = len(self._children)
            log = self._folder / f"client-{number}.log"
            given = {"endpoint": asdict(self.endpoint), "silence_s": self._silence_s}
            process = self._open.enter_context(
                child(
                    "workbench.serve.client_process",
                    json.dumps(given),
                    log=log,
                    answers=True,
                    own_session=True,
                )
            )
            self._children.append(process)
            self._logs.append(log)
            thread = threading.Thread(target=self._hear, args=(number, process), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _hear(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with suppress(ValueError):  # a line cut off by its end; a pipe that was closed here
            for line in process.stdout:
                self._said.put((number, json.loads(line)))
        self._said.put((number, None))

    def _tell(self, number: int, order: dict[str, Any]) -> None:
        stdin = self._children[number].stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
        except OSError:
            raise self._ended(number) from None

    def _wait(
        self,
        word: str,
        count: int,
        orders: Sequence[DueOrder] = (),
        on_progress: Callable[[int], None] = lambda ended: None,
    ) -> None:
        """Until ``count`` processes have said ``word`` and all orders are given."""
        said, ended, due, looked_s = 0, [0] * count, list(orders), 0.0
        while said < count or due:
            while due and due[0][0] <= self.now_s():
                due.pop(0)[1]()
            if time.monotonic() - looked_s > TICK_S:
                looked_s = time.monotonic()
                self._check()
                on_progress(sum(ended))
            left_s = due[0][0] - self.now_s() if due else TICK_S
            try:
                number, answer = self._said.get(timeout=min(TICK_S, max(0.0, left_s)))
            except queue.Empty:
                continue
            if answer is None:
                raise self._ended(number)
            said += word in answer
            ended[number] = answer.get("ended", ended[number])
        on_progress(sum(ended))

    def _ended(self, number: int) -> StageError:
        log = self._logs[number]
        how = how_it_ended(self._children[number].wait())
        return StageError(
            f"the load client {how}; the end of its log:\n    {end_of_log(log)}",
            next_step=f"the whole log is {shown(log)}; the same command starts the stage again",
        )


def processes_for(schedule: Sequence[PlannedRequest]) -> int:
    """Client processes for a schedule: by its busiest second, and by what is due at one moment;
    at most one a processor."""
    due_s = np.array([planned.intended_s for planned in schedule])
    tokens = np.array([planned.output_tokens for planned in schedule])
    seconds = due_s.astype(int)
    requests_per_s = float(np.bincount(seconds).max())
    tokens_per_s = float(np.bincount(seconds, weights=tokens).max())
    at_once = int(np.unique(due_s, return_counts=True)[1].max())
    wanted = max(requests_per_s / REQUESTS_PER_S, tokens_per_s / TOKENS_PER_S, at_once / STREAMS)
    return max(1, min(math.ceil(wanted), cpu().usable_cores))


def _read(place: Path) -> Iterator[Outcome]:
    gaps_s = array("f", (place / GAPS).read_bytes())
    begin = 0
    with (place / OUTCOMES).open(encoding="utf-8") as file:
        for line in file:
            row, size = json.loads(line)
            yield outcome_of(row, gaps_s[begin : begin + size])
            begin += size


@contextmanager
def load_processes(
    endpoint: Endpoint,
    folder: Path,
    *,
    silence_s: float = SILENCE_S,
    check: Callable[[], None] = lambda: None,
) -> Iterator[LoadProcesses]:
    """A client of ``endpoint`` whose processes start when they are needed, and end with the block.

    folder: takes their logs and, while a load runs, its requests and answers. silence_s: without
    a byte for this long a request counts as hung. check: called several times a second while a
    load runs; what it raises ends the load, e.g. ``server.check``.
    """
    client = LoadProcesses(endpoint, folder, silence_s, check)
    with closing(client):
        yield client
