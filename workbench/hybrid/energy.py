"""What the products of each layer take of energy in each precision, as metered.

Layers of one shape take alike, so one of each runs again and again in windows as long as the meter
needs, in :data:`ROUNDS` rounds in which the shapes take turns. A window's gross energy over its
tokens is that of one token: the power of an idle machine is in it, so a product that takes longer
takes more of it, as it does when the model is served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from workbench.errors import StageError
from workbench.hybrid.base import Base
from workbench.hybrid.latency import LayerShape, of_units, products
from workbench.measure.meters import EnergySession
from workbench.measure.meters.rows import energy_rows
from workbench.measure.session import SHORTEST_TURN_S
from workbench.ternary.policy import Precision

ROUNDS = 3


def metered_products(
    base: Base,
    precisions: Sequence[Precision],
    meters: EnergySession,
    report: Callable[[int, int], None],
) -> pd.DataFrame:
    """A row a window and basis: round, outputs, inputs, precision, tokens and
    ``WINDOW_COLUMNS``; ``report(done, of)`` hears of every window. meters: with a meter."""
    forms = products(base, precisions)
    readers = ["", *(meter.reader for meter in meters.meters)]
    window_s = max(SHORTEST_TURN_S.get(reader, 0.0) for reader in readers)
    window_s = max(window_s, meters.wanted_turn_s())
    tokens = {
        shape: math.ceil(window_s / max(min(product.run() for _ in range(3)), 1e-6))
        for shape, product in forms.items()
    }
    windows = []
    meters.rest()
    for turn in range(ROUNDS):
        for shape, product in forms.items():
            began = meters.now()
            product.run(tokens[shape])
            windows.append((turn, shape, began, meters.now()))
            meters.worked(*windows[-1][2:])
            report(len(windows), ROUNDS * len(forms))
    meters.rest()
    rows = []
    for turn, (outputs, inputs, precision), began, ended in windows:
        at = {"round": turn, "outputs": outputs, "inputs": inputs, "precision": precision}
        at["tokens"] = tokens[outputs, inputs, precision]
        rows += energy_rows(meters, at, began, ended)
    return pd.DataFrame(rows)


def unit_energies(
    base: Base, precisions: Sequence[Precision], windows: pd.DataFrame
) -> tuple[dict[tuple[str, str], float], str]:
    """(unit, precision) -> J of its layers' products for one token, and what that covers: the
    widest basis that every shape has in half of its windows or more; those without a figure are
    left out, with their tokens. windows: of :func:`metered_products`.

    Raises StageError where there is no such basis.
    """
    why = []
    shape = ["outputs", "inputs", "precision"]
    for covers in dict.fromkeys(windows["covers"]):
        rows = windows[windows["covers"] == covers]
        known = rows["energy_j"].notna()
        lacking = rows.loc[~known, "how"]
        if covers and (known.groupby([rows[name] for name in shape]).mean() >= 0.5).all():
            sums = rows[known].groupby(shape)[["energy_j", "tokens"]].sum()
            joules = (sums["energy_j"].astype(float) / sums["tokens"]).to_dict()
            of_shapes: dict[LayerShape, float] = {(n, k, p): joules[n, k, p] for n, k, p in joules}
            return of_units(base, precisions, of_shapes), str(covers)
        why.append(f"{covers or 'no meter'}: {lacking.iloc[0] if len(lacking) else 'no figure'}")
    raise StageError(
        f"the energy of the layers' products has no figure: {'; '.join(why)}",
        allowed="a meter with a figure for half of the windows of each shape or more (a budget of "
        "energy is never estimated)",
        next_step="look at measure_ab.meters (docs/energy.md), or leave "
        "hybrid_plan.max_energy_ratio out",
    )
