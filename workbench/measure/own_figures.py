"""From the tables ``prompts`` and ``tasks`` to figures of each arm.

What is a sum over tokens (agreement, KL, length, repetition) is a ratio of sums, resampled by
prompt as quality is by document: prompts were drawn independently, tokens of one answer were not.
What is right or not (accepted answers, tasks) is a share of prompts or questions, with an exact
interval, and is compared with full precision in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from workbench.measure.ab_figures import SOURCE
from workbench.measure.fewest import FEWEST_DOCUMENTS
from workbench.measure.own_tasks import CHOICE
from workbench.measure.statistics import (
    Estimate,
    paired_share_difference,
    ratio_of_sums,
    share,
)
from workbench.records.metric import Metric
from workbench.wording.counts import number_of


@dataclass(frozen=True)
class PromptFigures:
    """reference: the arm whose answers the others are held against. baseline: the arm that accepted
    answers are compared with. resamples, seed: of the bootstrap over prompts."""

    reference: str
    baseline: str
    resamples: int
    seed: int

    def of(self, rows: pd.DataFrame) -> Iterator[Metric]:
        """rows: table ``prompts`` of :func:`~.own_prompts.answer_prompts`."""
        arms = {arm: own.reset_index(drop=True) for arm, own in rows.groupby("arm", sort=False)}
        reference = arms[self.reference]
        for arm, own in arms.items():
            labels = {"arm": arm, **SOURCE}
            if arm != self.reference:
                yield from self._nearness(own, reference, labels)
            repeated = self._share(own["repeated"], own["grams"], "no answer has four tokens")
            how = "4-grams of tokens that stood in the same answer before, of all of its 4-grams"
            yield repeated.metric("answer_repetition", "share", how, "measured", **labels)
            if own["accepted"].notna().any():
                yield from self._accepted(own, arms[self.baseline], labels)

    def _nearness(
        self, own: pd.DataFrame, reference: pd.DataFrame, labels: dict[str, str]
    ) -> Iterator[Metric]:
        where = (
            f"at {number_of(int(own['places'].sum()), 'place')} of the answers of {self.reference} "
            f"to {number_of(len(own), 'prompt')}, read by both"
        )
        agreed = self._share(own["agreed"], own["places"], "")
        how = f"the likeliest next token is the same, {where}"
        yield agreed.metric("top1_agreement", "share", how, "measured", **labels)
        kl = self._over_prompts(own["kl_nats"], own["places"], "")
        how = f"KL of {self.reference} against {labels['arm']}, {where}"
        yield _at_least(kl, 0.0).metric(
            "kl_nats_per_token", "nats/token", how, "measured", **labels
        )
        empty = f"the answers of {self.reference} are empty"
        length = self._over_prompts(own["tokens"], reference["tokens"], empty)
        how = f"tokens of its answers over those of {self.reference}, to the same prompts"
        ratio = _at_least(length, 0.0)
        yield ratio.metric("answer_length_ratio", "x", how, "measured", **labels)

    def _accepted(
        self, own: pd.DataFrame, baseline: pd.DataFrame, labels: dict[str, str]
    ) -> Iterator[Metric]:
        checked = own["accepted"].notna()
        kept = own.loc[checked, "accepted"].astype(bool)
        how = (
            f"answers that keep to the check of their prompt, {number_of(len(kept), 'prompt')} "
            "with one"
        )
        found = share(int(kept.sum()), len(kept))
        yield found.metric("accepted_share", "share", how, "measured", **labels)
        if labels["arm"] == self.baseline:
            return
        before = baseline.loc[checked, "accepted"].astype(bool)
        gained, lost = int((kept & ~before).sum()), int((~kept & before).sum())
        how = f"{labels['arm']} less {self.baseline} on the same prompts; below 0 is worse"
        difference = paired_share_difference(gained, lost, len(kept))
        yield difference.metric("accepted_difference", "share", how, "measured", **labels)

    def _share(self, above: pd.Series, below: pd.Series, empty: str) -> Estimate:
        """Of what lies between 0 and 1. Where it is the same in all prompts a bootstrap sees no
        scatter; then the interval is that of none in n prompts being otherwise."""
        found = self._over_prompts(above, below, empty)
        if found.value in (0.0, 1.0) and found.n >= FEWEST_DOCUMENTS:
            return share(found.n if found.value else 0, found.n)
        if found.lo is None or found.hi is None:
            return found
        return replace(found, lo=max(0.0, found.lo), hi=min(1.0, found.hi))

    def _over_prompts(self, above: pd.Series, below: pd.Series, empty: str) -> Estimate:
        found = ratio_of_sums(above, below, "prompts", resamples=self.resamples, seed=self.seed)
        if found.value is None:
            return replace(found, reason=empty) if empty and not found.n else found
        if found.n < FEWEST_DOCUMENTS and found.lo is not None:
            why = (
                f"no interval: {number_of(found.n, 'prompt')}, a bootstrap needs {FEWEST_DOCUMENTS}"
            )
            return replace(found, lo=None, hi=None, method="", reason=why)
        return found


def _at_least(found: Estimate, lowest: float) -> Estimate:
    return found if found.lo is None else replace(found, lo=max(lowest, found.lo))


def task_pairs(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Table ``task_pairs``: of each task and arm but the baseline, on the same questions: n, both
    (right), gained (b: right in the arm alone), lost (c: in the baseline alone), neither,
    difference of accuracy with its interval lo to hi, p of exact McNemar."""
    found = []
    columns = ["task", "arm", "n", "both", "gained", "lost", "neither"]
    for (task, arm), own in rows[rows["arm"] != baseline].groupby(["task", "arm"], sort=False):
        base = rows[(rows["arm"] == baseline) & (rows["task"] == task)].set_index("row")["correct"]
        here = own.set_index("row")["correct"].astype(bool)
        there = base.loc[here.index].astype(bool)
        counts = [(here & there), (here & ~there), (~here & there), (~here & ~there)]
        numbers = [int(each.sum()) for each in counts]
        estimate = paired_share_difference(numbers[1], numbers[2], len(here))
        ends = {"difference": estimate.value, "lo": estimate.lo, "hi": estimate.hi}
        pair = dict(zip(columns, [task, arm, len(here), *numbers], strict=True))
        found.append(pair | ends | {"p": estimate.p_value})
    return pd.DataFrame(found, columns=[*columns, "difference", "lo", "hi", "p"])


