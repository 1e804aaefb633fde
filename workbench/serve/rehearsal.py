"""What a replay with a rollback in its middle says: phases, latencies, SLOs.

A request belongs to the phase *before* when it had ended at the order, to *after* when it was
due once the old arm had drained and the new one had answered, and to *switch* when its life
touches what lies between. Long requests are more likely to touch it than short ones, so the
middle phase is judged a little too slow, never too fast.

Figures are given for each arm. The arms served different requests of one load, one arm after the
other, so shares and latencies can be compared and rates only with the load that each one had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.measure.dependence import quantile_over_time
from workbench.measure.request_latency import latencies_ms
from workbench.measure.statistics import Estimate
from workbench.serve.replay import Outcome
from workbench.wording.counts import number_of

FALLBACK, CANDIDATE = "full_precision", "hybrid"
ARMS_OF_PHASE = {"before": (CANDIDATE,), "switch": (CANDIDATE, FALLBACK), "after": (FALLBACK,)}
QUANTILES = (0.5, 0.9, 0.99)
COLUMNS = {
    "id": "id",
    "class_": "class",
    "arm": "arm",
    "intended_s": "intended_s",
    "sent_s": "sent_s",
    "first_token_s": "first_token_s",
    "last_token_s": "last_token_s",
    "end_s": "end_s",
    "prompt_tokens": "prompt_tokens",
    "output_tokens": "output_tokens",
    "wanted_tokens": "wanted_tokens",
    "status": "status",
    "error": "error",
    "fault": "fault",
}


def requests_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row a request, in the order of their intended starts."""
    rows = [{column: getattr(o, name) for name, column in COLUMNS.items()} for o in outcomes]
    frame = pd.DataFrame(rows, columns=list(COLUMNS.values()))
    times = ["intended_s", "sent_s", "first_token_s", "last_token_s", "end_s"]
    return frame.astype(
        {**dict.fromkeys(times, float), "arm": "str", "error": "str", "fault": "str"}
    )


@dataclass(frozen=True)
class Handover:
    """From one arm to another. first_token_s: first token that the new arm gave after the
    order, None without one. first_due_s: when the first request that it answered was due.
    drained_s: the old arm had answered its last and the new one its first."""

    ordered_s: float
    first_token_s: float | None
    first_due_s: float | None
    drained_s: float

    @classmethod
    def of(cls, requests: pd.DataFrame, ordered_s: float, from_arm: str, to_arm: str) -> Handover:
        """requests: see :func:`requests_table`."""
        served = requests[(requests["arm"] == to_arm) & (requests["first_token_s"] >= ordered_s)]
        drained_s = max(ordered_s, requests.loc[requests["arm"] == from_arm, "end_s"].max())
        if served.empty:
            return cls(ordered_s, None, None, drained_s)
        first = served.loc[served["first_token_s"].idxmin()]
        first_token_s = float(first["first_token_s"])
        due_s = float(first["intended_s"])
        return cls(ordered_s, first_token_s, due_s, float(max(drained_s, first_token_s)))

    def phases(self, requests: pd.DataFrame) -> np.ndarray:
        """The phase of every request."""
        before = requests["end_s"] <= self.ordered_s
        after = requests["intended_s"] > self.drained_s
        return np.select([before, after], ["before", "after"], "switch")


def served_by(requests: pd.DataFrame, ordered_s: float) -> pd.Series:
    """The arm of every request: what the server said, and for a request that was turned away
    or never answered the arm that the route led to when it was sent."""
    routed = np.where(requests["sent_s"] < ordered_s, CANDIDATE, FALLBACK)
    return requests["arm"].where(requests["arm"].notna(), pd.Series(routed, requests.index))


def phase_latencies(
    requests: pd.DataFrame, phases: np.ndarray
) -> Iterator[tuple[str, Estimate, dict[str, str]]]:
    """(metric, estimate, labels) of every arm, phase and quantile, over requests answered in full.

    requests: in the order of their intended starts, because they share a queue.

    A quantile is missing where fewer requests were seen than would put one beyond it: the 99th
    percentile of twenty requests is just the slowest of them.
    """
    answered = requests["status"] == "ok"
    for name, latency_ms in latencies_ms(requests).items():
        for phase, arms in ARMS_OF_PHASE.items():
            for arm in arms:
                own = answered & (phases == phase) & (requests["arm"] == arm)
                values = latency_ms[own].dropna().to_numpy()
                for q in QUANTILES:
                    labels = {"arm": arm, "phase": phase, "quantile": f"p{100 * q:g}"}
                    yield name, _quantile(values, q), labels


def _quantile(values: np.ndarray, q: float) -> Estimate:
    n, fewest = len(values), round(1 / min(q, 1 - q))
    if n < fewest:
        why = (
            f"{number_of(n, 'request')} of the arm in this phase; p{100 * q:g} needs {fewest} for "
            "a value"
        )
        return Estimate(None, None, None, n, "", reason=why)
    return quantile_over_time(values, q)
