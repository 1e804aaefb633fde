"""Metering of a stage's long work, such as a training: windows by name, kept while they last.

What is known is written to ``folder`` every ``KEPT_EVERY_S``, one file an attempt, so that a killed
attempt loses no more than that. A window of hours is cut every ``SEGMENT_S``: each piece has its
figure and its balance, and its samples are dropped. Use::

    with metering_of(meters, folder) as metering:
        metering.rest()
        with metering.window("ternary"):
            ...                                 # the work
        metering.rest()
    metering.rows()                             # of all attempts
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.files import read_json, write_json
from workbench.measure.meters.balance import Balance
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.rows import WINDOW_COLUMNS, energy_rows
from workbench.measure.meters.session import EnergySession

KEPT_EVERY_S = 10.0
SEGMENT_S = 600.0
COLUMNS = ["attempt", "whole", "window", *WINDOW_COLUMNS]
"""attempt: counted from 0. whole: false for one that was killed, of which what came after its last
row is missing."""


@dataclass(frozen=True)
class _Piece:
    name: str
    start_s: float
    end_s: float


class Metering:
    """Of one attempt; use :func:`metering_of`. session: for a step test, or windows of one's own.

    clock: the session's.
    """

    def __init__(self, session: EnergySession, folder: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self.session, self._folder = session, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._attempt = len(list(folder.glob("attempt-*.json")))
        self._pieces: list[_Piece] = []
        self._rows: list[list[dict[str, Any]]] = []
        self.balances: list[Balance] = []
        """Of every piece of this attempt, on every basis."""
        self._open: tuple[str, float] | None = None
        self._cut_s = session.now()
        self._lock = threading.Lock()
        self._end_keeping = clock.every(KEPT_EVERY_S, self._keep) if session.meters else None

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """What is done within it is the work ``name``; one at a time, a name may come again."""
        with self._lock:
            self._open = (name, self.session.now())
        try:
            yield
        finally:
            with self._lock:
                _, start_s = self._open
                self._open = None
                self._add(name, start_s, self.session.now())

    def rest(self) -> None:
        """Idle, as of :meth:`~.session.EnergySession.rest`."""
        self.session.rest()

    def close(self) -> None:
        """Ask for what is left, and mark the attempt as whole."""
        if self._end_keeping:
            self._end_keeping()
            self.balances += self.session.conserved(self._cut_s)
        self._write(whole=True)

    def rows(self) -> pd.DataFrame:
        """Table with ``COLUMNS`` of all attempts: a row for each piece of a window and basis."""
        kept = [read_json(path) for path in sorted(self._folder.glob("attempt-*.json"))]
        rows = [
            {"attempt": attempt, "whole": one["whole"], **row}
            for attempt, one in enumerate(kept)
            for row in one["rows"]
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _add(self, name: str, start_s: float, end_s: float) -> None:
        self.session.worked(start_s, end_s)
        self._pieces.append(_Piece(name, start_s, end_s))
        self._rows.append([])

    def _keep(self) -> None:
        with self._lock:
            now_s = self.session.reaches_s()
            if self._open and now_s - max(self._cut_s, self._open[1]) > max(
                SEGMENT_S, self.session.wanted_turn_s()
            ):
                name, start_s = self._open
                self._add(name, start_s, now_s)
                self._open = (name, now_s)
                self._ask()
                self.balances += self.session.conserved(self._cut_s, now_s)
                self._cut_s = now_s
                self.session.forget(now_s)
            self._write(whole=False)

    def _ask(self) -> None:
        """Figures of the pieces of after the latest cut, which may have become known since; of
        earlier ones there are no samples any more, but the idle power after them may be."""
        for at, piece in enumerate(self._pieces):
            if piece.start_s >= self._cut_s:
                self._rows[at] = self._figures(piece)
            for row in self._rows[at]:
                if idle := self.session.idle_w(piece.start_s, piece.end_s, row["covers"]):
                    row["idle_w"], row["idle_error_w"] = idle

    def _figures(self, piece: _Piece) -> list[dict[str, Any]]:
        return energy_rows(self.session, {"window": piece.name}, piece.start_s, piece.end_s)

    def _write(self, whole: bool) -> None:
        self._ask()
        rows = [row for piece in self._rows for row in piece]
        if self._open and self.session.reaches_s() > self._open[1]:
            name, start_s = self._open
            rows += self._figures(_Piece(name, start_s, self.session.reaches_s()))
        path = self._folder / f"attempt-{self._attempt:03d}.json"
        write_json(path, {"whole": whole, "rows": rows})


@contextmanager
def metering_of(
    session: EnergySession, folder: Path, clock: Clock = SYSTEM_CLOCK
) -> Iterator[Metering]:
    """An open ``session`` with windows that are kept in ``folder``."""
    metering = Metering(session, folder, clock)
    try:
        yield metering
    finally:
        metering.close()
