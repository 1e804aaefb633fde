"""From the tables of an A/B session to its figures.

Speeds are made per block, and ratios within a block; the interval is over blocks. Quality
differences are made per excerpt and resampled by document. An arm's figures carry
``source=trained``, because its weights are those of this pilot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.engine.speculation_counts import SpeculationCounts
from workbench.measure.latency import LoadClass
from workbench.measure.meters.basis import NODE, PARTS
from workbench.measure.quality import independent_units
from workbench.measure.session import AGAIN, block_seconds, timed_phase
from workbench.measure.statistics import (
    bits_per_byte,
    bits_per_byte_difference,
    mean,
    mean_ratio,
    smallest_visible_effect,
)
from workbench.records.metric import Metric, MetricKind
from workbench.wording.counts import number_of

MB = 1e6
SOURCE = {"source": "trained"}
AS_IT_CAME = "checkpoint"
Classes = Sequence[LoadClass]


def quality_figures(
    quality: pd.DataFrame, baseline: str, resamples: int, seed: int, judged: str = ""
) -> Iterator[Metric]:
    """``bits_per_byte`` of each arm and how much worse each is than the baseline, and than the
    ``checkpoint`` as it came where that is an arm: a baseline that fine-tuning made worse would
    flatter the others. judged: when, in words."""
    arms = {arm: rows.reset_index(drop=True) for arm, rows in quality.groupby("arm", sort=False)}
    for arm, rows in arms.items():
        groups, of = independent_units(rows)
        how = ", ".join(filter(None, (f"{number_of(len(rows), 'held-out excerpt')}", judged, of)))
        settings: dict[str, Any] = {"groups": groups, "resamples": resamples, "seed": seed}
        estimate = bits_per_byte(rows["nats"], rows["bytes"], **settings)
        yield estimate.metric("bits_per_byte", "bits/byte", how, arm=arm, **SOURCE)
        for other in (baseline, AS_IT_CAME):
            if other == arm or other not in arms:
                continue
            gap = bits_per_byte_difference(
                arms[other]["nats"], rows["nats"], rows["bytes"], **settings
            )
            how = (
                f"{arm} minus {other} on the same {number_of(len(rows), 'excerpt')}, {of}; "
                "positive is worse"
            )
            over = {} if other == baseline else {"over": other}
            labels = {"arm": arm, **SOURCE, **over}
            yield gap.metric("quality_gap_bits_per_byte", "bits/byte", how, **labels)


def latency_figures(
    blocks: pd.DataFrame, baseline: str, classes: Classes, computes: str
) -> Iterator[Metric]:
    """Time to the first token, time per token after it, whole latency, and the ratio."""
    for wanted in classes:
        if wanted.batch is not None:
            continue
        parts = {
            name: block_seconds(blocks, wanted.name, phase)
            for name, phase in (
                ("ttft_ms", "prefill"), ("tpot_ms", "decode"), ("latency_ms", "request")
            )
        }  # fmt: skip
        how = (
            f"{wanted.prompt_tokens} prompt and {number_of(wanted.output_tokens, 'output token')}, "
            f"one request at a time, mean of a block; {computes}"
        )
        for arm in _arms(blocks):
            labels = {"arm": arm, "class": wanted.name, **SOURCE}
            for name, seconds in parts.items():
                if name == "tpot_ms" and wanted.output_tokens == 1:
                    why = "undefined for a request of one output token"
                    yield Metric.missing(name, "ms", why, **labels)
                    continue
                per = wanted.output_tokens - 1 if name == "tpot_ms" else 1
                yield mean(1e3 * seconds[arm] / per).metric(name, "ms", how, **labels)
            if arm != baseline:
                yield _ratio("speedup", parts["latency_ms"], baseline, arm, labels)


def throughput_figures(
    blocks: pd.DataFrame, baseline: str, classes: Classes, computes: str
) -> Iterator[Metric]:
    """Tokens a second of all sequences of a batch together, and the ratio to the baseline."""
    for wanted in classes:
        if wanted.batch is None:
            continue
        seconds = block_seconds(blocks, wanted.name, "decode")
        how = (
            f"{number_of(wanted.batch, 'sequence')} decoded together, "
            f"{number_of(wanted.output_tokens, 'token')} each after {wanted.prompt_tokens}, "
            f"prefill not counted; {computes}"
        )
        for arm in _arms(blocks):
            labels = {"arm": arm, "batch": str(wanted.batch), **SOURCE}
            tokens = np.full(len(seconds), wanted.output_tokens)
            rate = mean_ratio(tokens, seconds[arm])
            yield rate.metric("decode_tokens_per_s", "tokens/s", how, **labels)
            if arm != baseline:
                yield _ratio("throughput_ratio", seconds, baseline, arm, labels)


def visible_effects(blocks: pd.DataFrame, baseline: str, classes: Classes) -> Iterator[Metric]:
    """The baseline against itself: below this difference the session sees nothing."""
    for wanted in classes:
        seconds = block_seconds(blocks, wanted.name, timed_phase(wanted))
        effect = smallest_visible_effect(seconds[baseline], seconds[AGAIN], stopped=True)
        how = f"{baseline} in two places of each block"
        labels = {"class": wanted.name, **SOURCE}
        yield effect.metric("smallest_visible_effect", "share", how, **labels)


def memory_figures(sizes: Mapping[str, tuple[int, int]], baseline: str) -> Iterator[Metric]:
    """sizes: arm -> (bytes of the weights, growth of the memory when it was loaded)."""
    for arm, (weights, resident) in sizes.items():
        labels = {"arm": arm, **SOURCE}
        how = (
            "bytes of all weights in memory, embedding, head and scales included, counted; with "
            f"its cache and buffers memory grew by {resident / MB:.1f} MB"
        )
        size = weights / MB
        yield Metric("model_memory_mb", size, "MB", how, labels=labels, basis="exact")
        if arm != baseline:
            how = f"bytes of the weights of {baseline} over those of {arm}"
            ratio = sizes[baseline][0] / weights
            yield Metric("memory_ratio", ratio, "x", how, "derived", labels=labels, basis="exact")


def speculation_figures(arm: str, counts: SpeculationCounts) -> Iterator[Metric]:
    """How often drafts were right, what a verification gave, and which draft guessed how much.
    counts: of all that the arm wrote in this session's process."""
    labels = {"arm": arm, **SOURCE}
    if not counts.verifications:
        for name, unit in (("draft_acceptance", "share"), ("tokens_per_verification", "tokens")):
            why = "nothing was verified since the session went on"
            yield Metric.missing(name, unit, why, **labels)
        return
    how = (
        f"{counts.accepted} of {number_of(counts.guessed, 'guess')} kept, in "
        f"{number_of(counts.verifications, 'round')}"
    )
    if counts.guessed:
        accepted = counts.accepted / counts.guessed
        yield Metric("draft_acceptance", accepted, "share", how, labels=labels)
    else:
        yield Metric.missing("draft_acceptance", "share", "guessing never paid", **labels)
    written = counts.written / counts.verifications
    yield Metric("tokens_per_verification", written, "tokens", how, labels=labels)
    for name, draft in counts.drafts.items():
        how = (
            f"{draft.guessed} of {number_of(counts.guessed, 'guess')}, of which "
            f"{draft.accepted} were kept"
        )
        of_draft = labels | {"draft": name}
        if counts.guessed:
            share = draft.guessed / counts.guessed
            yield Metric("draft_share", share, "share", how, labels=of_draft)
        else:
            yield Metric.missing("draft_share", "share", "guessing never paid", **of_draft)


