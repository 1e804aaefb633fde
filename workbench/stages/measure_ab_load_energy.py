"""Stage 3, energy under the load: how long blocks must be, meters of other nodes, the record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd

from workbench.measure.fewest import FEWEST_BLOCKS
from workbench.measure.load_energy import load_energy_basis, load_energy_figures
from workbench.measure.meters import EnergySession, find_meters
from workbench.measure.meters.find import reasons
from workbench.measure.session import SHORTEST_TURN_S
from workbench.pilot.sections.measure_ab import MeasureAb
from workbench.serve.endpoint import Endpoint, ask
from workbench.serve.load_session import ENERGY_COLUMNS
from workbench.stages.context import StageContext

STEP_PROMPT, STEP_TOKENS = "def", 64
"""Asked of an address again and again in the step test of its node's meter."""


@dataclass(frozen=True)
class PlannedBlocks:
    """note: what a person should know of it; empty for nothing."""

    blocks: int
    block_s: float
    note: str = ""


def metered_blocks(
    ab: MeasureAb, replayed_share: float, meters: Sequence[EnergySession]
) -> PlannedBlocks:
    """Blocks as the pilot wants them, or as many longer ones as its time allows where a meter gives
    no figure of so short a turn. A block's length that the pilot declares is kept."""
    section, arms = ab.load, len(ab.arms)
    own_s = section.block_s or replayed_share * section.budget_s / (section.blocks * arms)
    readers = [meter.reader for session in meters for meter in session.meters]
    wanted_s = max(
        [ab.meters.turn_s or 0.0, *(SHORTEST_TURN_S.get(reader, 0.0) for reader in readers)]
    )
    wanted_s = max([wanted_s, *(session.wanted_turn_s() for session in meters)])
    if wanted_s <= own_s or section.blocks < FEWEST_BLOCKS:
        return PlannedBlocks(section.blocks, own_s)
    # Two pauses in a turn, beside what starting the clients of a turn takes.
    pauses_s = 2 * max(session.apart_s() for session in meters)
    turn_s = wanted_s / replayed_share + pauses_s
    budget_s = math.ceil(FEWEST_BLOCKS * arms * turn_s)
    if section.block_s is not None or budget_s > section.budget_s:
        cure = (
            f"raise measure_ab.load.block_s to {wanted_s:.3g}"
            if section.block_s is not None
            else f"raise measure_ab.load.budget_s to {budget_s}"
        )
        note = (
            f"the meters want blocks of {wanted_s:.3g} s under the load, they are {own_s:.3g} s, "
            f"so the energy of the load has a large error or is missing: {cure}, or leave arms out"
        )
        return PlannedBlocks(section.blocks, own_s, note)
    blocks = min(section.blocks, int(section.budget_s / (arms * turn_s)))
    note = (
        f"the meters want blocks of {wanted_s:.3g} s under the load instead of {own_s:.3g} s: "
        f"{blocks} of them"
    )
    return PlannedBlocks(blocks, wanted_s, note)


@contextmanager
def node_meters(context: StageContext, name: str, endpoint: Endpoint) -> Iterator[EnergySession]:
    """Of the node that serves an address, with what a step test of it says."""
    section = context.pilot.measure_ab.addresses[name].meters
    assert section is not None
    found, missing = find_meters(section)
    context.record.facts.setdefault("node_meters", {})[name] = {
        "found": [meter.reader for meter in found],
        "missing": reasons(missing),
    }
    with EnergySession(found, missing, section.max_gap_s, section.idle_s) as session:
        for text in session.learn(lambda: ask(endpoint, STEP_PROMPT, STEP_TOKENS)):
            context.note(f"{name}: {text}")
        yield session
        for balance in session.conserved():
            if balance.problem:
                context.note(f"the energy of {name} does not add up: {balance.problem}")


def record_load_energy(
    context: StageContext,
    shapes: pd.DataFrame,
    requests: pd.DataFrame | None = None,
    energies: pd.DataFrame | None = None,
    why_none: str | None = None,
) -> None:
    """Table ``load_energies`` and the figures. requests, energies: None if nothing was played."""
    section, record = context.pilot.measure_ab, context.record
    requests = pd.DataFrame() if requests is None else requests
    energies = pd.DataFrame(columns=ENERGY_COLUMNS) if energies is None else energies
    if not why_none:
        record.save_table("load_energies", energies)
    own = section.own_arms
    arms = [*own, *section.addresses]
    record.facts["load_energy_basis"] = load_energy_basis(energies, arms, own)
    for metric in load_energy_figures(requests, energies, shapes, arms, own, why_none):
        record.add(metric)
