"""Rows in the order of their times, with a buffer of ``reorder_s`` seconds.

Logs are written when a request ends, so lines stand a little behind later ones. What stands
further behind cannot be put in its place in one pass and is counted as bad. One damaged time far
ahead must not make all that follow it late, so a time that is far from those before it *and* from
those after it is taken for damaged first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.errors import ConfigError
from workbench.load.faults import Faults
from workbench.paths import shown

NEIGHBOURS = 8
FAR = 50.0
"""Typical gaps around a time, beyond which it is far from its neighbours."""
ONE_HOUR_S = (900.0, 3660.0)
"""What a clock goes back at the end of summer time: an hour, less the gap between two lines."""

Batch = dict[str, np.ndarray]
"""Columns of requests, all of one length; ``start_s`` is their time."""


@dataclass
class Order:
    """local_clock: whether times come from dates without offset and zone, which may go back by an
    hour. moved, most_s: rows that were out of order, and by how much."""

    path: Path
    reorder_s: float
    faults: Faults
    local_clock: Callable[[], bool]
    moved: int = 0
    most_s: float = 0.0

    def __post_init__(self) -> None:
        self._waiting: Batch | None = None
        self.latest_s = -np.inf
        self._before = np.array([], float)
        self._held: tuple[Batch, np.ndarray] | None = None

    def push(self, batch: Batch, lines: Callable[[], np.ndarray]) -> Iterator[Batch]:
        """Take rows in the order of the file; give those that no later row can precede."""
        if self._held is not None:
            held, held_lines = self._held
            new, count = lines, len(held_lines)
            self._held = None
            batch = {name: np.concatenate([held[name], batch[name]]) for name in batch}
            lines = lambda: np.concatenate([held_lines[:count], new()])  # noqa: E731
        batch, lines = self._without_strays(batch, lines, final=False)
        yield from self._release(self._in_time(batch, lines), self.reorder_s)

    def finish(self) -> Iterator[Batch]:
        """The rest."""
        if self._held is not None:
            held, held_lines = self._held
            self._held = None
            batch, lines = self._without_strays(held, lambda: held_lines, final=True)
            yield from self._release(self._in_time(batch, lines), 0.0)
        elif self._waiting is not None:
            yield from self._release(None, 0.0)

    def _without_strays(
        self, batch: Batch, lines: Callable[[], np.ndarray], final: bool
    ) -> tuple[Batch, Callable[[], np.ndarray]]:
        times = batch["start_s"]
        if not len(times):
            return batch, lines
        known = np.concatenate([self._before, times])
        offset = len(self._before)
        gaps = np.abs(np.diff(known))
        typical = float(np.median(gaps)) if len(gaps) else 0.0
        jumps = np.flatnonzero(gaps > max(self.reorder_s, FAR * typical))
        suspects = np.unique(np.concatenate([jumps, jumps + 1])) - offset
        suspects = suspects[suspects >= 0]
        keep = np.ones(len(times), bool)
        if len(suspects):
            tail = suspects[suspects >= len(times) - NEIGHBOURS]
            if len(tail) and not final:
                numbers = lines()
                cut = int(tail[0])
                self._held = ({k: v[cut:] for k, v in batch.items()}, numbers[cut:])
                batch = {name: values[:cut] for name, values in batch.items()}
                times, keep = times[:cut], keep[:cut]
                suspects = suspects[suspects < cut]
                lines = lambda: numbers[:cut]  # noqa: E731
            after = known[offset:]
            for row in suspects:
                keep[row] = not self._is_stray(int(row), known, offset, after, keep)
        if not keep.all():
            numbers = lines()
            first = int(np.argmin(keep))
            self.faults.add(
                "a time far from its neighbours'",
                int((~keep).sum()),
                int(numbers[first]),
                f"{_far_s(times, first):.6g} s from them",
                "rows about in the order of their times",
            )
            batch = {name: values[keep] for name, values in batch.items()}
            lines = lambda: numbers[keep]  # noqa: E731
        if len(batch["start_s"]):
            joined = np.concatenate([self._before, batch["start_s"]])
            self._before = joined[-NEIGHBOURS:]
        return batch, lines

    def _is_stray(
        self, row: int, known: np.ndarray, offset: int, after: np.ndarray, keep: np.ndarray
    ) -> bool:
        at = row + offset
        start = max(0, at - 2 * NEIGHBOURS)
        kept = np.concatenate([np.ones(offset, bool), keep])[start:at]
        before = known[start:at][kept][-NEIGHBOURS:]
        following = after[row + 1 : row + 1 + NEIGHBOURS]
        gaps = np.abs(np.diff(np.concatenate([before, following])))
        far_s = max(self.reorder_s, FAR * float(np.median(gaps)) if len(gaps) else 0.0)
        sides = [side for side in (before, following) if len(side)]
        if len(before) + len(following) < 3:
            return False
        return all(abs(known[at] - np.median(side)) > far_s for side in sides)

    def _in_time(self, batch: Batch, lines: Callable[[], np.ndarray]) -> Batch:
        """Without the rows that come too late to be put in their place."""
        times = batch["start_s"]
        if not len(times):
            return batch
        behind_s = np.maximum.accumulate(np.concatenate([[self.latest_s], times]))[1:] - times
        self.latest_s = float(max(self.latest_s, times.max()))
        if not behind_s.any():
            return batch
        late = behind_s > self.reorder_s
        moved = (behind_s > 0) & ~late
        self.moved += int(moved.sum())
        self.most_s = max(self.most_s, float(behind_s[moved].max(initial=0.0)))
        if not late.any():
            return batch
        first = int(np.argmax(late))
        number = int(lines()[first])
        an_hour = ONE_HOUR_S[0] <= behind_s[first] <= ONE_HOUR_S[1]
        if an_hour and self.local_clock() and self._stays(late, first):
            raise ConfigError(
                f"{shown(self.path)}:{number}: the clock goes back by {behind_s[first]:.0f} s and "
                "the dates have no offset: is it a local clock at the end of summer time?",
                allowed="dates with an offset, a declared time zone, or rows in order",
                next_step="declare it: profile_load.time_zone: Europe/Berlin (your own); if the "
                "clock is not local, sort the rows by time",
            )
        self.faults.add(
            f"goes back by more than {self.reorder_s:g} s",
            int(late.sum()),
            number,
            f"goes back by {behind_s[first]:.6g} s",
            "rows in the order of their times; sort the file, or raise profile_load.reorder_s",
        )
        return {name: values[~late] for name, values in batch.items()}

    def _stays(self, late: np.ndarray, first: int) -> bool:
        """Whether the clock stays behind, which one line written late does not do."""
        return bool(late[first : first + NEIGHBOURS].mean() > 0.5)

    def _release(self, batch: Batch | None, behind_s: float) -> Iterator[Batch]:
        if batch is None:
            batch = self._waiting
        elif self._waiting is not None:
            waiting = self._waiting
            batch = {name: np.concatenate([waiting[name], batch[name]]) for name in batch}
        times = batch["start_s"]
        if (np.diff(times) < 0).any():
            order = np.argsort(times, kind="stable")
            batch = {name: values[order] for name, values in batch.items()}
            times = batch["start_s"]
        ready = int(np.searchsorted(times, self.latest_s - behind_s, side="right"))
        self._waiting = {name: values[ready:] for name, values in batch.items()}
        if ready:
            yield {name: values[:ready] for name, values in batch.items()}


def _far_s(times: np.ndarray, row: int) -> float:
    near = times[max(0, row - NEIGHBOURS) : row + NEIGHBOURS]
    return float(abs(times[row] - np.median(near)))
