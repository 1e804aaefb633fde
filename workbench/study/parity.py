"""The parity study: how much wider must a ternary network be to match full precision?

One full-precision network, ternary networks of several widths, all on the same tokens. Between
the two widths where the gap to full precision changes its sign, it is taken as a straight line
over the logarithm of the width; where it is zero is parity. Bytes and parameters at parity are
interpolated in the same way. Memory is of the artefacts: bf16 against packed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.measure.paired_bootstrap import BitsPerByte, PairedBootstrap
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.stage_record import StageRecord
from workbench.study.arm import StudyArm, make_arm
from workbench.study.network import values_of_width
from workbench.wording.counts import number_of

HEADLINE = "parity_width_factor"
FULL, TERNARY = "full_precision", "ternary"


def arms(resolved: ResolvedPilot) -> list[StudyArm]:
    """The full-precision network, then the ternary ones from narrow to wide; for every seed."""
    section = resolved.pilot.study.parity
    plan = [(FULL, section.full_width), *((TERNARY, w) for w in sorted(set(section.widths)))]
    return [
        make_arm(resolved, f"{kind}_{width}", kind, seed, values_of_width(resolved, width))
        for seed in resolved.pilot.study.seeds
        for kind, width in plan
    ]


def figures(record: StageRecord, found: pd.DataFrame, excerpts: pd.DataFrame) -> None:
    """Add the study's figures to ``record``; see :mod:`workbench.study.run` for the tables."""
    bootstrap = PairedBootstrap(excerpts)
    rows = found[found["weights"] == "trained"].drop_duplicates("arm")
    full = rows[rows["kind"] == FULL].iloc[0]
    ternary = rows[rows["kind"] == TERNARY].sort_values("width")
    widths = ternary["width"].to_numpy(float)
    for row in rows.itertuples():
        estimate = bootstrap.estimate(lambda bits, name=row.arm: bits[name])
        how = f"{number_of(len(bootstrap), 'held-out document')}, {found['seed'].nunique()} seed(s)"
        labels = {"arm": row.kind, "width": str(row.width)}
        record.add(estimate.metric("bits_per_byte", "bits/byte", how, **labels))
    for row in ternary.itertuples():
        gap = bootstrap.estimate(lambda bits, name=row.arm: bits[name] - bits[full["arm"]])
        how = f"against full precision of width {full['width']}, same documents; positive is worse"
        labels = {"arm": TERNARY, "width": str(row.width)}
        record.add(gap.metric("gap_bits_per_byte", "bits/byte", how, **labels))

    def crossing(bits: BitsPerByte) -> np.ndarray:
        gaps = np.stack([bits[name] - bits[full["arm"]] for name in ternary["arm"]], axis=1)
        return parity_width(widths, gaps)

    def add(name: str, of_width: Callable[[np.ndarray], np.ndarray], what: str) -> None:
        estimate = bootstrap.estimate(lambda bits: of_width(crossing(bits)))
        spread = f"widths {', '.join(f'{w:g}' for w in widths)} against {full['width']}"
        if estimate.value is None:
            why = f"the gap to full precision changes its sign at none of the {spread}"
            record.missing(name, "ratio", why)
        else:
            record.add(estimate.metric(name, "ratio", f"{what} at parity; {spread}", "derived"))

    def ratio(column: str, at_full: str) -> Callable[[np.ndarray], np.ndarray]:
        values = np.log(ternary[column].to_numpy(float) / float(full[at_full]))
        return lambda width: np.exp(np.interp(np.log(width), np.log(widths), values))

    memory = "packed bytes over bf16 bytes"
    add("parity_memory_ratio", ratio("model_bytes", "model_bytes"), f"{memory}, whole model")
    add("parity_linear_memory_ratio", ratio("linear_bytes", "linear_bytes"), f"{memory}, layers")
    add("parity_parameters_factor", ratio("parameters", "parameters"), "all parameters")
    add(HEADLINE, lambda width: width / float(full["width"]), "hidden size over hidden size")


def parity_width(widths_W: np.ndarray, gaps_RW: np.ndarray) -> np.ndarray:
    """Where each row of gaps first goes from above zero to zero or below; NaN where it does not.

    widths_W: ascending. Linear in the logarithm of the width between its two neighbours.
    """
    logs = np.log(widths_W)
    falls = (gaps_RW[:, :-1] > 0) & (gaps_RW[:, 1:] <= 0)
    left = falls.argmax(axis=1)
    row = np.arange(len(gaps_RW))
    before, after = gaps_RW[row, left], gaps_RW[row, left + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        way = before / (before - after)
    crossing = np.exp(logs[left] + way * (logs[left + 1] - logs[left]))
    return np.where(falls.any(axis=1), crossing, np.nan)
