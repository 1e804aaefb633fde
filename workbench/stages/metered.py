"""A metering session around a stage's work: the same meters, checks and reasons in every stage.

The meters are those of ``measure_ab.meters``. What they are, which are missing and why, how late
they are and what failed goes into the record, and with it where the session's energy went: work,
idle and what is neither. Where that does not add up, every energy of the stage is withheld.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from workbench.measure.meters import EnergySession, find_meters
from workbench.measure.meters.balance import Balance
from workbench.measure.meters.find import reasons
from workbench.records.metric import Metric
from workbench.stages.context import StageContext
from workbench.wording.counts import number_of

STEP_LOAD_SIZE = 1024
PARTS = ("whole", "work", "idle", "unattributed")


@dataclass
class StageMeters:
    """session: open. balances: of its pieces so far, where a stage asked already; at the end what
    is left is asked for."""

    session: EnergySession
    balances: list[Balance] = field(default_factory=list)


def trusted(energies: pd.DataFrame, balances: Sequence[Balance]) -> pd.DataFrame:
    """Rows of energies, those of a basis that does not add up without a figure."""
    energies = energies.copy()
    for covers, problem in _problems(balances).items():
        wrong = energies["covers"] == covers
        energies.loc[wrong, "energy_j"] = None
        energies.loc[wrong, "how"] = f"not_conserved: {problem}"
    return energies


def _problems(balances: Sequence[Balance]) -> dict[str, str]:
    """What the basis covers -> why its energies do not add up."""
    return {one.basis.text: one.problem for one in balances if one.problem}


@contextmanager
def stage_meters(
    context: StageContext, gpus: Sequence[int] = (0,), interval_s: float | None = None
) -> Iterator[StageMeters]:
    """An open session; when it ends, facts and figures are in the record.

    gpus: torch's numbers of the GPUs that work. interval_s: between two readings.
    """
    section = context.pilot.measure_ab.meters
    found, missing = find_meters(section, gpus)
    more: dict[str, Any] = {} if interval_s is None else {"interval_s": interval_s}
    # Who sets the length of a turn for a log of afterwards wants rests that it can tell as well.
    idle_s = max(section.idle_s, section.turn_s or 0.0)
    later = section.turn_s is not None
    session = EnergySession(found, missing, section.max_gap_s, idle_s, for_later=later, **more)
    facts: dict[str, Any] = {
        "found": [meter.reader for meter in found],
        "missing": reasons(missing),
    }
    context.record.facts["meters"] = facts
    for meter in found:
        for note in meter.notes:
            context.note(note)
    with session:
        meters = StageMeters(session)
        yield meters
        facts["rests"] = session.rested()
        facts["failures"] = {
            reader: faults.counts() for reader, faults in session.faults.items() if len(faults)
        }
    for problem in dict.fromkeys(_problems(meters.balances).values()):
        context.note(f"the energies of this stage are withheld, they do not add up: {problem}")
    _record(context, meters)


def closed(meters: StageMeters) -> None:
    """Ask where the energy of the session went; before the stage's energies become figures."""
    meters.balances += meters.session.conserved()


def step_load(device: str) -> Callable[[], object]:
    """A piece of work for a step test, where a stage has no shorter one: products of matrices."""
    matrix = torch.rand(STEP_LOAD_SIZE, STEP_LOAD_SIZE, device=device)

    def load() -> None:
        for _ in range(8):
            torch.mm(matrix, matrix)
        if device == "cuda":
            torch.cuda.synchronize()

    return load


def _record(context: StageContext, meters: StageMeters) -> None:
    """``metered_energy_j`` by part, on the widest basis of which the whole session is known."""
    stage = context.record.stage
    for part in PARTS:
        metric = _part(meters, part, {"stage": stage, "part": part})
        context.record.add(metric)


def _part(meters: StageMeters, part: str, labels: dict[str, str]) -> Metric:
    name, why = "metered_energy_j", []
    for covers in dict.fromkeys(one.basis.text for one in meters.balances):
        pieces = [one for one in meters.balances if one.basis.text == covers]
        lacking = next((one.reason or one.problem for one in pieces if one.whole_j is None), "")
        lacking = lacking or next((one.problem for one in pieces if one.problem), "")
        if lacking:
            why.append(f"not {covers}: {lacking}")
            continue
        joules = sum(getattr(one, f"{part}_j") for one in pieces)
        error_j = sum(one.error_j for one in pieces)
        seconds = sum(one.stretches.end_s - one.stretches.start_s for one in pieces)
        how = f"gross, {covers}, of a session of {seconds:.1f} s"
        if part in ("work", "idle"):
            how += f"; error {error_j:.3g} J, of work and idle time together"
        if part == "unattributed" and (unmetered := sum(one.unmetered for one in pieces)):
            how += f"; what of {number_of(unmetered, 'window')} without a figure is in it"
        how = "; ".join([how, *why])
        kind = pieces[0].basis.kind
        around = None if part == "whole" else error_j
        lo, hi = (None, None) if around is None else (joules - around, joules + around)
        return Metric(name, joules, "J", how, kind, n=1, lo=lo, hi=hi, labels=labels)
    reason = "; ".join(why) or f"no_meter: {meters.session.why_none()}"
    return Metric.missing(name, "J", reason, **labels)
