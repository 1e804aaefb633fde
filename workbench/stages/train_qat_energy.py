"""The energy of training each arm, of all attempts together, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.measure.meters.metering import KEPT_EVERY_S
from workbench.records.metric import Metric, MetricKind

NAME, UNIT = "training_energy_j", "J"
COVERED = 0.95
"""Of the time of the steps must have been metered."""


@dataclass(frozen=True)
class _Summed:
    energy_j: float
    idle_j: float | None
    error_j: float
    lost_j: float
    metered_s: float
    kind: MetricKind


def training_energies(rows: pd.DataFrame, training_s: Mapping[str, float]) -> dict[str, Metric]:
    """Arm -> ``training_energy_j``, of all arms on the widest basis that each of them has.

    rows: of :meth:`~workbench.measure.meters.metering.Metering.rows`, windows named as the arms.
    training_s: arm -> time of its steps, those of earlier attempts included.
    """
    tried: list[str] = []
    for covers in rows["covers"][rows["covers"] != ""].unique():
        found = {arm: _summed(rows, arm, covers, of_s) for arm, of_s in training_s.items()}
        lacking = next((why for why in found.values() if isinstance(why, str)), None)
        if lacking is None:
            said = "".join(f"; {text}" for text in tried)
            return {
                arm: _metric(one, arm, covers, said)
                for arm, one in found.items()
                if isinstance(one, _Summed)
            }
        tried.append(f"not {covers}: {lacking}")
    without = rows.loc[rows["covers"] == "", "how"]
    tried += list(dict.fromkeys(without))[:1]
    why = "; ".join(tried) or "no_meter: no meter ran beside the training"
    return {arm: Metric.missing(NAME, UNIT, why, arm=arm) for arm in training_s}


def _summed(rows: pd.DataFrame, arm: str, covers: str, training_s: float) -> _Summed | str:
    """Of one arm on one basis, or why there is no sum."""
    own = rows[(rows["window"] == arm) & (rows["covers"] == covers)]
    without = own[own["energy_j"].isna()]
    lengths_s = own["end_s"] - own["start_s"]
    # An attempt that found the arm finished has a window of no work, shorter than a figure needs.
    if len(without) and lengths_s[without.index].sum() > (1 - COVERED) * training_s:
        return str(without["how"].iloc[0])
    own = own.dropna(subset=["energy_j"])
    lengths_s = lengths_s[own.index]
    metered_s = float(lengths_s.sum())
    if metered_s < COVERED * training_s:
        return (
            f"{metered_s:.0f} s were metered of the {training_s:.0f} s of steps: an attempt had no "
            "meter"
        )
    energy_j, bias_j = float(own["energy_j"].sum()), float(own["bias_j"].sum())
    scatter = float((own["error_j"] ** 2 - own["bias_j"] ** 2).clip(lower=0).sum())
    killed = own.loc[~own["whole"].astype(bool), "attempt"].nunique()
    idle_j = None if own["idle_w"].isna().any() else float((own["idle_w"] * lengths_s).sum())
    return _Summed(
        energy_j,
        idle_j,
        float(np.hypot(np.sqrt(scatter), bias_j)),
        killed * KEPT_EVERY_S * energy_j / metered_s,
        metered_s,
        "modelled" if "modelled" in set(own["kind"]) else "measured",
    )


def _metric(of: _Summed, arm: str, covers: str, said: str) -> Metric:
    net = ", nothing net of idle: no idle power is known before or after"
    if of.idle_j is not None:
        net = f", net of idle {of.energy_j - of.idle_j:.4g} J"
    lost = f"; of killed attempts up to {of.lost_j:.3g} J more" if of.lost_j else ""
    how = (
        f"gross, {covers}, {of.metered_s:.0f} s of all attempts, evaluations and checkpoints "
        f"included{net}; error of the meter {of.error_j:.3g} J{lost}{said}"
    )
    return Metric(
        NAME,
        of.energy_j,
        UNIT,
        how,
        of.kind,
        n=1,
        labels={"arm": arm},
        reason="no interval: one training, whose scatter over others is unknown",
    )
