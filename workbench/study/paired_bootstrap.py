"""Comparisons over documents: every arm judged on the same ones, all resampled together.

A study's figure is a function of several arms' bits per byte: a ratio of two gaps, the width
at which two curves cross, the slope of a trend. The documents are drawn with replacement, the
same draw for every arm, each arm's bits per byte made anew, and the function taken of them; the
interval holds the middle 95 % of what comes out, more of it where documents are few. What makes
a document hard for all arms cancels in this. What it does not hold is the luck of a seed: that
needs more seeds, whose losses are averaged per document before anything is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from workbench.measure.statistics import (
    FEWEST_DOCUMENTS,
    LEVEL,
    Estimate,
    tail_of_documents,
)

BitsPerByte = Mapping[str, np.ndarray]
"""Arm -> bits per byte, one value a draw."""

RESAMPLES = 2000
MOST_UNDEFINED = 0.025
"""Share of the draws that may leave a figure without a value before its interval has an end."""


class PairedBootstrap:
    """bits: total bits by document (rows) and arm (columns), averaged over seeds.
    size_bytes: UTF-8 bytes of each document."""

    def __init__(self, excerpts: pd.DataFrame, seed: int = 0) -> None:
        """excerpts: columns arm, seed, id (``<document>@<first character>``), nats, bytes.

        Raises ValueError when the arms were not judged on the same excerpts.
        """
        document = excerpts["id"].str.rpartition("@")[0]
        bits = excerpts["nats"] / math.log(2)
        keys = [document.rename("document"), excerpts["arm"], excerpts["seed"]]
        per_seed = bits.groupby(keys, sort=False).sum()
        self.bits = per_seed.groupby(level=["document", "arm"], sort=False).mean().unstack("arm")
        sizes = excerpts["bytes"].groupby(keys, sort=False).sum().unstack(["arm", "seed"])
        if self.bits.isna().any(axis=None) or not sizes.eq(sizes.iloc[:, 0], axis=0).all(axis=None):
            raise ValueError("the arms were not judged on the same excerpts")
        self.size_bytes = sizes.iloc[:, 0]
        self._point = self._bits_per_byte(np.ones((1, len(self.bits))))
        draws = np.random.default_rng(seed).multinomial(
            len(self.bits), np.full(len(self.bits), 1 / len(self.bits)), RESAMPLES
        )
        self._drawn = self._bits_per_byte(draws)

    def __len__(self) -> int:
        return len(self.bits)

    def estimate(self, figure: Callable[[BitsPerByte], np.ndarray]) -> Estimate:
        """``figure`` of the arms' bits per byte, with its interval over documents.

        A draw for which the figure is not defined (NaN: curves that do not cross) counts as
        beyond either end: with too many of them there is no interval.
        """
        value = float(figure(self._point)[0])
        n = len(self)
        if not math.isfinite(value):
            return Estimate(None, None, None, n, "", LEVEL, "not defined on these documents")
        if n < FEWEST_DOCUMENTS:
            why = f"no interval: {n} documents, a bootstrap needs {FEWEST_DOCUMENTS}"
            return Estimate(value, None, None, n, "", LEVEL, why)
        found = figure(self._drawn)
        undefined = float(np.mean(~np.isfinite(found)))
        if undefined > MOST_UNDEFINED:
            why = f"no interval: not defined in {undefined:.0%} of the draws"
            return Estimate(value, None, None, n, "", LEVEL, why)
        tail = tail_of_documents(n)
        lo, hi = np.nanquantile(found, [tail, 1 - tail])
        method = f"paired bootstrap over {n} documents, {RESAMPLES} resamples, percentiles"
        return Estimate(value, float(lo), float(hi), n, method)

    def _bits_per_byte(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        size = counts @ self.size_bytes.to_numpy(float)
        return {arm: counts @ self.bits[arm].to_numpy(float) / size for arm in self.bits}
