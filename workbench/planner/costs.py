"""What one replica's steps cost, from the figures of a run, and what a replay makes of them.

The turns of ``measure_ab`` time prefill and decode at several batches with nothing beside them. In
service the same steps stand beside a server and its clients: they take a factor longer, the server
takes requests in one after the other, each for a time of its own, and an answer is on its way for a
time that holds nobody up. These three are fitted to the requests of the run's own replay. Fitted to
every other block of it, the blocks left out say how far a simulation can be trusted
(:func:`agreement`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from workbench.errors import ConfigError
from workbench.measure.statistics import Estimate, mean_ratio
from workbench.planner.simulation import Answered, Arrivals, StepCosts, simulate

QUANTILES = (0.5, 0.9, 0.99)
FITTED_TO = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles whose sum of squared log ratios is least; the tail is left to be foretold."""
LEAST_FACTOR = 0.5
"""Of steps that are served over those timed alone. Served ones are not faster; where few requests
do not tell steps from what is beside them, the fit would else take all for the latter, and promise
a replica without limit."""
FEWEST = 20
"""Requests of an arm that a fit needs."""
PREFILL_ROWS = {"cpu": 256, "cuda": 2048}
"""Rows of a step of the engine's cores, of which a quarter is read beside others that decode."""


@dataclass(frozen=True)
class ReplicaCosts:
    """Of one replica of ``arm``. intake_s: of the server for each request, one after the other.
    answer_s: of each answer on its way, beside that and the steps. factor: on the steps. fitted: to
    how many requests of a replay; 0: the turns' own costs, with nothing beside them."""

    arm: str
    steps: StepCosts
    slots: int
    chunk: int
    intake_s: float = 0.0
    answer_s: float = 0.0
    factor: float = 1.0
    fitted: int = 0

    def serve(self, arrivals: Arrivals, replicas: int = 1) -> Answered:
        """The load as clients see it: from their request to their tokens."""
        taken_in = Arrivals(self._taken_in(arrivals.start_s, replicas), arrivals.prompt,
                            arrivals.output)  # fmt: skip
        found = simulate(
            taken_in, self.steps.scaled(self.factor),
            slots=self.slots, chunk=self.chunk, replicas=replicas,
        )  # fmt: skip
        late = self.answer_s
        return Answered(
            arrivals.start_s, found.output, found.first_s + late, found.last_s + late,
            found.busy_s, found.span_s,
        )  # fmt: skip

    def _taken_in(self, start_s: np.ndarray, replicas: int) -> np.ndarray:
        """When each request reaches the engine: a queue of one server, as many times as fast as
        there are replicas, each of which has its own."""
        each_s, place = self.intake_s / replicas, np.arange(len(start_s))
        return np.maximum.accumulate(start_s - place * each_s) + (place + 1) * each_s


@dataclass(frozen=True)
class Agreement:
    """One quantile of one latency, simulated and measured, on blocks that nothing was fitted to."""

    arm: str
    latency: str
    quantile: float
    simulated_s: float
    measured_s: float
    requests: int

    @property
    def off(self) -> float:
        """Simulated over measured, less one."""
        return self.simulated_s / self.measured_s - 1.0


def turn_costs(blocks: pd.DataFrame, arm: str, slots: int, device: str = "cpu") -> ReplicaCosts:
    """From table ``blocks`` of ``measure_ab``: medians over the session's blocks.

    Raises ConfigError where the arm was not timed in batches.
    """
    rows = blocks[(blocks["arm"] == arm) & blocks["class"].astype(str).str.startswith("batch_")]
    decode, prefill = (rows[rows["phase"] == phase] for phase in ("decode", "prefill"))
    if decode.empty or prefill.empty:
        raise ConfigError(
            f"{arm}: no turn of it was timed in batches",
            allowed=f"arms with them: {', '.join(sorted(set(blocks['arm'].astype(str))))}",
            next_step="give measure_ab.batch_sizes, and run measure_ab again",
        )
    batch = decode["class"].astype(str).str.removeprefix("batch_").astype(int)
    step_s = (decode["seconds"] * batch / decode["tokens"]).groupby(batch).median()
    rising = np.maximum.accumulate(step_s.to_numpy())  # noise must not make more rows cheaper
    prompt_s = float((prefill["seconds"] / prefill["tokens"]).median())
    points = tuple(float(n) for n in step_s.index)
    return ReplicaCosts(
        arm, StepCosts(points, tuple(map(float, rising)), prompt_s), slots,
        PREFILL_ROWS.get(device, PREFILL_ROWS["cpu"]) // 4,
    )  # fmt: skip


