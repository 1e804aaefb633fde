"""The arms side by side in one session, in many short blocks in which they take turns.

Within a block and a class every arm takes one turn, in an order of a Williams square: over the
blocks every arm stands equally often in every place and after every other arm. Each turn begins
with an untimed request of its own arm, so that what the arm before left behind (its weights in
the caches, its clock) falls on no timed one. The baseline runs a second time under another name:
what the two places differ by is what this session cannot see (A/A). A block gives one observation
for each arm and class.

The session ends when every ratio of speeds is as precise as wanted, or when its time is up. What
else the machine did is read for every block; a disturbed block is measured again, while a
quarter of the time is enough for that, and otherwise kept and marked.

Each finished block is on disk before the next begins, with its energies, so a killed session
goes on with the block it was in; ratios are made within blocks and do not mind the gap.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.engine.engine import Engine
from workbench.files import read_json, replacing, write_json
from workbench.measure.fewest import FEWEST_BLOCKS
from workbench.measure.latency import LoadClass, Prompt, Span, take_turn
from workbench.measure.meters import EnergySession
from workbench.measure.meters.rows import WINDOW_COLUMNS, energy_rows
from workbench.measure.noise import (
    NOISE_COLUMNS,
    Attempt,
    Noise,
    in_quiet,
    repeating_left_s,
)
from workbench.measure.orders import balanced_orders
from workbench.measure.statistics import mean_ratio
from workbench.pilot.sections.readiness import Quiet

AGAIN = "full_precision_again"
"""The baseline in its second place of the A/A comparison."""

SHORTEST_TURN_S = {"": 0.1, "rapl": 0.1, "nvml": 1.2}
"""A turn is repeated until it lasts this long: without a meter, so that an interruption of a
millisecond does not show; with one, so that it yields enough readings (a GPU's counter is
renewed every 0.1 s). What a power log needs, a step test tells."""
TRIAL_TOKENS = 8
TRIALS = 3
WASHOUT_TOKENS = 8
"""Output of the untimed request with which a turn begins."""
FEWEST_TO_STOP = 8
"""Blocks before which precision ends no session: fewer are alike by chance too often."""
COLUMNS = [
    "block", "order", "arm", "class", "batch", "phase", "seconds", "tokens", "sequences",
]  # fmt: skip
TURN_COLUMNS = ["block", "order", "arm", "class", "tokens", "sequences"]
ENERGY_COLUMNS = [*TURN_COLUMNS, *WINDOW_COLUMNS]


@dataclass(frozen=True)
class Ending:
    """When a session ends. blocks: the most. precision: wanted half width of every speed ratio's
    interval, as a share. budget_s: ends it after ``FEWEST_BLOCKS``, and twice that in any case."""

    blocks: int
    precision: float
    budget_s: float


class Session:
    """Measures ``engines`` over ``classes``; keeps what is finished in ``folder``.

    engines: arm -> engine, the baseline first. prompts: as many different ones as the largest
    batch needs, of the classes' length; all arms get the same ones in the same order.
    """

    def __init__(
        self,
        folder: Path,
        engines: Mapping[str, Engine],
        classes: Sequence[LoadClass],
        prompts: Sequence[Prompt],
        meters: EnergySession,
        quiet: Quiet | None = None,
        seed: int = 0,
        turn_s: float = 0.0,
    ) -> None:
        """quiet: limits for what else the machine does; defaults where None. turn_s: of a turn at
        least, as far as the session's time allows, for a log that comes afterwards."""
        self._folder, self._engines, self._classes = folder, dict(engines), list(classes)
        self._prompts, self._meters = list(prompts), meters
        self._quiet, self._seed, self._turn_s = quiet or Quiet(), seed, turn_s
        baseline = next(iter(engines))
        self._engines[AGAIN] = engines[baseline]
        self._windows: dict[tuple[int, int], tuple[float, float]] = {}
        self.notes: list[str] = []
        """What a person should know of this session, in the order in which it was found."""
        folder.mkdir(parents=True, exist_ok=True)

    def finished(self) -> int:
        """Blocks that are on disk."""
        return len(list(self._folder.glob("block-*.json")))

    def run(self, ending: Ending, report: Callable[[int, int], None]) -> pd.DataFrame:
        """Table ``blocks`` with ``COLUMNS``; ``report(done, most)`` hears of every turn."""
        kept = [read_json(self._path(block)) for block in range(self.finished())]
        orders = list(islice(balanced_orders(list(self._engines), self._seed), ending.blocks))
        repeats: dict[str, int] = {}
        while len(kept) < ending.blocks and not self._ends(kept, ending):
            if not repeats:
                repeats = self._repeats(ending)
                self._meters.rest()
            block = len(kept)
            kept.append(self._measured(block, orders[block], repeats, kept, ending, report))
            write_json(self._path(block), kept[-1])
            self._keep_samples()
        if self._windows:
            self._meters.rest()
        for block, one in enumerate(kept):
            self._add_energies(block, one)
            write_json(self._path(block), one)
        return self._table(kept)

    def energies(self) -> pd.DataFrame:
        """Table ``energies`` with ``ENERGY_COLUMNS``: a row for each turn and basis of its energy,
        the widest basis first; where a turn has none, one row with basis "" that says why."""
        kept = [read_json(self._path(block)) for block in range(self.finished())]
        rows = [row for one in kept for row in one.get("energies", [])]
        return pd.DataFrame(rows, columns=ENERGY_COLUMNS)

    def noise(self) -> pd.DataFrame:
        """Table ``noise``: what else the machine did in each attempt at each block."""
        kept = [read_json(self._path(block)) for block in range(self.finished())]
        return pd.DataFrame(_attempts(kept), columns=NOISE_COLUMNS)

    def precise(self, blocks: pd.DataFrame, precision: float) -> bool:
        """Whether every ratio to the baseline, its own second place included, is known so well."""
        baseline = next(iter(self._engines))
        for wanted in self._classes:
            seconds = block_seconds(blocks, wanted.name, timed_phase(wanted))
            for arm in self._engines:
                ratio = mean_ratio(seconds[baseline], seconds[arm], stopped=True)
                if ratio.hi is None or ratio.hi / ratio.value > 1.0 + precision:
                    return False
        return True

    def _ends(self, kept: list[dict[str, Any]], ending: Ending) -> bool:
        if out_of_time(_attempts(kept), len(kept), ending.budget_s):
            return True
        return len(kept) >= FEWEST_TO_STOP and self.precise(self._table(kept), ending.precision)

    def _measured(
        self,
        block: int,
        order: list[str],
        repeats: dict[str, int],
        kept: list[dict[str, Any]],
        ending: Ending,
        report: Callable[[int, int], None],
    ) -> dict[str, Any]:
        """One block, as often as it was disturbed while time is left: its rows and its noise."""
        turns = len(self._engines) * len(self._classes)
        spent_s = sum(attempt["seconds"] for attempt in _attempts(kept))

        def once() -> list[dict[str, Any]]:
            began = time.perf_counter()
            for at in [key for key in self._windows if key[0] == block]:
                del self._windows[at]  # of a disturbed attempt
            rows: list[dict[str, Any]] = []
            for wanted in self._classes:
                for place, arm in enumerate(order):
                    rows += self._turn(block, place, arm, wanted, repeats[wanted.name], len(rows))
                    done = len(self._windows_of(block))
                    so_far_s = spent_s + time.perf_counter() - began
                    most = blocks_in_time(so_far_s / (block + max(1, done) / turns), ending)
                    report(block * turns + done, max(block + 1, most) * turns)
            return rows

        left_s = repeating_left_s(ending.budget_s, _attempts(kept))
        rows, attempts = in_quiet(once, block, self._quiet, left_s)
        one = {"rows": rows, "noise": attempts, "energies": []}
        self._meters.settle()
        self._add_energies(block, one)
        return one

    def _table(self, kept: list[dict[str, Any]]) -> pd.DataFrame:
        return pd.DataFrame([row for one in kept for row in one["rows"]], columns=COLUMNS)

    def samples(self) -> pd.DataFrame:
        """What the meters read, those of earlier attempts included; ``wall_s`` orders them."""
        self._keep_samples()
        frames = [pd.read_parquet(path) for path in sorted(self._folder.glob("power-*.parquet"))]
        return pd.concat(frames, ignore_index=True) if frames else self._meters.samples()

    def _turn(
        self, block: int, place: int, arm: str, wanted: LoadClass, repeats: int, row: int
    ) -> list[dict[str, Any]]:
        washout = replace(wanted, output_tokens=min(WASHOUT_TOKENS, wanted.output_tokens))
        take_turn(self._engines[arm], washout, self._prompts, 1)
        began = self._meters.now()
        spans = take_turn(self._engines[arm], wanted, self._prompts, repeats)
        spans.sort(key=lambda span: span.phase != "request")
        self._windows[block, row] = (began, self._meters.now())
        self._meters.worked(*self._windows[block, row])
        at = {"block": block, "order": place, "arm": arm, "class": wanted.name}
        return [_row(at, wanted, span) for span in spans]

    def _windows_of(self, block: int) -> list[int]:
        return [row for of, row in self._windows if of == block]

    def _add_energies(self, block: int, one: dict[str, Any]) -> None:
        """Energies of this process's turns; those of an earlier attempt stay as they were."""
        windows = self._windows_of(block)
        if not windows:
            return
        one["energies"] = []
        for row in windows:
            turn = one["rows"][row]
            at = {name: turn[name] for name in TURN_COLUMNS}
            one["energies"] += energy_rows(self._meters, at, *self._windows[block, row])

    def _repeats(self, ending: Ending) -> dict[str, int]:
        """Requests, or batches, of a turn by class, from a trial of every arm, which also warms
        it; decided once and kept, so that every block of the session is of one kind."""
        wanted, baseline = self._classes[-1], next(iter(self._engines))
        self.notes += self._meters.learn(
            lambda: take_turn(self._engines[baseline], wanted, self._prompts, 1)
        )
        readers = [meter.reader for meter in self._meters.meters]
        shortest_s = max(SHORTEST_TURN_S.get(reader, 0.0) for reader in ["", *readers])
        shortest_s = max(shortest_s, self._log_turn_s(ending))
        repeats = {}
        for wanted in self._classes:
            quickest = min(
                self._expected_s(engine, wanted)
                for arm, engine in self._engines.items()
                if arm != AGAIN
            )
            repeats[wanted.name] = math.ceil(shortest_s / quickest)
        path = self._folder / "repeats.json"
        if not path.exists():
            write_json(path, repeats)
        return read_json(path)

    def _log_turn_s(self, ending: Ending) -> float:
        """What a late or averaged log needs of a turn, as far as the session's time allows; 0 where
        none is there, or the time allows too little for any figure."""
        wanted_s = max(self._turn_s, self._meters.wanted_turn_s())
        least_s = self._meters.shortest_window_s()
        turns = FEWEST_BLOCKS * len(self._engines) * len(self._classes)
        allowed_s = ending.budget_s / turns
        if wanted_s <= allowed_s:
            return wanted_s
        advice = f"raise measure_ab.budget_s to {math.ceil(wanted_s * turns)} or leave classes out"
        if least_s <= allowed_s:
            self.notes.append(
                f"the power log wants turns of {wanted_s:.1f} s, ten times its lag and averaging; "
                f"the session's time allows {allowed_s:.1f} s, so that more of each turn is guard "
                f"time and the error of the energies is larger: {advice}"
            )
            return allowed_s
        self.notes.append(
            f"the power log gives no energy of a turn: it needs {least_s:.1f} s at least, the "
            f"session's time allows {allowed_s:.1f} s: {advice}"
        )
        return 0.0

    def _expected_s(self, engine: Engine, wanted: LoadClass) -> float:
        """Time of one request or batch: the quickest of some shorter ones after a warm one, as
        an interruption would make the turns of the whole session too short."""
        tokens = min(TRIAL_TOKENS, wanted.output_tokens)
        trial = LoadClass(wanted.name, wanted.prompt_tokens, tokens, wanted.batch)
        expected_s = []
        for _ in range(1 + TRIALS):
            spans = {s.phase: s for s in take_turn(engine, trial, self._prompts, 1)}
            expected_s.append(spans["request"].seconds)
            if tokens < wanted.output_tokens:
                decode = spans["decode"]
                step_s = decode.seconds * decode.sequences / decode.tokens
                expected_s[-1] += step_s * (wanted.output_tokens - tokens)
        return min(expected_s[1:])

    def _keep_samples(self) -> None:
        samples = self._meters.samples()
        if not len(samples):
            return
        # One file for each process: its first sample never changes.
        with replacing(self._folder / f"power-{samples['wall_s'].min():.0f}.parquet") as partial:
            samples.to_parquet(partial, index=False)

    def _path(self, block: int) -> Path:
        return self._folder / f"block-{block:03d}.json"


