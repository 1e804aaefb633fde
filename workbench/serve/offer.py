"""One rate of requests offered to one arm of a server, watched, and judged by the targets.

Requests come when they are due whatever became of the others (:mod:`.client`). While they come,
the server's own ``/metrics`` are read once a window; when it falls behind (:mod:`.overload`) the
load is given up, and the next one begins when the server is empty again. What ran to its end is
judged by its outcomes: the share of requests that met their targets, of those that were due after
the first tenth, when the queue had begun to form.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from prometheus_client.parser import text_string_to_metric_families

from workbench.errors import StageError
from workbench.load.arrivals import gamma_arrivals
from workbench.load.planned import PlannedRequest
from workbench.measure.dependence import share_over_time
from workbench.measure.meters.session import EnergySession
from workbench.measure.request_latency import slo_met
from workbench.measure.statistics import Estimate
from workbench.pilot.sections.deploy_rollback import SHORTEST_POINT_S
from workbench.serve.client import LoadProcesses, load_processes
from workbench.serve.endpoint import Endpoint
from workbench.serve.load import Load
from workbench.serve.overload import Windows
from workbench.serve.process import ServerProcess
from workbench.serve.rate_search import Point, PointOutcome
from workbench.serve.rehearsal import requests_table
from workbench.serve.replay import Outcome
from workbench.wording.counts import number_of

WINDOWS = 24
"""Of a point."""
SHORTEST_S, SHORTEST_IN_TARGETS = SHORTEST_POINT_S, 4.0
"""A point lasts so long, and so many times what a first token may take."""
WARM_SHARE = 0.1
"""Of a point, in which the queue forms and nothing is judged."""
EMPTY_S = 120.0
"""For a server to be empty after a load was given up."""
QUANTILES = (0.5, 0.95, 0.99)

Targets = Mapping[str, float | None]
"""``ttft_ms``, ``tpot_ms``, ``e2e_s``; None where there is none."""


@dataclass(frozen=True)
class Terms:
    """What a point is judged by. slo: class -> targets. wanted_share: of the requests of each
    class that must meet them. max_dispatch_delay_ms: p99 of the client's own delay."""

    slo: Mapping[str, Targets]
    wanted_share: float
    max_dispatch_delay_ms: float

    def has_target(self, class_: str) -> bool:
        return any(target is not None for target in self.slo.get(class_, {}).values())

    @property
    def first_token_s(self) -> float:
        """A first token that came later has missed the shortest target; 0 without one."""
        found: list[float] = []
        for targets in self.slo.values():
            ttft_ms = targets.get("ttft_ms")
            found.append(1e-3 * ttft_ms if ttft_ms else targets.get("e2e_s") or 0.0)
        return min(filter(None, found), default=0.0)

    @property
    def shortest_point_s(self) -> float:
        return max(SHORTEST_S, SHORTEST_IN_TARGETS * self.first_token_s)


def fixed_requests(
    load: Load, output_tokens: int, class_: str, rate: float, seconds: float, seed: int
) -> list[PlannedRequest]:
    """Poisson arrivals with the profile's prompt lengths and one length of output, cut to what the
    models hold."""
    random = np.random.default_rng((load.seed, output_tokens, seed))
    due_s = gamma_arrivals(seconds, rate, 1.0, random)
    some = load.profile.sample(1000, load.seed)["prompt_tokens"].to_numpy()
    wanted = random.choice(some, len(due_s)), np.full(len(due_s), output_tokens)
    cut = load.limits.is_cut(*wanted)
    rows = zip(due_s, *load.limits.cut(*wanted), cut, strict=True)
    return [
        PlannedRequest(number, float(at), int(p), int(o), class_, bool(c))
        for number, (at, p, o, c) in enumerate(rows)
    ]


