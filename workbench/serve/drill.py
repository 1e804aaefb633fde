"""The way back taken in every way, while a load is played, and what each of them cost.

==========  ======================================================================================
way         what happens to the candidate, in the middle of its share of the load
==========  ======================================================================================
command     nothing: the route is ordered back
monitor     it begins each answer late, and the rule's monitor of that goes back
crash       an error that nobody foresaw, in its engine
nan         its engine gives logits that are no numbers
hang        its process is stopped, as one that waits for ever
kill        its process is killed, as by a system without memory
upstream    a server in front of both loses its connection to it, and is refused another one
==========  ======================================================================================

Whatever the way, no request may fail that had no token yet. A stream that had begun may be cut
by the last five, never by the first two, and says so with an error of its own; how many that
were is the price of that way.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from workbench.errors import StageError
from workbench.load.planned import PlannedRequest
from workbench.serve.client import LoadProcesses, PromptOf, load_processes
from workbench.serve.endpoint import Endpoint
from workbench.serve.process import ServerProcess, server_process
from workbench.serve.rehearsal import CANDIDATE, FALLBACK, Handover, requests_table
from workbench.serve.relay import Relay
from workbench.serve.replay import Outcome
from workbench.serve.spec import ServeSpec, UpstreamSpec

Way = Literal["command", "monitor", "crash", "nan", "hang", "kill", "upstream"]
WAYS: tuple[Way, ...] = get_args(Way)
CUTTING = ("crash", "nan", "hang", "kill", "upstream")
"""Ways that end what streams the candidate has begun."""
MB = 1e6
SILENCE_S = 1.5
"""Without a sign of life an arm counts as hung, in a drill."""
LATE_TIMES, LATE_LEAST_S = 5.0, 0.1
"""In the way ``monitor`` a first token is late after so many usual ones; at least so long."""
LATE_AT = 0.2
"""When that begins, as a share of the way's load: a monitor needs some late requests to see it."""
BEGUN_TIMES = 1.5
"""Usual first tokens after a request was due, it is under way."""
BACK_LIMIT_S, LOOK_S = 600.0, 0.05
"""For an arm to be started again, and between looks."""
FEWEST = 4
"""Requests that a way is taken with; a share of the load with fewer is replaced by the fullest."""
P99_FROM = 100


@dataclass(frozen=True)
class Taken:
    """A way back that was taken, or why it was not.

    requests: played meanwhile. failed_without_token: failed or turned away, none of it sent.
    truncated: streams that had begun and were cut; undeclared: of those, without an error in the
    stream. first_fallback_token_s: from the order or the fault. p99_ms: time to first token from
    the intended start, of the requests that touch the switch; the slowest, of fewer than 100.
    memory_mb: of all processes of the server when the arm was back; memory_growth_mb: since before.
    back_s: until the candidate could answer again; None where it was never out. reason: what the
    server said of its switch. skipped: why the way was not taken.
    """

    way: Way
    requests: int = 0
    failed_without_token: int = 0
    truncated: int = 0
    undeclared: int = 0
    first_fallback_token_s: float | None = None
    p99_ms: float | None = None
    memory_mb: float | None = None
    memory_growth_mb: float | None = None
    back_s: float | None = None
    reason: str = ""
    skipped: str | None = None

    @property
    def holds(self) -> bool | None:
        """Whether it cost no more than it may; None where it was not taken."""
        if self.skipped:
            return None
        cut = 0 if self.way in CUTTING else self.truncated
        return not (self.failed_without_token or cut or self.undeclared)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def counted(way: Way, outcomes: Sequence[Outcome], ordered_s: float, **more: Any) -> Taken:
    """What became of the requests that were played while the way was taken at ``ordered_s``."""
    cut = [each for each in outcomes if each.status == "truncated"]
    requests = requests_table(outcomes)
    handover = Handover.of(requests, ordered_s, CANDIDATE, FALLBACK)
    touched = requests[handover.phases(requests) == "switch"]
    ttft_ms = 1e3 * (touched["first_token_s"] - touched["intended_s"]).dropna().to_numpy()
    first_s = handover.first_token_s
    p99 = np.quantile(ttft_ms, 0.99) if len(ttft_ms) >= P99_FROM else max(ttft_ms, default=np.nan)
    return Taken(
        way,
        len(outcomes),
        sum(each.status in ("failed", "rejected") for each in outcomes),
        len(cut),
        sum(each.fault != "server_error" for each in cut),
        None if first_s is None else first_s - ordered_s,
        None if np.isnan(p99) else float(p99),
        **more,
    )