def energy_figures(energies: pd.DataFrame, baseline: str, classes: Classes) -> Iterator[Metric]:
    """Energy of a request and of an output token, means over blocks, and the ratio of the arms
    within blocks; or why there is none.

    energies: table of :meth:`~.session.Session.energies`. All arms of a class are held against
    each other on one basis, the widest in which most of the blocks have every arm. A block in
    which it lacks a turn is left out, and counted. What is wrong in every block the same way
    (``bias_j``) widens the interval.
    """
    for wanted in classes:
        rows = energies[(energies["class"] == wanted.name) & (energies["arm"] != AGAIN)]
        arms = list(rows["arm"].unique())
        chosen, whole, lacking = widest_basis(rows, len(arms))
        for arm in arms:
            labels = {"arm": arm, "class": wanted.name, **SOURCE}
            own = chosen[chosen["arm"] == arm] if chosen is not None else None
            for name, per in (
                ("energy_j_per_request", "sequences"), ("energy_j_per_token", "tokens")
            ):  # fmt: skip
                if own is None:
                    yield Metric.missing(name, "J", lacking, **labels)
                else:
                    yield _energy(name, own, per, f"gross, {whole}{lacking}", labels)
            yield _net(own, f"{whole}{lacking}", lacking, labels)
            if own is not None and arm != baseline:
                full = chosen[chosen["arm"] == baseline]
                yield _energy_ratio(full, own, baseline, f"{whole}{lacking}", labels)


def energy_bases(energies: pd.DataFrame) -> dict[str, str]:
    """Class -> the basis that all its arms stand on; classes without energy are left out."""
    found = {}
    for name, rows in energies[energies["arm"] != AGAIN].groupby("class", sort=False):
        chosen, _, _ = widest_basis(rows, rows["arm"].nunique())
        if chosen is not None:
            found[str(name)] = str(chosen["basis"].iloc[0])
    return found