def timed_phase(wanted: LoadClass) -> str:
    """The phase whose time is compared: whole requests, or the decoding of a batch."""
    return "request" if wanted.batch is None else "decode"


def block_seconds(blocks: pd.DataFrame, name: str, phase: str) -> pd.DataFrame:
    """Seconds for one sequence in each block: a frame ``[blocks, arms]`` of one class.

    Empty where the class has no such phase.
    """
    rows = blocks[(blocks["class"] == name) & (blocks["phase"] == phase)]
    sums = rows.groupby(["block", "arm"])[["seconds", "sequences"]].sum()
    return (sums["seconds"] / sums["sequences"]).unstack("arm").dropna()


def noise_facts(before: Noise, noise: pd.DataFrame) -> dict[str, Any]:
    """For a record: the look before a session, and how much of what was kept was disturbed."""
    kept = noise[noise["kept"].astype(bool)]
    disturbed = kept[kept["disturbed"] != ""]
    return {
        "before": before.to_json(),
        "blocks": len(kept),
        "disturbed": len(disturbed),
        "repeated": len(noise) - len(kept),
        "others_share": _largest(kept["others_share"]),
        "steal_share": _largest(kept["steal_share"]),
        "pressure_share": _largest(kept["pressure_share"]),
    }


def _largest(column: pd.Series) -> float | None:
    known = column.dropna()
    return float(known.max()) if len(known) else None