class Drill:
    """Takes ways back on a server that was started with ``faults``, and leaves it as it was.

    shares: way -> its share of the load, times from its own start. folder: for files of a server
    in front, in the way ``upstream``.
    """

    def __init__(
        self,
        server: ServerProcess,
        client: LoadProcesses,
        shares: dict[Way, Sequence[PlannedRequest]],
        prompt_of: PromptOf,
        way_s: float,
        folder: Path,
    ) -> None:
        self._server, self._client = server, client
        self._shares, self._prompt_of, self._way_s = shares, prompt_of, way_s
        self._folder = folder
        self._usual_s = LATE_LEAST_S / LATE_TIMES

    def run(
        self,
        ways: Sequence[Way],
        budget_s: float,
        report: Callable[[Way], None] = lambda way: None,
    ) -> list[Taken]:
        """Take ``ways`` in their order; those that the budget does not reach say so.

        Raises StageError when the server or a client dies.
        """
        began, found = time.monotonic(), []
        longest_s = self._way_s
        for way in ways:
            left_s, started = budget_s - (time.monotonic() - began), time.monotonic()
            if left_s < longest_s:
                why = f"the drill's {budget_s:g} s were spent; raise deploy_rollback.drill.budget_s"
                found.append(Taken(way, skipped=why))
                continue
            report(way)
            found.append(self._take(way))
            longest_s = max(longest_s, time.monotonic() - started)
        return found

    def _take(self, way: Way) -> Taken:
        schedule = self._shares[way]
        if len(schedule) < FEWEST:
            schedule = max(self._shares.values(), key=len)
        if not schedule:
            return Taken(way, skipped="the load has no request to play")
        if way == "upstream":
            return self._upstream(schedule)
        server, before = self._server, self._server.resident_bytes
        server.switch(CANDIDATE, "drill", force=True)
        server.drill(CANDIDATE, silence_s=SILENCE_S)
        state = server.arm_states()[CANDIDATE]
        switches = len(server.switches())
        at = LATE_AT if way == "monitor" else 0.5
        order = self._order(way, state["pid"])
        outcomes, ordered_s = self._played(self._client, schedule, order, at)
        back_s = None
        if way in CUTTING:
            back_s = self._until_back(state["restarts"]) - self._client.origin_s - ordered_s
        server.drill(CANDIDATE)
        after = server.resident_bytes
        reasons = [each["reason"] for each in server.switches()[switches:]]
        self._learn(way, outcomes)
        if not reasons:
            why = "the route did not change while the load was played; raise way_s"
            return replace(counted(way, outcomes, ordered_s), skipped=why)
        return counted(
            way,
            outcomes,
            ordered_s,
            memory_mb=after / MB,
            memory_growth_mb=(after - before) / MB,
            back_s=back_s,
            reason=reasons[0],
        )

    def _order(self, way: Way, pid: int) -> Callable[[], object]:
        server = self._server
        late_s = LATE_TIMES * self._usual_s
        orders: dict[Way, Callable[[], object]] = {
            "command": lambda: server.switch(FALLBACK, "drill: command"),
            "monitor": lambda: server.drill(
                CANDIDATE, "slow_start", seconds=2 * late_s, ttft_s=late_s
            ),
            "crash": lambda: server.drill(CANDIDATE, "crash"),
            "nan": lambda: server.drill(CANDIDATE, "nan"),
            "hang": lambda: os.kill(pid, signal.SIGSTOP),
            "kill": lambda: os.kill(pid, signal.SIGKILL),
        }
        return orders[way]

    def _played(
        self,
        client: LoadProcesses,
        schedule: Sequence[PlannedRequest],
        order: Callable[[], object],
        at: float = 0.5,
    ) -> tuple[list[Outcome], float]:
        """Outcomes, and when the order was given, on the client's clock. It is given when a request
        of the middle has usually begun: where nothing is under way, nothing can be lost. at: as a
        share of the load's length."""
        middle_s = self._way_s * at
        nearest_s = min((p.intended_s for p in schedule), key=lambda due: abs(due - middle_s))
        order_s = nearest_s + BEGUN_TIMES * self._usual_s
        given: list[float] = []

        def now() -> None:
            given.append(client.now_s())
            order()

        outcomes = client.replay(schedule, self._prompt_of, orders=[(order_s, now)])
        return outcomes, given[0]

    def _learn(self, way: Way, outcomes: Sequence[Outcome]) -> None:
        """What a first token usually takes here, for the monitor."""
        if way in ("monitor", *CUTTING):
            return
        waits_s = [o.first_token_s - o.intended_s for o in outcomes if o.first_token_s is not None]
        if waits_s:
            self.usual(float(np.median(waits_s)))

    def usual(self, first_token_s: float) -> None:
        """Say what a first token usually takes; the way ``command`` finds it otherwise."""
        self._usual_s = max(first_token_s, LATE_LEAST_S / LATE_TIMES)

    def _until_back(self, restarts: int) -> float:
        limit = time.monotonic() + BACK_LIMIT_S
        while time.monotonic() < limit:
            state = self._server.arm_states()[CANDIDATE]
            if state["state"] == "up" and state["restarts"] > restarts:
                return time.monotonic()
            time.sleep(LOOK_S)
        raise StageError(
            f"arm {CANDIDATE} was not back within {BACK_LIMIT_S:.0f} s",
            next_step="read server.log in the stage's folder",
        )

    def _upstream(self, schedule: Sequence[PlannedRequest]) -> Taken:
        """A server in front of both arms, one of them behind a relay that is cut."""
        own = self._server.address
        with ExitStack() as open_things:
            relay = open_things.enter_context(
                Relay(self._server.ready.host, self._server.ready.port)
            )
            spec = ServeSpec(
                {},
                fallback=FALLBACK,
                route=CANDIDATE,
                slots=256,
                upstreams={
                    FALLBACK: UpstreamSpec(own, FALLBACK),
                    CANDIDATE: UpstreamSpec(relay.address, CANDIDATE),
                },
            )
            folder = self._folder / "upstream"
            folder.mkdir(exist_ok=True)
            front = open_things.enter_context(server_process(spec, folder))
            client = open_things.enter_context(
                load_processes(Endpoint(front.address), folder, check=front.check)
            )
            before = front.resident_bytes
            outcomes, ordered_s = self._played(client, schedule, relay.cut)
            after, reasons = front.resident_bytes, [s["reason"] for s in front.switches()]
        return counted(
            "upstream",
            outcomes,
            ordered_s,
            memory_mb=after / MB,
            memory_growth_mb=(after - before) / MB,
            reason=reasons[0] if reasons else "the route did not change",
        )
