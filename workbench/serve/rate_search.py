"""The largest rate of requests at which a server still meets its targets.

``measure(rate, seconds, seed)`` offers one rate and says what came of it; nothing here knows what
is measured, so the search is tested on queues whose answer is known. From a first guess the rate is
doubled until it fails, or halved until it holds; then the gap between the largest that held and the
smallest that failed is halved on a logarithmic scale until it is within :data:`TOLERANCE`. A point
is short, so the rate that won may have had luck: it must hold **again**, with other arrivals and
for longer, or the next lower one is tried. Two passes of one rate are still no interval; each
point has its own, where its requests allow one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.measure.statistics import Estimate

TOLERANCE = 0.07
"""How far the rate that failed may lie above the one that held."""
POINTS = 16
"""That a budget is divided by."""
COARSE, CONFIRMED_BY = 0.5, 2.0
"""How long a point is, in points, while a rate that holds or one that fails is still missing, and
when the rate that won has to hold again."""
FEWEST_REQUESTS = 40
"""Of a point: where one in twenty may miss, fewer say too little."""

REFUSED = 2
"""Points in a row that end the search: what disturbed the client once may be gone."""

SearchEnd = Literal["found", "at_least", "none", "not_measured"]
"""found: a higher rate failed. at_least: no rate that was tried failed. none: none held."""
PointOutcome = Literal["held", "missed", "overloaded", "refused"]
"""Of a point. refused: the client itself was late, so it says nothing of the server."""


@dataclass(frozen=True)
class Point:
    """What came of one rate.

    rate_per_s: offered. achieved_per_s: completed in full. took_s: of the budget. met: class ->
    share of requests that met their targets. ttft_ms: quantile (``p50``) -> milliseconds.
    concurrency: when each window of ``window_s`` closed. energy_j: of one request, None with
    ``no_energy`` saying why. faults: kind -> requests.
    """

    rate_per_s: float
    outcome: PointOutcome
    took_s: float
    requests: int = 0
    achieved_per_s: float = 0.0
    met: dict[str, Estimate] = field(default_factory=dict)
    ttft_ms: dict[str, float] = field(default_factory=dict)
    window_s: float = 0.0
    concurrency: list[int] = field(default_factory=list)
    energy_j: float | None = None
    no_energy: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    why: str = ""

    @property
    def met_share(self) -> float | None:
        """Of the class that met its targets least; None where nothing was judged."""
        return min((e.value for e in self.met.values() if e.value is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "met": {name: vars(estimate) for name, estimate in self.met.items()},
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Point:
        met = {name: Estimate(**estimate) for name, estimate in fields["met"].items()}
        return cls(**{**fields, "met": met})


@dataclass(frozen=True)
class LargestRate:
    """rate_per_s: the largest that held. failed_per_s: the smallest that did not. confirmed: it
    held twice. best: the point that says most of ``rate_per_s``."""

    kind: SearchEnd
    rate_per_s: float | None
    failed_per_s: float | None
    confirmed: bool
    why: str
    points: tuple[Point, ...] = ()

    @property
    def best(self) -> Point | None:
        held = [p for p in self.points if p.outcome == "held" and p.rate_per_s == self.rate_per_s]
        return held[-1] if held else None


def largest_rate(
    measure: Callable[[float, float, int], Point],
    first_per_s: float,
    budget_s: float,
    shortest_s: float = 0.0,
) -> LargestRate:
    """Search from ``first_per_s`` requests a second for at most ``budget_s``.

    measure: (requests a second, seconds, seed) -> point. It may take longer than it was given
    (answers have to end); what it took is what is counted. shortest_s: of a point, however small
    the budget: within less time than requests may wait no queue shows.
    """
    search = _RateSearch(measure, budget_s, shortest_s)
    rate = first_per_s
    while True:
        again = search.closed
        if not search.try_one(rate):
            return search.result()
        if search.points[-1].outcome == "refused":
            continue
        if again and search.points[-1].outcome == "held":
            return search.result(confirmed=True)
        rate = search.next_rate()


class _RateSearch:
    """Points so far, and what they leave open."""

    def __init__(
        self,
        measure: Callable[[float, float, int], Point],
        budget_s: float,
        shortest_s: float,
    ) -> None:
        self._measure, self._budget_s, self._left_s = measure, budget_s, budget_s
        self._shortest_s = shortest_s
        self.points: list[Point] = []
        self._refused = 0
        self._ended = ""

    def _point_s(self, rate: float) -> float:
        """Seconds of the next point: a part of the budget, and long enough for its requests to
        say something."""
        part = 1.0 if self.bracketed else COARSE
        seconds = max(part * self._budget_s / POINTS, FEWEST_REQUESTS / rate, self._shortest_s)
        if self.closed:
            return max(seconds, min(CONFIRMED_BY * seconds, self._left_s))
        return seconds

    def try_one(self, rate: float) -> bool:
        """Measure it, unless the budget is over or nothing more can be learned."""
        seconds = self._point_s(rate)
        if seconds > self._left_s:
            self._ended = (
                f"the budget of {self._budget_s:.3g} s ended; the next point, {rate:.3g} requests/s"
                f", needs {seconds:.3g} s of the {max(0.0, self._left_s):.3g} s left"
            )
            return False
        point = self._measure(rate, seconds, len(self.points))
        self.points.append(point)
        self._left_s -= point.took_s
        self._refused = self._refused + 1 if point.outcome == "refused" else 0
        self._ended = point.why if self._refused else ""
        return self._refused < REFUSED

    def largest_held(self) -> float | None:
        """Of the rates below the smallest that failed: once a rate failed, none above it holds."""
        failed = self.smallest_failed()
        held = [p.rate_per_s for p in self.points if p.outcome == "held"]
        return max((rate for rate in held if rate < failed), default=None)

    def smallest_failed(self) -> float:
        failed = [p.rate_per_s for p in self.points if p.outcome in ("missed", "overloaded")]
        return min(failed, default=math.inf)

    @property
    def bracketed(self) -> bool:
        return self.largest_held() is not None and self.smallest_failed() < math.inf

    @property
    def closed(self) -> bool:
        held, failed = self.largest_held(), self.smallest_failed()
        return held is not None and failed <= held * (1 + TOLERANCE)

    def next_rate(self) -> float:
        """The one that held where it only has to hold again."""
        held, failed = self.largest_held(), self.smallest_failed()
        if held is None:
            return failed / 2
        if self.closed:
            return held
        return held * 2 if failed == math.inf else math.sqrt(held * failed)

    def result(self, confirmed: bool = False) -> LargestRate:
        held, failed = self.largest_held(), self.smallest_failed()
        found: dict[str, Any] = {"points": tuple(self.points), "confirmed": confirmed}
        if held is not None and failed < math.inf:
            why = f"held at {held:.4g} and failed at {failed:.4g} requests/s"
            why += ", held twice" if confirmed else f", not held twice: {self._ended}"
            return LargestRate("found", held, failed, why=why, **found)
        if held is not None:
            return LargestRate("at_least", held, None, why=self._ended, **found)
        if failed < math.inf:
            why = f"failed at {failed:.4g} requests/s, the lowest tried; {self._ended}"
            return LargestRate("none", None, failed, why=why, **found)
        return LargestRate("not_measured", None, None, why=self._ended, **found)