def out_of_time(attempts: Sequence[Attempt], blocks: int, budget_s: float) -> bool:
    """Whether one more block would be too many: after ``FEWEST_BLOCKS`` beyond the time, after two
    beyond twice the time."""
    spent_s = sum(attempt["seconds"] for attempt in attempts)
    then_s = spent_s + spent_s / max(1, blocks)
    return (blocks >= FEWEST_BLOCKS and then_s > budget_s) or (
        blocks >= 2 and then_s > 2 * budget_s
    )


def blocks_in_time(block_s: float, ending: Ending) -> int:
    """Blocks of so many seconds after which a session ends at the latest: :func:`out_of_time`."""
    fitting = int(ending.budget_s / block_s)
    if fitting < FEWEST_BLOCKS:
        fitting = min(FEWEST_BLOCKS, max(2, int(2 * ending.budget_s / block_s)))
    return min(ending.blocks, fitting)


def _attempts(kept: list[dict[str, Any]]) -> list[Attempt]:
    return [attempt for one in kept for attempt in one["noise"]]


def _row(at: dict[str, Any], wanted: LoadClass, span: Span) -> dict[str, Any]:
    return {
        **at,
        "batch": wanted.sequences,
        "phase": span.phase,
        "seconds": span.seconds,
        "tokens": span.tokens,
        "sequences": span.sequences,
    }
