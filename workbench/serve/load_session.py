"""Arms under the same load in alternating blocks: one session, whoever serves them.

In a block every arm in turn is sent the same piece of the load, the same requests with the same
prompts at the same times, in orders of Williams squares; another block has another piece. An arm
is asked for an untimed answer first, so that what the arm before left behind falls on no timed
one, and a turn ends when its last answer has: nobody is measured on what another left in a queue.

Between two blocks others may measure something else of the same arms, such as their quality; its
time is part of the session's. What else the machine did is read for every block, and a disturbed
block is measured again while time is left (:func:`~workbench.measure.noise.in_quiet`). Each
finished block is on disk before the next begins, so a killed session goes on with the block it
was in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.files import read_json, replacing, write_json
from workbench.load.planned import PlannedRequest
from workbench.measure.meters import EnergySession
from workbench.measure.meters.rows import WINDOW_COLUMNS, energy_rows, no_window
from workbench.measure.noise import NOISE_COLUMNS, Attempt, in_quiet, repeating_left_s
from workbench.measure.orders import balanced_orders
from workbench.measure.session import out_of_time
from workbench.pilot.sections.readiness import Quiet
from workbench.serve.rehearsal import requests_table
from workbench.serve.replay import Outcome

ENERGY_COLUMNS = ["block", "order", "arm", *WINDOW_COLUMNS]


@dataclass(frozen=True)
class LoadedArm:
    """An arm as a session sees it. play: sends a schedule and returns what became of each request
    once all have ended. wake: the untimed answer before a turn; what it returns is kept as the
    row's ``answer`` where it is not None, and should always be the same.

    meters: of the node that serves it; None where none is declared, and ``no_energy`` says so.
    Where they are late, play is idle for their ``apart_s()`` before time 0, with all prepared.
    origin_s: ``time.monotonic()`` at time 0 of the latest schedule.
    """

    play: Callable[[Sequence[PlannedRequest]], list[Outcome]]
    wake: Callable[[], str | None] = lambda: None
    meters: EnergySession | None = None
    origin_s: Callable[[], float] = time.monotonic
    no_energy: str = "no_meter: none was asked"


def in_blocks(
    schedule: Sequence[PlannedRequest], block_s: float, count: int
) -> list[list[PlannedRequest]]:
    """``count`` consecutive pieces of ``block_s``, each with times from its own start."""
    blocks: list[list[PlannedRequest]] = [[] for _ in range(count)]
    for planned in schedule:
        place = min(count - 1, int(planned.intended_s / block_s))
        due_s = planned.intended_s - place * block_s
        blocks[place].append(replace(planned, intended_s=max(0.0, due_s)))
    return blocks


class LoadSession:
    """Measures ``arms`` over ``blocks`` of a load; keeps what is finished in ``folder``."""

    def __init__(
        self,
        folder: Path,
        arms: Mapping[str, LoadedArm],
        blocks: Sequence[Sequence[PlannedRequest]],
        quiet: Quiet,
        seed: int = 0,
        processes: Callable[[], Sequence[int]] = tuple,
        block_s: float = 0.0,
    ) -> None:
        """blocks: those without a request are passed over. processes: ids of those that serve and
        send, which are no disturbance. block_s: time of a block, all of which is metered, also
        where the last answer came before its end."""
        self._folder, self._arms = folder, dict(arms)
        self._blocks = [list(block) for block in blocks if block]
        # Servers and clients of the measurement wait for processors too, and pressure stall
        # information does not say who waited.
        self._quiet = quiet.model_copy(update={"max_pressure_share": 1.0})
        self._seed, self._processes, self._block_s = seed, processes, block_s
        self._windows: dict[tuple[int, str], tuple[float, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def finished(self) -> int:
        """Blocks that are on disk."""
        return len(list(self._folder.glob("block-*.json")))

    def run(
        self,
        budget_s: float,
        report: Callable[[int, int], None],
        between: Callable[[int, Sequence[str]], None] = lambda block, order: None,
    ) -> None:
        """Play what is not finished; ``report(done, all)`` hears of every arm's turn, and
        ``between(block, order)`` is called after each block with the order of its arms."""
        most, turns = len(self._blocks), len(self._blocks) * len(self._arms)
        orders = list(islice(balanced_orders(list(self._arms), self._seed), most))
        attempts, between_s = self._attempts(), self._between_s()
        for block in range(self.finished(), most):
            each_s = sum(between_s) / max(1, block)
            if out_of_time(attempts, block, budget_s - most * each_s):
                break
            if not self._windows:
                self._rest()
            left_s = repeating_left_s(budget_s, attempts)

            def once(block: int = block) -> pd.DataFrame:
                return self._played(block, orders[block], lambda done: report(done, turns))

            rows, own = in_quiet(once, block, self._quiet, left_s, self._processes)
            with replacing(self._path(block, "parquet")) as partial:
                rows.to_parquet(partial, index=False)
            self._keep(block, orders[block], noise=own, between_s=0.0)
            attempts += own
            began = time.monotonic()
            between(block, orders[block])
            between_s.append(time.monotonic() - began)
            self._keep(block, orders[block], between_s=between_s[-1])
        if self._windows:
            self._rest()
        for block in {block for block, _ in self._windows}:
            self._keep(block, orders[block])

    def _rest(self) -> None:
        """Idle of every meter's node, with all arms loaded and none at work."""
        for meters in {id(m): m for arm in self._arms.values() if (m := arm.meters)}.values():
            meters.rest()

    def _keep(self, block: int, order: Sequence[str], **more: Any) -> None:
        """What is known of a block besides its requests; of its energy more is known later."""
        path = self._path(block, "json")
        kept = read_json(path) if path.exists() else {}
        write_json(path, kept | more | {"energies": self._energies_of(block, order)})

    def _played(
        self, block: int, order: Sequence[str], report: Callable[[int], None]
    ) -> pd.DataFrame:
        frames = []
        for key in [key for key in self._windows if key[0] == block]:
            del self._windows[key]  # of a disturbed attempt
        for place, arm in enumerate(order):
            answer = self._arms[arm].wake()
            outcomes = self._metered(block, arm)
            at = {"block": block, "order": place, "arm": arm, "answer": answer}
            counts = [o.counted_prompt_tokens for o in outcomes]
            counted = pd.array(counts, "Int64")
            gaps_ms = [[1e3 * gap for gap in outcome.gaps_s] for outcome in outcomes]
            own = requests_table(outcomes).assign(
                **at, counted_prompt_tokens=counted, gaps_ms=gaps_ms
            )
            frames.append(own)
            report(block * len(order) + place + 1)
        return pd.concat(frames, ignore_index=True)

    def _metered(self, block: int, arm: str) -> list[Outcome]:
        """The arm's turn, between two pauses where a log is late."""
        loaded = self._arms[arm]
        if loaded.meters is None:
            return loaded.play(self._blocks[block])
        outcomes = loaded.play(self._blocks[block])
        begin_s = loaded.origin_s()
        end_s = begin_s + max((outcome.end_s or 0.0 for outcome in outcomes), default=0.0)
        if loaded.meters.meters:
            end_s = max(end_s, begin_s + self._block_s)
            loaded.meters.sleep_until(end_s)
        self._windows[block, arm] = (begin_s, end_s)
        loaded.meters.worked(begin_s, end_s, apart=True)
        loaded.meters.pause()
        return outcomes

    def _energies_of(self, block: int, order: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of a block that this process played."""
        rows: list[dict[str, Any]] = []
        for place, arm in enumerate(order):
            at = {"block": block, "order": place, "arm": arm}
            loaded = self._arms[arm]
            if loaded.meters is None:
                rows.append(at | no_window(loaded.no_energy))
            elif (block, arm) not in self._windows:
                rows.append(at | no_window(f"no_meter: {loaded.meters.why_none()}"))
            else:
                rows += energy_rows(loaded.meters, at, *self._windows[block, arm], apart=True)
        return rows

    def energies(self) -> pd.DataFrame:
        """Table with ``ENERGY_COLUMNS``: a row for each turn and basis of its energy, the widest
        basis first; where a turn has none, one row with basis "" that says why."""
        rows = [row for one in self._kept() for row in one.get("energies", [])]
        return pd.DataFrame(rows, columns=ENERGY_COLUMNS)

    def requests(self) -> pd.DataFrame:
        """One row a request and arm: those of :func:`.rehearsal.requests_table`, and block, order
        (of the arm in its block), answer and counted_prompt_tokens, by the server."""
        return self._rows().drop(columns="gaps_ms")

    def gaps(self) -> pd.DataFrame:
        """``block``, ``id``, ``arm`` and ``gap_ms`` between two tokens."""
        rows = self._rows()[["block", "id", "arm", "gaps_ms"]].explode("gaps_ms")
        return rows.dropna().rename(columns={"gaps_ms": "gap_ms"}).astype({"gap_ms": float})

    def noise(self) -> pd.DataFrame:
        """Table of what else the machine did in each attempt at each block."""
        return pd.DataFrame(self._attempts(), columns=NOISE_COLUMNS)

    def _rows(self) -> pd.DataFrame:
        frames = [pd.read_parquet(self._path(b, "parquet")) for b in range(self.finished())]
        return pd.concat(frames, ignore_index=True)

    def _attempts(self) -> list[Attempt]:
        return [attempt for one in self._kept() for attempt in one["noise"]]

    def _between_s(self) -> list[float]:
        return [one.get("between_s", 0.0) for one in self._kept()]

    def _kept(self) -> list[dict[str, Any]]:
        return [read_json(self._path(block, "json")) for block in range(self.finished())]

    def _path(self, block: int, ending: str) -> Path:
        return self._folder / f"block-{block:03d}.{ending}"
