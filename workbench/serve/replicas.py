"""Several servers that are one arm: each request goes to the one with the fewest under way.

An arm of replicas is out when all of them are. A replica that goes out takes along the answers
that have begun; those without a token are asked of another one. One that did not answer at the
start, or is out, is looked at until it answers, and then takes its share again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from workbench.errors import StageError
from workbench.serve.spec import UpstreamSpec
from workbench.serve.upstream import PassedOn, PassedRequest, Upstream
from workbench.wording.counts import number_of

log = logging.getLogger(__name__)


class Replicas:
    """An arm as the router sees it; use it on one event loop, like an :class:`.Upstream`.

    on_out(why), on_back(): told when none answers any more, and when the first does again.
    """

    on_loop = True

    def __init__(self, name: str, specs: Sequence[UpstreamSpec]) -> None:
        self.name = name
        self.on_out: Callable[[str], None] = lambda why: None
        self.on_back: Callable[[], None] = lambda: None
        self.replicas = [Upstream(name, spec) for spec in specs]
        for replica in self.replicas:
            replica.on_out = partial(self._out, replica)
            replica.on_back = partial(self._back, replica)

    @property
    def failed(self) -> str | None:
        """Why no replica takes a request; None while one does."""
        if any(replica.failed is None for replica in self.replicas):
            return None
        whys = [f"{each.spec.address}: {each.failed}" for each in self.replicas]
        return f"none of {number_of(len(whys), 'replica')} answers ({'; '.join(whys)})"

    async def start(self) -> None:
        """Look whether they answer, and go on looking. Raises StageError where none does."""
        missing = []
        for replica in self.replicas:
            try:
                await replica.start()
            except StageError as error:
                missing.append(error)
        if len(missing) == len(self.replicas):
            raise missing[0]
        for replica, why in zip(
            [each for each in self.replicas if each.failed], missing, strict=True
        ):
            log.warning("%s; the arm's other replicas answer for it", why.got)
            replica.watch()

    def submit(
        self,
        request: PassedRequest,
        on_token: Callable[[bytes], None],
        on_done: Callable[[PassedOn], None],
    ) -> PassedOn:
        """Pass a request on. Raises RuntimeError while all replicas are out."""
        answering = [replica for replica in self.replicas if replica.failed is None]
        if not answering:
            raise RuntimeError(self.failed)
        least = min(answering, key=lambda replica: replica.outstanding)
        # Of those that have as few the one that was asked longest ago: it goes to the end.
        self.replicas.remove(least)
        self.replicas.append(least)
        return least.submit(request, on_token, on_done)

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.close()

    def _out(self, replica: Upstream, why: str) -> None:
        log.warning("arm %s: %s is out: %s", self.name, replica.spec.address, why)
        if failed := self.failed:
            self.on_out(failed)

    def _back(self, replica: Upstream) -> None:
        log.warning("arm %s: %s answers again", self.name, replica.spec.address)
        if sum(each.failed is None for each in self.replicas) == 1:
            self.on_back()


def replica_families(arms: Iterable[Replicas]) -> Iterator[Metric]:
    """For /metrics: of each replica whether it is out, and its requests under way."""
    labels = ["arm", "replica"]
    out = GaugeMetricFamily("workbench_replica_out", "1: it takes no requests", labels=labels)
    held = GaugeMetricFamily(
        "workbench_replica_requests", "requests passed on that have not ended", labels=labels
    )
    for arm in arms:
        for each in sorted(arm.replicas, key=lambda each: each.spec.address):
            where = [arm.name, each.spec.address]
            out.add_metric(where, float(each.failed is not None))
            held.add_metric(where, each.outstanding)
    yield from (out, held)