@dataclass(frozen=True)
class ServedReplay:
    """Requests of one arm in the blocks of a replay: as they were sent, and as long as they took.

    loads: of each block, in the order of arrival. ttft, e2e: of each block, s.
    """

    loads: list[Arrivals]
    ttft: list[np.ndarray]
    e2e: list[np.ndarray]

    @classmethod
    def of(cls, replay: pd.DataFrame, arm: str) -> ServedReplay:
        """Of the blocks whose requests were all answered whole. replay: table ``load_requests``."""
        own, loads, ttft, e2e = replay[replay["arm"] == arm], [], [], []
        for _, rows in own.groupby("block"):
            if not ((rows["status"] == "ok").all() and (rows["output_tokens"] > 0).all()):
                continue
            rows = rows.sort_values("sent_s")
            loads.append(_arrivals(rows))
            ttft.append((rows["first_token_s"] - rows["sent_s"]).to_numpy(float))
            e2e.append((rows["last_token_s"] - rows["sent_s"]).to_numpy(float))
        return cls(loads, ttft, e2e)

    def __len__(self) -> int:
        """Requests."""
        return sum(len(each) for each in self.e2e)

    def every_other(self, first: int) -> ServedReplay:
        """Its blocks from ``first`` on, each second one."""
        return ServedReplay(self.loads[first::2], self.ttft[first::2], self.e2e[first::2])

    def latencies(self) -> dict[str, np.ndarray]:
        return {"ttft": np.concatenate(self.ttft), "e2e": np.concatenate(self.e2e)}

    def simulated(self, costs: ReplicaCosts, replicas: int = 1) -> dict[str, np.ndarray]:
        """The same latencies of the same requests."""
        answered = [costs.serve(load, replicas) for load in self.loads]
        return {
            "ttft": np.concatenate([one.ttft_s for one in answered]),
            "e2e": np.concatenate([one.e2e_s for one in answered]),
        }

    def measured_over_simulated(self, costs: ReplicaCosts) -> Estimate:
        """Of the mean time of a request, over the blocks."""
        made = [costs.serve(load).e2e_s.mean() for load in self.loads]
        return mean_ratio([each.mean() for each in self.e2e], made)

    def quantile_ratio(self, costs: ReplicaCosts, quantile: float) -> float:
        """Simulated over measured time of a request."""
        made, real = self.simulated(costs)["e2e"], self.latencies()["e2e"]
        return float(np.quantile(made, quantile) / np.quantile(real, quantile))


def fitted_costs(
    blocks: pd.DataFrame, replay: pd.DataFrame, arm: str, slots: int, device: str = "cpu"
) -> ReplicaCosts:
    """With ``factor``, ``intake_s`` and ``answer_s`` fitted to the arm's requests of ``replay``;
    the turns' own costs where these are too few."""
    costs, served = turn_costs(blocks, arm, slots, device), ServedReplay.of(replay, arm)
    return fit_to(costs, served) if len(served) >= FEWEST else costs


def agreement(
    blocks: pd.DataFrame, replay: pd.DataFrame, arm: str, slots: int, device: str = "cpu"
) -> list[Agreement]:
    """Fitted on every other block of the replay, held against the rest; empty where one is too
    small."""
    costs, served = turn_costs(blocks, arm, slots, device), ServedReplay.of(replay, arm)
    fitted_to, held_out = served.every_other(0), served.every_other(1)
    if min(len(fitted_to), len(held_out)) < FEWEST:
        return []
    costs = fit_to(costs, fitted_to)
    measured, simulated = held_out.latencies(), held_out.simulated(costs)
    return [
        Agreement(
            arm, latency, quantile, float(np.quantile(simulated[latency], quantile)),
            float(np.quantile(measured[latency], quantile)), len(measured[latency]),
        )
        for latency in measured for quantile in QUANTILES
    ]  # fmt: skip


def _arrivals(rows: pd.DataFrame) -> Arrivals:
    prompt = rows.get("counted_prompt_tokens")
    known = prompt is not None and prompt.notna().all()
    columns = (rows["sent_s"], prompt if known else rows["prompt_tokens"], rows["output_tokens"])
    return Arrivals(*(column.to_numpy(float) for column in columns))


def fit_to(costs: ReplicaCosts, served: ServedReplay, replicas: int = 1) -> ReplicaCosts:
    """``costs`` with what serving adds, such that the latencies of ``served`` come out nearest."""
    measured = {k: np.quantile(v, FITTED_TO) for k, v in served.latencies().items()}

    def with_(logs: np.ndarray) -> ReplicaCosts:
        factor, intake_s, answer_s = (float(of) for of in np.exp(logs))
        return replace(
            costs, factor=factor, intake_s=intake_s, answer_s=answer_s, fitted=len(served)
        )

    def miss(logs: np.ndarray) -> float:
        found = served.simulated(with_(logs), replicas)
        ratios = [np.log(np.quantile(found[k], FITTED_TO) / of) for k, of in measured.items()]
        return float(np.square(np.concatenate(ratios)).sum())

    early = max(1e-4, 0.3 * float(measured["ttft"][0]))
    begin = np.log([1.2, early, early])
    best = minimize(
        miss, begin, method="Nelder-Mead", options={"maxfev": 250, "xatol": 1e-3},
        bounds=[(np.log(LEAST_FACTOR), None), (None, None), (None, None)],
    )  # fmt: skip
    return with_(best.x)
