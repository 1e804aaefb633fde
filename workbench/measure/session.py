"""The arms side by side in one session, in blocks in which they take turns.

Within a block and a class every arm runs twice, mirrored (A B C ... C B A), so that a slow
drift of clock rate or temperature falls on all alike; the arm that begins moves on from block
to block. The baseline runs a second time under another name: what the two places differ by is
what this session cannot see (A/A). A block gives one observation for each arm and class.

Each finished block is on disk before the next begins, with its energies, so a killed session
goes on with the block it was in; ratios are made within blocks and do not mind the gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.engine.engine import Engine
from workbench.files import read_json, replacing, write_json
from workbench.measure.latency import LoadClass, Prompt, Span, take_turn
from workbench.measure.meters import Energy, EnergySession

AGAIN = "full_precision_again"
"""The baseline in its second place of the A/A comparison."""

SHORTEST_TURN_S = {"": 0.1, "rapl": 0.1, "nvml": 1.2, "csv": 4.0}
"""A turn is repeated until it lasts this long: without a meter, so that an interruption of a
millisecond does not show; with one, so that it yields enough readings (a GPU's counter is
renewed every 0.1 s, a power log is assumed to have a row a second)."""
TRIAL_TOKENS = 8
TRIALS = 3
COLUMNS = [
    "block", "order", "arm", "class", "batch", "phase", "seconds", "tokens", "sequences",
    "energy_j", "energy_kind", "energy_how",
]  # fmt: skip


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
    ) -> None:
        self._folder, self._engines, self._classes = folder, dict(engines), list(classes)
        self._prompts, self._meters = list(prompts), meters
        baseline = next(iter(engines))
        self._engines[AGAIN] = engines[baseline]
        self._windows: dict[tuple[int, int], tuple[float, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def finished(self) -> int:
        """Blocks that are on disk."""
        return len(list(self._folder.glob("block-*.json")))

    def run(self, blocks: int, report: Callable[[int, int], None]) -> pd.DataFrame:
        """Table ``blocks`` with ``COLUMNS``; ``report(done, total)`` hears of every turn.

        energy_j: of a whole turn, on its row of phase ``request``.
        """
        if self.finished() < blocks:
            repeats = self._repeats()
            self._meters.rest()
        turns = 2 * len(self._engines) * len(self._classes)
        for block in range(blocks):
            if self._path(block).exists():
                continue
            rows: list[dict[str, Any]] = []
            for wanted in self._classes:
                for place, arm in enumerate(self._order(block)):
                    rows += self._turn(block, place, arm, wanted, repeats[wanted.name], len(rows))
                    done = len(self._windows_of(block))
                    report(block * turns + done, blocks * turns)
            self._add_energies(block, rows)
            write_json(self._path(block), rows)
            self._keep_samples()
        if self._windows:
            self._meters.rest()
        kept = [read_json(self._path(block)) for block in range(blocks)]
        for block, rows in enumerate(kept):
            self._add_energies(block, rows)
        return pd.DataFrame([row for rows in kept for row in rows], columns=COLUMNS)

    def samples(self) -> pd.DataFrame:
        """What the meters read, those of earlier attempts included; ``wall_s`` orders them."""
        self._keep_samples()
        frames = [pd.read_parquet(path) for path in sorted(self._folder.glob("power-*.parquet"))]
        return pd.concat(frames, ignore_index=True) if frames else self._meters.samples()

    def _order(self, block: int) -> list[str]:
        arms = list(self._engines)
        first = block % len(arms)
        rotated = arms[first:] + arms[:first]
        return rotated + rotated[::-1]

    def _turn(
        self, block: int, place: int, arm: str, wanted: LoadClass, repeats: int, row: int
    ) -> list[dict[str, Any]]:
        began = self._meters.now()
        spans = take_turn(self._engines[arm], wanted, self._prompts, repeats)
        spans.sort(key=lambda span: span.phase != "request")
        self._windows[block, row] = (began, self._meters.now())
        at = {"block": block, "order": place, "arm": arm, "class": wanted.name}
        return [_row(at, wanted, span) for span in spans]

    def _windows_of(self, block: int) -> list[int]:
        return [row for of, row in self._windows if of == block]

    def _add_energies(self, block: int, rows: list[dict[str, Any]]) -> None:
        """Energies of this process's turns; those of an earlier attempt stay as they were."""
        for row in self._windows_of(block):
            energy = self._meters.energy(*self._windows[block, row])
            rows[row] |= {
                "energy_j": energy.energy_j,
                "energy_kind": energy.kind if energy.energy_j is not None else None,
                "energy_how": _energy_how(energy),
            }

    def _repeats(self) -> dict[str, int]:
        """Requests, or batches, of a turn by class, from a trial of every arm, which also warms
        it; decided once and kept, so that every block of the session is of one kind."""
        sources = [meter.source for meter in self._meters.meters]
        shortest_s = max(SHORTEST_TURN_S[source] for source in ["", *sources])
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


def block_seconds(blocks: pd.DataFrame, name: str, phase: str) -> pd.DataFrame:
    """Seconds for one sequence in each block: a frame ``[blocks, arms]`` of one class.

    An arm's two turns of a block count together. Empty where the class has no such phase.
    """
    rows = blocks[(blocks["class"] == name) & (blocks["phase"] == phase)]
    sums = rows.groupby(["block", "arm"])[["seconds", "sequences"]].sum()
    return (sums["seconds"] / sums["sequences"]).unstack("arm").dropna()


def _row(at: dict[str, Any], wanted: LoadClass, span: Span) -> dict[str, Any]:
    return {
        **at,
        "batch": wanted.sequences,
        "phase": span.phase,
        "seconds": span.seconds,
        "tokens": span.tokens,
        "sequences": span.sequences,
        "energy_j": None,
        "energy_kind": None,
        "energy_how": None,
    }


def _energy_how(energy: Energy) -> str:
    if energy.energy_j is None:
        return f"{energy.reason}: {energy.text}"
    return "; ".join([f"gross, {energy.scope}", *energy.warnings])
