"""How long the products of each layer take in each precision, one token at a time.

Layers of one shape take alike, so one of each is timed: interleaved repetitions, their median.
That is the time of the packed product as the stage itself evaluates plans, not of the decode engine
with its caches warm: it orders plans, and ``measure_ab`` says how fast the packed hybrid is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from workbench.hybrid.base import Base
from workbench.ternary.policy import Precision

REPETITIONS = 15


@torch.inference_mode()
def unit_seconds(
    base: Base, precisions: Sequence[Precision], repetitions: int = REPETITIONS
) -> dict[tuple[str, str], float]:
    """(unit, precision) -> seconds of its layers' products for one token."""
    timed: dict[tuple[int, int, str], float] = {}
    found: dict[tuple[str, str], float] = {}
    for unit, names in base.units.items():
        for precision in precisions:
            total = 0.0
            for name in names:
                layer = base.model.get_submodule(name)
                key = (layer.out_features, layer.in_features, precision)
                if key not in timed:
                    form = layer if precision == base.own else base.form(name, precision)
                    timed[key] = _seconds(form, layer, repetitions)
                total += timed[key]
            found[unit, precision] = total
    return found


def _seconds(form: nn.Module, like: nn.Module, repetitions: int) -> float:
    weight = next(like.parameters())
    token = torch.ones(1, 1, like.in_features, device=weight.device, dtype=weight.dtype)
    form(token)  # packs, on first use
    taken = []
    for _ in range(repetitions):
        began = time.perf_counter()
        form(token)
        if weight.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))
