"""Energy of served traffic: of a request, a token, an accepted answer of each arm under the load.

An arm's turn in a block is one window, from the moment its first request could be due until its
last answer has ended and the block's time is over. What the machine draws meanwhile, idle moments
between requests included, is the energy of that traffic at that rate. A figure of an arm is a ratio
of sums over blocks; arms are compared within blocks, whose requests they share. All own arms stand
on one basis.

Between prompt and generated tokens the energy is split by a rule that the figure names:

- **regression**, where the blocks tell: energy net of idle = a x prompt tokens + b x generated
  tokens, least squares over blocks, when both are positive and known to ``IDENTIFIED`` of
  themselves;
- else **time**: seconds a prompt token and seconds a generated token takes in this session's fixed
  shapes, at the batch next to the load's own concurrency.

Either way the parts add up to the gross energy, idle moments shared out like the rest.

An answer is accepted here that came whole; where own prompts have checks,
:mod:`.accepted_energy` counts those as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from workbench.measure.ab_figures import widest_basis
from workbench.measure.dependence import ratio_of_sums_over_blocks
from workbench.measure.statistics import LEVEL, mean_ratio
from workbench.records.metric import Metric, MetricKind
from workbench.wording.counts import number_of

SOURCE = {"source": "load"}
PER = {
    "energy_j_per_request": ("requests", "of every request that was sent"),
    "energy_net_j_per_request": ("requests", "of every request that was sent"),
    "energy_j_per_token": ("output_tokens", "of every token that came, prompts' energy included"),
    "energy_j_per_accepted_answer": ("accepted", "of every answer that came whole"),
}
SPLIT = ("prefill_energy_j_per_token", "decode_energy_j_per_token")
RATIOS = {
    "energy_ratio": "energy_j_per_request",
    "energy_net_ratio": "energy_net_j_per_request",
    "accepted_answer_energy_ratio": "energy_j_per_accepted_answer",
}
IDENTIFIED = 0.5
"""Half width of a coefficient's 95 % interval, as a share of it, up to which a regression tells."""
FEWEST_TO_REGRESS = 8


@dataclass(frozen=True)
class _Arm:
    """blocks: by block energy_j, bias_j, net_j, net_bias_j, kind and the counts it was for."""

    blocks: pd.DataFrame
    basis: str
    covers: str
    left_out: str


@dataclass(frozen=True)
class Split:
    """prefill: share of the energy that prompt tokens take. how: the rule, in words."""

    prefill: float
    how: str


def load_energy_figures(
    requests: pd.DataFrame,
    energies: pd.DataFrame,
    shapes: pd.DataFrame,
    arms: Sequence[str],
    own_arms: Sequence[str],
    why_none: str | None = None,
) -> Iterator[Metric]:
    """The figures of each arm, and of each against the first.

    requests: columns of :mod:`.under_load`. energies: ``block``, ``arm`` and the columns of a
    window, a row for each basis. shapes: table ``blocks`` of the fixed shapes. own_arms: those of
    the pilot, which must stand on one basis. why_none: why nothing was metered.
    """
    found: dict[str, _Arm] = {}
    lacking = dict.fromkeys(arms, why_none or "")
    if not why_none:
        found, lacking = _metered(requests, energies, arms, own_arms)
    for arm in arms:
        labels = {"arm": arm, **SOURCE}
        if arm not in found:
            for name in (*PER, *SPLIT):
                yield Metric.missing(name, "J", lacking[arm], **labels)
        else:
            for name in PER:
                yield _per(name, found[arm], labels)
            yield from _split_figures(found[arm], requests, shapes, labels)
    for arm in arms[1:]:
        for name, of in RATIOS.items():
            if why_none:
                yield Metric.missing(name, "x", why_none, arm=arm, **SOURCE)
                continue
            yield _ratio(name, of, arms[0], arm, found, lacking)


def load_energy_basis(
    energies: pd.DataFrame, arms: Sequence[str], own_arms: Sequence[str]
) -> dict[str, str]:
    """Arm -> the basis that its figures stand on; arms without energy are left out."""
    found, _ = _chosen(energies, arms, own_arms)
    return {arm: str(rows["basis"].iloc[0]) for arm, (rows, _, _) in found.items()}


