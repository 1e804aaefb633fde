"""What a client's table of requests says of each of them: its latencies, its targets, its fault.

Columns of such a table, times in seconds on one clock: ``class``, ``intended_s``, ``sent_s``,
``first_token_s``, ``last_token_s``, ``end_s``, ``output_tokens``, ``wanted_tokens``, ``status``
(``ok`` when answered in full) and ``fault``. Latencies count from the intended start: a client that
measures from the send hides the wait that a stall caused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


def latencies_ms(requests: pd.DataFrame) -> dict[str, pd.Series]:
    """``ttft_ms``, ``tpot_ms`` and ``e2e_ms`` of every request; NaN where there is none: time per
    output token is undefined for one token."""
    gaps = (requests["output_tokens"] - 1).where(requests["output_tokens"] > 1)
    return {
        "ttft_ms": 1e3 * (requests["first_token_s"] - requests["intended_s"]),
        "tpot_ms": 1e3 * (requests["last_token_s"] - requests["first_token_s"]) / gaps,
        "e2e_ms": 1e3 * (requests["last_token_s"] - requests["intended_s"]),
    }


def slo_met(requests: pd.DataFrame, slos: Mapping[str, Mapping[str, Any]]) -> pd.Series:
    """Whether each request met every target of its class: True, False, or None where no
    target applies.

    slos: class -> ``ttft_ms``, ``tpot_ms``, ``e2e_s``, each a number or None. Time per output
    token is undefined for one token and then not asked for. A request that failed, was
    rejected or truncated is a miss.
    """
    of = latencies_ms(requests)
    ttft_ms, tpot_ms, e2e_s = of["ttft_ms"], of["tpot_ms"], of["e2e_ms"] / 1e3
    met = []
    for row, class_ in enumerate(requests["class"]):
        slo = slos.get(class_, {})
        judged = [
            (value, target)
            for value, target in (
                (ttft_ms.iloc[row], slo.get("ttft_ms")),
                (tpot_ms.iloc[row], slo.get("tpot_ms")),
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


def said_targets(slo: Mapping[str, float | None]) -> str:
    """The targets of a class as a reader sees them: ``ttft_ms 500, tpot_ms 30``."""
    return ", ".join(f"{name} {target:g}" for name, target in slo.items() if target is not None)
