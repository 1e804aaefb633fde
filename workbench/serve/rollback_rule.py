"""When the router goes back to the fallback by itself.

The rule looks at the latest requests of the candidate arm, those under way that are late
included: an arm that hangs ends nothing. It is looked at after every request and when one
becomes late, so its error control is that of a repeated look: it may go back without need.
That is the cheap mistake (no request is lost by it), and it never goes forward by itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class RollbackRule:
    """Too many errors, or too many slow first tokens, among the last ``window`` requests.

    fewest: requests before the rule says anything. ttft_s: a first token later than this after
    the request's arrival is slow (a request without one is slow too); None: only errors count.
    """

    window: int = 50
    fewest: int = 10
    max_error_share: float = 0.05
    ttft_s: float | None = None
    max_slow_share: float = 0.10

    def monitor(self) -> RollbackMonitor:
        """The rule at work, with an empty window."""
        return RollbackMonitor(self)


class RollbackMonitor:
    """Holds the latest requests against a rule; make a new one after each switch, so that old
    sins do not count."""

    def __init__(self, rule: RollbackRule) -> None:
        self._rule = rule
        self._seen: deque[tuple[bool, bool]] = deque(maxlen=rule.window)

    def observe(self, ok: bool, ttft_s: float | None) -> None:
        """Take one finished request."""
        rule = self._rule
        slow = rule.ttft_s is not None and (ttft_s is None or ttft_s > rule.ttft_s)
        self._seen.append((not ok, slow))

    def verdict(self, late: int = 0) -> str | None:
        """The reason to go back, or None. late: slow requests that have not ended yet."""
        rule = self._rule
        seen = [*self._seen, *[(False, True)] * late][-rule.window :]
        n = len(seen)
        if n < max(1, rule.fewest):
            return None
        errors, slows = (sum(column) for column in zip(*seen, strict=True))
        if errors / n > rule.max_error_share:
            return f"rule: {errors} of the last {n} requests failed"
        if slows / n > rule.max_slow_share:
            return f"rule: {slows} of the last {n} had no first token within {rule.ttft_s:g} s"
        return None