class OfferedServer:
    """A running server that rates are offered to, one after the other.

    slots: requests that each of its arms runs together. folder: for the client's files. Use as a
    context: the client's processes end with it.
    """

    def __init__(
        self,
        server: ServerProcess,
        slots: int,
        terms: Terms,
        meters: EnergySession,
        folder: Path,
    ) -> None:
        self.server, self.slots, self._terms = server, slots, terms
        self._meters, self._folder = meters, folder
        self._open = ExitStack()
        self._client = self._new_client()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _new_client(self) -> LoadProcesses:
        endpoint = Endpoint(self.server.address)
        opened = load_processes(endpoint, self._folder, check=self.server.check)
        return self._open.enter_context(opened)

    def capacity_per_s(
        self,
        requests: Sequence[PlannedRequest],
        prompt_of: Callable[[PlannedRequest], list[int]],
        arm: str,
    ) -> float:
        """Requests a second when all come at once. Raises StageError when one is not answered."""
        outcomes, took_s = self._client.burst(requests, prompt_of, model=arm)
        if bad := [o for o in outcomes if o.status != "ok"]:
            raise StageError(
                f"{len(bad)} of {number_of(len(outcomes), 'request')} to the arm {arm} failed "
                f"before the tuning began: {bad[0].error}",
                next_step="read server.log in the folder of the tuning",
            )
        return len(outcomes) / took_s

    def offer(
        self,
        rate: float,
        seconds: float,
        schedule: Sequence[PlannedRequest],
        prompt_of: Callable[[PlannedRequest], list[int]],
        arm: str,
    ) -> Point:
        """schedule: of ``seconds``, at ``rate`` requests a second. Raises StageError when the
        server or the client has ended."""
        width_s = seconds / WINDOWS
        due_s = np.sort([planned.intended_s for planned in schedule])
        watch = _OverloadWatch(self.server, due_s, width_s, self.slots, self._terms.first_token_s)
        began_s = time.monotonic()
        try:
            outcomes = self._client.replay(
                schedule,
                prompt_of,
                model=arm,
                on_progress=lambda _: watch.look(self._client.now_s()),
            )
        except _FellBehindError as error:
            self._open.close()
            self._until_empty()
            self._client = self._new_client()
            return Point(
                rate,
                "overloaded",
                time.monotonic() - began_s,
                requests=int(np.searchsorted(due_s, error.at_s)),
                window_s=width_s,
                concurrency=watch.concurrency,
                no_energy="the point was given up",
                why=f"given up after {error.at_s:.3g} s: {error}",
            )
        ended_s = time.monotonic()
        point = self._judged(requests_table(outcomes), rate, seconds, ended_s - began_s)
        return self._with_energy(point, outcomes, began_s, ended_s)

    def _judged(self, requests: pd.DataFrame, rate: float, seconds: float, took_s: float) -> Point:
        terms, width_s = self._terms, seconds / WINDOWS
        due_s, first_s, end_s = (
            requests[name].to_numpy(float) for name in ("intended_s", "first_token_s", "end_s")
        )
        windows = Windows.of(seconds, width_s, due_s, first_s, end_s)
        own = requests[due_s >= WARM_SHARE * seconds]
        judged, shares = slo_met(own, terms.slo), {}
        for class_ in sorted(own["class"].unique()):
            met = judged[(own["class"] == class_) & judged.notna()]
            if len(met):
                waited_s = (own["end_s"] - own["intended_s"])[met.index]
                shares[class_] = share_over_time(met.to_numpy(bool), waited_s)
        delay_ms = 1e3 * float(np.quantile(requests["sent_s"] - due_s, 0.99))
        behind = windows.overloaded(self.slots, len(requests))
        outcome, why = self._outcome(shares, behind, delay_ms)
        answered = (own["status"] == "ok").to_numpy()
        ttft_ms = 1e3 * (own["first_token_s"] - own["intended_s"]).to_numpy()[answered]
        return Point(
            rate,
            outcome,
            took_s,
            requests=len(requests),
            achieved_per_s=float((requests["status"] == "ok").sum() / max(seconds, end_s.max())),
            met=shares,
            ttft_ms={
                f"p{100 * q:g}": float(np.quantile(ttft_ms, q))
                for q in QUANTILES
                if len(ttft_ms) >= round(1 / min(q, 1 - q))
            },
            window_s=width_s,
            concurrency=windows.concurrency.tolist(),
            faults={str(k): int(n) for k, n in requests["fault"].value_counts().items()},
            why=why,
        )

    def _outcome(
        self, shares: Mapping[str, Estimate], behind: bool, delay_ms: float
    ) -> tuple[PointOutcome, str]:
        terms = self._terms
        if delay_ms > terms.max_dispatch_delay_ms:
            return "refused", (
                f"the client itself sent {delay_ms:.3g} ms late (p99), allowed are "
                f"{terms.max_dispatch_delay_ms:g}"
            )
        if not shares:
            return "refused", "no request that had a target was due after the first tenth"
        # Whatever the targets: a queue that grows all the time misses them in the end.
        if behind:
            return "overloaded", "requests in the server and their waits rose until the end"
        missed = [
            f"{name} {estimate.value:.3g}"
            for name, estimate in shares.items()
            if estimate.value is not None and estimate.value < terms.wanted_share
        ]
        if missed:
            return "missed", f"share that met its targets: {', '.join(missed)}"
        return "held", ""

    def _with_energy(
        self, point: Point, outcomes: Sequence[Outcome], began_s: float, ended_s: float
    ) -> Point:
        answered = sum(o.status == "ok" for o in outcomes)
        self._meters.settle()
        energy = self._meters.energy(began_s, ended_s)
        fields: dict[str, Any] = vars(point)
        if energy.energy_j is None or not answered:
            return Point(**{**fields, "no_energy": energy.text or "no request was answered"})
        return Point(**{**fields, "energy_j": energy.energy_j / answered})

    def _until_empty(self) -> None:
        limit_s = time.monotonic() + EMPTY_S
        while time.monotonic() < limit_s:
            self.server.check()
            said = _metrics(self.server)
            if said is not None and _in_server(said) == 0:
                return
            time.sleep(0.05)
        raise StageError(
            f"the server still worked {EMPTY_S:g} s after its load was given up",
            next_step="read server.log in the folder of the tuning",
        )


