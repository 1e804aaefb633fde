"""From the requests of a session under the load to its figures, for each arm and against one.

Every arm is sent the same requests at the same times, block by block, and is empty between blocks.
So figures of an arm are made over blocks (:mod:`.dependence`), and differences in pairs: of a block
and, for latencies, of the requests that both arms answered. All carry ``source=load``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.measure.dependence import (
    block_statistics,
    quantile_over_blocks,
    share_difference_over_blocks,
    share_over_blocks,
)
from workbench.measure.request_latency import latencies_ms, said_targets, slo_met
from workbench.measure.statistics import Estimate, count, mean_ratio, visible_in
from workbench.records.metric import Metric
from workbench.wording.counts import number_of

SOURCE = {"source": "load"}
QUANTILES = (0.5, 0.95, 0.99)
LATENCIES = {
    "ttft_ms": "first token after the intended start",
    "itl_ms": "gap between two tokens of a request, all gaps of all requests",
    "tpot_ms": "mean time per output token after the first, one figure a request",
    "e2e_ms": "last token after the intended start",
}
Slos = Mapping[str, Mapping[str, Any]]


def load_figures(
    requests: pd.DataFrame,
    gaps: pd.DataFrame,
    arms: Sequence[str],
    slos: Slos,
    block_s: float,
    faults: Sequence[str],
    late: str | None = None,
) -> Iterator[Metric]:
    """The figures of each arm, and of each against the first.

    requests: columns of :mod:`.request_latency`, and ``block``, ``id``, ``arm``. gaps: ``block``,
    ``id``, ``arm`` and ``gap_ms`` between two tokens. slos: class -> targets. block_s: time in
    which the requests of a block were due. faults: kinds that are counted. late: why nothing may
    be read from the latencies; none then has a value.
    """
    met = slo_met(requests, slos)
    observed = _observed(requests, gaps)
    yield from _faults(requests, arms, faults)
    if late:
        yield from left_out(arms, sorted(set(requests["class"]) | set(slos)), late)
        return
    yield from _latencies(observed, arms)
    yield from _speedups(observed, arms)
    yield from _goodput(requests, met, arms, block_s)
    yield from _targets(requests, met, arms, slos)


def _observed(requests: pd.DataFrame, gaps: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Latency -> block, id, arm, value: of requests that were answered in full."""
    answered = requests[requests["status"] == "ok"]
    of = latencies_ms(answered)
    at = ["block", "id", "arm"]
    found = {
        name: answered[at].assign(value=of[name]).dropna(subset=["value"])
        for name in LATENCIES
        if name in of
    }
    whole = gaps.merge(answered[at], on=at)
    return found | {"itl_ms": whole.rename(columns={"gap_ms": "value"})}


def _latencies(observed: Mapping[str, pd.DataFrame], arms: Sequence[str]) -> Iterator[Metric]:
    for name, what in LATENCIES.items():
        for arm in arms:
            own = observed[name][observed[name]["arm"] == arm]
            for q in QUANTILES:
                labels = {"arm": arm, "quantile": _named(q), **SOURCE}
                n, fewest = len(own), _fewest(q)
                if n < fewest:
                    why = f"{n} were observed; {_named(q)} needs {fewest} for a value"
                    yield Metric.missing(name, "ms", why, **labels)
                    continue
                unit = "gaps" if name == "itl_ms" else "requests"
                estimate = quantile_over_blocks(own["value"], own["block"], q, unit=unit)
                yield estimate.metric(name, "ms", f"{what}; requests answered in full", **labels)


def _speedups(observed: Mapping[str, pd.DataFrame], arms: Sequence[str]) -> Iterator[Metric]:
    """Quantiles of the first arm over those of another, of the same requests, within blocks; and
    what difference of each the session could have seen."""
    baseline, *others = arms
    for latency in LATENCIES:
        name = latency.replace("_ms", "_speedup")
        for arm in others:
            pair = _answered_by_both(observed[latency], baseline, arm)
            sizes = pair.groupby(["block", "arm"])["value"].count().unstack("arm").min(axis=1)
            for q in QUANTILES:
                labels = {"arm": arm, "quantile": _named(q), **SOURCE}
                whole = sizes.index[sizes >= _fewest(q)]
                quantiles = block_statistics(
                    pair[pair["block"].isin(whole)], "value", _quantile_of(q)
                )
                if not len(whole):
                    most = int(sizes.max()) if len(sizes) else 0
                    why = (
                        f"no block has the {number_of(_fewest(q), 'observation')} of both arms "
                        f"that {_named(q)} needs within one; the largest has {most}"
                    )
                    yield Metric.missing(name, "x", why, **labels)
                    continue
                if (quantiles <= 0).to_numpy().any():
                    why = (
                        f"{_named(q)} is 0 in a block: the tokens of an answer came together, so "
                        "there is no ratio"
                    )
                    yield Metric.missing(name, "x", why, **labels)
                    continue
                ratio = mean_ratio(quantiles[baseline], quantiles[arm])
                how = (
                    f"{_named(q)} of {baseline} over that of {arm}, of the same requests, within "
                    f"blocks; above 1 {arm} is faster"
                )
                yield ratio.metric(name, "x", how, "derived", **labels)
                if ratio.lo is not None:
                    how = f"scatter of {_named(q)} of {baseline} over that of {arm} over the blocks"
                    yield visible_in(ratio).metric(
                        "smallest_visible_effect", "share", how, speedup=name, **labels
                    )


def _answered_by_both(observed: pd.DataFrame, baseline: str, arm: str) -> pd.DataFrame:
    two = observed[observed["arm"].isin([baseline, arm])]
    by = two.groupby(["block", "id"])["arm"].nunique()
    both = by[by == 2].index
    return two[pd.MultiIndex.from_frame(two[["block", "id"]]).isin(both)]


