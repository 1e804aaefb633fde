"""Energy of the served load as money takes it: what a request adds, and what idle machines draw.

Under the replay an arm's turn was metered from its first request to its last answer
(:mod:`workbench.measure.load_energy`). Gross energy of a request is that of the replay's own rate;
a year has another rate and idle hours, so it is taken apart: energy net of idle is what a request
adds, idle power is drawn whether requests come or not. The replayed requests are a piece of the
load, or are cut to what the arms can hold. Where their mean prompt and output differ from the
load's, the energy is scaled by its split between prompt and generated tokens, and is modelled then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.economics.quantity import Quantity, combined
from workbench.measure.dependence import share_over_blocks
from workbench.pilot.sections.cost import Cost
from workbench.records.metric import MetricKind
from workbench.records.stage_record import StageRecord
from workbench.report.demand import Demand
from workbench.wording.counts import number_of

SAME_MIX = 0.05
"""By how much the energy may differ because of the replayed requests' lengths and still be that of
the load."""
LOAD = {"source": "load"}


@dataclass(frozen=True)
class ServedEnergy:
    """Of one arm. work_j: of a request of the load, above idle. idle_w: of the machine, whichever
    arm it rests between: one number for all, so that it makes no difference between them.
    prefill_share: of the energy that prompt tokens take; None where it was not split. how: in
    words."""

    work_j: Quantity
    idle_w: Quantity
    prefill_share: float | None
    how: str


@dataclass(frozen=True)
class _Mix:
    """Of the requests that were replayed: prompt tokens worked on and tokens that came, means."""

    prompt: float
    output: float


def served_energies(
    measured: StageRecord, arms: Sequence[str], demand: Demand, cost: Cost
) -> dict[str, ServedEnergy] | str:
    """Of all arms on one basis, or why the served load gives none."""
    if "load_energies" not in measured.tables or "load_requests" not in measured.tables:
        return _why_none(measured, arms)
    bases = {measured.facts.get("load_energy_basis", {}).get(arm) for arm in arms}
    if None in bases:
        return _why_none(measured, arms)
    if len(bases) > 1:
        return f"the arms are metered at {' and '.join(sorted(map(str, bases)))}: no one basis"
    basis = str(bases.pop())
    found = {}
    for arm in arms:
        own = _of_arm(measured, arm, arms, basis, demand, cost)
        if isinstance(own, str):
            return f"{arm}: {own}"
        found[arm] = own
    return found


def accepted_numbers(measured: StageRecord, arm: str) -> dict[str, Quantity]:
    """Shares that a cost is divided by to be that of an accepted answer, by name: ``accepted``
    (answers of the served load that came whole) and ``passed`` (answers to own prompts that keep to
    their check). Empty where neither is known, and then nothing says what an accepted answer is."""
    shares = {"accepted": _whole_share(measured, arm), "passed": _passed_share(measured, arm)}
    return {name: share for name, share in shares.items() if share is not None}


def _passed_share(measured: StageRecord, arm: str) -> Quantity | None:
    """None where the pilot has no prompts with a check."""
    found = measured.metric("accepted_share", arm=arm)
    if found is None or found.value is None:
        return None
    source = f"answers to own prompts that keep to their check, {number_of(found.n or 0, 'prompt')}"
    return Quantity(found.value, "measured", "", source, found.lo, found.hi)


def _whole_share(measured: StageRecord, arm: str) -> Quantity | None:
    """Share of the served load's requests whose answer came whole: what energy of an accepted
    answer divides by, too. None where no load was served, or nothing came."""
    if "load_requests" not in measured.tables:
        return None
    rows = measured.table("load_requests")
    own = rows[rows["arm"] == arm]
    if own.empty:
        return None
    found = share_over_blocks(own["status"] == "ok", own["block"])
    if not found.value:
        return None
    source = "answers of the served load that came whole"
    return Quantity(found.value, "measured", "", source, found.lo, found.hi)


def _why_none(measured: StageRecord, arms: Sequence[str]) -> str:
    reasons = [
        m.reason for arm in arms
        if (m := measured.metric("energy_net_j_per_request", arm=arm, **LOAD)) and m.reason
    ]  # fmt: skip
    return reasons[0] if reasons else "no load was served by the arms"


def _of_arm(
    measured: StageRecord, arm: str, arms: Sequence[str], basis: str, demand: Demand, cost: Cost
) -> ServedEnergy | str:
    net = measured.metric("energy_net_j_per_request", arm=arm, **LOAD)
    if net is None or net.value is None:
        return (net.reason if net else "") or "no energy net of idle"
    if net.value <= 0:
        return f"energy net of idle is {net.value:.3g} J a request: the meter does not see the load"
    windows = measured.table("load_energies")
    idle = windows[windows["arm"].isin(arms) & (windows["basis"] == basis)]
    idle = idle[["idle_w", "idle_error_w"]].astype(float).mean()
    if not np.isfinite(idle["idle_w"]):
        return "no idle power was measured around the load"
    split = [
        m.value if (m := measured.metric(name, arm=arm, **LOAD)) else None
        for name in ("prefill_energy_j_per_token", "decode_energy_j_per_token")
    ]
    scaled = _scaled(_replayed(measured, arm), demand, split)
    if isinstance(scaled, str):
        return scaled
    factor, said, mix_kind = scaled
    factor, where, scope_kind = _to_node(basis, factor, cost)
    kind = combined([net.kind, mix_kind, scope_kind])
    work = Quantity(
        net.value * factor, kind, "J", f"served load, {where}, net of idle{said}",
        None if net.lo is None else net.lo * factor, None if net.hi is None else net.hi * factor,
    )  # fmt: skip
    share = (1 / cost.board_share) if scope_kind == "assumed" and cost.board_share else 1.0
    low, high = (idle["idle_w"] + sign * idle["idle_error_w"] for sign in (-1, 1))
    known = np.isfinite(low) and low > 0
    idle_w = Quantity(
        float(idle["idle_w"]) * share, combined([net.kind, scope_kind]), "W",
        f"rests around the served load, {where}",
        float(low) * share if known else None, float(high) * share if known else None,
    )  # fmt: skip
    prefill_j, decode_j = split
    prefill_share = None
    if prefill_j is not None and decode_j is not None:
        prompt_j, output_j = prefill_j * demand.prompt_tokens, decode_j * demand.output_tokens
        prefill_share = prompt_j / (prompt_j + output_j)
    return ServedEnergy(work, idle_w, prefill_share, f"served load, {where}{said}")


def _replayed(measured: StageRecord, arm: str) -> _Mix:
    rows = measured.table("load_requests")
    own = rows[rows["arm"] == arm]
    worked_on = own["prompt_tokens"].where(own["output_tokens"] > 0, 0)
    return _Mix(float(pd.to_numeric(worked_on).mean()), float(own["output_tokens"].mean()))


def _scaled(
    mix: _Mix, demand: Demand, split: Sequence[float | None]
) -> tuple[float, str, MetricKind] | str:
    """(factor from the replayed requests to those of the load, in words, how that is known)."""
    lengths = (
        f"the replayed requests have {mix.prompt:.3g} prompt and "
        f"{number_of(mix.output, 'output token', form='.3g')}, the load's "
        f"{demand.prompt_tokens:.3g} and {demand.output_tokens:.3g}"
    )
    if not mix.prompt or not mix.output:
        return lengths
    prefill_j, decode_j = split
    if prefill_j is None or decode_j is None:
        pairs = ((mix.prompt, demand.prompt_tokens), (mix.output, demand.output_tokens))
        if max(abs(of_load / served - 1) for served, of_load in pairs) <= SAME_MIX:
            return 1.0, "", "measured"
        return f"{lengths}, and the energy is not split between them"
    factor = (prefill_j * demand.prompt_tokens + decode_j * demand.output_tokens) / (
        prefill_j * mix.prompt + decode_j * mix.output
    )
    if abs(factor - 1) <= SAME_MIX:
        return 1.0, "", "measured"
    return factor, f", times {factor:.3g} as {lengths}", "modelled"


def _to_node(basis: str, factor: float, cost: Cost) -> tuple[float, str, MetricKind]:
    """(factor, where it is metered, how that is known): boards alone by their declared share."""
    if basis == "node":
        return factor, "metered, node", "measured"
    if cost.board_share is None:
        return factor, f"metered at {basis} alone, not the node", "measured"
    said = f"metered at {basis}, extended to the node by the declared share {cost.board_share:g}"
    return factor / cost.board_share, said, "assumed"
