"""What the pilot's load asks of a machine, from the turns that were timed.

A request of the load is its mean prompt and its mean output. On a machine that keeps ``b``
sequences going it takes, of the machine's time, ``m(b)`` = prompt tokens x seconds a prompt token +
output tokens x seconds an output token at batch ``b``: prefill and decode by the load's own mix. As
``b`` requests share the machine, each is in it for ``b x m`` (Little's law), so that a token comes
every ``b x m / output tokens`` seconds, the prefills of the others included. Its first token comes
after its own prefill, half a step of the others' decoding, and the mean wait for prefills that came
before it (M/D/1, at the utilisation that the pilot allows). Both are held against the SLO, and of
the measured batches within it the quickest is the one that an arm is used at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.files import read_json
from workbench.pilot.sections.profile_load import Slo
from workbench.records.stage_record import StageRecord
from workbench.wording.counts import number_of

DAY_S = 86_400.0
PEAK = 0.95
"""Quantile of the rates of the profile's windows that is called its peak."""


@dataclass(frozen=True)
class Demand:
    """prompt_tokens, output_tokens: means of the load's requests. peak_per_s: rate of its busy
    windows. slo: of interactive requests. source: of the profile, with its kind.
    utilisation: of a machine's time that the load's peak may take."""

    prompt_tokens: float
    output_tokens: float
    rate_per_s: float
    peak_per_s: float
    slo: Slo
    source: str
    kind: str = "assumed"
    utilisation: float = 0.7

    @property
    def text(self) -> str:
        return (
            f"requests of {self.prompt_tokens:.0f} prompt and "
            f"{number_of(self.output_tokens, 'output token', form='.0f')}, the means of the load "
            f"({self.source})"
        )


@dataclass(frozen=True)
class Use:
    """How an arm carries the load: at ``batch``, a request takes ``prefill`` and ``decode`` seconds
    of a machine in each block (series by block), and waits ``ttft_ms`` for its first token (a model
    of the queue on measured times)."""

    batch: int
    prefill: pd.Series
    decode: pd.Series
    ttft_ms: float

    @property
    def seconds(self) -> pd.Series:
        return self.prefill + self.decode

    @property
    def prefill_share(self) -> float:
        """Of a request's machine time that its prompt takes."""
        return float((self.prefill / self.seconds).mean())

    @property
    def load_class(self) -> str:
        return f"batch_{self.batch}"

    @property
    def mean_s(self) -> float:
        return float(self.seconds.mean())


def demand_of(
    records: Mapping[str, StageRecord], slo: Slo, utilisation: float = 0.7
) -> Demand | None:
    """The load of ``profile_load``, or None where it left no profile."""
    record = records.get("profile_load")
    if record is None or "profile" not in record.artefacts:
        return None
    summary = read_json(record.artefact("profile"))
    n = summary["requests"]
    windows = record.table("windows").groupby("start_s")["rate_per_s"].sum()
    return Demand(
        summary["tokens"]["prompt"] / n,
        summary["tokens"]["output"] / n,
        summary["rate_per_s"],
        float(windows.quantile(PEAK)),
        slo,
        f"{summary['source']}, {summary['kind']}",
        summary["kind"],
        utilisation,
    )


def uses(blocks: pd.DataFrame, arm: str, demand: Demand) -> list[Use]:
    """The batches at which ``arm`` was measured and keeps the SLO, the smallest first."""
    found = []
    for batch in sorted(_batches(blocks)):
        prefill, decode = _request_seconds(blocks, arm, batch, demand)
        if not len(prefill):
            continue
        use = Use(batch, prefill, decode, _ttft_ms(prefill, decode, batch, demand))
        token_ms = 1e3 * batch * use.mean_s / max(demand.output_tokens, 1.0)
        kept = (token_ms, demand.slo.tpot_ms), (use.ttft_ms, demand.slo.ttft_ms)
        if all(most is None or got <= most for got, most in kept):
            found.append(use)
    return found


def quickest(found: list[Use]) -> Use | None:
    """The batch at which a request takes least of a machine."""
    return min(found, key=lambda use: use.mean_s, default=None)


def for_rate(found: list[Use], rate_per_s: float) -> Use | None:
    """The smallest batch at which one machine carries the rate, else the quickest."""
    carrying = [use for use in found if use.mean_s * rate_per_s <= 1.0]
    return carrying[0] if carrying else quickest(found)


def machines(use: Use, rate_per_s: float) -> int:
    """Whole machines for a mean rate."""
    return max(1, math.ceil(rate_per_s * use.mean_s - 1e-9))


def _batches(blocks: pd.DataFrame) -> list[int]:
    names = blocks["class"].astype(str).unique()
    return [int(name.removeprefix("batch_")) for name in names if name.startswith("batch_")]


def _ttft_ms(prefill: pd.Series, decode: pd.Series, batch: int, demand: Demand) -> float:
    """Own prefill, half a step, and the mean wait of an M/D/1 queue of prefills."""
    own_s, decode_s = float(prefill.mean()), float(decode.mean())
    step_s = batch * decode_s / max(demand.output_tokens, 1.0)
    busy = min(0.99, demand.utilisation * own_s / (own_s + decode_s))
    return 1e3 * (own_s + step_s / 2 + busy * own_s / (2 * (1 - busy)))


def _request_seconds(
    blocks: pd.DataFrame, arm: str, batch: int, demand: Demand
) -> tuple[pd.Series, pd.Series]:
    """(prefill, decode) seconds of the machine for a request of the load, by block."""
    rows = blocks[(blocks["arm"] == arm) & (blocks["class"] == f"batch_{batch}")]
    sums = rows.groupby(["block", "phase"])[["seconds", "tokens"]].sum()
    each = (sums["seconds"] / sums["tokens"]).unstack("phase")
    if not {"prefill", "decode"} <= set(each.columns):
        return pd.Series(dtype=float), pd.Series(dtype=float)
    prefill, decode = each["prefill"] * demand.prompt_tokens, each["decode"] * demand.output_tokens
    whole = np.isfinite(prefill + decode)
    return prefill[whole], decode[whole]
