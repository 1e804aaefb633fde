"""How like the load its stand-ins are: requests drawn from its profile, and a piece of it.

Table ``likeness``: ``load`` (``whole``, ``generated``, ``piece``), ``figure`` and its curve:

=============== ============================= ================================
figure          x                             y
=============== ============================= ================================
``window_rate`` share of the windows          requests/s in a window
``gap``         share of the gaps             s
``dispersion``  width of the windows, s       variance over mean of the counts
``gap_cv``      0                             CV of the gaps
=============== ============================= ================================
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.load.piece import Piece
from workbench.load.profile import REQUESTS, LoadProfile, generated_trace

MOST_DRAWN = 200_000
"""Requests that are drawn to be compared."""
MOST_GAPS = 1_000_000
SHARES = np.concatenate([np.linspace(0.0, 0.98, 99), 1 - np.logspace(-2, -4, 20), [1.0]])
PIECE_S = 300.0
"""Length of the piece that is compared, or half of a shorter load."""
FEWEST_WINDOWS = 10


def likeness(profile: LoadProfile, piece: Piece, window_s: float, seed: int) -> pd.DataFrame:
    """The table of the module for a load, requests drawn from it and one piece of it."""
    duration_s = min(profile.span_s, MOST_DRAWN / profile.rate_per_s)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        drawn = generated_trace(profile.summary, duration_s, 1.0, seed, folder / REQUESTS)
        stand_in = LoadProfile.of(drawn, window_s, folder)
        loads = {
            "whole": _times(profile),
            "generated": _times(stand_in),
            "piece": [piece.requests["start_s"].to_numpy()],
        }
        width_s = max(profile.grid.width_s, min(window_s, piece.length_s / FEWEST_WINDOWS))
        rows = []
        for name, stretches in loads.items():
            rows += _curves(name, stretches, width_s)
    return pd.DataFrame(rows, columns=["load", "figure", "x", "y"])


def _times(profile: LoadProfile) -> list[np.ndarray]:
    """Stretches of the request times, evenly spread over the load."""
    every = max(1, profile.summary["requests"] // MOST_GAPS)
    batches = profile.store.batches(["start_s"])
    return [batch["start_s"] for number, batch in enumerate(batches) if number % every == 0]


def _curves(
    name: str, stretches: list[np.ndarray], width_s: float
) -> list[tuple[str, str, float, float]]:
    gaps = np.concatenate([np.diff(times) for times in stretches])
    if len(gaps) < 2 or gaps.mean() <= 0:
        return []
    rows = [(name, "gap_cv", 0.0, float(gaps.std() / gaps.mean()))]
    told = 1 - 0.5 / len(gaps)  # of so many gaps, no quantile beyond it
    shares = SHARES[told >= SHARES]
    curves = [("gap", shares, np.quantile(gaps, shares))]
    rates = _counts(stretches, width_s) / width_s
    if len(rates) >= FEWEST_WINDOWS:
        steps = np.linspace(0, 1, 101)
        curves.append(("window_rate", steps, np.quantile(rates, steps)))
    for figure, x, y in curves:
        rows += [(name, figure, float(at), float(of)) for at, of in zip(x, y, strict=True)]
    for scale_s in np.geomspace(0.1, 3600, 24):
        counts = _counts(stretches, scale_s)
        if len(counts) >= FEWEST_WINDOWS and counts.mean() > 0:
            rows.append((name, "dispersion", float(scale_s), float(counts.var() / counts.mean())))
    return rows


def _counts(stretches: list[np.ndarray], width_s: float) -> np.ndarray:
    """Requests in the whole windows of each stretch."""
    found = []
    for times in stretches:
        windows = int((times[-1] - times[0]) / width_s)
        if windows:
            inside = ((times - times[0]) / width_s).astype(np.int64)
            found.append(np.bincount(inside, minlength=windows)[:windows])
    return np.concatenate(found) if found else np.array([])