def _chosen(
    energies: pd.DataFrame, arms: Sequence[str], own_arms: Sequence[str]
) -> tuple[dict[str, tuple[pd.DataFrame, str, str]], dict[str, str]]:
    """Arm -> its windows on the basis of all own arms, or of an address alone, what that covers and
    what is left out; and why the others have none."""
    found, lacking = {}, {}
    groups = [list(own_arms), *([arm] for arm in arms if arm not in own_arms)]
    for group in groups:
        rows = energies[energies["arm"].isin(group)]
        chosen, covers, said = widest_basis(rows, len(group))
        for arm in group:
            if chosen is None:
                lacking[arm] = said
            else:
                found[arm] = (chosen[chosen["arm"] == arm], covers, said)
    return found, lacking


def _metered(
    requests: pd.DataFrame, energies: pd.DataFrame, arms: Sequence[str], own_arms: Sequence[str]
) -> tuple[dict[str, _Arm], dict[str, str]]:
    chosen, lacking = _chosen(energies, arms, own_arms)
    found = {}
    for arm, (rows, covers, said) in chosen.items():
        joined = rows.set_index("block").join(_counts(requests, arm))
        length_s = joined["end_s"] - joined["start_s"]
        joined["net_j"] = joined["energy_j"] - joined["idle_w"].astype(float) * length_s
        joined["net_bias_j"] = joined["bias_j"] + joined["idle_error_w"] * length_s
        found[arm] = _Arm(joined, str(rows["basis"].iloc[0]), covers, said)
    return found, lacking


def _counts(requests: pd.DataFrame, arm: str) -> pd.DataFrame:
    """By block: requests, accepted answers, prompt tokens that were worked on, tokens that came."""
    own = requests[requests["arm"] == arm]
    worked_on = own["prompt_tokens"].where(own["output_tokens"] > 0, 0)
    return (
        pd.DataFrame(
            {
                "requests": 1,
                "accepted": (own["status"] == "ok").astype(int),
                "prompt_tokens": worked_on,
                "output_tokens": own["output_tokens"],
                "busy_s": (own["last_token_s"] - own["sent_s"]).fillna(0.0),
                "block": own["block"],
            }
        )
        .groupby("block")
        .sum()
    )


def _per(name: str, arm: _Arm, labels: dict[str, str]) -> Metric:
    per, of = PER[name]
    energy, wrong = _columns(name)
    blocks = arm.blocks
    if blocks[energy].isna().any():
        return Metric.missing(name, "J", "no idle power was measured around the load", **labels)
    if not blocks[per].sum():
        return Metric.missing(name, "J", f"nothing to divide by: no {per} of this arm", **labels)
    estimate = ratio_of_sums_over_blocks(blocks[energy], blocks[per])
    gross = "net of the idle power measured before and after" if "_net_" in name else "gross"
    how = f"{gross}, {arm.covers}, {of}{arm.left_out}"
    metric = estimate.metric(name, "J", how, _kind(blocks), **labels)
    if metric.lo is None or metric.hi is None:
        return metric
    bias = float(blocks[wrong].sum() / blocks[per].sum())
    return replace(metric, lo=metric.lo - bias, hi=metric.hi + bias)


def _columns(name: str) -> tuple[str, str]:
    """Energy, and what of it is wrong in every block the same way."""
    return ("net_j", "net_bias_j") if "_net_" in name else ("energy_j", "bias_j")


def _kind(blocks: pd.DataFrame) -> MetricKind:
    return "modelled" if "modelled" in set(blocks["kind"]) else "measured"


def _ratio(
    name: str,
    of: str,
    baseline: str,
    arm: str,
    found: Mapping[str, _Arm],
    lacking: Mapping[str, str],
) -> Metric:
    """How many times as much the baseline takes, from the pairs within blocks."""
    labels = {"arm": arm, **SOURCE}
    for each in (baseline, arm):
        if each not in found:
            return Metric.missing(name, "x", f"{each}: {lacking[each]}", **labels)
    full, own = found[baseline], found[arm]
    if full.basis != own.basis:
        why = f"{baseline} is metered at {full.covers}, {arm} at {own.covers}: no one basis"
        return Metric.missing(name, "x", why, **labels)
    per = PER[of][0]
    energy, wrong = _columns(of)
    both = full.blocks.join(own.blocks.add_suffix("_own"), how="inner")
    above = both[energy] / both[per]
    below = both[f"{energy}_own"] / both[f"{per}_own"]
    usable = np.isfinite(above) & np.isfinite(below)
    if not usable.all() or (above <= 0).any() or (below <= 0).any():
        why = f"no ratio: in a block {of} of {baseline} or {arm} is not above 0 or not defined"
        return Metric.missing(name, "x", why, **labels)
    estimate = mean_ratio(above, below)
    how = (
        f"{of} of {baseline} over that of {arm}, of the same requests, within blocks; above 1 "
        f"{arm} takes less; {own.covers}"
    )
    metric = estimate.metric(name, "x", how, "derived", **labels)
    if metric.lo is None or metric.hi is None:
        return metric
    bias = float((both[wrong] / both[energy]).mean())
    bias += float((both[f"{wrong}_own"] / both[f"{energy}_own"]).mean())
    return replace(metric, lo=metric.lo / (1 + bias), hi=metric.hi * (1 + bias))


