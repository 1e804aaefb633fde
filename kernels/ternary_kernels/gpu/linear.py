"""The linear layer of inference: quantised or half-precision rows times one packed weight.

``linear`` takes the kernel by the number of rows: one row :mod:`.gemv`, more :mod:`.gemm`. Both
are operators of torch.library with fake kernels, so ``torch.compile`` and CUDA graphs take them
as they are: no host sync, no allocation but the output and the partial sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..weights import PackedTernary
from . import checks
from .gemm import launch_gemm
from .gemv import launch_gemv
from .layout import GROUP, interleave
from .quantize import QuantizedRows, quantize

HALVES = (torch.bfloat16, torch.float16)


@torch.library.custom_op("ternary_gpu::linear_int8", mutates_args=())
def linear_int8(
    q: Tensor, x_scale: Tensor, sums: Tensor, tiles: Tensor, row_scales: Tensor,
    bias: Tensor | None, N: int, K: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """y [M, N] in ``dtype`` from quantised rows (see QuantizedRows) and a packed weight [N, K]."""
    M, G = q.shape[0], -(-K // GROUP)
    if q.dtype != torch.int8 or q.shape != (M, G * GROUP) or sums.shape != (M, G):
        raise ValueError(
            f"quantised rows are {q.dtype} {tuple(q.shape)} with sums {tuple(sums.shape)}; "
            f"allowed for K = {K}: int8 [M, {G * GROUP}] and [M, {G}], from quantize()"
        )
    checks.runnable(q, "the activations")
    checks.tiles(tiles, row_scales, N, K, q)
    if bias is not None:
        checks.vector(bias, N, "bias", q)
    y = q.new_empty((M, N), dtype=dtype)
    if M == 1:
        launch_gemv(q, x_scale, sums, tiles, row_scales, bias, y)
    elif M > 1:
        launch_gemm(q.contiguous(), x_scale, sums, tiles, row_scales, bias, y)
    return y


@linear_int8.register_fake
def _(q, x_scale, sums, tiles, row_scales, bias, N, K, dtype):
    return q.new_empty((q.shape[0], N), dtype=dtype)


@torch.library.custom_op("ternary_gpu::linear_half", mutates_args=())
def linear_half(
    x: Tensor, tiles: Tensor, row_scales: Tensor, bias: Tensor | None, N: int
) -> Tensor:
    """y [M, N] = x W^T + bias in x's dtype, activations not quantised."""
    checks.rows(x, "x")
    K = x.shape[1]
    if x.dtype not in HALVES:
        raise ValueError(
            f"x has dtype {x.dtype}; allowed for unquantised activations: bfloat16, float16"
        )
    checks.tiles(tiles, row_scales, N, K, x)
    if bias is not None:
        checks.vector(bias, N, "bias", x)
    y = x.new_empty((x.shape[0], N))
    if x.shape[0]:
        launch_gemm(interleave(x), None, None, tiles, row_scales, bias, y)
    return y


@linear_half.register_fake
def _(x, tiles, row_scales, bias, N):
    return x.new_empty((x.shape[0], N))


def linear(
    x: Tensor | QuantizedRows,
    weight: PackedTernary,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """y [..., N] = x W^T (+ bias [N], after the scale), INT8 activations.

    x [..., K] float, quantised here (one launch more), or rows that :func:`quantize` or
    :func:`quantize_gated` made ([M, K]; they serve several layers). weight: on x's device, see
    :func:`to_device`. dtype: of y; x's own by default, bfloat16 for quantised rows.
    """
    N, K = checks.packed(weight).shape
    if isinstance(x, QuantizedRows):
        rows, shape, own = x, x.q.shape[:1], torch.bfloat16
    else:
        _check_width(x, K)
        rows, shape, own = quantize(x), x.shape[:-1], x.dtype
    y = linear_int8(*rows, weight.tiles, weight.row_scales, bias, N, K, dtype or own)
    return y.view(*shape, N)


def linear_weight_only(x: Tensor, weight: PackedTernary, bias: Tensor | None = None) -> Tensor:
    """y [..., N] = x W^T (+ bias) with x [..., K] in bfloat16 or float16 as it is."""
    N, K = checks.packed(weight).shape
    _check_width(x, K)
    y = linear_half(checks.matrix(x), weight.tiles, weight.row_scales, bias, N)
    return y.view(*x.shape[:-1], N)


def to_device(weight: PackedTernary, device: torch.device | str) -> PackedTernary:
    """The same packed weight with its tensors on ``device``."""
    checks.packed(weight)
    return PackedTernary(
        weight.shape,
        weight.tiles.to(device),
        weight.row_scales.to(device),
        weight.scale.to(device),
    )


def _check_width(x: Tensor, K: int) -> None:
    if x.ndim < 1 or x.shape[-1] != K:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed for this weight: [..., {K}]")
