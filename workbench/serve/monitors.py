"""What a monitor bets on: a share of bad requests, or what pairs of answers differ by.

While both arms answer, a request is the candidate's with the route's weight ``w``, so

    bad / w        of a request of the candidate's
    -bad / (1 - w) of one of the other arm's

has the difference of both shares as its mean, whatever the load does meanwhile: a burst that makes
both wait is no fault of the candidate's. Where the candidate answers everything there is nothing to
compare with, and its own share is asked about.

Requests count in the order of their arrival, because a failure comes sooner than an answer. One of
the candidate's that is under way counts as good so far, which can only understate the evidence;
one of the other arm's is waited for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from workbench.measure.anytime import ExcessBets
from workbench.wording.counts import number_of

MOST_PENDING = 4096
"""Requests a share remembers that are under way; older ones count against going back."""
MOST_AHEAD = 100
"""Requests behind one under way that are looked at before it has ended."""
LEAST_OTHER_SHARE = 1e-3
"""Of the requests; an arm that answers fewer is no comparison."""


@dataclass
class _Pending:
    candidate: bool
    weight: float
    bad: bool | None = None


class BadShare:
    """By how much the candidate's share of bad requests exceeds the other arm's.

    what: bad ones did, in words. limit: of the excess.
    """

    def __init__(self, what: str, limit: float) -> None:
        self.what, self.limit = what, limit
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

    def log_capital(self) -> float:
        """Of the bets that the limit is exceeded, with what is under way, up to the first of the
        other arm's."""
        if self._changed:
            self._changed = False
            self._settle()
            bets = self._bets
            if any(each.bad and each.candidate for each in self._pending.values()):
                bets = self._bets.copy()
                for pending in islice(self._pending.values(), MOST_AHEAD):
                    if pending.bad is None and not pending.candidate:
                        break
                    _take(bets, pending)
            self._now = float(bets.log_capital)
        return self._now

    def kept(self) -> dict[str, Any]:
        """What :meth:`go_on_from` needs, as JSON holds it; what is under way is left out."""
        self.log_capital()  # settles what has ended
        return {"bets": self._bets.kept(), "seen": [self._seen[True], self._seen[False]]}

    def go_on_from(self, kept: dict[str, Any]) -> None:
        self._bets.go_on_from(kept["bets"])
        self._now = float(self._bets.log_capital)
        self._seen = dict(zip((True, False), map(list, kept["seen"]), strict=True))

    def said(self) -> str:
        """The counts in words."""
        (n, bad), (others, others_bad) = self._seen[True], self._seen[False]
        beside = f", {others_bad} of {others} of the other arm's" if others else ""
        limit = f"{self.limit:.3g}" + (" more than the other's" if others else "")
        return (
            f"{bad} of {number_of(n, 'request')} {self.what}{beside}; the share may be at most "
            f"{limit}"
        )

    def _settle(self) -> None:
        """Bets are settled for good in the order of arrival, up to the first one under way."""
        while self._pending:
            key, pending = next(iter(self._pending.items()))
            if pending.bad is None:
                return
            _take(self._bets, pending)
            del self._pending[key]


class PairExcess:
    """By how much pairs of answers to the same requests differ, on average.

    what: in words, with the mean's place as ``{}``. least: the smallest value that a pair can have.
    """

    def __init__(self, what: str, limit: float, least: float) -> None:
        self.what, self.limit, self._least = what, limit, least
        self._bets = ExcessBets(limit)
        self.count, self._sum = 0, 0.0

    def take(self, value: float) -> None:
        """Of the next pair, in the order in which they were chosen; from ``least`` to 1."""
        self._bets.take(value, self._least)
        self.count += 1
        self._sum += value

    def log_capital(self) -> float:
        return float(self._bets.log_capital)

    def kept(self) -> dict[str, Any]:
        """What :meth:`go_on_from` needs, as JSON holds it."""
        return {"bets": self._bets.kept(), "count": self.count, "sum": self._sum}

    def go_on_from(self, kept: dict[str, Any]) -> None:
        self._bets.go_on_from(kept["bets"])
        self.count, self._sum = int(kept["count"]), float(kept["sum"])

    def said(self) -> str:
        mean = self._sum / max(1, self.count)
        return (
            f"{self.what.format(f'{mean:.3g}')} in {number_of(self.count, 'pair')}; allowed: "
            f"{self.limit:.3g}"
        )


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
