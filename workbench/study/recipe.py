"""The recipe study: which way of training ternary weights loses least, at equal tokens?

One network, one text, one order of batches. Arms: full precision, the same weights ternarised
without training, the pilot's own ternary recipe (``default``), and the recipes that the pilot
names under ``study.recipe.arms``. The gap of an arm is what it loses against full precision;
the headline is the default's gap over the gap of ``lambda_warmup``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.measure.paired_bootstrap import BitsPerByte, PairedBootstrap
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.stage_record import StageRecord
from workbench.study.arm import StudyArm, make_arm
from workbench.wording.counts import number_of

FULL, DEFAULT, REFERENCE, UNTRAINED = (
    "full_precision",
    "default",
    "lambda_warmup",
    "post_training",
)
AS_IT_CAME = "checkpoint"
HEADLINE = "gap_over_lambda_warmup_gap"


def arms(resolved: ResolvedPilot) -> list[StudyArm]:
    """Full precision first, then the named recipes, the default last; each for every seed."""
    recipes = {**resolved.pilot.study.recipe.arms, DEFAULT: {}}
    return [
        arm
        for seed in resolved.pilot.study.seeds
        for arm in (
            make_arm(resolved, FULL, FULL, seed, {}),
            *(make_arm(resolved, name, "ternary", seed, v) for name, v in recipes.items()),
        )
    ]


def figures(record: StageRecord, found: pd.DataFrame, excerpts: pd.DataFrame) -> None:
    """Add the study's figures to ``record``; see :mod:`workbench.study.run` for the tables."""
    bootstrap = PairedBootstrap(excerpts)
    names = list(dict.fromkeys(found["arm"]))
    for name in names:
        estimate = bootstrap.estimate(lambda bits, name=name: bits[name])
        how = f"{number_of(len(bootstrap), 'held-out document')}, {seeds_in_words(found)}"
        record.add(estimate.metric("bits_per_byte", "bits/byte", how, arm=name))
    for name in names:
        costs(record, found[found["arm"] == name], name)
    for name in names:
        if name != FULL:
            gap = bootstrap.estimate(lambda bits, name=name: bits[name] - bits[FULL])
            how = f"{name} minus full precision on the same documents; positive is worse"
            record.add(gap.metric("gap_bits_per_byte", "bits/byte", how, arm=name))
    for name in [n for n in names if n not in (FULL, REFERENCE, DEFAULT)]:
        gap_ratio(record, bootstrap, name, arm=name)
    for seed in found["seed"].unique() if found["seed"].nunique() > 1 else ():
        gap_ratio(
            record, PairedBootstrap(excerpts[excerpts["seed"] == seed]), DEFAULT, seed=str(seed)
        )
    gap_ratio(record, bootstrap, DEFAULT)


def costs(record: StageRecord, rows: pd.DataFrame, name: str) -> None:
    """What an arm weighs and took; ``rows`` are its own of the table ``arms``."""
    bits = 8 * rows["linear_bytes"].iloc[0] / rows["linear_parameters"].iloc[0]
    how = "tensors of the packed layers over their weights, scales included"
    how = "bf16" if name in (FULL, AS_IT_CAME) else how
    record.measured("linear_bits_per_weight", bits, "bits", how, n=1, arm=name)
    if name in (UNTRAINED, AS_IT_CAME):
        return
    how = "sum over the steps, mean over seeds; with --jobs above 1 others ran beside it"
    seconds = float(rows["seconds"].mean())
    record.measured("training_time_s", seconds, "s", how, n=len(rows), arm=name)
    if rows["teacher_tokens"].notna().all():
        how = "of the teacher's forward passes, a part of training_time_s; its own training not"
        seconds = float(rows["teacher_seconds"].mean())
        record.measured("teacher_time_s", seconds, "s", how, n=len(rows), arm=name)
        how = "one forward pass of the teacher over every training batch"
        tokens = float(rows["teacher_tokens"].mean())
        record.measured("teacher_tokens", tokens, "tokens", how, n=len(rows), arm=name)


def gap_ratio(
    record: StageRecord,
    bootstrap: PairedBootstrap,
    name: str,
    against: str = FULL,
    **labels: str,
) -> None:
    """The gap of arm ``name`` over that of lambda warm-up, both to the arm ``against``."""
    if REFERENCE not in bootstrap.bits:
        why = f"the study has no arm {REFERENCE} to compare with"
        record.missing(HEADLINE, "ratio", why, **labels)
        return

    def ratio(bits: BitsPerByte) -> np.ndarray:
        """Not defined where the reference loses nothing: there is no gap to be a share of."""
        gap, reference = bits[name] - bits[against], bits[REFERENCE] - bits[against]
        return np.divide(gap, reference, out=np.full_like(gap, np.nan), where=reference > 0)

    to = "full precision" if against == FULL else "the checkpoint as it came"
    how = f"gap of {name} over gap of {REFERENCE}, both to {to} at equal tokens"
    record.add(bootstrap.estimate(ratio).metric(HEADLINE, "ratio", how, "derived", **labels))


def seeds_in_words(found: pd.DataFrame) -> str:
    """How many seeds a figure is the mean of."""
    count = found["seed"].nunique()
    return "one seed" if count == 1 else f"mean of {number_of(count, 'seed')}"
