"""When the router goes back to the fallback by itself.

The rule asks whether the candidate fails, or gives its first token late, in a larger share of its
requests than the other arm does at the same time, by more than a limit. While both arms answer, a
request is the candidate's with the route's weight ``w``, so

    bad / w        of a request of the candidate's
    -bad / (1 - w) of one of the other arm's

has the difference of both shares as its mean, whatever the load does meanwhile: a burst that makes
both wait is no fault of the candidate's. Where the candidate answers everything there is nothing to
compare with, and its own share is asked about. Either way it is a bet that is looked at after every
request (:mod:`workbench.measure.anytime`): of candidates that keep the limits at most
``false_alarms`` are ever taken back, all monitors together, over their whole life.

Requests count in the order of their arrival, because a failure comes sooner than an answer. One of
the candidate's that is under way counts as good so far, which can only understate the evidence;
one of the other arm's is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from workbench.measure.anytime import ExcessBets

MOST_PENDING = 4096
"""Requests a share remembers that are under way; older ones count against going back."""
LEAST_OTHER_SHARE = 1e-3
"""Of the requests; an arm that answers fewer is no comparison."""


@dataclass(frozen=True)
class RollbackRule:
    """Too many errors, or too many late first tokens.

    max_error_share, max_slow_share: by which the candidate's share may exceed the other arm's.
    ttft_s: a first token that comes later than this is late; None: only errors count.
    false_alarms: share of good candidates that may be taken back, over their whole life.
    """

    max_error_share: float = 0.05
    ttft_s: float | None = None
    max_slow_share: float = 0.10
    false_alarms: float = 0.05

    def monitor(self) -> RollbackMonitor:
        """The rule at work, with nothing seen."""
        return RollbackMonitor(self)


class RollbackMonitor:
    """Holds requests against a rule. Make a new one after a rollback, so that old sins do not
    count; a change of the weight needs none.

    A request is known by any hashable ``key``; one that :meth:`arrived` was not told of is ignored.
    """

    def __init__(self, rule: RollbackRule) -> None:
        monitors = 1 if rule.ttft_s is None else 2
        needed = math.log(monitors / rule.false_alarms)
        self._errors = BadShare(rule.max_error_share, needed)
        self._slow = BadShare(rule.max_slow_share, needed) if rule.ttft_s is not None else None
        self._rule = rule

    def arrived(self, key: Hashable, candidate: bool, weight: float) -> None:
        """A request is on its way. weight: share of the requests that go to the candidate."""
        for share in self._shares:
            share.arrived(key, candidate, weight)

    def forget(self, key: Hashable) -> None:
        """It was given to another arm before it started."""
        for share in self._shares:
            share.forget(key)

    def first_token(self, key: Hashable, late: bool) -> None:
        """Its first token came, or is late already."""
        if self._slow:
            self._slow.known(key, late)

    def ended(self, key: Hashable, failed: bool) -> None:
        """It ended; without a first token it was not late, or :meth:`first_token` said so."""
        self._errors.known(key, failed)
        if self._slow:
            self._slow.known(key, False)

    def verdict(self) -> str | None:
        """The reason to go back, or None."""
        if self._errors.exceeds():
            return f"rule: {self._errors.said('failed')}"
        if self._slow and self._slow.exceeds():
            late = f"had no first token within {self._rule.ttft_s:g} s"
            return f"rule: {self._slow.said(late)}"
        return None

    def evidence(self) -> float:
        """Of what takes the candidate back, the share that there is: 0 to 1."""
        return max(share.evidence() for share in self._shares)

    @property
    def _shares(self) -> list[BadShare]:
        return [self._errors, *([self._slow] if self._slow else [])]


@dataclass
class _Pending:
    candidate: bool
    weight: float
    bad: bool | None = None


class BadShare:
    """By how much the candidate's share of bad requests exceeds the other arm's.

    needed: natural logarithm of the capital at which the limit counts as exceeded.
    """

    def __init__(self, limit: float, needed: float) -> None:
        self.limit, self._needed = limit, needed
        self._bets = ExcessBets(limit)
        self._pending: dict[Hashable, _Pending] = {}
        self._changed, self._now = False, 0.0
        self._seen = {True: [0, 0], False: [0, 0]}
        """Whether the candidate's -> requests, and bad ones."""

    def arrived(self, key: Hashable, candidate: bool, weight: float) -> None:
        self._pending[key] = _Pending(candidate, weight)
        if len(self._pending) > MOST_PENDING:
            oldest = next(iter(self._pending.values()))
            if oldest.bad is None:
                oldest.bad = not oldest.candidate
            self._settle()

    def forget(self, key: Hashable) -> None:
        if key in self._pending and self._pending[key].bad is None:
            del self._pending[key]

    def known(self, key: Hashable, bad: bool) -> None:
        """The first word about a request is the last."""
        pending = self._pending.get(key)
        if pending is None or pending.bad is not None:
            return
        pending.bad = bad
        counts = self._seen[pending.candidate]
        counts[0] += 1
        counts[1] += bad
        self._changed = True

    def exceeds(self) -> bool:
        """Whether the evidence is enough, now."""
        return self._log_capital() >= self._needed

    def evidence(self) -> float:
        """That there is now, as a share of what is needed."""
        return min(1.0, max(0.0, self._log_capital() / self._needed))

    def _log_capital(self) -> float:
        """With what is under way, up to the first of the other arm's."""
        if self._changed:
            self._changed = False
            self._settle()
            bets = self._bets.copy()
            for pending in self._pending.values():
                if pending.bad is None and not pending.candidate:
                    break
                _take(bets, pending)
            self._now = float(bets.log_capital)
        return self._now

    def said(self, what: str) -> str:
        """The counts in words. what: they did."""
        (n, bad), (others, others_bad) = self._seen[True], self._seen[False]
        beside = f", {others_bad} of {others} of the other arm's" if others else ""
        limit = f"{self.limit:.3g}" + (" more than the other's" if others else "")
        return f"{bad} of {n} requests {what}{beside}; the share may be at most {limit}"

    def _settle(self) -> None:
        """Bets are settled for good in the order of arrival, up to the first one under way."""
        while self._pending:
            key, pending = next(iter(self._pending.items()))
            if pending.bad is None:
                return
            _take(self._bets, pending)
            del self._pending[key]


def _take(bets: ExcessBets, pending: _Pending) -> None:
    if (bet := scored(pending.candidate, pending.weight)) is not None:
        factor, least = bet
        bets.take(bool(pending.bad) * factor, least)


def scored(candidate: bool, weight: float) -> tuple[float, float] | None:
    """(score of a bad request; the least score that any can have), a good one's being 0. None
    where the other arm answers too few for a comparison, and this request is one of them."""
    others = 1 - weight
    if others < LEAST_OTHER_SHARE:
        return (1.0, 0.0) if candidate else None
    return (1 / weight if candidate else -1 / others), -1 / others
