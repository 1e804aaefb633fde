"""The linear layers as ``torch.library`` operators, and a module over them.

Registered with fake kernels, so they stand inside a transformers model and under
``torch.compile`` like any other operator. One operator a packing::

    ternary_kernels::linear_ternary(x, tiles, scale, N, bias) -> float32 [..., N]
    ternary_kernels::linear_ternary5, linear_int8: the same
    ternary_kernels::linear_half(x, tiles, N, bias)

:class:`PackedLinear` replaces an ``nn.Linear``; its output has the type of its input.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn

from . import ops
from .weights import PackedHalf, PackedInt8, PackedTernary, PackedTernary5, PackedWeight

PACKINGS = {cls.kind: cls for cls in (PackedTernary, PackedTernary5, PackedInt8, PackedHalf)}


def _compute(cls, x: Tensor, tiles: Tensor, scale: Tensor | None, N: int, bias) -> Tensor:
    return ops.linear(x, cls._build((N, x.shape[-1]), tiles, scale), bias)


def _fake(x: Tensor, N: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], N), dtype=torch.float32)


# torch.library reads the annotations, and reads Optional[...] alone.
@torch.library.custom_op("ternary_kernels::linear_ternary", mutates_args=())
def linear_ternary(
    x: Tensor,
    tiles: Tensor,
    scale: Tensor,
    N: int,
    bias: Optional[Tensor] = None,  # noqa: UP045
) -> Tensor:
    """x [..., K] times a 2-bit ternary weight [N, K]."""
    return _compute(PackedTernary, x, tiles, scale, N, bias)


@torch.library.custom_op("ternary_kernels::linear_ternary5", mutates_args=())
def linear_ternary5(
    x: Tensor,
    tiles: Tensor,
    scale: Tensor,
    N: int,
    bias: Optional[Tensor] = None,  # noqa: UP045
) -> Tensor:
    """x [..., K] times a base-3 ternary weight [N, K]."""
    return _compute(PackedTernary5, x, tiles, scale, N, bias)


@torch.library.custom_op("ternary_kernels::linear_int8", mutates_args=())
def linear_int8(
    x: Tensor,
    tiles: Tensor,
    scale: Tensor,
    N: int,
    bias: Optional[Tensor] = None,  # noqa: UP045
) -> Tensor:
    """x [..., K] times an INT8 weight [N, K]."""
    return _compute(PackedInt8, x, tiles, scale, N, bias)


@torch.library.custom_op("ternary_kernels::linear_half", mutates_args=())
def linear_half(
    x: Tensor,
    tiles: Tensor,
    N: int,
    bias: Optional[Tensor] = None,  # noqa: UP045
) -> Tensor:
    """x [..., K] times a bf16 or fp16 weight [N, K]."""
    return _compute(PackedHalf, x, tiles, None, N, bias)


@linear_ternary.register_fake
@linear_ternary5.register_fake
@linear_int8.register_fake
def _(x, tiles, scale, N, bias=None):
    return _fake(x, N)


@linear_half.register_fake
def _(x, tiles, N, bias=None):
    return _fake(x, N)


class PackedLinear(nn.Module):
    """A frozen ``nn.Linear`` over a packed weight; saves and loads as buffers."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.kind = weight.kind
        self.out_features, self.in_features = weight.shape
        self.register_buffer("tiles", weight.tiles)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    @classmethod
    def from_linear(cls, linear: nn.Linear, kind: str = "ternary", **options) -> PackedLinear:
        """Pack a float layer: kind 'ternary', 'ternary5', 'int8' or 'half'."""
        if kind not in PACKINGS:
            raise ValueError(f"kind {kind!r}; allowed: {', '.join(PACKINGS)}")
        return cls(PACKINGS[kind].from_float(linear.weight, **options), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "half":
            y = linear_half(x, self.tiles, self.out_features, self.bias)
        else:
            function = {"ternary": linear_ternary, "ternary5": linear_ternary5}.get(
                self.kind, linear_int8
            )
            y = function(x, self.tiles, self.scale, self.out_features, self.bias)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.kind}, in_features={self.in_features}, out_features={self.out_features}"
