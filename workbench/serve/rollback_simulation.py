"""How often each monitor of the rollback rule goes back, and how soon.

``python -m workbench.serve.rollback_simulation [RUNS]``: requests of a candidate and of the other
arm are drawn with known rates and given to the rule's own bets, all lives at once. It prints the
rows of docs/results/serving.jsonl that are named ``monitor``.

A rule takes back when the mean of all its monitors' capitals is large enough. Here each monitor is
alone, as if the others had lost theirs, which can only delay it; the last row is of all at
once, each exactly at its limit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from workbench.measure.anytime import ExcessBets
from workbench.serve.monitors import scored
from workbench.serve.rollback_rule import NOT_FINITE_SHARE, RollbackRule
from workbench.serve.shares import GOLDEN
from workbench.serve.usual import LATEST

MOST = 10_000
"""Requests of a life."""
CHUNK = 50
"""Requests that are drawn together; what is usual is learned between them."""
SCATTER = 0.6
"""Standard deviation of the logarithms of times and lengths."""
RULE = RollbackRule()
LIMITS = {
    "errors": RULE.max_error_share,
    "nan": NOT_FINITE_SHARE,
    "ttft": RULE.max_slow_share,
    "tpot": RULE.max_slow_share,
    "e2e": RULE.max_slow_share,
    "short": RULE.max_length_share,
    "long": RULE.max_length_share,
    "returning": RULE.max_error_share,
    "disagreement": RULE.max_disagreement,
    "unlikely": RULE.max_unlikely_share,
}


@dataclass(frozen=True)
class Life:
    """What a monitor sees.

    true_rate: of the candidate's bad requests; of pairs, the mean. other_rate: the other arm's.
    times: instead, the candidate's times or lengths in those of the other arm; a request is bad by
    comparison with what is usual then, and the rates are what comes of it. weight: the
    candidate's share. burst: both arms' rate, or factor, for 200 of every 1000 requests. breaks_at:
    as the other arm until that request.
    """

    monitor: str
    true_rate: float = 0.0
    other_rate: float = 0.0
    times: float | None = None
    weight: float = 0.5
    burst: float = 0.0
    breaks_at: int = 0

    @property
    def of_pairs(self) -> bool:
        return self.monitor in ("disagreement", "unlikely")


@dataclass(frozen=True)
class LifeOutcome:
    """false_alarms: share of runs that went back, where the candidate keeps the limit; found: the
    same where it does not. median_delay: requests of both arms, or pairs, until then."""

    name: str
    monitor: str
    true_rate: float
    other_rate: float
    times: float | None
    weight: float
    burst: float
    breaks_at: int
    limit: float | None
    false_alarms: float | None
    found: float | None
    median_delay: float | None
    runs: int


LIVES = (
    Life("errors", 0.02, weight=1.0), Life("errors", 0.05, weight=1.0),
    Life("errors", 0.10, weight=1.0), Life("errors", 0.20, weight=1.0),
    Life("errors", 0.50, weight=1.0), Life("errors", 1.0, weight=1.0),
    Life("errors", 1.0, weight=1.0, breaks_at=5000),
    Life("errors", 0.02, 0.02), Life("errors", 0.25, 0.20),
    Life("errors", 0.02, 0.02, burst=0.6), Life("errors", 0.02, 0.02, weight=0.05, burst=0.6),
    Life("errors", 0.20, 0.02), Life("errors", 0.50), Life("errors", 1.0),
    Life("errors", 0.50, weight=0.05), Life("errors", 1.0, weight=0.05),
    Life("errors", 1.0, weight=0.01),
    Life("nan"), Life("nan", 0.001), Life("nan", 0.01), Life("nan", 0.1),
    Life("nan", 0.1, weight=0.05),
    Life("ttft", times=1.0), Life("ttft", times=1.1), Life("ttft", times=1.0, burst=5.0),
    Life("ttft", times=1.0, weight=0.05, burst=5.0),
    Life("ttft", times=1.5), Life("ttft", times=2.0), Life("ttft", times=4.0),
    Life("ttft", times=2.0, weight=0.05), Life("ttft", times=4.0, weight=0.05),
    Life("ttft", times=4.0, breaks_at=5000),
    Life("tpot", times=1.1), Life("tpot", times=2.0),
    Life("e2e", times=1.1), Life("e2e", times=2.0),
    Life("short", times=1.0), Life("short", times=0.85), Life("short", times=0.4),
    Life("short", times=0.1),
    Life("long", times=1.0), Life("long", times=1.2), Life("long", times=2.5),
    Life("long", times=10.0), Life("long", times=10.0, weight=0.05),
    Life("returning", 0.02), Life("returning", 0.05), Life("returning", 0.50),
    Life("disagreement", 0.2), Life("disagreement", 0.4), Life("disagreement", 0.6),
    Life("disagreement", 0.95),
    Life("unlikely", 0.1), Life("unlikely", 0.2), Life("unlikely", 0.5), Life("unlikely", 1.0),
)  # fmt: skip
AT_LIMITS = tuple(
    Life(name, limit + 0.02 * (name == "errors"), 0.02 * (name == "errors"))
    for name, limit in LIMITS.items()
)


class _Drawn:
    """The requests of one life, in every run."""

    def __init__(self, life: Life, runs: int, rng: np.random.Generator) -> None:
        self.life, self._runs, self._rng = life, runs, rng
        self._position = 0.0
        self._latest = np.empty((runs, 0))
        self.bad = {True: [0, 0], False: [0, 0]}
        """Whether the candidate's -> requests, and bad ones."""

    def scores(self, begin: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores [chunk, runs], least [chunk]) of the requests from ``begin``."""
        life, numbers = self.life, np.arange(begin, begin + CHUNK)
        if life.of_pairs:
            return self._pairs()
        positions = (self._position + GOLDEN * np.arange(1, CHUNK + 1)) % 1.0
        self._position = positions[-1]
        own = life.monitor == "returning"  # asks about the candidate alone
        candidate = np.full(CHUNK, True) if own else positions < life.weight
        in_burst = (numbers % 1000 < 200) & (life.burst > 0)
        broken = candidate & (numbers >= life.breaks_at)
        bad = self._bad(candidate, broken, in_burst)
        weight = 1.0 if own else life.weight
        bets = [scored(bool(each), weight) for each in candidate]
        factors, least = np.array([bet or (0.0, 0.0) for bet in bets]).T
        for each in (True, False):
            seen = bad[(candidate == each) & (numbers >= life.breaks_at)]
            self.bad[each][0] += seen.size
            self.bad[each][1] += int(seen.sum())
        return bad * factors[:, None], least

    def _bad(self, candidate: np.ndarray, broken: np.ndarray, in_burst: np.ndarray) -> np.ndarray:
        life = self.life
        if life.times is None:
            rates = np.where(broken, life.true_rate, life.other_rate)
            rates = np.where(in_burst, life.burst, rates)
            return self._rng.random((CHUNK, self._runs)) < rates[:, None]
        factors = np.where(broken, life.times, 1.0) * np.where(in_burst, life.burst, 1.0)
        drawn = self._rng.lognormal(0.0, SCATTER, (CHUNK, self._runs)) * factors[:, None]
        usual = np.median(self._latest, axis=1) if self._latest.shape[1] else None
        self._latest = np.concatenate([self._latest, drawn[~candidate].T], axis=1)[:, -LATEST:]
        if usual is None:
            return np.full(drawn.shape, False)
        of = {"short": 0.5, "long": 2.0}.get(life.monitor, RULE.slower)
        return drawn < of * usual if life.monitor == "short" else drawn > of * usual

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        life = self.life
        if life.monitor == "unlikely":
            unlikely = self._rng.random((CHUNK, self._runs)) < life.true_rate
            return unlikely * 1.0, np.zeros(CHUNK)
        # Of an answer of 20 words each differs or does not; the other arm says the same again.
        drawn = self._rng.binomial(20, life.true_rate, (CHUNK, self._runs)) / 20
        return drawn, np.full(CHUNK, -1.0)


def simulate(lives: Sequence[Life], runs: int, seed: int = 0) -> list[LifeOutcome]:
    """``runs`` lives of :data:`MOST` requests, of each kind; the last outcome is of all monitors
    at their limits at once."""
    rng = np.random.default_rng(seed)
    lives = [*lives, *AT_LIMITS]
    drawn = [_Drawn(life, runs, rng) for life in lives]
    limits = np.array([LIMITS[life.monitor] for life in lives])
    bets = ExcessBets(limits[:, None], runs)
    needed = np.array([_needed(life) for life in lives])[:, None]
    went_back = np.full((len(lives), runs), np.inf)
    together = np.full(runs, np.inf)
    for begin in range(0, MOST, CHUNK):
        scores, least = (
            np.stack(each) for each in zip(*(d.scores(begin) for d in drawn), strict=True)
        )
        for number in range(CHUNK):
            bets.take(scores[:, number], least[:, number, None])
            now = (bets.log_capital >= needed) & np.isinf(went_back)
            went_back[now] = begin + number + 1
            joint = np.logaddexp.reduce(bets.log_capital[-len(AT_LIMITS) :], axis=0)
            over = joint - np.log(len(AT_LIMITS)) >= -np.log(RULE.false_alarms)
            together[over & np.isinf(together)] = begin + number + 1
    count = len(lives) - len(AT_LIMITS)
    outcomes = [
        _outcome(*each, runs) for each in zip(drawn[:count], went_back[:count], strict=True)
    ]
    share = float(np.isfinite(together).mean())
    fields = asdict(Life("all, each at its limit"))
    return [*outcomes, LifeOutcome("monitor", **fields, limit=None, false_alarms=share,
                                   found=None, median_delay=None, runs=runs)]  # fmt: skip


def _needed(life: Life) -> float:
    """Logarithm of the capital that takes back, if the other monitors have lost theirs. Where the
    candidate answers everything, a rule that gives all three times has five monitors."""
    monitors = 5 if life.weight == 1.0 else len(LIMITS)
    return float(np.log(monitors / RULE.false_alarms))


def _outcome(drawn: _Drawn, went_back: np.ndarray, runs: int) -> LifeOutcome:
    life, fields = drawn.life, asdict(drawn.life)
    if life.times is not None:
        rates = {each: bad / max(1, count) for each, (count, bad) in drawn.bad.items()}
        fields |= {"true_rate": round(rates[True], 3), "other_rate": round(rates[False], 3)}
    limit = LIMITS[life.monitor]
    keeps = fields["true_rate"] - fields["other_rate"] <= limit + 1e-9 and not life.breaks_at
    share = float(np.isfinite(went_back).mean())
    delay = float(np.median(went_back - life.breaks_at))
    return LifeOutcome(
        "monitor",
        **fields,
        limit=limit,
        false_alarms=share if keeps else None,
        found=None if keeps else share,
        median_delay=None if keeps or np.isinf(delay) else delay,
        runs=runs,
    )


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    for outcome in simulate(LIVES, runs):
        print(json.dumps(asdict(outcome)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
