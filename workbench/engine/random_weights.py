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
from ternary_kernels import (
    PackedHalf,
    PackedInt4,
    PackedInt8,
    PackedMixed,
    PackedTernary,
    PackedWeight,
)
from ternary_kernels.llama import LINEARS, LlamaConfig
from ternary_kernels.memory import in_huge_pages

from workbench.engine.packing import (
    AS_STORED,
    DENSER,
    TABLE_ROTATION,
    Weights,
    frequent_tokens,
)
from workbench.pilot.sections.readiness import Packing

WeightKind = Literal["half", "int8", "int4", "ternary"]
"""How a matrix is packed; see ``kind`` of :class:`ternary_kernels.PackedWeight`."""

DRAWN_ROWS = 16
"""Rows of one group of the packed layouts."""


def random_weights(
    config: LlamaConfig,
    kind: WeightKind,
    *,
    tied: bool,
    seed: int = 0,
    packing: Packing = AS_STORED,
) -> Weights:
    """All weights of a model of this shape, linear layers of ``kind``.

    tied: the head is the embedding. Embedding and head are bf16 beside half-precision layers,
    beside the others as ``packing`` says and else INT8.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {"norm": torch.ones(config.hidden_size)}
    tables = "int8" if packing.tables == "auto" else packing.tables
    for name in ("embed",) if tied else ("embed", "head"):
        shape = (config.vocab_size, config.hidden_size)
        weights[name] = random_table(shape, "half" if kind == "half" else tables, generator)
    for i in range(config.num_layers):
        for name in LINEARS:
            shape = config.linear_shape(name)
            weights[f"layers.{i}.{name}"] = random_weight(shape, kind, generator)
        for name in ("attn_norm", "ffn_norm"):
            weights[f"layers.{i}.{name}"] = torch.ones(config.hidden_size)
    return weights if packing.ternary == "two_bits" else denser(weights, packing.ternary)


def random_table(
    shape: tuple[int, int], kind: str, generator: torch.Generator
) -> PackedWeight | PackedMixed:
    """An embedding [V, K] in a packing of ``readiness.packing.tables``."""
    if kind != "mixed":
        return random_weight(shape, kind, generator)
    V, K = shape
    frequent = frequent_tokens(V)
    first = random_weight((len(frequent), K), "int8", generator).rotated(TABLE_ROTATION)
    second = random_weight((V - len(frequent), K), "int4", generator).rotated(TABLE_ROTATION)
    return PackedMixed(first, second, torch.arange(V, dtype=torch.int32))


def denser(weights: Weights, ternary: str) -> Weights:
    """The same shapes with ternary layers in another packing of ``readiness.packing.ternary``: the
    first 16 rows of each packed again and repeated, as :func:`random_weight` repeats them."""
    cls = DENSER[ternary]
    packed = dict(weights)
    for name, weight in weights.items():
        if isinstance(weight, PackedTernary):
            N, K = weight.shape
            drawn = PackedTernary.from_state(
                {
                    "tiles": weight.tiles[:1],
                    "shape": torch.tensor((DRAWN_ROWS, K)),
                    "scale": weight.scale,
                }
            )
            # 32 rows, as some layouts group them.
            group = cls.from_codes(drawn.codes().repeat(2, 1), weight.scale).tiles
            groups = -(-N * len(group) // (2 * DRAWN_ROWS))
            tiles = in_huge_pages(group[torch.arange(groups) % len(group)])
            state = {"tiles": tiles, "shape": torch.tensor((N, K)), "scale": weight.scale}
            packed[name] = cls.from_state(state)
    return packed


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
