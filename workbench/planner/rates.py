"""What one replica of each arm of a run carries within its targets: the number that a fleet is made
of, in ``workbench plan`` and in the report's case alike.

Steps are those of the turns of ``measure_ab``, what serving adds is fitted to its replay
(:mod:`.costs`), the requests are those of ``profile_load``, and the rate is the largest at which
the p99 of every latency keeps its target (:mod:`.fleet`). Its interval is that of the time of a
request, measured over simulated, from block to block of the replay: a replica that serves so much
slower carries so much less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from workbench.load.profile import LoadProfile
from workbench.pilot.sections.profile_load import Slo
from workbench.planner.costs import FEWEST, ReplicaCosts, ServedReplay, fit_to, turn_costs
from workbench.planner.fleet import CELL, RequestMix, largest_rate, seen_by_clients
from workbench.records.stage_record import StageRecord
from workbench.wording.counts import number_of

BASELINE = "full_precision"
AGAIN = "full_precision_again"


@dataclass(frozen=True)
class ReplicaRate:
    """per_s: the largest rate of one replica in a cell of ``CELL``, 1/s; 0 where none keeps the
    targets. lo, hi: at 95 %, or None of fewer blocks than an interval takes. cells: of a replica in
    a cell of 1, 2, ... over ``per_s``, the last 1. busy: of its time at that rate. replay: what it
    was fitted to, or None."""

    costs: ReplicaCosts
    per_s: float
    lo: float | None = None
    hi: float | None = None
    cells: tuple[float, ...] = ()
    busy: float = 0.0
    replay: ServedReplay | None = None

    @property
    def arm(self) -> str:
        return self.costs.arm

    @property
    def text(self) -> str:
        """What it stands on, for the reader."""
        said = f"a replica of {self.arm} can carry {self.per_s:.3g} requests/s by simulation"
        if self.replay is None:
            return f"{said} with the steps of the turns alone"
        got = self.replay.quantile_ratio(self.costs, 0.99)
        return (
            f"{said} fitted to {number_of(self.costs.fitted, 'request')} of the replay, whose p99 "
            f"of the whole answer it gives {got:.2f} times"
        )


def replica_rate(
    costs: ReplicaCosts, load: RequestMix, slo: Slo, seed: int = 0,
    replay: ServedReplay | None = None,
) -> ReplicaRate:  # fmt: skip
    """By simulation. replay: that ``costs`` were fitted to, for the interval."""
    per_s = largest_rate(costs, load, slo, seed)
    if not per_s:
        return ReplicaRate(costs, 0.0, replay=replay)
    smaller = (largest_rate(costs, load, slo, seed, cell, per_s) for cell in range(1, CELL))
    cells = (*(rate / per_s for rate in smaller), 1.0)
    busy = seen_by_clients(costs, load, CELL * per_s, CELL, seed).busy
    lo = hi = None
    if replay is not None:
        slower = replay.measured_over_simulated(costs)
        if slower.lo is not None and slower.hi is not None and slower.value is not None:
            lo, hi = per_s * slower.value / slower.hi, per_s * slower.value / slower.lo
    return ReplicaRate(costs, per_s, lo, hi, cells, busy, replay)


def request_mix(profile_load: StageRecord) -> RequestMix:
    """Of the run's load."""
    profile = LoadProfile.from_record(profile_load)
    shapes = profile.thinned(SHAPES)[["prompt_tokens", "output_tokens"]]
    return RequestMix(shapes, profile.gap_cv)


SHAPES = 20_000
"""Requests of the load that are drawn from."""


def replica_rates(
    records: Mapping[str, StageRecord], slo: Slo, slots: int, seed: int = 0,
    *, unserved: bool = False,
) -> dict[str, ReplicaRate] | str:  # fmt: skip
    """Of every arm that was timed in batches, full precision first; or why there are none.

    slots: of a replica. unserved: also of arms without enough requests in the replay, with the
    costs of their turns alone and nothing that serving adds.
    """
    measured, profiled = records.get("measure_ab"), records.get("profile_load")
    if measured is None or "blocks" not in measured.tables:
        return "no arms were measured"
    if profiled is None or "profile" not in profiled.artefacts:
        return "there is no load profile"
    blocks, device = measured.table("blocks"), measured.facts.get("device", "cuda")
    arms = timed_arms(blocks)
    if not arms:
        return "no arm was timed in batches"
    if "load_requests" in measured.tables:
        table = measured.table("load_requests")
        replays = {arm: ServedReplay.of(table, arm) for arm in arms}
        replays = {arm: replay for arm, replay in replays.items() if len(replay) >= FEWEST}
    else:
        replays = {}
    if not (unserved or replays):
        return "no arm has a replay of the load with enough requests, all answered whole"
    load = request_mix(profiled)
    found = {}
    for arm in arms:
        replay = replays.get(arm)
        if replay is None and not unserved:
            continue
        costs = turn_costs(blocks, arm, slots, device)
        if replay is not None:
            costs = fit_to(costs, replay)
        found[arm] = replica_rate(costs, load, slo, seed, replay)
    return found


def timed_arms(blocks: pd.DataFrame) -> list[str]:
    """Arms with turns of both phases in batches, full precision first."""
    timed = blocks[blocks["class"].astype(str).str.startswith("batch_")]
    phases = timed.groupby(timed["arm"].astype(str))["phase"].agg(set)
    arms = {arm for arm, had in phases.items() if {"prefill", "decode"} <= had} - {AGAIN}
    return sorted(arms, key=lambda arm: (arm != BASELINE, arm))


def why_not_simulated(rates: Mapping[str, ReplicaRate] | str, arms: Sequence[str]) -> str:
    """Why the fleets of these arms cannot all be those of the simulation; empty where they can."""
    if isinstance(rates, str):
        return rates
    for arm in arms:
        if arm not in rates or not rates[arm].costs.fitted:
            return f"{arm} has no replay of the load with enough requests, all answered whole"
        if not rates[arm].per_s:
            return f"{arm} keeps the targets at p99 at no rate"
    return ""
