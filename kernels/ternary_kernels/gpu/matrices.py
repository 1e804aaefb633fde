"""Weights as they lie on the device: ternary as packed, INT8 and half precision row by row.

A ternary matrix keeps its one packed copy (:class:`~ternary_kernels.PackedTernary`). The other
two have a layout of their own here, because what suits a CPU's vectors does not suit a tensor
core:

- :class:`Int8Matrix`: int8 [N, 128 G], each row in the *interleaved order* of the quantised
  activations (see :mod:`.layout`) and zero beyond K, so that one set of quantised rows serves
  ternary and INT8 layers alike; float32 scale [N].
- :class:`HalfMatrix`: [N, K] in the type of the computation, for ``torch.nn.functional.linear``.

Layers that read the same input are stacked into one matrix (q, k, v; gate, up): one launch, one
set of programs that fills the chip.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..weights import (
    PackedHalf,
    PackedInt4,
    PackedInt8,
    PackedTernary,
    PackedWeight,
    _kernel_scales,
)
from .layout import MAX_K, ROW_GROUP, interleave, natural_order
from .linear import to_device
from .pack import pack, unpack_codes


class Int8Matrix(PackedWeight):
    """tiles: int8 [N, 128 G], interleaved order. row_scales, scale: float32 [N]."""

    __slots__ = ()
    kind = "int8"

    @classmethod
    def from_values(cls, values: Tensor, scale: Tensor) -> Int8Matrix:
        """From int8 [N, K] in -127..127 and the scale of each row, on the device of ``values``."""
        N, K = values.shape
        if K > MAX_K:
            raise ValueError(f"K = {K}; allowed: at most {MAX_K} (int32 sums). Split the layer.")
        scale = scale.to(values.device, torch.float32).expand(N).contiguous()
        return cls((N, K), interleave(values), scale, scale)

    def values(self) -> Tensor:
        """int8 [N, K] in natural order."""
        return natural_order(self.tiles, self.shape[1])

    def dequantize(self) -> Tensor:
        return self.values().float() * self.scale[:, None]


class HalfMatrix(PackedWeight):
    """tiles: [N, K] in the type of the computation; no scales."""

    __slots__ = ()
    kind = "half"

    def dequantize(self) -> Tensor:
        return self.tiles.float()


def place(weight: PackedWeight, device: torch.device | str, dtype: torch.dtype) -> PackedWeight:
    """A weight on ``device`` in its layout there; one that is there already comes back as it is.

    dtype: of half-precision matrices, the type of the computation.
    """
    if isinstance(weight, PackedTernary):
        return to_device(weight, device)
    if isinstance(weight, PackedInt8):
        if weight.rotation > 1:
            raise ValueError("INT8 weights are rotated; allowed on a GPU: as they are")
        return Int8Matrix.from_values(weight.values().to(device), weight.scale)
    if isinstance(weight, PackedInt4):  # no kernel of its own: the model notes it
        return HalfMatrix(weight.shape, weight.dequantize().to(device, dtype), None, None)
    if isinstance(weight, PackedHalf):
        dense = weight.dequantize() if dtype == torch.float32 else _half(weight)
        return HalfMatrix(weight.shape, dense.to(device, dtype), None, None)
    if isinstance(weight, Int8Matrix | HalfMatrix):
        return weight
    raise ValueError(
        f"weight is a {type(weight).__name__}; allowed on a GPU: PackedTernary, PackedInt8, "
        "PackedInt4, PackedHalf. The base-3 packing has no Triton kernel: pack it with "
        "PackedTernary."
    )


def stackable(a: PackedWeight, b: PackedWeight) -> bool:
    """Whether two matrices over the same input can be one."""
    if a.kind != b.kind or a.shape[1] != b.shape[1]:
        return False
    return a.kind != "ternary" or (a.granularity == "group128") == (b.granularity == "group128")


def stack(matrices: Sequence[PackedWeight]) -> PackedWeight:
    """The rows of several placed matrices [N_i, K] below each other, in one of [sum N_i, K]."""
    first = matrices[0]
    if len(matrices) == 1:
        return first
    N, K = sum(m.shape[0] for m in matrices), first.shape[1]
    if isinstance(first, PackedTernary):
        # One scale a tensor becomes one a row: the layers keep their own.
        parts = [m.scale if m.scale.ndim == 2 else m.scale.expand(m.shape[0]) for m in matrices]
        scale = torch.cat(parts)
        if all(m.shape[0] % ROW_GROUP == 0 for m in matrices[:-1]):
            tiles = torch.cat([m.tiles for m in matrices])
        else:  # a row group would hold rows of two layers: packed again, once
            tiles = pack(torch.cat([unpack_codes(m) for m in matrices]), None, "half_even")
        return PackedTernary((N, K), tiles, _kernel_scales(scale, (N, K)), scale)
    tiles = torch.cat([m.tiles for m in matrices])
    scale = None if first.scale is None else torch.cat([m.scale for m in matrices])
    return type(first)((N, K), tiles, scale, scale)


def random_matrix(
    shape: tuple[int, int],
    kind: str,
    device: torch.device | str,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> PackedWeight:
    """A matrix made on the device, every weight drawn, of standard deviation about 1/sqrt(K).

    kind: 'ternary', 'int8' or 'half'. generator: of ``device``.
    """
    deviation = shape[1] ** -0.5
    like = {"device": device, "generator": generator}
    if kind == "ternary":
        tiles = pack(torch.randint(0, 3, shape, dtype=torch.uint8, **like), None, "half_even")
        scale = torch.full((1,), deviation, device=device)
        return PackedTernary(shape, tiles, _kernel_scales(scale, shape), scale)
    if kind == "int8":
        values = torch.randint(-127, 128, shape, dtype=torch.int8, **like)
        return Int8Matrix.from_values(values, torch.tensor(deviation / 73))
    if kind == "half":
        dense = torch.randn(shape, dtype=dtype, **like).mul_(deviation)
        return HalfMatrix(shape, dense, None, None)
    raise ValueError(f"kind {kind!r}; allowed: 'ternary', 'int8', 'half'")


def _half(weight: PackedHalf) -> Tensor:
    N, K = weight.shape
    return weight.tiles.transpose(1, 2).flatten(0, 1)[:N, :K]