class _FellBehindError(Exception):
    """The server is offered more than it can do. at_s: of the load's clock."""

    def __init__(self, at_s: float, text: str) -> None:
        super().__init__(text)
        self.at_s = at_s


class _OverloadWatch:
    """Reads the server once a window while a load runs. concurrency: window by window."""

    def __init__(
        self,
        server: ServerProcess,
        due_s: np.ndarray,
        width_s: float,
        slots: int,
        target_ttft_s: float,
    ) -> None:
        self._server, self._due_s, self._width_s = server, due_s, width_s
        self._slots, self._target_s = slots, target_ttft_s
        self.concurrency: list[int] = []
        self._ttft_s: list[float] = []
        self._seen = _ttft(_metrics(server) or {})

    def look(self, now_s: float) -> None:
        """Raises _FellBehindError. now_s: of the load's clock, negative before it begins."""
        if now_s < (len(self.concurrency) + 1) * self._width_s:
            return
        said = _metrics(self._server)
        if said is None:
            return
        sum_s, count = _ttft(said)
        came = count - self._seen[1]
        if came > 0:
            wait_s = (sum_s - self._seen[0]) / came
        elif _in_server(said) > 0:
            # Nothing came since: what waits has waited longer by a window.
            wait_s = (self._ttft_s[-1] if self._ttft_s else 0.0) + self._width_s
        else:
            wait_s = np.nan
        self._seen = sum_s, count
        self._ttft_s.append(wait_s)
        self.concurrency.append(_in_server(said))
        windows = Windows(np.array(self.concurrency), np.array(self._ttft_s))
        due = int(np.searchsorted(self._due_s, now_s))
        if windows.overloaded(self._slots, due, self._target_s):
            raise _FellBehindError(
                now_s,
                f"requests in the server rose from {self.concurrency[0]} to {self.concurrency[-1]} "
                f"and their first tokens came after {self._ttft_s[-1]:.3g} s instead of "
                f"{self._ttft_s[0]:.3g}",
            )


def _metrics(server: ServerProcess) -> dict[str, float] | None:
    """What ``/metrics`` says, summed over labels; None while the server does not answer."""
    connection = http.client.HTTPConnection(server.ready.host, server.ready.port, timeout=5)
    try:
        with closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def _in_server(said: Mapping[str, float]) -> int:
    return int(said["vllm:num_requests_running"] + said["vllm:num_requests_waiting"])


def _ttft(said: Mapping[str, float]) -> tuple[float, float]:
    """(sum in seconds, number) of first tokens so far."""
    name = "vllm:time_to_first_token_seconds"
    return said.get(f"{name}_sum", 0.0), said.get(f"{name}_count", 0.0)