def _goodput(
    requests: pd.DataFrame, met: pd.Series, arms: Sequence[str], block_s: float
) -> Iterator[Metric]:
    """Requests that met their targets, over the time in which all of the blocks' were due.

    How many were due is part of the load; what an arm makes of them is a share, so the interval is
    that of the share.
    """
    judged = _judged(requests, met, arms)
    for arm in arms:
        labels = {"arm": arm, **SOURCE}
        own = judged[arm]
        if own.empty:
            why = "no request with a target came to the arm"
            yield Metric.missing("goodput_per_s", "requests/s", why, **labels)
            continue
        blocks = requests["block"].nunique()
        per_s = len(own) / (blocks * block_s)
        how = (
            f"requests that met every target of their class, of {per_s:.4g} a second with a target "
            f"over {blocks * block_s:.4g} s; lost and truncated ones are misses"
        )
        share = share_over_blocks(own["met"], own["block"], own["waited_s"])
        rate = _times(share, per_s)
        yield rate.metric("goodput_per_s", "requests/s", how, **labels)
        if arm != arms[0]:
            apart = _times(_difference(judged[arms[0]], own), per_s)
            how = f"goodput of {arm} minus that of {arms[0]}, of the same requests"
            name = "goodput_difference_per_s"
            yield apart.metric(name, "requests/s", how, "derived", **labels)


def _targets(
    requests: pd.DataFrame, met: pd.Series, arms: Sequence[str], slos: Slos
) -> Iterator[Metric]:
    for class_ in sorted(set(requests["class"]) | set(slos)):
        of = requests["class"] == class_
        judged = _judged(requests[of], met[of], arms)
        how = f"targets: {said_targets(slos.get(class_, {}))}"
        for arm in arms:
            labels = {"arm": arm, "class": class_, **SOURCE}
            own = judged[arm]
            if own.empty:
                why = "the class has no target" if of.any() else "no request of this class was due"
                yield Metric.missing("slo_met_share", "", why, **labels)
                continue
            share = share_over_blocks(own["met"], own["block"], own["waited_s"])
            yield share.metric("slo_met_share", "", how, **labels)
            if arm != arms[0]:
                apart = _difference(judged[arms[0]], own)
                said = f"share of {arm} minus that of {arms[0]}, of the same requests; {how}"
                yield apart.metric("slo_met_difference", "", said, "derived", **labels)


def _judged(requests: pd.DataFrame, met: pd.Series, arms: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Arm -> block, id, met, waited_s of the requests that a target applies to, all arms' in the
    same order. A request of one token has no time per token, so an arm that gave fewer tokens
    might be judged on fewer requests: then that request is left out of all."""
    waited_s = requests["end_s"] - requests["intended_s"]
    found = requests[["block", "id", "arm"]].assign(met=met, waited_s=waited_s)
    judged = found.groupby(["block", "id"])["met"].transform(lambda column: column.notna().all())
    found = found[judged.astype(bool)].astype({"met": float}).sort_values(["block", "id"])
    return {arm: found[found["arm"] == arm] for arm in arms}


def _difference(baseline: pd.DataFrame, own: pd.DataFrame) -> Estimate:
    return share_difference_over_blocks(
        baseline["met"], own["met"], own["block"].tolist(), baseline["waited_s"], own["waited_s"]
    )


def _times(share: Estimate, factor: float) -> Estimate:
    """A share of so many requests a second, as requests a second."""
    value, lo, hi = (
        None if of is None else factor * of for of in (share.value, share.lo, share.hi)
    )
    return replace(share, value=value, lo=lo, hi=hi)


def _faults(requests: pd.DataFrame, arms: Sequence[str], faults: Sequence[str]) -> Iterator[Metric]:
    for arm in arms:
        own = requests[requests["arm"] == arm]
        for fault in faults:
            found = count(int((own["fault"] == fault).sum()), len(own))
            labels = {"arm": arm, "fault": fault, **SOURCE}
            yield found.metric("failed_requests", "requests", "", **labels)


def left_out(arms: Sequence[str], classes: Sequence[str], why: str) -> Iterator[Metric]:
    """Every figure that rests on a latency, without a value."""
    for place, arm in enumerate(arms):
        own = {"arm": arm, **SOURCE}
        for latency in LATENCIES:
            for q in QUANTILES:
                labels = {**own, "quantile": _named(q)}
                yield Metric.missing(latency, "ms", why, **labels)
                if place:
                    name = latency.replace("_ms", "_speedup")
                    yield Metric.missing(name, "x", why, **labels)
        yield Metric.missing("goodput_per_s", "requests/s", why, **own)
        for class_ in classes:
            yield Metric.missing("slo_met_share", "", why, **own, **{"class": class_})


def dispatch_delays(requests: pd.DataFrame) -> dict[str, Estimate]:
    """Quantile -> how late the client itself sent, in ms, of the requests to all arms."""
    delay_ms = 1e3 * (requests["sent_s"] - requests["intended_s"])
    # A block is one stretch of the client's time, whichever arm it went to.
    stretches = requests["block"].astype(str) + requests["arm"]
    return {_named(q): quantile_over_blocks(delay_ms, stretches, q) for q in (0.5, 0.99)}


def _fewest(q: float) -> int:
    """Observations of which one lies beyond the quantile: p99 of twenty is just the slowest."""
    return round(1 / min(q, 1 - q))


def _named(q: float) -> str:
    return f"p{100 * q:g}"


def _quantile_of(q: float) -> Callable[[np.ndarray], float]:
    return lambda values: float(np.quantile(values, q))