def widest_basis(rows: pd.DataFrame, arms: int) -> tuple[pd.DataFrame | None, str, str]:
    """(the turns of whole blocks on the widest basis that has most of them, what it covers, what
    is left out and why); without any, None and why."""
    blocks, tried = rows["block"].nunique(), []
    width = {name: place for place, name in enumerate((NODE, *PARTS, ""))}
    by_basis = [own for _, own in rows.groupby(["basis", "covers"], sort=False)]
    for own in sorted(by_basis, key=lambda own: width[own["basis"].iloc[0]]):
        known = own.dropna(subset=["energy_j"])
        each = known.groupby("block")["arm"].nunique()
        whole = each.index[each == arms]
        missing = own[own["energy_j"].isna()]
        why = _most_frequent(missing["how"])
        if len(whole) and 2 * len(whole) >= blocks:
            said = [f"; {text}" for text in tried]
            if len(whole) < blocks:
                said.insert(
                    0, f"; {blocks - len(whole)} of {number_of(blocks, 'block')} left out ({why})"
                )
            covers = str(own["covers"].iloc[0])
            return known[known["block"].isin(whole)], covers, "".join(said)
        share = f"{len(missing)} of {number_of(len(own), 'turn')}: " if len(known) else ""
        covers = f"not {own['covers'].iloc[0]}: " if own["covers"].iloc[0] else ""
        tried.append(f"{covers}{share}{why}")
    return None, "", "; ".join(tried) or "no turn was metered"


def _most_frequent(texts: pd.Series) -> str:
    """A text of the kind that is most frequent, a kind being its reason code."""
    if not len(texts):
        return "turns of some arms are missing"
    codes = texts.str.split(":", n=1).str[0]
    return str(texts[codes == codes.mode().iloc[0]].iloc[0])


def _energy(name: str, turns: pd.DataFrame, per: str, how: str, labels: dict[str, str]) -> Metric:
    sums = turns.groupby("block")[["energy_j", "bias_j", per]].sum()
    estimate = mean(sums["energy_j"] / sums[per])
    bias = float((sums["bias_j"] / sums[per]).mean())
    kind: MetricKind = "modelled" if "modelled" in set(turns["kind"]) else "measured"
    metric = estimate.metric(
        name, "J", f"{how}; prompt and output, mean of a block", kind, **labels
    )
    if metric.lo is None or metric.hi is None:
        return metric
    # What is net of idle may be below 0; what is not never is.
    lowest = 0.0 if metric.lo >= 0 else metric.lo - bias
    return replace(metric, lo=max(lowest, metric.lo - bias), hi=metric.hi + bias)


def _net(turns: pd.DataFrame | None, how: str, lacking: str, labels: dict[str, str]) -> Metric:
    """Energy of a request less what the machine draws idle, in the rests before and after."""
    name = "energy_net_j_per_request"
    if turns is None:
        return Metric.missing(name, "J", lacking, **labels)
    idle_w = turns.get("idle_w", pd.Series(np.nan, turns.index)).astype(float)
    if idle_w.isna().any():
        return Metric.missing(name, "J", "no idle power was measured around the turns", **labels)
    length_s = turns["end_s"] - turns["start_s"]
    net_j = turns["energy_j"] - idle_w * length_s
    bias_j = turns["bias_j"] + turns["idle_error_w"] * length_s
    said = f"net of the idle power measured before and after, {how}"
    net = turns.assign(energy_j=net_j, bias_j=bias_j)
    return _energy(name, net, "sequences", said, labels)


def _energy_ratio(
    full: pd.DataFrame, own: pd.DataFrame, baseline: str, how: str, labels: dict[str, str]
) -> Metric:
    """How many times as much the baseline takes, from the pairs within blocks."""
    sums = [
        turns.groupby("block")[["energy_j", "bias_j", "sequences"]].sum() for turns in (full, own)
    ]
    above, below = ((one["energy_j"] / one["sequences"]).to_numpy() for one in sums)
    estimate = mean_ratio(above, below, stopped=True)
    how = f"energy of a request of {baseline} over that of {labels['arm']}, within blocks; {how}"
    metric = estimate.metric("energy_ratio", "x", how, "derived", **labels)
    if metric.lo is None or metric.hi is None:
        return metric
    bias = sum(float((one["bias_j"] / one["energy_j"]).mean()) for one in sums)
    return replace(metric, lo=metric.lo / (1 + bias), hi=metric.hi * (1 + bias))


def _arms(blocks: pd.DataFrame) -> list[str]:
    return [arm for arm in blocks["arm"].unique() if arm != AGAIN]


def _ratio(
    name: str, seconds: pd.DataFrame, baseline: str, arm: str, labels: dict[str, str]
) -> Metric:
    how = f"seconds of {baseline} over seconds of {arm}, within blocks"
    ratio = mean_ratio(seconds[baseline], seconds[arm], stopped=True)
    return ratio.metric(name, "x", how, **labels)
