"""Sessions under a load, played against a clock: what a late log says of served traffic.

    python tests/serve/played_load.py      # part of make energy, about two minutes

Two arms whose energies are known answer the same bursts of requests through the product's own
session under load, and a wall log that is late, averaged and noisy sees them. Rows go to
``docs/results/energy.jsonl``, means over ``RUNS`` sessions: ``joules_per_request`` of each arm and
``ratio_recovered``, with how often the interval holds what the arm takes in the long run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.load.planned import PlannedRequest
from workbench.measure.load_energy import load_energy_figures
from workbench.measure.meters import EnergySession
from workbench.measure.meters.clock import STARTED_AT_S, SteppedClock
from workbench.measure.played import ANY_NOISE, IDLE_W, Machine, Situation, WallLog
from workbench.records.metric import Metric
from workbench.serve.load_session import LoadedArm, LoadSession
from workbench.serve.replay import Outcome

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "energy.jsonl"
RUNS, BLOCKS, BLOCK_S, RATE_PER_S = 100, 8, 30.0, 0.8
PREFILL_W, DECODE_W = 300.0, 180.0
PREFILL_S, DECODE_S = 0.002, 0.02
"""Of full precision, a token; ternary takes ``QUICKER`` of both, and ``THRIFTIER`` of the power."""
QUICKER, THRIFTIER = 0.7, 0.9
ARMS = ("full_precision", "ternary")
SITUATIONS = (
    Situation(),
    Situation(lag_s=1.0, averaging_s=1.0),
    Situation(lag_s=2.0, averaging_s=3.0),
    Situation(averaging_s=1.0, ahead_s=5.0),
)
SHAPES = pd.DataFrame(
    [
        {"arm": arm, "batch": 1, "phase": phase, "seconds": seconds, "tokens": 1}
        for arm in ARMS
        for phase, seconds in (("prefill", PREFILL_S), ("decode", DECODE_S))
    ]
)


@dataclass(frozen=True)
class PlayedLoad:
    """Of one session: its figures, requests, energies and what each window really took."""

    figures: dict[tuple[str, str], Metric]
    requests: pd.DataFrame
    energies: pd.DataFrame


class PlayedArm:
    """Answers one request after the other, the prompt at a higher power than the rest."""

    def __init__(self, machine: Machine, quicker: float = 1.0, thriftier: float = 1.0) -> None:
        self.machine, self.quicker, self.thriftier = machine, quicker, thriftier
        self.origin_s, self.meters = 0.0, EnergySession([])

    def play(self, schedule) -> list[Outcome]:
        clock = self.machine.clock
        self.work(DECODE_W, 0.4)  # starting the clients
        self.meters.pause()
        self.origin_s, outcomes = clock.monotonic_s(), []
        for one in schedule:
            clock.sleep(max(0.0, self.origin_s + one.intended_s - clock.monotonic_s()))
            self.work(PREFILL_W, PREFILL_S * one.prompt_tokens)
            first_s = clock.monotonic_s() - self.origin_s
            self.work(DECODE_W, DECODE_S * one.output_tokens)
            end_s = clock.monotonic_s() - self.origin_s
            outcomes.append(
                Outcome(
                    one.id, one.class_, one.intended_s, one.intended_s, one.prompt_tokens,
                    one.output_tokens, None, first_s, end_s, end_s, one.output_tokens, "ok",
                )
            )  # fmt: skip
        return outcomes

    def work(self, watts: float, seconds: float) -> None:
        self.machine.draw(IDLE_W + self.thriftier * (watts - IDLE_W))
        self.machine.clock.sleep(self.quicker * seconds)
        self.machine.draw(IDLE_W)

    def wake(self) -> None:
        self.work(DECODE_W, 0.3)


def requests_of(random: np.random.Generator) -> list[list[PlannedRequest]]:
    """Blocks of Poisson arrivals; lengths vary from request to request."""
    blocks = []
    for block in range(BLOCKS):
        n = 1 + random.poisson(RATE_PER_S * BLOCK_S)
        due_s = np.sort(random.uniform(0, BLOCK_S, n))
        prompts = random.lognormal(4.0, 0.8, n).astype(int) + 1
        outputs = random.lognormal(3.0, 0.7, n).astype(int) + 1
        blocks.append(
            [
                PlannedRequest(100 * block + i, due_s[i], int(prompts[i]), int(outputs[i]),
                               "interactive", False)
                for i in range(n)
            ]
        )  # fmt: skip
    return blocks


def play(folder: Path, of: Situation, seed: int) -> PlayedLoad:
    """One session; its files go to ``folder``."""
    random, clock = np.random.default_rng(seed), SteppedClock()
    machine = Machine(clock)
    log = WallLog(machine, of, random)
    played = {
        "full_precision": PlayedArm(machine),
        "ternary": PlayedArm(machine, QUICKER, THRIFTIER),
    }
    with EnergySession([log], max_gap_s=3 * of.period_s, interval_s=1.0, clock=clock) as meters:
        meters.learn(played["full_precision"].wake)
        for arm in played.values():
            arm.meters = meters
        arms = {
            name: LoadedArm(arm.play, arm.wake, meters, lambda arm=arm: arm.origin_s)
            for name, arm in played.items()
        }
        session = LoadSession(folder, arms, requests_of(random), ANY_NOISE, seed, block_s=BLOCK_S)
        session.run(1e9, lambda *_: None)
        problems = [one.problem for one in meters.conserved() if one.problem]
        assert not problems, problems
    requests, energies = session.requests(), session.energies()
    windows = energies[["start_s", "end_s"]].to_numpy() - STARTED_AT_S
    true_j = [machine.mean_w(*window) * (window[1] - window[0]) for window in windows]
    made = load_energy_figures(requests, energies, SHAPES, ARMS, ARMS)
    figures = {(m.name, m.labels["arm"]): m for m in made}
    return PlayedLoad(figures, requests, energies.assign(true_j=true_j))


def truths(sessions: list[PlayedLoad]) -> dict[tuple[str, str], float]:
    """In the long run: of all sessions together."""
    found = {}
    per_block = []
    for arm in ARMS:
        joules = np.concatenate(
            [s.energies.loc[s.energies["arm"] == arm, "true_j"] for s in sessions]
        )
        own = [s.requests[s.requests["arm"] == arm].groupby("block").size() for s in sessions]
        counts = np.concatenate(own)
        found["energy_j_per_request", arm] = joules.sum() / counts.sum()
        per_block.append(joules / counts)
    found["energy_ratio", "ternary"] = float(np.exp(np.log(per_block[0] / per_block[1]).mean()))
    return found


def covered(metric: Metric, true: float) -> bool:
    return metric.lo is not None and metric.hi is not None and metric.lo <= true <= metric.hi


def rows(of: Situation, sessions: list[PlayedLoad]) -> Iterator[dict[str, Any]]:
    """The rows of one situation."""
    for (name, arm), true in truths(sessions).items():
        made = [session.figures[name, arm] for session in sessions]
        value, lo, hi = np.array([(m.value, m.lo, m.hi) for m in made], float).mean(axis=0)
        share = np.mean([covered(metric, true) for metric in made])
        numbers = {"true": true, "value": value, "lo": lo, "hi": hi, "covered": share}
        yield {
            "name": "ratio_recovered" if name == "energy_ratio" else "joules_per_request",
            "meter": "csv", "of": f"load: {arm}", **asdict(of),
            **{key: round(float(number), 4) for key, number in numbers.items()},
            "runs": len(sessions),
        }  # fmt: skip


def main() -> None:
    lines = []
    for of in SITUATIONS:
        with tempfile.TemporaryDirectory() as folder:
            sessions = [play(Path(folder) / str(seed), of, seed) for seed in range(RUNS)]
        lines += [json.dumps(row) for row in rows(of, sessions)]
        print(*lines[-3:], sep="\n")
    kept = [line for line in RESULTS.read_text().splitlines() if '"of": "load: ' not in line]
    RESULTS.write_text("".join(f"{line}\n" for line in (*kept, *lines)))


if __name__ == "__main__":
    main()
