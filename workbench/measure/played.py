"""Whole sessions played against a clock, by ``make energy``: what a wall log shows, and what is
recovered from it.

Two arms whose energies are known take their turns through the product's own session, and a wall
log that is late, averaged, noisy and perhaps ahead of this machine's clock sees them, or a counter
that an exporter holds back and a server scrapes now and then. Rows go to
``docs/results/energy.jsonl``, means over ``RUNS`` sessions each:

- ``ratio_recovered``: the ratio of the energies of a request, and how often its interval holds the
  true one (``covered``);
- ``lag_found``: from a row's time to the middle of what it is the mean of, found by the step test;
- ``area_error``: of the energy of a turn, as a share; ``lo`` and ``hi`` hold 95 % of the turns, and
  ``covered`` are those whose own error is stated large enough.

About three minutes of one core.
"""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from workbench.files import replacing
from workbench.measure.ab_figures import energy_figures
from workbench.measure.latency import LoadClass
from workbench.measure.meters import EnergySession
from workbench.measure.meters.clock import STARTED_AT_S, SteppedClock
from workbench.measure.meters.response import Response
from workbench.measure.meters.sample import Channel, MeterFault, Sample
from workbench.measure.session import Ending, Session
from workbench.pilot.sections.readiness import Quiet
from workbench.records.metric import Metric

RESULTS = Path("docs/results/energy.jsonl")
RUNS = 100
BLOCKS = 8
IDLE_W = 100.0
TRUE_RATIO = 1.40
REQUEST_S, FULL_W, TERNARY_W = 1.03, 240.0, 200.0
CLASS = LoadClass.interactive(8, 5)
ANY_NOISE = Quiet(max_others_share=1, max_steal_share=1, max_pressure_share=1)


@dataclass(frozen=True)
class Situation:
    """Of a wall log. budget_s: the session's time."""

    lag_s: float = 0.0
    averaging_s: float = 0.0
    ahead_s: float = 0.0
    period_s: float = 1.0
    budget_s: float = 1e5

    @property
    def shift_s(self) -> float:
        return self.lag_s + self.averaging_s / 2 + self.ahead_s


SITUATIONS = (
    Situation(),
    Situation(lag_s=1.0, averaging_s=1.0),
    Situation(lag_s=2.0, averaging_s=3.0),
    Situation(averaging_s=1.0, ahead_s=5.0),
    Situation(lag_s=2.0, averaging_s=3.0, period_s=2.0),
    Situation(lag_s=2.0, averaging_s=3.0, budget_s=270.0),
)

COUNTERS = (Situation(), Situation(lag_s=1.5), Situation(lag_s=4.0, period_s=2.0))


@dataclass(frozen=True)
class Played:
    """Of one session: its figures, energies, notes and what the step test learned."""

    figures: list[Metric]
    energies: pd.DataFrame
    true_j: np.ndarray
    """Of each row of ``energies``."""
    notes: list[str]
    response: Response | None

    @property
    def ratio(self) -> Metric | None:
        return next((m for m in self.figures if m.name == "energy_ratio"), None)


class Machine:
    """Power over time: what an arm draws while it works, ``IDLE_W`` otherwise."""

    def __init__(self, clock: SteppedClock) -> None:
        self.clock = clock
        self.at_s, self.joules, self.watts = [-1000.0, 0.0], [-1000.0 * IDLE_W, 0.0], [IDLE_W] * 2

    def draw(self, watts: float) -> None:
        now_s = self.clock.monotonic_s()
        self.joules.append(self._joules(now_s))
        self.at_s.append(now_s)
        self.watts.append(watts)

    def mean_w(self, from_s: float, to_s: float) -> float:
        return (self._joules(to_s) - self._joules(from_s)) / (to_s - from_s)

    def _joules(self, now_s: float) -> float:
        last = bisect_right(self.at_s, now_s) - 1
        return self.joules[last] + self.watts[last] * (now_s - self.at_s[last])


@dataclass
class WallLog:
    """A row every ``period_s``: the mean power of the ``averaging_s`` that ended ``lag_s`` ago,
    dated by a clock that is ``ahead_s`` ahead."""

    machine: Machine
    of: Situation
    random: np.random.Generator
    noise_w: float = 2.0

    def __post_init__(self) -> None:
        self.reader = "csv"
        self.notes: list[str] = []
        self.channel = Channel("csv", "pdu", "node", "power")
        self.next_s = float(self.random.uniform(0, self.of.period_s))

    def read(self) -> list[Sample | MeterFault]:
        rows: list[Sample | MeterFault] = []
        clock = self.machine.clock
        while self.next_s <= clock.monotonic_s():
            to_s = self.next_s - self.of.lag_s
            watts = self.machine.mean_w(to_s - max(self.of.averaging_s, 1e-3), to_s)
            watts = round(watts + self.random.normal(0, self.noise_w))
            at_s = self.next_s + self.of.ahead_s
            rows.append(Sample(self.channel, at_s, clock.wall_s() - clock.now_s + at_s, watts))
            self.next_s += self.of.period_s
        return rows

    def close(self) -> None:
        pass


@dataclass
class ScrapedCounter:
    """Scraped every ``period_s`` from an exporter, which holds its value back for ``lag_s`` and
    renews it every ``renewed_s``; at each scrape where that is 0."""

    machine: Machine
    of: Situation
    random: np.random.Generator
    renewed_s: float = 0.0

    def __post_init__(self) -> None:
        self.reader = "prometheus"
        self.notes: list[str] = []
        self.channel = Channel("prometheus", "node", "node", "energy", resolution=1e-3)
        self.next_s = float(self.random.uniform(0, self.of.period_s))

    def read(self) -> list[Sample | MeterFault]:
        rows: list[Sample | MeterFault] = []
        clock = self.machine.clock
        while self.next_s <= clock.monotonic_s():
            at_s = self.next_s
            waited_s = at_s % self.renewed_s if self.renewed_s else 0.0
            counted_s = at_s - waited_s - self.of.lag_s
            joules = self.machine.mean_w(-900.0, counted_s) * (counted_s + 900.0)
            rows.append(Sample(self.channel, at_s, clock.wall_s() - clock.now_s + at_s, joules))
            self.next_s += self.of.period_s
        return rows

    def close(self) -> None:
        pass


