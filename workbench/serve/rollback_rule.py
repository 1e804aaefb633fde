"""When the router goes back to the fallback by itself.

The rule has a monitor for each thing that a candidate may do worse than the other arm does at the
same time: fail, give no numbers, begin late, go on slowly, end late, answer too briefly or never
stop, say something else, say what full precision finds unlikely. Each asks whether a share of its
requests, or a mean over pairs of answers, exceeds the other arm's by more than a limit
(:mod:`.monitors`), and bets on that after every request (:mod:`workbench.measure.anytime`).

All monitors bet with equal parts of one capital, and the sum is what takes the candidate back: of
candidates that keep every limit at most ``false_alarms`` are ever taken back, over their whole life
and by all monitors together. A candidate that exceeds one limit pays for the others with a few
requests more, because its monitor has only a part to grow from.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.serve.monitors import BadShare, PairExcess

NOT_FINITE_SHARE = 1e-3
"""By which the candidate may exceed the other arm's share of answers that hold no numbers."""


@dataclass(frozen=True)
class RollbackRule:
    """By how much the candidate may be worse. Shares are differences to the other arm's, or the
    candidate's own where it answers everything.

    max_error_share: of requests that fail.
    ttft_s, tpot_s, e2e_s: a first token, a token on average, or an answer that takes longer is
    late; None: longer than ``slower`` times what is usual of the other arm for such requests,
    while both answer. max_slow_share: of late requests, of each of the three.
    max_length_share: of answers shorter than half of what is usual, and of those that are longer
    than twice that, or end at their limit.
    max_disagreement: of an answer's tokens, or words, that another answer of the other arm would
    not have, more than it differs from itself. unlikely_nats, max_unlikely_share: of answers
    that are less likely under full precision than its own, by so much for each token.
    false_alarms: share of good candidates that may be taken back, over their whole life.
    """

    max_error_share: float = 0.05
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    slower: float = 1.5
    max_slow_share: float = 0.10
    max_length_share: float = 0.15
    max_disagreement: float = 0.4
    unlikely_nats: float = 1.0
    max_unlikely_share: float = 0.2
    false_alarms: float = 0.05

    def limit_s(self, time: str) -> float | None:
        """Of ``ttft``, ``tpot`` or ``e2e``."""
        return {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}[time]

    def monitor(self, *, compares: bool = False, pairs: bool = False) -> RollbackMonitor:
        """The rule at work, with nothing seen. compares: the other arm answers too. pairs: some
        requests are answered by both."""
        return RollbackMonitor(self, compares=compares, pairs=pairs)


class RollbackMonitor:
    """Holds requests against a rule. Make a new one after a rollback, so that old sins do not
    count; a larger weight needs none.

    A request is known by any hashable ``key``; one that a monitor was not told of by
    :meth:`arrived` is ignored by it.
    """

    def __init__(self, rule: RollbackRule, *, compares: bool, pairs: bool) -> None:
        self._needed = math.log(1 / rule.false_alarms)
        shares = {
            "errors": BadShare("failed", rule.max_error_share),
            "nan": BadShare("gave no finite numbers", NOT_FINITE_SHARE),
        }
        for time, begins in TIMES.items():
            limit_s = rule.limit_s(time)
            if limit_s is not None or compares:
                than = (
                    f"{rule.slower:g} times what is usual" if limit_s is None else f"{limit_s:g} s"
                )
                shares[time] = BadShare(f"{begins} {than}", rule.max_slow_share)
        if compares:
            shares["short"] = BadShare(
                "were answered with less than half of what is usual", rule.max_length_share
            )
            shares["long"] = BadShare(
                "were answered with more than twice what is usual, or up to their limit",
                rule.max_length_share,
            )
            shares["returning"] = BadShare("of clients seen before failed", rule.max_error_share)
        self.shares = shares
        self.pairs: dict[str, PairExcess] = {}
        if pairs:
            self.pairs["disagreement"] = PairExcess(
                "a share of {} of the answers differs, more than the other arm's from itself",
                rule.max_disagreement,
                least=-1.0,
            )
            self.pairs["unlikely"] = PairExcess(
                f"a share of {{}} is by {rule.unlikely_nats:g} nats a token less likely under full "
                "precision than its own answers",
                rule.max_unlikely_share,
                least=0.0,
            )

    def arrived(
        self, key: Hashable, candidate: bool, weight: float, names: tuple[str, ...] | None = None
    ) -> None:
        """A request is on its way. weight: share of the requests that go to the candidate.
        names: of the monitors that shall look at it; None: all that count requests."""
        for name in self.shares if names is None else names:
            if name in self.shares:
                self.shares[name].arrived(key, candidate, weight)

    def forget(self, key: Hashable) -> None:
        """It was given to another arm before it started."""
        for share in self.shares.values():
            share.forget(key)

    def known(self, name: str, key: Hashable, bad: bool) -> None:
        """What one monitor asked about; the first word is the last."""
        if name in self.shares:
            self.shares[name].known(key, bad)

    def compared(self, name: str, value: float) -> None:
        """What a pair of answers differs by."""
        if name in self.pairs:
            self.pairs[name].take(value)

    def verdict(self) -> str | None:
        """The reason to go back, or None."""
        if self._log_capital() < self._needed:
            return None
        worst = max(self._monitors.values(), key=lambda each: each.log_capital())
        return f"rule: {worst.said()}"

    def evidence(self) -> float:
        """Of what takes the candidate back, the share that there is: 0 to 1; of all monitors
        together, or of the one that has most against it, where that is more."""
        alone = max(monitor.log_capital() for monitor in self._monitors.values())
        of_all = self._needed + math.log(len(self._monitors))
        return min(1.0, max(0.0, self._log_capital() / self._needed, alone / of_all))

    def report(self) -> dict[str, float]:
        """Monitor -> natural logarithm of what a capital of 1 has become in it."""
        return {name: each.log_capital() for name, each in self._monitors.items()}

    def kept(self) -> dict[str, Any]:
        """What :meth:`go_on_from` needs, as JSON holds it."""
        return {name: each.kept() for name, each in self._monitors.items()}

    def go_on_from(self, kept: dict[str, Any]) -> None:
        """With what monitors of the same rule had before a restart. Raises ValueError or KeyError
        for anything else."""
        if kept.keys() != self._monitors.keys():
            raise ValueError(f"monitors {', '.join(kept)}; allowed: {', '.join(self._monitors)}")
        for name, each in self._monitors.items():
            each.go_on_from(kept[name])

    def said(self) -> dict[str, str]:
        """Monitor -> what it has counted, in words."""
        return {name: each.said() for name, each in self._monitors.items()}

    def _log_capital(self) -> float:
        """Of all monitors together: the mean of what each made of its part."""
        each = [monitor.log_capital() for monitor in self._monitors.values()]
        return float(np.logaddexp.reduce(each)) - math.log(len(each))

    @property
    def _monitors(self) -> dict[str, BadShare | PairExcess]:
        return {**self.shares, **self.pairs}


TIMES = {
    "ttft": "had no first token within",
    "tpot": "took longer for a token than",
    "e2e": "had no whole answer within",
}
"""Monitor -> what a late request did, before the limit."""
