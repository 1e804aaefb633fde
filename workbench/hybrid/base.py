"""A trained model whose linear layers can be exchanged for the same layers in another precision.

Two trained models can be the base of a hybrid, and they behave differently:

- ``full_precision``: the precise arm. A layer is *lowered*: INT8 by rounding its weights, ternary
  as the ``post_training`` arm has it (least squares, no training).
- ``ternary``: the arm trained under the threshold. A layer is *raised*: its master weights,
  rounded to INT8 or in bf16.

One would expect raising to recover quality. Measured on a 1.1M-parameter model (700 steps, 21
layers, Python corpus) it does the opposite: every one of the 21 layers lost 0.010 to 0.070 bits
per byte when its master weights took the place of its ternary ones, and all of them together
0.53. The network was trained to work with the ternary weights. The master weights are 1.7 to 2
times as large as the ternary ones that fit them best; scaled down by that factor they still cost
up to 0.019 and never recovered more than 0.001. Lowering a layer of the precise arm cost at most
0.025 there. So both bases are measured in every run, and the plan is made from the better one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from ternary_kernels.quantizers import INT4_GROUP
from torch import nn
from transformers import PreTrainedModel

from workbench.ternary.policy import Precision
from workbench.ternary.quantize import scale_shape
from workbench.ternary.threshold import ThresholdVersion

Assignment = Mapping[str, Precision]
"""Unit -> precision; a unit is a linear layer or, with granularity ``block``, a block's layers."""


@dataclass(frozen=True)
class Base:
    """own: the precision of the layers as they stand. units: unit -> names of its layers.

    form: makes a layer (by name) in a precision other than ``own``. threshold: of its ternary
    layers, which decides how many scales they have.
    """

    name: Literal["full_precision", "ternary", "checkpoint"]
    model: PreTrainedModel
    own: Precision
    units: dict[str, list[str]]
    form: Callable[[str, Precision], nn.Module]
    threshold: ThresholdVersion

    @contextmanager
    def exchanged(self, assignment: Assignment) -> Iterator[PreTrainedModel]:
        """The model with the units of ``assignment`` in their precision, others as they stand."""
        originals: dict[str, nn.Module] = {}
        try:
            for unit, precision in assignment.items():
                for name in self.units[unit] if precision != self.own else ():
                    originals[name] = self.model.get_submodule(name)
                    self.model.set_submodule(name, self.form(name, precision), strict=True)
            yield self.model
        finally:
            for name, layer in originals.items():
                self.model.set_submodule(name, layer, strict=True)

    def size_bytes(self, unit: str, precision: Precision) -> int:
        """Bytes of a unit's weights and scales: 2, 4 or 8 bits or bf16 a weight."""
        return sum(self._layer_bytes(name, precision) for name in self.units[unit])

    def size_ratio(self, assignment: Assignment) -> float:
        """Bytes of all units over their bytes in bf16."""
        planned = sum(self.size_bytes(u, assignment.get(u, self.own)) for u in self.units)
        return planned / sum(self.size_bytes(u, "high_precision") for u in self.units)

    def _layer_bytes(self, name: str, precision: Precision) -> int:
        layer = self.model.get_submodule(name)
        N, K = layer.out_features, layer.in_features
        if precision == "high_precision":
            return 2 * N * K
        if precision == "int8":
            return N * K + 4 * N
        if precision == "int4":
            return N * -(-K // 2) + 2 * N * -(-K // INT4_GROUP)
        scales = 1
        for length in scale_shape(N, K, self.threshold.granularity):
            scales *= length
        return N * -(-K // 4) + 4 * scales


def units_of(layers: list[str], granularity: Literal["linear", "block"]) -> dict[str, list[str]]:
    """Each layer by itself, or the layers of a block (``model.layers.3``) together."""
    units: dict[str, list[str]] = {}
    for name in layers:
        block = re.match(r".*?\.\d+(?=\.)", name) if granularity == "block" else None
        units.setdefault(block[0] if block else name, []).append(name)
    return units
