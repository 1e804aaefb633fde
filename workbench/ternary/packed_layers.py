"""Layers for evaluation that hold what the packed file holds: codes and scales.

On a CPU with the native kernels a product runs on the packed weights. Elsewhere (a GPU, no
compiler, unquantised activations) the weights are unpacked at the first call and kept: the same
numbers up to float32 rounding, but not small. Whole models run faster in the decode engine
(:mod:`workbench.engine`), which reads the same files; these layers serve any architecture.

Shape legend: N outputs, K inputs. The state of each layer has the names of the file format in
docs/design.md.
"""

from __future__ import annotations

from typing import Any

import ternary_kernels
import torch
from ternary_kernels import PackedInt4, PackedInt8, PackedTernary
from ternary_kernels.packing import (
    pack_portable,
    pack_portable4,
    unpack_portable,
    unpack_portable4,
)
from ternary_kernels.quantizers import INT4_GROUP, quantize_int4, quantize_int8, rotate
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.ternary.bitlinear import Activations, BitLinear, precise_twin
from workbench.ternary.policy import Precision
from workbench.ternary.quantize import (
    fake_quantize_activations,
    scale_shape,
    spread,
    ternarize,
)
from workbench.ternary.threshold import Granularity, ThresholdVersion


class _PackedLinear(nn.Module):
    """What packed linear layers share: the way from x [..., K] to y [..., N]."""

    in_features: int
    out_features: int
    bias: Tensor | None

    def __init__(self, activations: Activations, bias: Tensor | None, norm: nn.Module | None):
        super().__init__()
        self.activations = activations
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.norm = norm
        self._native: PackedTernary | PackedInt8 | PackedInt4 | None = None
        self._dense: Tensor | None = None
        self.rotation = 0

    def dequantize(self) -> Tensor:
        """The float32 matrix [N, K] that the packed weights stand for, of the layer's own input."""
        return rotate(self._as_kept(), self.rotation)

    def _as_kept(self) -> Tensor:
        """The same of what the layer multiplies: its input, rotated where it has a rotation."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        x = rotate(x, self.rotation)
        if _runs_natively(x, self.activations):
            if self._native is None:
                self._native = self._to_native()
            return ternary_kernels.linear(x, self._native, self.bias).to(x.dtype)
        if self.activations == "int8":
            x = fake_quantize_activations(x)
        if self._dense is None or (self._dense.dtype, self._dense.device) != (x.dtype, x.device):
            self._dense = self._as_kept().to(x.device, x.dtype)
        return F.linear(x, self._dense, None if self.bias is None else self.bias.to(x.dtype))

    def _to_native(self) -> PackedTernary | PackedInt8 | PackedInt4:
        """The same weights in the layout of the kernels."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"activations={self.activations}"
        )


