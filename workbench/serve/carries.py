"""Does an arm carry the load? What a replay and a burst can say of it: yes, no, or nothing.

**no** when the arm, full to its last slot, completes fewer requests a second than the load
brings on average, or when the replay at no more than the load's own rate missed its targets.
**yes** when the replay at the load's own rate or faster kept them. All else is *not measured*: a
burst shows how much work an arm gets through, not that anybody was answered in time, and a replay
at a third of the rate says nothing of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from workbench.errors import StageError
from workbench.measure.statistics import Estimate
from workbench.records.metric import Metric
from workbench.serve.client import LoadProcesses
from workbench.serve.load import Load
from workbench.serve.replay import Outcome
from workbench.wording.counts import number_of

CarriesAnswer = Literal["yes", "no", "not_measured"]
Why = Literal[
    "capacity",
    "met",
    "missed",
    "slower",
    "cut",
    "no_target",
    "late",
    "open",
    "tuned",
    "tuned_open",
    "tuned_cut",
]


@dataclass(frozen=True)
class Capacity:
    """Of a burst: requests a second until its last had ended, and what a server that is always
    full cannot exceed. In a burst the last requests run alone, so ``per_s`` is low; until the last
    one waiting takes a slot every slot is busy, and by then not more than all are done."""

    per_s: float
    at_most_per_s: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], took_s: float, slots: int) -> Capacity:
        """outcomes: of more requests than ``slots``, sent at once and all answered in
        ``took_s``."""
        count = len(outcomes)
        began_s = min(o.sent_s for o in outcomes)
        ends_s = sorted(o.end_s - began_s for o in outcomes if o.end_s is not None)
        return cls(count / took_s, count / ends_s[count - slots - 1])


ONE_BURST = (
    "no interval: one burst of a few requests; how another would differ does not show in it. "
    "slo_met_share and the rates of the queue's tuning answer whether the load is carried"
)
"""Why a capacity decides no gate by its value."""


def measured_capacity(
    client: LoadProcesses, load: Load, arm: str, slots: int, queue: int, budget_s: float
) -> Capacity:
    """What one arm of a server completes when all requests come at once.

    A first burst of one request a slot says how many fit the time for the second, which is
    the measurement. budget_s: for that one; no more requests than slots and queue hold.
    Raises StageError when a request is not answered in full.
    """
    count = slots
    for attempt in range(2):
        outcomes, took_s = client.burst(load.sample(count), load.prompt, model=arm)
        if bad := [o for o in outcomes if o.status != "ok"]:
            raise StageError(
                f"{len(bad)} of {number_of(count, 'request')} to the arm {arm} failed before the "
                f"replay began: {bad[0].error}",
                next_step="read server.log in the stage's folder",
            )
        if attempt == 0:
            fitting = int(slots * budget_s / took_s)
            count = min(max(fitting, 2 * slots), queue + slots)
    return Capacity.of(outcomes, took_s, slots)


@dataclass(frozen=True)
class Carries:
    """The answer for one arm. share: of the load's own rate, at which it holds; for ``capacity``
    the share that the arm could complete at most."""

    answer: CarriesAnswer
    why: Why
    share: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def carries(
    pace: float,
    rate_per_s: float,
    capacity: Capacity | None,
    met: Mapping[str, Estimate | Metric],
    *,
    cut_share: float,
    wanted_share: float,
    late: bool = False,
) -> Carries:
    """Whether one arm carries a load that brings ``rate_per_s`` requests on average.

    capacity: None of an arm that was sent no burst. pace: 0.31 was replayed at 0.31 of the load's
    own rate. met: class -> share of the arm's requests that met their targets, of the classes that
    have any. cut_share: of the load's requests, cut to what is served. wanted_share: of requests
    that must meet their targets. late: the client was, so that the replay says nothing.
    """
    if capacity and (most := capacity.at_most_per_s / rate_per_s) < 1:
        return Carries("no", "capacity", most)
    if late:
        return Carries("not_measured", "late", pace)
    if not met:
        return Carries("not_measured", "no_target", pace)
    if pace <= 1 and any(e.hi is not None and e.hi < wanted_share for e in met.values()):
        return Carries("no", "missed", pace)
    if pace < 1:
        return Carries("not_measured", "slower", pace)
    if cut_share > 1 - wanted_share:
        return Carries("not_measured", "cut", pace)
    if all(e.lo is not None and e.lo >= wanted_share for e in met.values()):
        return Carries("yes", "met", pace)
    return Carries("not_measured", "open", pace)
