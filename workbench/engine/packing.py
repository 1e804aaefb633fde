"""How a model's weights lie in memory where it computes, whatever its folder keeps.

Tables are the embedding and the head. Beside ternary layers they are a third of the bytes that
every token reads, and what their rounding costs hangs on the model: see docs/performance.md.
A model in full precision keeps its own, whatever is asked.
"""

from __future__ import annotations

import numpy as np
import torch
from ternary_kernels import (
    PackedHalf,
    PackedInt8,
    PackedMixed,
    PackedTernary,
    PackedTernary3,
    PackedTernary5,
    PackedWeight,
)
from ternary_kernels.mixed import int4_of
from torch import Tensor

from workbench.pilot.sections.readiness import Packing

Weights = dict[str, PackedWeight | PackedMixed | Tensor]
"""By the names of :mod:`ternary_kernels.llama`."""

FREQUENT_SHARE = 1 / 5
"""Rows of a mixed table that stay INT8."""
TABLE_ROTATION = 1024
"""Inputs of mixed and INT4 tables that are rotated together, at most. What the last layer gives has
a few inputs that are much larger than the others, and rounds badly without."""
AS_STORED = Packing()
DENSER = {"triples": PackedTernary3, "base3": PackedTernary5}
"""Value of ``readiness.packing.ternary`` -> ternary weights with fewer than two bits each."""


def pack(weights: Weights, packing: Packing, counts: np.ndarray | None = None) -> Weights:
    """``weights`` as they are to lie in memory; what needs no change is the same object.

    counts: see :func:`frequent_tokens`.
    """
    layers = [w for name, w in weights.items() if name.startswith("layers.")]
    if all(isinstance(w, PackedHalf | Tensor) for w in layers):
        return weights
    packed = dict(weights)
    for name, weight in weights.items():
        if name in ("embed", "head"):
            packed[name] = pack_table(weight, packing.tables, counts)
        elif (denser := DENSER.get(packing.ternary)) and _has_no_groups(weight):
            dense = denser.from_codes(weight.codes(), weight.scale)
            packed[name] = dense.rotated(weight.rotation)
    return packed


def frequent_tokens(vocabulary: int, counts: np.ndarray | None = None) -> Tensor:
    """Tokens whose rows a mixed table keeps in INT8.

    counts: how often each stands in the text that the model was made with. Where none are known,
    and among equals, the lower number counts as more frequent: tokenizers number their tokens in
    the order in which they merged them.
    """
    most = max(1, int(FREQUENT_SHARE * vocabulary))
    if counts is None:
        return torch.arange(most)
    return torch.from_numpy(np.argsort(-counts, kind="stable")[:most].copy())


def pack_table(
    table: PackedWeight, kind: str, counts: np.ndarray | None = None
) -> PackedWeight | PackedMixed:
    """An embedding or a head in another packing: a value of ``readiness.packing.tables``.

    counts: see :func:`frequent_tokens`.
    """
    if kind in ("auto", table.kind):
        return table
    if kind == "half":
        return PackedHalf.from_float(table.dequantize(), torch.bfloat16)
    if kind == "int8":
        return PackedInt8.from_float(table.dequantize())
    int8 = isinstance(table, PackedInt8)
    if kind == "int4":
        rows = (table.values(), table.scale) if int8 else (table.dequantize(), None)
        return int4_of(*rows, TABLE_ROTATION)
    frequent = frequent_tokens(table.shape[0], counts)
    if int8:
        return PackedMixed.from_int8(table, frequent, TABLE_ROTATION)
    return PackedMixed.from_float(table.dequantize(), frequent, TABLE_ROTATION)


def _has_no_groups(weight: PackedWeight | PackedMixed | Tensor) -> bool:
    """A scale for each 128 inputs has no kernel there."""
    return isinstance(weight, PackedTernary) and weight.granularity != "group128"
