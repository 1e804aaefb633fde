"""Queue tuning: the largest rate within the targets, for each setting of the queue and each arm.

A setting is how many requests run together (``slots``, the batch limit) and how long an arm lets a
request wait for others to start with (``batch_wait_ms``). Each has a server of its own with both
arms, and on it the search (:mod:`.rate_search`) is made first for requests of 1 output token, then
of 512, then for the profile's own, each arm right after the other. Every search has an equal part
of the budget; what one leaves over the later ones share. Loading the servers is not in it.

Finished points are appended to ``tuning.jsonl``. The search is a function of its points, so a sweep
that was killed reads them and goes on with the first one that is missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.json_lines import as_line, keep_rows, read_rows
from workbench.load.piece import LengthLimits, PieceKind
from workbench.load.planned import PlannedRequest
from workbench.measure.meters.session import EnergySession
from workbench.serve.load import Load
from workbench.serve.offer import OfferedServer, Terms, fixed_requests
from workbench.serve.process import server_process
from workbench.serve.rate_search import LargestRate, Point, largest_rate
from workbench.serve.spec import ServeSpec

ROWS = "tuning.jsonl"
PROFILE = "profile"
FIRST_SHARE = 0.5
"""Of what a burst completes a second: the first rate of a search."""


@dataclass(frozen=True, order=True)
class Setting:
    """slots: requests that run together. batch_wait_ms: see :class:`.router.Router`."""

    slots: int
    batch_wait_ms: float = 0.0

    def labels(self) -> dict[str, str]:
        return {"slots": str(self.slots), "batch_wait_ms": f"{self.batch_wait_ms:g}"}

    @property
    def flags(self) -> str:
        """For ``workbench serve``."""
        return f"--slots {self.slots} --batch-wait-ms {self.batch_wait_ms:g}"

    @property
    def pilot_lines(self) -> str:
        return f"deploy_rollback: {{slots: {self.slots}, batch_wait_ms: {self.batch_wait_ms:g}}}"


def settings(slots: Sequence[int], batch_wait_ms: Sequence[float]) -> list[Setting]:
    """All of them; one request alone has nobody to wait for, so with one slot nothing waits."""
    return sorted({Setting(s, w if s > 1 else 0.0) for s in slots for w in batch_wait_ms})


@dataclass(frozen=True)
class TuningPlan:
    """What is tuned. spec: of the servers, but for the settings. output_tokens: of the requests of
    one length, before those of the profile. most_interactive_tokens: longer ones are batch.
    piece, piece_start_s, window_s: of the profile, as for a replay."""

    spec: ServeSpec
    settings: list[Setting]
    output_tokens: list[int]
    most_interactive_tokens: int
    terms: Terms
    budget_s: float
    piece: PieceKind = "typical"
    piece_start_s: float = 0.0
    window_s: float = 60.0

    @property
    def requests(self) -> list[str]:
        """Kinds of requests, in the order in which they are tuned."""
        return [*(f"tokens_{n}" for n in self.output_tokens), PROFILE]

    def class_of(self, output_tokens: int) -> str:
        return "interactive" if output_tokens <= self.most_interactive_tokens else "batch"

    def no_target(self, requests: str) -> str | None:
        """Why no rate of such requests is within the targets; None where they have one."""
        if requests == PROFILE:
            classes = [name for name in self.terms.slo if self.terms.has_target(name)]
            return None if classes else "no class of the load has a target"
        class_ = self.class_of(int(requests.removeprefix("tokens_")))
        if self.terms.has_target(class_):
            return None
        return f"requests of class {class_} have no target (profile_load.{class_}_slo)"


@dataclass(frozen=True)
class Searched:
    """What a search found. requests: ``tokens_1``, ``tokens_512`` or ``profile``."""

    arm: str
    requests: str
    setting: Setting
    found: LargestRate

    @property
    def rate_per_s(self) -> float:
        """The largest that held; 0 where none did."""
        return self.found.rate_per_s or 0.0

    @property
    def energy_j(self) -> float | None:
        """Of a request at the largest rate."""
        return self.found.best.energy_j if self.found.best else None

    def labels(self) -> dict[str, str]:
        return {"arm": self.arm, "requests": self.requests, **self.setting.labels()}


def sweep(
    plan: TuningPlan,
    load_of: Callable[[LengthLimits], Load],
    limits: LengthLimits,
    meters: EnergySession,
    folder: Path,
    step: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Searched]:
    """All searches. limits: of the pilot; a server adds its context. step: searches done, of how
    many, and what is measured now.

    A server that does not start leaves its searches not measured, and says why.
    """
    keep_rows(folder / ROWS)
    kept = _KeptRows(folder / ROWS)
    total = len(plan.settings) * len(plan.requests) * len(plan.spec.arms)
    found: list[Searched] = []
    left_s = plan.budget_s
    for setting in plan.settings:
        with _Bench(plan, setting, load_of, limits, meters, folder) as bench:
            for requests in plan.requests:
                for arm in plan.spec.arms:
                    budget_s = left_s / (total - len(found))
                    step(len(found), total, f"{arm}, {requests}, {setting.flags}")
                    search = _SweepSearch(bench, kept, arm, requests, budget_s)
                    found.append(Searched(arm, requests, setting, search.run()))
                    left_s -= search.took_s
    step(total, total, "done")
    return found


class _Bench:
    """The server of one setting, started when the first point needs it."""

    def __init__(
        self,
        plan: TuningPlan,
        setting: Setting,
        load_of: Callable[[LengthLimits], Load],
        limits: LengthLimits,
        meters: EnergySession,
        folder: Path,
    ) -> None:
        self.plan, self.setting = plan, setting
        self._load_of, self._limits, self._meters = load_of, limits, meters
        self._folder = folder / f"slots-{setting.slots}-wait-{setting.batch_wait_ms:g}"
        self._open = ExitStack()
        self._started: tuple[OfferedServer, Load] | None = None
        self._failed: WorkbenchError | None = None

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def started(self) -> tuple[OfferedServer, Load]:
        """Raises WorkbenchError when it does not start, also when it is asked again."""
        if self._failed:
            raise self._failed
        if self._started is None:
            try:
                self._started = self._start()
            except WorkbenchError as error:
                self._failed = error
                raise
        return self._started

    def _start(self) -> tuple[OfferedServer, Load]:
        plan, setting = self.plan, self.setting
        self._folder.mkdir(parents=True, exist_ok=True)
        spec = replace(
            plan.spec, slots=setting.slots, batch_wait_s=setting.batch_wait_ms / 1e3, rule=None
        )
        server = self._open.enter_context(server_process(spec, self._folder))
        offered = self._open.enter_context(
            OfferedServer(server, setting.slots, plan.terms, self._meters, self._folder)
        )
        return offered, self._load_of(replace(self._limits, context=server.ready.context))


class _SweepSearch:
    """One arm, one kind of requests, one setting. took_s: of the budget."""

    def __init__(
        self, bench: _Bench, kept: _KeptRows, arm: str, requests: str, budget_s: float
    ) -> None:
        self._bench, self._kept = bench, kept
        self._arm, self._requests, self._budget_s = arm, requests, budget_s
        self.took_s = 0.0

    def run(self) -> LargestRate:
        plan = self._bench.plan
        if why := plan.no_target(self._requests):
            return LargestRate("not_measured", None, None, False, why)
        try:
            first_per_s = self._first_rate()
            if not first_per_s:
                why = f"a burst alone takes longer than its {self._budget_s:.3g} s of the budget"
                return LargestRate("not_measured", None, None, False, why)
            left_s, shortest_s = self._budget_s - self.took_s, plan.terms.shortest_point_s
            return largest_rate(self._measure, first_per_s, left_s, shortest_s)
        except WorkbenchError as error:
            return LargestRate("not_measured", None, None, False, _in_one_line(error))

    def _first_rate(self) -> float:
        """Half of what a burst completes a second; 0 when that was too slow for the budget."""
        row = self._kept.find(**self._key("burst"))
        if row is None:
            offered, load = self._bench.started()
            some = self._schedule(load, 1e3, max(0.1, 4e-3 * offered.slots), 0)
            requests = some[: 2 * offered.slots]
            per_s = offered.capacity_per_s(requests, load.prompt, self._arm)
            row = self._kept.add(
                {**self._key("burst"), "per_s": per_s, "took_s": len(requests) / per_s}
            )
        self.took_s += row["took_s"]
        return FIRST_SHARE * row["per_s"] if self.took_s < self._budget_s else 0.0

    def _measure(self, rate: float, seconds: float, number: int) -> Point:
        row = self._kept.find(**self._key(number))
        if row is None or not math.isclose(row["point"]["rate_per_s"], rate):
            offered, load = self._bench.started()
            schedule = self._schedule(load, rate, seconds, number)
            point = offered.offer(rate, seconds, schedule, load.prompt, self._arm)
            row = self._kept.add({**self._key(number), "point": point.to_json()})
        point = Point.from_json(row["point"])
        self.took_s += point.took_s
        return point

    def _schedule(self, load: Load, rate: float, seconds: float, seed: int) -> list[PlannedRequest]:
        plan = self._bench.plan
        if self._requests == PROFILE:
            speedup = rate / load.profile.rate_per_s
            length_s = seconds * speedup
            piece = load.profile.piece(plan.piece, length_s, plan.piece_start_s, plan.window_s)
            return piece.schedule(speedup, load.limits)
        tokens = int(self._requests.removeprefix("tokens_"))
        return fixed_requests(load, tokens, plan.class_of(tokens), rate, seconds, seed)

    def _key(self, number: int | str) -> dict[str, Any]:
        setting = self._bench.setting
        return {
            "slots": setting.slots,
            "batch_wait_ms": setting.batch_wait_ms,
            "requests": self._requests,
            "arm": self._arm,
            "number": number,
        }


def _in_one_line(error: WorkbenchError) -> str:
    """What was got; of the end of a log the last line, which says what went wrong."""
    first, *others = error.got.splitlines() or [""]
    return f"{first} {others[-1].strip()}" if others else first


@dataclass
class _KeptRows:
    """Rows on disk, each appended in one piece."""

    path: Path
    rows: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = read_rows(self.path)

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The last one that fits."""
        fits = (row for row in reversed(self.rows) if all(row[k] == key[k] for k in key))
        return next(fits, None)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(as_line(row))
        self.rows.append(row)
        return row
