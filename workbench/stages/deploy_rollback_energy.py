"""Energy of the replay with the rollback: of all of it, and of each arm while it had the load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.measure.meters import EnergySession
from workbench.measure.meters.balance import Balance
from workbench.measure.meters.rows import WINDOW_COLUMNS, energy_rows
from workbench.records.metric import Metric, MetricKind
from workbench.serve.rehearsal import CANDIDATE, FALLBACK
from workbench.serve.replay import Outcome
from workbench.stages.context import StageContext
from workbench.stages.deploy_rollback_record import Replayed
from workbench.stages.metered import trusted
from workbench.wording.counts import number_of

WHOLE, BEFORE, AFTER = "replay", "before", "after"
ABOUT = ["window", "requests"]
COLUMNS = [*ABOUT, *WINDOW_COLUMNS]


def replay_window(meters: EnergySession, origin_s: float, duration_s: float) -> tuple[float, float]:
    """The replay on the meters' clock, from its time 0, before which they have rested; a pause and
    a rest follow it. To be called as soon as the replay has ended, its clients' last work included:
    what the machine works in the pause would seem to be of the replay."""
    end_s = max(origin_s + duration_s, meters.now())
    if meters.rests:
        meters.sleep_until(end_s)
        meters.worked(origin_s, end_s, apart=True)
        meters.pause()
        meters.rest()
    return origin_s, end_s


def replay_energies(
    meters: EnergySession,
    window: tuple[float, float],
    outcomes: Sequence[Outcome],
    switches: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Rows ``window`` (replay, before, after), ``requests``, and those of a window. window: of
    :func:`replay_window`. switches: seconds after its beginning."""
    origin_s, end_s = window
    rows = energy_rows(
        meters, {"window": WHOLE, "requests": len(outcomes)}, origin_s, end_s, apart=True
    )
    back = next((switch["time_s"] for switch in switches if switch["to_arm"] == FALLBACK), None)
    if back is None:
        return rows
    drained_s = max([back, *(o.end_s or 0.0 for o in outcomes if o.arm == CANDIDATE)])
    for name, from_s, to_s in ((BEFORE, 0.0, back), (AFTER, drained_s, end_s - origin_s)):
        due = sum(from_s <= one.intended_s < to_s for one in outcomes)
        at = {"window": name, "requests": due}
        rows += energy_rows(meters, at, origin_s + from_s, origin_s + to_s)
    return rows


def record_deployment_energy(
    context: StageContext, replayed: Replayed, balances: Sequence[Balance]
) -> None:
    """Table ``energies`` and the figures, each of the widest basis that has its window."""
    rows = trusted(pd.DataFrame(replayed.energies, columns=COLUMNS), balances)
    context.record.save_table("energies", rows)
    for metric in deployment_figures(rows):
        context.record.add(metric)


def deployment_figures(rows: pd.DataFrame) -> Iterator[Metric]:
    """rows: table ``energies``."""
    yield _metric(rows, WHOLE, "deployment_energy_j", {})
    for window, arm in ((BEFORE, CANDIDATE), (AFTER, FALLBACK)):
        labels = {"arm": arm, "phase": window}
        yield _metric(rows, window, "energy_j_per_request", labels)


def _metric(rows: pd.DataFrame, window: str, name: str, labels: dict[str, str]) -> Metric:
    own = rows[rows["window"] == window]
    # Without a meter there is one row, of the whole replay, that says why.
    why = "; ".join(dict.fromkeys((own if len(own) else rows)["how"])) or "it was not metered"
    known = own.dropna(subset=["energy_j"])
    if known.empty:
        return Metric.missing(name, "J", why, **labels)
    row = known.iloc[0]
    requests = int(row["requests"])
    per = requests if name == "energy_j_per_request" else 1
    if not per:
        return Metric.missing(name, "J", "no request was due in this phase", **labels)
    length_s = float(row["end_s"] - row["start_s"])
    joules, error_j = float(row["energy_j"]) / per, float(row["error_j"]) / per
    net = ", nothing net of idle: no idle power is known before or after"
    if not np.isnan(float(row["idle_w"] if row["idle_w"] is not None else np.nan)):
        net = f", net of idle {joules - float(row['idle_w']) * length_s / per:.4g} J"
    how = (
        f"gross, {row['covers']}, {length_s:.1f} s, {number_of(requests, 'request')}{net}; error "
        f"of the meter {error_j:.3g} J"
    )
    kind: MetricKind = "modelled" if row["kind"] == "modelled" else "measured"
    reason = "no interval: one window, whose scatter over others is unknown"
    return Metric(name, joules, "J", how, kind, n=1, labels=labels, reason=reason)
