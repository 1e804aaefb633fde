"""Weights for measuring speed and memory, which do not depend on what the weights are.

One group of 16 rows is drawn at random for each matrix and repeated down the matrix in memory
of its own: every byte of it exists, is read by every step and cannot be cached better than a
trained one, but a 3B model is there in seconds. Scales are such that activations stay of
order one. Nothing that such a model says means anything.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from ternary_kernels import PackedHalf, PackedInt4, PackedInt8, PackedTernary, PackedWeight
from ternary_kernels.llama import LINEARS, LlamaConfig
from ternary_kernels.memory import in_huge_pages
from torch import Tensor

WeightKind = Literal["half", "int8", "int4", "ternary"]
"""How a matrix is packed; see ``kind`` of :class:`ternary_kernels.PackedWeight`."""

DRAWN_ROWS = 16
"""Rows of one group of the packed layouts."""


def random_weights(
    config: LlamaConfig, kind: WeightKind, *, tied: bool, seed: int = 0
) -> dict[str, PackedWeight | Tensor]:
    """All weights of a model of this shape, linear layers of ``kind``.

    tied: the head is the embedding. Embedding and head are bf16 beside half-precision layers,
    INT8 beside the others.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, PackedWeight | Tensor] = {"norm": torch.ones(config.hidden_size)}
    embedding: WeightKind = "half" if kind == "half" else "int8"
    for name in ("embed",) if tied else ("embed", "head"):
        shape = (config.vocab_size, config.hidden_size)
        weights[name] = random_weight(shape, embedding, generator)
    for i in range(config.num_layers):
        for name in LINEARS:
            shape = config.linear_shape(name)
            weights[f"layers.{i}.{name}"] = random_weight(shape, kind, generator)
        for name in ("attn_norm", "ffn_norm"):
            weights[f"layers.{i}.{name}"] = torch.ones(config.hidden_size)
    return weights


def random_weight(
    shape: tuple[int, int], kind: WeightKind, generator: torch.Generator
) -> PackedWeight:
    """One matrix [N, K] of standard deviation about 1/sqrt(K)."""
    N, K = shape
    rows, deviation = min(N, DRAWN_ROWS), 1.0 / math.sqrt(K)
    if kind == "ternary":
        codes = torch.randint(0, 3, (rows, K), generator=generator)
        drawn = PackedTernary.from_codes(codes, deviation)
    else:
        packing = {"half": PackedHalf, "int8": PackedInt8, "int4": PackedInt4}[kind]
        drawn = packing.from_float(torch.randn(rows, K, generator=generator) * deviation)
    repeats = -(-N // DRAWN_ROWS)
    tiles = in_huge_pages(drawn.tiles.expand(repeats, *drawn.tiles.shape[1:]))
    state = {"tiles": tiles, "shape": torch.tensor(shape)}
    if isinstance(drawn, PackedInt4):
        state["scale"] = drawn.scale.repeat(repeats, 1)[:N]
    elif drawn.scale is not None:
        state["scale"] = drawn.scale.mean()
    return type(drawn).from_state(state)
