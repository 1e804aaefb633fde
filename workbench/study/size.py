"""The size study: does the gap of ternary weights grow or shrink with the network?

Both arms at several widths. The gap at each size, and its trend: the slope of the least-squares
line of the gap over the logarithm of the parameters, in bits per byte for each doubling. A
trend below zero says that larger networks lose less.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench.measure.paired_bootstrap import BitsPerByte, PairedBootstrap
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.stage_record import StageRecord
from workbench.study.arm import StudyArm, make_arm
from workbench.study.network import shape_of_width, values_of_width
from workbench.wording.counts import number_of

HEADLINE = "gap_trend"
FULL, TERNARY = "full_precision", "ternary"


def arms(resolved: ResolvedPilot) -> list[StudyArm]:
    """Both arms of each width, narrow to wide; for every seed."""
    return [
        make_arm(resolved, f"{kind}_{width}", kind, seed, _values(resolved, width))
        for seed in resolved.pilot.study.seeds
        for width in sorted(set(resolved.pilot.study.size.widths))
        for kind in (FULL, TERNARY)
    ]


def figures(record: StageRecord, found: pd.DataFrame, excerpts: pd.DataFrame) -> None:
    """Add the study's figures to ``record``; see :mod:`workbench.study.run` for the tables."""
    bootstrap = PairedBootstrap(excerpts)
    rows = found[found["weights"] == "trained"].drop_duplicates("arm")
    sizes = rows[rows["kind"] == TERNARY].sort_values("width")
    widths, parameters = sizes["width"].tolist(), sizes["parameters"].to_numpy(float)
    for row in rows.itertuples():
        estimate = bootstrap.estimate(lambda bits, name=row.arm: bits[name])
        how = (
            f"{number_of(row.parameters, 'parameter', form=',')}, "
            f"{number_of(row.training_tokens, 'token', form=',')}"
        )
        labels = {"arm": row.kind, "width": str(row.width)}
        record.add(estimate.metric("bits_per_byte", "bits/byte", how, **labels))
    for row in sizes.itertuples():
        gap = bootstrap.estimate(lambda bits, width=row.width: _gap(bits, width))
        how = (
            f"ternary minus full precision, {number_of(row.parameters, 'parameter', form=',')}; "
            "positive is worse"
        )
        record.add(gap.metric("gap_bits_per_byte", "bits/byte", how, width=str(row.width)))

    def relative(bits: BitsPerByte) -> np.ndarray:
        shares = [_gap(bits, width) / bits[f"{FULL}_{width}"] for width in widths]
        return slope_per_doubling(parameters, np.stack(shares, axis=1))

    def trend(bits: BitsPerByte) -> np.ndarray:
        gaps = np.stack([_gap(bits, width) for width in widths], axis=1)
        return slope_per_doubling(parameters, gaps)

    how = (
        f"least-squares slope over log2 of {', '.join(f'{p:,.0f}' for p in parameters)} "
        "parameters, for each doubling"
    )
    estimate = bootstrap.estimate(relative)
    record.add(estimate.metric("relative_gap_trend", "share", f"gap over loss; {how}", "derived"))
    estimate = bootstrap.estimate(trend)
    record.add(estimate.metric(HEADLINE, "bits/byte", f"gap; {how}", "derived"))


def slope_per_doubling(sizes_W: np.ndarray, values_RW: np.ndarray) -> np.ndarray:
    """The least-squares slope of each row over log2 of the sizes."""
    x_W = np.log2(sizes_W)
    x_W = x_W - x_W.mean()
    return values_RW @ x_W / (x_W @ x_W)


def _gap(bits: BitsPerByte, width: int) -> np.ndarray:
    return bits[f"{TERNARY}_{width}"] - bits[f"{FULL}_{width}"]


def _values(resolved: ResolvedPilot, width: int) -> dict[str, Any]:
    """The network of that width, and as many steps as its parameters ask for."""
    values = values_of_width(resolved, width)
    per_parameter = resolved.pilot.study.size.tokens_per_parameter
    if per_parameter is None:
        return values
    train, length = resolved.pilot.train, resolved.pilot.data.sequence_length
    step_tokens = train.batch_size * train.gradient_accumulation * length
    tokens = per_parameter * shape_of_width(resolved, width).parameters
    values["train"]["steps"] = max(1, round(tokens / step_tokens))
    return values