def _split_figures(
    arm: _Arm, requests: pd.DataFrame, shapes: pd.DataFrame, labels: dict[str, str]
) -> Iterator[Metric]:
    blocks = arm.blocks
    tokens = ("prompt_tokens", "output_tokens")
    split = None
    if blocks[list(tokens)].sum().all():
        split = by_regression(blocks) or by_time(blocks, shapes, labels["arm"])
    if split is None:
        why = (
            "not split: the blocks do not tell prompt from generated tokens, and the arm has no "
            "fixed shapes whose times would"
        )
        for name in SPLIT:
            yield Metric.missing(name, "J", why, **labels)
        return
    for name, per, share in zip(SPLIT, tokens, (split.prefill, 1 - split.prefill), strict=True):
        estimate = ratio_of_sums_over_blocks(share * blocks["energy_j"], blocks[per])
        how = (
            f"{share:.1%} of the gross energy of {arm.covers}, {split.how}; the interval is the "
            "energy's, not the split's"
        )
        yield estimate.metric(name, "J", how, "derived", **labels)


def by_regression(blocks: pd.DataFrame) -> Split | None:
    """blocks: net_j, prompt_tokens and output_tokens by block. None where they do not tell."""
    n = len(blocks)
    tokens = blocks[["prompt_tokens", "output_tokens"]].to_numpy(float)
    net_j = blocks["net_j"].to_numpy(float)
    if n < FEWEST_TO_REGRESS or not np.isfinite(net_j).all():
        return None
    each_j, residual, rank, _ = np.linalg.lstsq(tokens, net_j, rcond=None)
    if rank < 2 or (each_j <= 0).any():
        return None
    variance = float(residual[0]) / (n - 2) * np.diag(np.linalg.inv(tokens.T @ tokens))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 2)) * np.sqrt(variance)
    if (half > IDENTIFIED * each_j).any():
        return None
    prefill_j, decode_j = each_j * tokens.sum(axis=0)
    how = (
        f"by regression over {number_of(n, 'block')}: net of idle {each_j[0]:.3g} ± {half[0]:.2g} "
        f"J a prompt and {each_j[1]:.3g} ± {half[1]:.2g} J a generated token"
    )
    return Split(float(prefill_j / (prefill_j + decode_j)), how)


def by_time(blocks: pd.DataFrame, shapes: pd.DataFrame, arm: str) -> Split | None:
    """shapes: times of the arm's prefills and decodes in the fixed shapes. None without them."""
    own = shapes[(shapes["arm"] == arm) & shapes["phase"].isin(["prefill", "decode"])]
    own = own[own["tokens"] > 0]  # a request of one token has no decode
    if own.empty:
        return None
    length_s = float((blocks["end_s"] - blocks["start_s"]).sum())
    together = float(blocks["busy_s"].sum()) / length_s
    whole = own.groupby("batch")["phase"].nunique()
    batches = whole.index[whole == 2]
    if not len(batches):
        return None
    batch = min(batches, key=lambda size: (abs(size - together), size))
    sums = own[own["batch"] == batch].groupby("phase")[["seconds", "tokens"]].sum()
    token_s = sums["seconds"] / sums["tokens"]
    prefill_s = token_s["prefill"] * float(blocks["prompt_tokens"].sum())
    decode_s = token_s["decode"] * float(blocks["output_tokens"].sum())
    how = (
        f"by time: {1e3 * token_s['prefill']:.3g} ms a prompt and {1e3 * token_s['decode']:.3g} ms "
        f"a generated token in the fixed shapes at batch {batch}, the load has "
        f"{number_of(together, 'request', form='.2g')} at once"
    )
    return Split(float(prefill_s / (prefill_s + decode_s)), how)
