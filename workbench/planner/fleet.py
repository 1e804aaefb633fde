"""What rate a replica carries, found by simulation, and what the clients of a fleet then see.

A fleet of thousands is not simulated whole: its router spreads the requests evenly, so a cell of
``CELL`` replicas with its share of them stands for all. A larger fleet evens out more than its
cells do, so the figures of a cell are on the side of caution. Arrivals are drawn at one rate, that
of the load's busy windows, with the gaps' own scatter (a renewal process with gamma gaps) and with
prompt and output of requests of the load, the pair together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.economics.case import ROUNDING
from workbench.economics.replicas import replicas_needed
from workbench.pilot.sections.profile_load import Slo
from workbench.planner.costs import ReplicaCosts
from workbench.planner.simulation import Arrivals

CELL = 4
REQUESTS = 4000
"""Of a simulation; the first tenth, while the fleet fills, is left out of its figures."""
WARM_SHARE = 0.1
TARGET = 0.99
"""Quantile of each latency that has to keep the SLO."""
HALVINGS = 9
"""Of the search for the largest rate: to a fifth of a percent of a replica's own."""
FULL = 0.98
"""Share of its time that a replica is busy at most: beyond, a queue of any length comes."""
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class RequestMix:
    """What requests are like. shapes: rows of prompt_tokens and output_tokens. gap_cv: standard
    deviation of the gaps over their mean."""

    shapes: pd.DataFrame
    gap_cv: float

    def arrivals(self, rate_per_s: float, count: int, seed: int) -> Arrivals:
        draw = np.random.default_rng(seed)
        shape = 1.0 / max(self.gap_cv, 1e-2) ** 2
        gaps = draw.gamma(shape, 1.0 / (shape * rate_per_s), count)
        rows = self.shapes.iloc[draw.integers(0, len(self.shapes), count)]
        tokens = (rows["prompt_tokens"].to_numpy(float), rows["output_tokens"].to_numpy(float))
        return Arrivals(np.cumsum(gaps), *(np.maximum(1, of) for of in tokens))


@dataclass(frozen=True)
class ClientView:
    """What clients see of a fleet, s, by quantile; and the share of its time that it is busy."""

    ttft_s: dict[float, float]
    tpot_s: dict[float, float]
    e2e_s: dict[float, float]
    busy: float

    def keeps(self, slo: Slo) -> bool:
        """Whether the ``TARGET`` quantile of each latency is within its target."""
        pairs = (
            (1e3 * self.ttft_s[TARGET], slo.ttft_ms),
            (1e3 * self.tpot_s[TARGET], slo.tpot_ms),
            (self.e2e_s[TARGET], slo.e2e_s),
        )
        return self.busy < FULL and all(most is None or got <= most for got, most in pairs)


@dataclass(frozen=True)
class Planned:
    """Of one arm at one rate: replicas, and what clients see of them. seen: None where no number of
    replicas keeps the targets, because a request alone does not."""

    arm: str
    rate_per_s: float
    replicas: int | None
    per_replica_per_s: float
    seen: ClientView | None


def seen_by_clients(
    costs: ReplicaCosts, load: RequestMix, rate_per_s: float, replicas: int, seed: int = 0
) -> ClientView:
    """Of ``replicas`` of them, a cell at most, together at ``rate_per_s``."""
    found = costs.serve(load.arrivals(rate_per_s, REQUESTS, seed), replicas)
    return ClientView(
        _quantiles(found.ttft_s),
        _quantiles(found.tpot_s),
        _quantiles(found.e2e_s),
        found.busy_s / (replicas * found.span_s),
    )


def largest_rate(
    costs: ReplicaCosts, load: RequestMix, slo: Slo, seed: int = 0, cell: int = CELL,
    most: float | None = None,
) -> float:  # fmt: skip
    """Requests a second of one replica in a cell that keeps ``slo``; 0 where none does.

    most: a rate that is surely not passed, such as that of a larger cell.
    """

    def keeps(rate: float) -> bool:
        return seen_by_clients(costs, load, cell * rate, cell, seed).keeps(slo)

    alone_s = _alone_s(costs, load)
    low, high = 0.0, costs.slots / alone_s  # as if its slots did not share its steps
    if not keeps(1e-3 / alone_s):
        return 0.0
    if most is not None:
        if keeps(most):
            return most
        high = most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def planned(
    costs: ReplicaCosts, load: RequestMix, rate_per_s: float, per_replica: float,
    cells: Sequence[float], seed: int = 0,
) -> Planned:  # fmt: skip
    """The fewest replicas that keep their targets at ``rate_per_s``, and what clients see of them.

    per_replica, cells: of a :class:`~.rates.ReplicaRate`; a fleet smaller than a cell is simulated
    as it is.
    """
    if not per_replica:
        return Planned(costs.arm, rate_per_s, None, 0.0, None)
    fluid = float(replicas_needed(rate_per_s, per_replica, cells))
    replicas = max(1, math.ceil(fluid - ROUNDING))
    cell = min(replicas, CELL)
    seen = seen_by_clients(costs, load, rate_per_s * cell / replicas, cell, seed)
    return Planned(costs.arm, rate_per_s, replicas, per_replica, seen)


def _alone_s(costs: ReplicaCosts, load: RequestMix) -> float:
    """Mean time of a request that has a replica for itself."""
    mean = load.shapes[["prompt_tokens", "output_tokens"]].astype(float).mean()
    step_s = costs.steps.scaled(costs.factor)
    reading_s = mean["prompt_tokens"] * step_s.prompt_s
    return float(reading_s + mean["output_tokens"] * step_s.step_s(1, 0))


def _quantiles(values: np.ndarray) -> dict[float, float]:
    """Of the requests after the first ones, those with the latency."""
    values = values[int(WARM_SHARE * len(values)) :]
    values = values[np.isfinite(values)]
    return {q: float(np.quantile(values, q)) if len(values) else 0.0 for q in QUANTILES}