def task_figures(
    rows: pd.DataFrame, pairs: pd.DataFrame, normalised: dict[str, str]
) -> Iterator[Metric]:
    """``task_accuracy`` of each task and arm, and its difference to full precision.

    rows: table ``tasks``. pairs: of :func:`task_pairs`. normalised: task -> ``none`` or ``bytes``.
    """
    for (task, arm), own in rows.groupby(["task", "arm"], sort=False):
        labels = {"arm": str(arm), "task": str(task), **SOURCE}
        estimate = share(int(own["correct"].sum()), len(own))
        how = _scored(own, normalised[str(task)])
        yield estimate.metric("task_accuracy", "share", how, "measured", **labels)
    for pair in pairs.to_dict("records"):
        labels = {"arm": pair["arm"], "task": pair["task"], **SOURCE}
        estimate = paired_share_difference(pair["gained"], pair["lost"], pair["n"])
        how = f"accuracy of {pair['arm']} less that of full_precision on the same questions"
        yield estimate.metric("task_accuracy_difference", "share", how, "measured", **labels)


def _scored(own: pd.DataFrame, normalise: str) -> str:
    choices = own["kind"] == CHOICE
    said = []
    if choices.any():
        ways = ["largest log-likelihood", "largest log-likelihood a byte"]
        ways = ways[::-1] if normalise == "bytes" else ways
        other = float(np.mean(own.loc[choices, "correct_other"].astype(bool)))
        said.append(
            f"{int(choices.sum())} of multiple choice, {ways[0]} (by {ways[1]}: {other:.3f})"
        )
    if not choices.all():
        said.append(f"{int((~choices).sum())} of cloze, each token of the target the likeliest")
    return "; ".join(said)
