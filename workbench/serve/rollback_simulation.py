"""How often the rollback rule goes back, and how soon.

``python -m workbench.serve.rollback_simulation [RUNS]``: requests of a candidate and of the other
arm are drawn with known shares of bad ones and given to the rule's own bets. It prints the rows of
docs/results/serving.jsonl that are named ``monitor``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

import numpy as np

from workbench.measure.anytime import ExcessBets
from workbench.serve.rollback_rule import RollbackRule, scored
from workbench.serve.router import GOLDEN

MOST = 10_000
"""Requests of a life."""


@dataclass(frozen=True)
class Life:
    """true_rate: share of the candidate's requests that are bad; other_rate: of the other arm's.
    burst: of both arms, for 200 of every 1000 requests. breaks_at: good until that request."""

    true_rate: float
    other_rate: float = 0.0
    weight: float = 1.0
    burst: float = 0.0
    breaks_at: int = 0


@dataclass(frozen=True)
class LifeOutcome:
    """false_alarms: share of runs that went back, where the candidate keeps the limit; found: the
    same where it does not. median_delay: requests of both arms until then."""

    name: str
    true_rate: float
    other_rate: float
    weight: float
    burst: float
    breaks_at: int
    limit: float
    false_alarms: float | None
    found: float | None
    median_delay: float | None
    runs: int


LIVES = (
    Life(0.02), Life(0.05), Life(0.08), Life(0.10), Life(0.20),
    Life(0.50), Life(1.0),
    Life(0.50, breaks_at=5000), Life(1.0, breaks_at=5000),
    Life(0.02, 0.02, 0.5), Life(0.25, 0.20, 0.5), Life(0.02, 0.02, 0.5, burst=0.6),
    Life(0.02, 0.02, 0.1, burst=0.6), Life(0.20, 0.02, 0.5), Life(0.50, 0.0, 0.5),
    Life(1.0, 0.0, 0.5), Life(0.50, 0.0, 0.1), Life(1.0, 0.0, 0.1),
    Life(1.0, 0.0, 0.9),
)  # fmt: skip


def simulate(case: Life, rule: RollbackRule, runs: int, seed: int = 0) -> LifeOutcome:
    """``runs`` lives of :data:`MOST` requests each, on the rule's share of errors."""
    rng = np.random.default_rng(seed)
    bets = ExcessBets(rule.max_error_share, runs)
    went_back = np.full(runs, np.inf)
    position = 0.0
    for number in range(MOST):
        position = (position + GOLDEN) % 1.0
        candidate = position < case.weight
        rate = case.true_rate if candidate else case.other_rate
        if number < case.breaks_at:
            rate = 0.0
        if case.burst and number % 1000 < 200:
            rate = case.burst
        bad = rng.random(runs) < rate
        if (bet := scored(candidate, case.weight)) is not None:
            bets.take(bad * bet[0], bet[1])
        now = (bets.log_capital >= -np.log(rule.false_alarms)) & np.isinf(went_back)
        went_back[now] = number + 1 - case.breaks_at
        if not np.isinf(went_back).any():
            break
    share = float(np.isfinite(went_back).mean())
    keeps = case.true_rate - (case.other_rate if case.weight < 1 else 0.0) <= rule.max_error_share
    median = float(np.median(went_back))
    return LifeOutcome(
        name="monitor",
        **asdict(case),
        limit=rule.max_error_share,
        false_alarms=share if keeps else None,
        found=None if keeps else share,
        median_delay=None if keeps or np.isinf(median) else median,
        runs=runs,
    )


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for case in LIVES:
        print(json.dumps(asdict(simulate(case, RollbackRule(), runs))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
