"""Situations of a study whose truth is known, for ``make calibrate``.

Several arms are judged on the same documents; what each loses against full precision differs
from document to document with a heavy tail, and the figure is a function of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.measure.paired_bootstrap import BitsPerByte, FigureOf, PairedBootstrap
from workbench.measure.statistics import Estimate

FULL = "full_precision"
WIDTHS = np.log2([64, 80, 96, 112])


@dataclass(frozen=True)
class StudySituation:
    """gaps: mean loss of each arm against full precision, bits a byte. truth: the figure of
    these."""

    name: str
    gaps: tuple[float, ...]
    figure: FigureOf

    @property
    def truth(self) -> float:
        losses = {FULL: 2.0} | {str(i): 2.0 + gap for i, gap in enumerate(self.gaps)}
        return float(self.figure({arm: np.array([loss]) for arm, loss in losses.items()})[0])

    def estimates(self, n: int, runs: int) -> Iterator[Estimate]:
        """Of ``runs`` studies over ``n`` documents each."""
        random = np.random.default_rng(n)
        for _ in range(runs):
            size = random.integers(400, 2400, n).astype(float)
            easy = random.gamma(4, 0.5, n)
            bits = {FULL: easy}
            for i, gap in enumerate(self.gaps):
                # Of one mean and one spread, whatever the gap's own size.
                bits[str(i)] = easy + gap + 0.1 * (random.lognormal(-0.5, 1, n) - 1)
            frames = [
                pd.DataFrame({"arm": arm, "nats": math.log(2) * each * size, "bytes": size})
                for arm, each in bits.items()
            ]
            ids = [f"d{i}@0" for i in range(n)]
            excerpts = pd.concat([frame.assign(id=ids, seed=0) for frame in frames])
            yield PairedBootstrap(excerpts.reset_index(drop=True)).estimate(self.figure)


def _ratio(bits: BitsPerByte) -> np.ndarray:
    gap, reference = (bits[arm] - bits[FULL] for arm in ("0", "1"))
    return np.divide(gap, reference, out=np.full_like(gap, np.nan), where=reference > 0)


def _gaps(bits: BitsPerByte) -> np.ndarray:
    return np.stack([bits[arm] - bits[FULL] for arm in bits if arm != FULL], axis=1)


def _slope(bits: BitsPerByte) -> np.ndarray:
    apart = WIDTHS - WIDTHS.mean()
    return _gaps(bits) @ apart / (apart @ apart)


def _width_at_parity(bits: BitsPerByte) -> np.ndarray:
    """Where the gap falls to 0 between the two widths in the middle; NaN where it does not."""
    before, after = _gaps(bits)[:, 1:3].T
    falls = (before > 0) & (after <= 0)
    way = np.divide(before, before - after, out=np.full_like(before, np.nan), where=falls)
    return np.exp2(WIDTHS[1] + way * (WIDTHS[2] - WIDTHS[1]))


STUDIES = (
    StudySituation("a ratio of two gaps", (0.1, 0.2), _ratio),
    StudySituation("the slope of four gaps", (0.05, 0.08, 0.10, 0.11), _slope),
    StudySituation("the width at which a gap is 0", (0.16, 0.06, -0.06, -0.12), _width_at_parity),
)