class PackedTernaryLinear(_PackedLinear):
    """codes: uint8 [N, ceil(K/4)], code w + 1 of input k in byte k//4 at bits 2*(k%4).
    scale: float32 [1], [N] or [N, ceil(K/128)], multiplied.
    rotation: of the threshold that the codes were made under; 0 for none."""

    codes: Tensor
    scale: Tensor

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        in_features: int,
        *,
        activations: Activations = "int8",
        bias: Tensor | None = None,
        norm: nn.Module | None = None,
        rotation: int = 0,
    ) -> None:
        super().__init__(activations, bias, norm)
        self.rotation = rotation
        self.in_features, self.out_features = in_features, codes.shape[0]
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    @classmethod
    def from_values(cls, values: Tensor, scale: Tensor, **rest) -> PackedTernaryLinear:
        """From int8 [N, K] of -1, 0, 1 and a scale; ``rest``: activations, bias, norm, rotation."""
        codes = pack_portable((values + 1).to(torch.uint8))
        return cls(codes, scale.float().contiguous(), values.shape[1], **rest)

    @classmethod
    def empty(cls, shape: tuple[int, int], granularity: Granularity, **rest) -> PackedTernaryLinear:
        """A layer without content (device meta), to be filled from a file."""
        (N, K), meta = shape, torch.device("meta")
        codes = torch.empty((N, -(-K // 4)), dtype=torch.uint8, device=meta)
        return cls(codes, torch.empty(scale_shape(N, K, granularity), device=meta), K, **rest)

    def values(self) -> Tensor:
        """int8 [N, K] of -1, 0, 1."""
        return unpack_portable(self.codes, self.in_features).to(torch.int8) - 1

    def _as_kept(self) -> Tensor:
        return self.values().float() * spread(self.scale, self.in_features)

    def _to_native(self) -> PackedTernary:
        return PackedTernary.from_portable(self.codes, self.in_features, self.scale)


class Int8Linear(_PackedLinear):
    """int8: int8 [N, K]. scale: float32 [N], multiplied."""

    int8: Tensor
    scale: Tensor

    def __init__(
        self,
        int8: Tensor,
        scale: Tensor,
        *,
        activations: Activations = "int8",
        bias: Tensor | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__(activations, bias, norm)
        self.out_features, self.in_features = int8.shape
        self.register_buffer("int8", int8)
        self.register_buffer("scale", scale)

    def _as_kept(self) -> Tensor:
        return self.int8.float() * self.scale[:, None]

    def _to_native(self) -> PackedInt8:
        return PackedInt8.from_codes(self.int8, self.scale)


class Int4Linear(_PackedLinear):
    """int4: uint8 [N, ceil(K/2)], w + 8 of input k at bits 4*(k%2) of byte k//2. scale: float16
    [N, ceil(K/32)], multiplied; it may be negative."""

    int4: Tensor
    scale: Tensor

    def __init__(
        self,
        int4: Tensor,
        scale: Tensor,
        in_features: int,
        *,
        activations: Activations = "int8",
        bias: Tensor | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__(activations, bias, norm)
        self.in_features, self.out_features = in_features, int4.shape[0]
        self.register_buffer("int4", int4)
        self.register_buffer("scale", scale)

    @classmethod
    def from_values(cls, values: Tensor, scale: Tensor, **rest) -> Int4Linear:
        """From int8 [N, K] in -8..7 and scales; ``rest``: activations, bias, norm."""
        return cls(pack_portable4(values), scale, values.shape[1], **rest)

    @classmethod
    def empty(cls, shape: tuple[int, int], **rest) -> Int4Linear:
        """A layer without content (device meta), to be filled from a file."""
        (N, K), meta = shape, torch.device("meta")
        codes = torch.empty((N, -(-K // 2)), dtype=torch.uint8, device=meta)
        scale = torch.empty((N, -(-K // INT4_GROUP)), dtype=torch.float16, device=meta)
        return cls(codes, scale, K, **rest)

    def values(self) -> Tensor:
        """int8 [N, K] in -8..7."""
        return unpack_portable4(self.int4, self.in_features)

    def _as_kept(self) -> Tensor:
        return self.values().float() * spread(self.scale.float(), self.in_features, INT4_GROUP)

    def _to_native(self) -> PackedInt4:
        return PackedInt4.from_portable(self.int4.cpu(), self.in_features, self.scale)


class Int8Embedding(nn.Module):
    """Rows of int8 [vocabulary, hidden] times their float32 scale; gives ``dtype``."""

    int8: Tensor
    scale: Tensor

    def __init__(self, int8: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = int8.shape
        self.dtype = dtype
        self.register_buffer("int8", int8)
        self.register_buffer("scale", scale)

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        return (self.int8[ids].float() * self.scale[ids][..., None]).to(self.dtype)

    def dequantize(self) -> Tensor:
        return self.int8.float() * self.scale[:, None]


Packed = PackedTernaryLinear | Int8Linear | Int4Linear | Int8Embedding


@torch.no_grad()
def pack_layer(
    layer: nn.Module,
    precision: Precision,
    threshold: ThresholdVersion,
    activations: Activations = "int8",
) -> nn.Module:
    """A copy of ``layer`` in ``precision``; the layer itself is left as it is.

    A :class:`BitLinear` becomes ternary under its own threshold, a plain linear layer under
    ``threshold``. In high precision both give their (master) weights, unquantised, as they are.
    An embedding can be INT8 or high precision.
    """
    if isinstance(layer, Packed):
        return layer
    if isinstance(layer, nn.Embedding):
        if precision in ("ternary", "int4"):
            raise ValueError(f"an embedding cannot be {precision}; allowed: int8, high_precision")
        if precision == "int8":
            return Int8Embedding(*quantize_int8(layer.weight), dtype=layer.weight.dtype)
        return layer
    assert isinstance(layer, nn.Linear), "what a policy can name is an embedding or linear"
    norm = getattr(layer, "norm", None)
    rest: dict[str, Any] = {"activations": activations, "bias": layer.bias, "norm": norm}
    if precision == "int8":
        return Int8Linear(*quantize_int8(layer.weight), **rest)
    if precision == "int4":
        return Int4Linear.from_values(*quantize_int4(layer.weight), **rest)
    if precision == "ternary":
        own = layer.threshold if isinstance(layer, BitLinear) else threshold
        rest["rotation"] = own.rotates
        if isinstance(layer, BitLinear):
            return PackedTernaryLinear.from_values(*layer.ternarized(), **rest)
        return PackedTernaryLinear.from_values(*ternarize(layer.weight, threshold), **rest)
    return precise_twin(layer)


def _runs_natively(x: Tensor, activations: Activations) -> bool:
    return (
        activations == "int8"
        and x.device.type == "cpu"
        and ternary_kernels.backend().name == "native"
    )
