"""The curve of a run's gap: what the ternary arm loses against full precision as both train.

Both arms see the same batches in the same order, so the difference of their losses at a step is
paired: a curve of hundreds of points where the evaluations are a handful. It is on text not seen
before as long as the training is within its first pass over the corpus; afterwards only the
held-out evaluations are taken. What counts begins with the threshold fully on: before that, the
loss is not that of ternary weights.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.measure.learning_curve import FEWEST_POINTS, Curve
from workbench.wording.counts import number_of

MOST_POINTS = 24
STEPS_A_POINT = 3
"""At least, where there are so many steps; a point is a mean over steps that follow one another."""
SETTLING = 0.05
"""Share of the steps with the threshold on that are left out at their beginning."""


def gap_curve(loss: pd.DataFrame, evaluations: pd.DataFrame) -> tuple[Curve, str] | str:
    """(the curve, what it is made of), or why there is none.

    loss, evaluations: the tables of ``train_qat``.
    """
    if not len(loss) or not len(evaluations) or "arm" not in loss:
        return "the training left no losses"
    of = {arm: own.set_index("step") for arm, own in loss.groupby("arm")}
    if not {"full_precision", "ternary"} <= of.keys():
        return "the losses of one arm alone make no gap"
    ternary, precise = of["ternary"], of["full_precision"]
    on = ternary.index[(ternary["strength"] >= 1.0) & ternary.index.isin(precise.index)]
    if len(on) < FEWEST_POINTS:
        return f"{number_of(len(on), 'step')} with the threshold fully on, at least {FEWEST_POINTS}"
    before = ternary.loc[ternary.index < on[0], "tokens"]
    begun = float(before.iloc[-1]) if len(before) else 0.0
    annealed = 1 - ternary["lr"] / ternary["lr"].max()
    last = evaluations[evaluations["step"] == evaluations["step"].max()]
    bytes_rate = float((last["bits_per_byte"] / last["loss"]).median())
    if "epoch" in evaluations and evaluations["epoch"].max() > 1:
        return _of_evaluations(evaluations, ternary, annealed, on, begun)
    steps = on[int(SETTLING * len(on)) :]
    gap = (ternary["loss"] - precise["loss"]).loc[steps].to_numpy() * bytes_rate
    count = max(FEWEST_POINTS, min(MOST_POINTS, len(steps) // STEPS_A_POINT))
    parts = np.array_split(np.arange(len(steps)), count)
    tokens, way = ternary.loc[steps, "tokens"].to_numpy(float), annealed.loc[steps].to_numpy()
    curve = Curve(
        np.array([tokens[part].mean() for part in parts]),
        np.array([gap[part].mean() for part in parts]),
        np.array([float(len(part)) for part in parts]),
        np.array([way[part].mean() for part in parts]),
        begun,
    )
    return (
        curve,
        f"{number_of(len(steps), 'training step')} of both arms, paired, in "
        f"{number_of(count, 'point')}",
    )


def _of_evaluations(
    evaluations: pd.DataFrame, ternary: pd.DataFrame, annealed: pd.Series, on: pd.Index,
    begun: float,
) -> tuple[Curve, str] | str:  # fmt: skip
    """Of the held-out text, where the training text was seen more than once."""
    found = {
        arm: own.set_index("step")["bits_per_byte"]
        for arm, own in evaluations[
            evaluations["weights"].eq("ternary") | evaluations["arm"].eq("full_precision")
        ].groupby("arm")
    }
    gap = (found["ternary"] - found["full_precision"]).dropna()
    gap = gap[gap.index.isin(on)]
    if len(gap) < FEWEST_POINTS:
        return (
            f"{number_of(len(gap), 'evaluation')} with the threshold fully on, at least "
            f"{FEWEST_POINTS}: the training text was seen more than once, so its own losses do not "
            "count; raise train.evaluations"
        )
    curve = Curve(
        ternary.loc[gap.index, "tokens"].to_numpy(float), gap.to_numpy(), np.ones(len(gap)),
        annealed.loc[gap.index].to_numpy(), begun,
    )  # fmt: skip
    return curve, f"{number_of(len(gap), 'held-out evaluation')} of both arms"
