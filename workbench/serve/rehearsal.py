"""What a replay with a rollback in its middle says: phases, latencies, SLOs.

A request belongs to the phase *before* when it had ended at the order, to *after* when it was
due once the old arm had drained and the new one had answered, and to *switch* when its life
touches what lies between. Long requests are more likely to touch it than short ones, so the
middle phase is judged a little too slow, never too fast.

Figures are given for each arm. The arms served different requests of one load, one arm after the
other, so shares and latencies can be compared and rates only with the load that each one had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.measure.dependence import quantile_over_time
from workbench.measure.statistics import Estimate
from workbench.serve.replay import Outcome

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
    gaps = (requests["output_tokens"] - 1).where(requests["output_tokens"] > 1)
    latencies_ms = {
        "ttft_ms": 1e3 * (requests["first_token_s"] - requests["intended_s"]),
        "tpot_ms": 1e3 * (requests["last_token_s"] - requests["first_token_s"]) / gaps,
        "e2e_ms": 1e3 * (requests["last_token_s"] - requests["intended_s"]),
    }
    for name, latency_ms in latencies_ms.items():
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
        why = f"{n} requests of the arm in this phase; p{100 * q:g} needs {fewest} for a value"
        return Estimate(None, None, None, n, "", reason=why)
    return quantile_over_time(values, q)


def slo_met(requests: pd.DataFrame, slos: Mapping[str, Mapping[str, Any]]) -> pd.Series:
    """Whether each request met every target of its class: True, False, or None where no
    target applies.

    slos: class -> ``ttft_ms``, ``tpot_ms``, ``e2e_s``, each a number or None. Time per output
    token is undefined for one token and then not asked for. A request that failed, was
    rejected or truncated is a miss.
    """
    out = requests["output_tokens"]
    ttft_s = requests["first_token_s"] - requests["intended_s"]
    e2e_s = requests["last_token_s"] - requests["intended_s"]
    tpot_s = ((e2e_s - ttft_s) / (out - 1)).where(out > 1)
    met = []
    for row, class_ in enumerate(requests["class"]):
        slo = slos.get(class_, {})
        judged = [
            (value, target)
            for value, target in (
                (1e3 * ttft_s.iloc[row], slo.get("ttft_ms")),
                (1e3 * tpot_s.iloc[row], slo.get("tpot_ms")),
                (e2e_s.iloc[row], slo.get("e2e_s")),
            )
            if target is not None
        ]
        if judged and requests["status"].iloc[row] != "ok":
            met.append(False)
            continue
        within = [value <= target for value, target in judged if not np.isnan(value)]
        met.append(all(within) if within else None)
    return pd.Series(met, index=requests.index, dtype=object)
