"""The checkpoint study: what is lost on the way from a pretrained model to a ternary one?

One checkpoint, one text, one order of batches. Arms: the checkpoint as it came, the same weights
ternarised without training, the recipe for a checkpoint as the pilot says it (``default``), and
those of ``study.checkpoint.arms``. Each of these but ``lambda_warmup``, the public recipe, differs
from the recipe in one part; what the recipe loses with or without it is that part's own gain.

Gaps are to the checkpoint as it came, on the same held-out documents: fine-tuned on the text it
would have moved, and hidden what is lost against the model in service. The headline is the
recipe's gap over that of ``lambda_warmup``.
"""

from __future__ import annotations

import pandas as pd

from workbench.errors import ConfigError
from workbench.measure.paired_bootstrap import PairedBootstrap
from workbench.paths import shown
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.stage_record import StageRecord
from workbench.study.arm import StudyArm, make_arm
from workbench.study.recipe import (
    AS_IT_CAME,
    DEFAULT,
    HEADLINE,
    REFERENCE,
    UNTRAINED,
    costs,
    gap_ratio,
    seeds_in_words,
)
from workbench.wording.counts import number_of

__all__ = ["HEADLINE", "arms", "figures"]


def arms(resolved: ResolvedPilot) -> list[StudyArm]:
    """The checkpoint first, then the named arms, the recipe last; each for every seed."""
    if resolved.pilot.model.checkpoint is None:
        raise ConfigError(
            f"{shown(resolved.path)}: model.checkpoint is null",
            allowed="a checkpoint, which this study is about",
            next_step="make smollm2 fetches a small one; --set model.checkpoint=PATH names yours",
        )
    recipes = {**resolved.pilot.study.checkpoint.arms, DEFAULT: {}}
    return [
        arm
        for seed in resolved.pilot.study.seeds
        for arm in (
            make_arm(resolved, AS_IT_CAME, AS_IT_CAME, seed, {}),
            *(make_arm(resolved, name, "ternary", seed, v) for name, v in recipes.items()),
        )
    ]


def figures(record: StageRecord, found: pd.DataFrame, excerpts: pd.DataFrame) -> None:
    """Add the study's figures to ``record``; see :mod:`workbench.study.run` for the tables."""
    bootstrap = PairedBootstrap(excerpts)
    names = list(dict.fromkeys(found["arm"]))
    trained = [name for name in names if name not in (AS_IT_CAME, UNTRAINED)]
    for name in names:
        estimate = bootstrap.estimate(lambda bits, name=name: bits[name])
        how = f"{number_of(len(bootstrap), 'held-out document')}, {seeds_in_words(found)}"
        record.add(estimate.metric("bits_per_byte", "bits/byte", how, arm=name))
    for name in names:
        own = found[found["arm"] == name]
        costs(record, own, name)
        if name in trained:
            tokens, rates = int(own["training_tokens"].iloc[0]), own["rate"]
            how = f"of each seed; learning rate {', '.join(f'{r:g}' for r in rates.unique())}"
            record.measured("training_tokens", tokens, "tokens", how, n=len(own), arm=name)
    for name in [n for n in names if n != AS_IT_CAME]:
        gap = bootstrap.estimate(lambda bits, name=name: bits[name] - bits[AS_IT_CAME])
        how = f"{name} minus the checkpoint as it came, same documents; positive is worse"
        record.add(gap.metric("gap_bits_per_byte", "bits/byte", how, arm=name))
    for name in [n for n in trained if n not in (REFERENCE, DEFAULT)]:
        loss = bootstrap.estimate(lambda bits, name=name: bits[name] - bits[DEFAULT])
        how = f"{name} minus the recipe, from which it differs in one part; positive is worse"
        record.add(loss.metric("loss_over_recipe_bits_per_byte", "bits/byte", how, arm=name))
    for name in [n for n in trained if n not in (REFERENCE, DEFAULT)]:
        gap_ratio(record, bootstrap, name, AS_IT_CAME, arm=name)
    for seed in found["seed"].unique() if found["seed"].nunique() > 1 else ():
        own = PairedBootstrap(excerpts[excerpts["seed"] == seed])
        gap_ratio(record, own, DEFAULT, AS_IT_CAME, seed=str(seed))
    gap_ratio(record, bootstrap, DEFAULT, AS_IT_CAME)