@dataclass
class PlayedEngine:
    """Answers in ``seconds``, the prompt at a higher power than the rest."""

    machine: Machine
    random: np.random.Generator
    seconds: float
    watts: float

    def generate(self, _: object) -> SimpleNamespace:
        seconds = self.seconds * self.random.normal(1.0, 0.02)
        self.machine.draw(1.2 * self.watts)
        self.machine.clock.sleep(0.2 * seconds)
        self.machine.draw(0.95 * self.watts)
        self.machine.clock.sleep(0.8 * seconds)
        self.machine.draw(IDLE_W)
        return SimpleNamespace(first_token_s=0.2 * seconds, end_s=seconds)


def play(
    folder: Path, of: Situation, seed: int, meter: type[WallLog | ScrapedCounter] = WallLog
) -> Played:
    """One session of ``BLOCKS`` blocks; its files go to ``folder``."""
    random, clock = np.random.default_rng(seed), SteppedClock()
    machine = Machine(clock)
    quicker = FULL_W / TERNARY_W / TRUE_RATIO
    engines: dict[str, Any] = {
        "full_precision": PlayedEngine(machine, random, REQUEST_S, FULL_W),
        "ternary": PlayedEngine(machine, random, REQUEST_S * quicker, TERNARY_W),
    }
    log = meter(machine, of, random)
    with EnergySession([log], max_gap_s=3 * of.period_s, interval_s=1.0, clock=clock) as meters:
        made = Session(folder, engines, [CLASS], [(1,) * 8], meters, ANY_NOISE, seed)
        made.run(Ending(BLOCKS, 1e-9, of.budget_s), lambda *_: None)
        energies = made.energies()
        figures = list(energy_figures(energies, "full_precision", [CLASS]))
        windows = energies[["start_s", "end_s"]].to_numpy() - STARTED_AT_S
        true_j = np.array([machine.mean_w(*window) * (window[1] - window[0]) for window in windows])
        response = meters.responses.get(log.channel)
        return Played(figures, energies, true_j, made.notes, response)


def covered(metric: Metric | None, truth: float = TRUE_RATIO) -> bool:
    return (
        metric is not None
        and metric.lo is not None
        and metric.hi is not None
        and metric.lo <= truth <= metric.hi
    )


def rows(of: Situation, sessions: list[Played], meter: str = "csv") -> Iterator[dict[str, Any]]:
    """The rows of one situation."""

    def row(name: str, truth: float, value: Any, lo: Any, hi: Any, share: Any) -> dict[str, Any]:
        figures = {"true": truth, "value": value, "lo": lo, "hi": hi, "covered": share}
        rounded = {key: round(float(number), 4) for key, number in figures.items()}
        about = asdict(of)
        return {"name": name, "meter": meter, **about, **rounded, "runs": len(sessions)}

    ratios = [one.ratio for one in sessions if one.ratio is not None]
    ends = np.array([(r.value, r.lo, r.hi) for r in ratios], float).mean(axis=0)
    yield row("ratio_recovered", TRUE_RATIO, *ends, np.mean([covered(r) for r in ratios]))

    found = [one.response for one in sessions if one.response is not None]
    half = np.array([r.lag_error_s + r.averaging_error_s / 2 for r in found])
    shifts = np.array([r.shift_s for r in found])
    ends = np.array([shifts, shifts - half, shifts + half]).mean(axis=1)
    yield row("lag_found", of.shift_s, *ends, np.mean(np.abs(shifts - of.shift_s) <= half))

    turns = pd.concat([one.energies.assign(true_j=one.true_j) for one in sessions])
    turns = turns.dropna(subset=["energy_j"])
    error = turns["energy_j"] / turns["true_j"] - 1
    low, high = error.quantile([0.025, 0.975])
    held = (error.abs() <= turns["error_j"] / turns["true_j"]).mean()
    yield row("area_error", 0.0, error.mean(), low, high, held)


def write_rows(made: list[dict[str, Any]], results: Path = RESULTS) -> None:
    """Put rows into ``results`` in the place of those of the same figure and meter; rows of others
    (tests/serve/played_load.py, tests/runner/metered_pilot.py) say of what."""

    def of(row: dict[str, Any]) -> tuple[Any, ...]:
        # A figure of no meter, such as what_if_ms, has none.
        return row["name"], row.get("meter"), row.get("of")

    anew = {of(row) for row in made}
    old = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    kept = [row for row in old if of(row) not in anew]
    with replacing(results) as partial:
        partial.write_text("".join(f"{json.dumps(row)}\n" for row in (*kept, *made)))


def main() -> None:
    made: list[dict[str, Any]] = []
    meters = (("csv", WallLog, SITUATIONS), ("counter", ScrapedCounter, COUNTERS))
    for name, meter, situations in meters:
        for of in situations:
            with tempfile.TemporaryDirectory() as folder:
                sessions = [play(Path(folder) / str(seed), of, seed, meter) for seed in range(RUNS)]
            made += rows(of, sessions, name)
            print(*map(json.dumps, made[-3:]), sep="\n", flush=True)
    write_rows(made)


if __name__ == "__main__":
    main()
