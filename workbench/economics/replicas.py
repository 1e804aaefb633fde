"""How many replicas carry a rate, and what rate so many carry: one step function, read both ways.

A replica carries its rate when it stands in a cell of several; a smaller fleet evens out less, so
each of its replicas carries a share of that. Between whole numbers of replicas both are straight:
the fluid number of a rate. Beyond a cell every further replica carries the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def replicas_needed(rate_per_s: Any, replica_rate: Any, cells: Sequence[float]) -> Any:
    """The fluid number; whole replicas are the next whole number.

    replica_rate: of one in a whole cell, 1/s. cells: what a replica of a cell of 1, 2, ... carries,
    over ``replica_rate``; the last is 1.

    >>> [float(replicas_needed(rate, 2.0, (0.5, 0.75, 1.0))) for rate in (0.5, 1.0, 2.0, 6.0, 20.0)]
    [0.5, 1.0, 1.5, 3.0, 10.0]
    """
    carried = _carried(cells)
    share = np.asarray(rate_per_s / replica_rate)
    return np.where(share > carried[-1], share, np.interp(share, carried, np.arange(len(carried))))


def rate_carried(replicas: Any, replica_rate: Any, cells: Sequence[float]) -> Any:
    """What so many carry, 1/s: the inverse of :func:`replicas_needed`.

    >>> [float(rate_carried(n, 2.0, (0.5, 0.75, 1.0))) for n in (0.5, 1.0, 1.5, 3.0, 10.0)]
    [0.5, 1.0, 2.0, 6.0, 20.0]
    """
    carried = _carried(cells)
    count = np.asarray(replicas, float)
    within = np.interp(count, np.arange(len(carried)), carried)
    return replica_rate * np.where(count > len(cells), count, within)


def _carried(cells: Sequence[float]) -> np.ndarray:
    """Of 0, 1, 2, ... replicas together, over the rate of one in a whole cell; it never falls."""
    count = np.arange(1, len(cells) + 1)
    return np.concatenate([[0.0], np.maximum.accumulate(count * np.asarray(cells, float))])
