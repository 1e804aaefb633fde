"""Present values: annuity, net present value, payback.

Amounts fall due at the end of a year, the first of a series at once. All take NumPy arrays too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def annuity(rate: Any, years: Any, residual: Any = 0.0) -> Any:
    """Share of a price that a year of its use costs.

    1,000 over 4 years at 8 % with nothing left: 1000 x 0.08 / (1 - 1.08^-4) = 301.92 a year; with
    200 left, whose present value is 200 x 1.08^-4 = 147.01: 852.99 x 0.301921 = 257.54.
    At 0 % it is the straight line: (1 - residual) / years.

    >>> round(1000 * annuity(0.08, 4), 2), round(1000 * annuity(0.08, 4, 0.2), 2)
    (301.92, 257.54)
    """
    rate = np.asarray(rate, float)
    safe = np.where(rate == 0, 1.0, rate)
    left = (1 + safe) ** -np.asarray(years, float)
    with_interest = (1 - residual * left) * safe / (1 - left)
    return np.where(rate == 0, (1 - residual) / years, with_interest)[()]


def npv(rate: Any, flows: Sequence[Any]) -> Any:
    """Of ``flows``, the first at once and each next a year later.

    -1,000 now and 400 after each of three years at 10 %: -1000 + 363.64 + 330.58 + 300.53 = -5.26.

    >>> round(float(npv(0.10, [-1000, 400, 400, 400])), 2)
    -5.26
    """
    return sum(
        np.asarray(flow, float) / (1 + np.asarray(rate)) ** t for t, flow in enumerate(flows)
    )


def payback_years(flows: Sequence[Any]) -> Any:
    """Years until ``flows``, undiscounted, have come back, linear within a year; NaN: never in
    their time.

    -1,000 and 400 a year: after two years 200 are missing, half a year of 400: 2.5.

    >>> float(payback_years([-1000, 400, 400, 400]))
    2.5
    """
    total = np.cumsum(np.stack(np.broadcast_arrays(*[np.asarray(f, float) for f in flows])), axis=0)
    years = np.full(total.shape[1:], np.nan)
    years = np.where(total[0] >= 0, 0.0, years)
    for year in range(1, len(total)):
        before, after = total[year - 1], total[year]
        step = np.where(after > before, after - before, 1.0)
        came = (before < 0) & (after >= 0) & np.isnan(years)
        years = np.where(came, year - 1 + -before / step, years)
    return years[()]
