"""Comparisons over documents: every arm judged on the same ones, all resampled together.

A study's figure is a function of several arms' bits per byte: a ratio of two gaps, the width
at which two curves cross, the slope of a trend. The documents are drawn with replacement, the
same draw for every arm, each arm's bits per byte made anew, and the function taken of them. What
makes a document hard for all arms cancels in this. What it does not hold is the luck of a seed:
that needs more seeds, whose losses are averaged per document before anything is drawn.

The interval is the verdict's own (:func:`.statistics.bits_per_byte_difference`), for any such
function: every draw is held against its own standard error (studentized), and more of the draws is
kept where documents are few. That error is the function's gradient, by differences, on the
covariance of the arms' bits per byte over the documents drawn (the delta method). Percentiles of
the draws, without it, are too narrow where a few documents carry much of a gap.
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
from workbench.wording.counts import number_of

BitsPerByte = Mapping[str, np.ndarray]
"""Arm -> bits per byte, one value a draw."""
FigureOf = Callable[[BitsPerByte], np.ndarray]

RESAMPLES = 2000
STEP = 0.01
"""Of the differences that make a gradient, in standard errors of an arm."""


class PairedBootstrap:
    """Shapes: R draws, D documents, A arms.

    bits: total bits by document (rows) and arm (columns), averaged over seeds.
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
        count = len(self.bits)
        self._point_1A, covariance_1AA = self._drawn(np.ones((1, count)))
        self._covariance_1AA = covariance_1AA
        self._step_A = STEP * np.sqrt(np.diagonal(covariance_1AA[0]))
        draws_RD = np.random.default_rng(seed).multinomial(
            count, np.full(count, 1 / count), RESAMPLES
        )
        self._draws_RA, self._covariance_RAA = self._drawn(draws_RD.astype(float))

    def __len__(self) -> int:
        return len(self.bits)

    def estimate(self, figure: FigureOf) -> Estimate:
        """``figure`` of the arms' bits per byte, with its interval over documents.

        A draw for which the figure is not defined (NaN: curves that do not cross) counts as
        beyond either end: with as many of them as an end leaves out there is no interval.
        """
        value = float(self._of(figure, self._point_1A)[0])
        n = len(self)
        if not math.isfinite(value):
            return Estimate(None, None, None, n, "", LEVEL, "not defined on these documents")
        if n < FEWEST_DOCUMENTS:
            why = f"no interval: {number_of(n, 'document')}, a bootstrap needs {FEWEST_DOCUMENTS}"
            return Estimate(value, None, None, n, "", LEVEL, why)
        error = float(self._error(figure, self._point_1A, self._covariance_1AA)[0])
        errors_R = self._error(figure, self._draws_RA, self._covariance_RAA)
        apart_R = self._of(figure, self._draws_RA) - value
        pulls_R = np.divide(apart_R, errors_R, out=np.zeros_like(apart_R), where=errors_R != 0)
        undefined, tail = float(np.mean(~np.isfinite(pulls_R))), tail_of_documents(n)
        if undefined >= tail or not math.isfinite(error):
            why = f"no interval: not defined in {undefined:.1%} of the draws"
            return Estimate(value, None, None, n, "", LEVEL, why)
        beyond = (tail - undefined) / (1 - undefined)
        low, high = np.nanquantile(pulls_R, [beyond, 1 - beyond])
        method = (
            f"paired bootstrap over {number_of(n, 'document')}, {RESAMPLES} resamples, studentized"
        )
        return Estimate(value, float(value - high * error), float(value - low * error), n, method)

    def _drawn(self, counts_RD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bits per byte of the arms ``[R, A]`` and their covariance ``[R, A, A]``, linearised."""
        size_D = self.size_bytes.to_numpy(float)
        bits_DA = self.bits.to_numpy(float)
        near_A = bits_DA.sum(axis=0) / size_D.sum()
        left_DA = bits_DA - near_A * size_D[:, None]  # of the arms' means: nothing cancels then
        size_R = counts_RD @ size_D
        off_RA = counts_RD @ left_DA / size_R[:, None]
        count, arms = bits_DA.shape
        products_DAA = left_DA[:, :, None] * left_DA[:, None, :]
        sums_RAA = (counts_RD @ products_DAA.reshape(count, -1)).reshape(-1, arms, arms)
        mixed_RAA = (counts_RD @ (left_DA * size_D[:, None]))[:, :, None] * off_RA[:, None, :]
        squares_R = counts_RD @ size_D**2
        sums_RAA -= mixed_RAA + mixed_RAA.transpose(0, 2, 1)
        sums_RAA += squares_R[:, None, None] * off_RA[:, :, None] * off_RA[:, None, :]
        return near_A + off_RA, sums_RAA * count / (count - 1) / size_R[:, None, None] ** 2

    def _error(
        self, figure: FigureOf, bits_RA: np.ndarray, covariance_RAA: np.ndarray
    ) -> np.ndarray:
        """Standard error of the figure at each draw; NaN where it is not defined nearby."""
        gradient_RA = np.zeros_like(bits_RA)
        for arm in np.flatnonzero(self._step_A > 0):
            step_A = np.zeros(len(self._step_A))
            step_A[arm] = self._step_A[arm]
            rise_R = self._of(figure, bits_RA + step_A) - self._of(figure, bits_RA - step_A)
            gradient_RA[:, arm] = rise_R / (2 * step_A[arm])
        variance_R = np.einsum("ra,rab,rb->r", gradient_RA, covariance_RAA, gradient_RA)
        return np.sqrt(np.maximum(variance_R, 0.0))

    def _of(self, figure: FigureOf, bits_RA: np.ndarray) -> np.ndarray:
        return np.asarray(figure(dict(zip(self.bits, bits_RA.T, strict=True))), float)
