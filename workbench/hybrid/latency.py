"""How long the products of each layer take in each precision, one token at a time.

Layers of one shape take alike, so one of each is timed: interleaved repetitions, their median.
That is the time of the packed product as the stage itself evaluates plans, not of the decode engine
with its caches warm: it orders plans, and ``measure_ab`` says how fast the packed hybrid is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from workbench.hybrid.base import Base
from workbench.ternary.policy import Precision

REPETITIONS = 15

LayerShape = tuple[int, int, Precision]
"""Outputs, inputs and precision of a layer."""


@dataclass(frozen=True)
class Product:
    """One layer of a shape and one token for it, ``[1, 1, inputs]``."""

    layer: nn.Module
    token: Tensor

    @torch.inference_mode()
    def run(self, times: int = 1) -> float:
        """Seconds of so many products, one after another."""
        began = time.perf_counter()
        for _ in range(times):
            self.layer(self.token)
        if self.token.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def products(base: Base, precisions: Sequence[Precision]) -> dict[LayerShape, Product]:
    """One of each shape that the base's units have, each run once: it packs on first use."""
    found: dict[LayerShape, Product] = {}
    for name in (name for names in base.units.values() for name in names):
        layer = base.model.get_submodule(name)
        weight = next(layer.parameters())
        for precision in precisions:
            shape = layer.out_features, layer.in_features, precision
            if shape not in found:
                form = layer if precision == base.own else base.form(name, precision)
                token = torch.ones(
                    1, 1, layer.in_features, device=weight.device, dtype=weight.dtype
                )
                found[shape] = Product(form, token)
                found[shape].run()
    return found


def of_units(
    base: Base, precisions: Sequence[Precision], of_shapes: Mapping[LayerShape, float]
) -> dict[tuple[str, str], float]:
    """(unit, precision) -> the sum over its layers of what their shapes take."""
    layers = {
        unit: [base.model.get_submodule(name) for name in names]
        for unit, names in base.units.items()
    }
    return {
        (unit, precision): sum(
            of_shapes[layer.out_features, layer.in_features, precision] for layer in its
        )
        for unit, its in layers.items()
        for precision in precisions
    }


def unit_seconds(
    base: Base, precisions: Sequence[Precision], repetitions: int = REPETITIONS
) -> dict[tuple[str, str], float]:
    """(unit, precision) -> seconds of its layers' products for one token."""
    timed = products(base, precisions)
    taken = [[product.run() for product in timed.values()] for _ in range(repetitions)]
    medians = np.median(np.array(taken), axis=0)
    return of_units(base, precisions, dict(zip(timed, medians.tolist(), strict=True)))
