"""Activations to INT8, one scale a token, fused with what stands before: RMSNorm, gate * up.

One program a row. It reads the row twice: the first pass finds max |x w| and sum x^2 together
(the norm's factor is positive, so the largest |x w| is the largest normalised value), the second
rounds; the second reading comes out of L1. Formulas (BitNet b1.58, arXiv 2402.17764):

    y = x * rsqrt(mean(x^2) + eps) * w          (only with norm_weight)
    q = round_half_even(y * 127 / max(|y|, 1e-5)),   x_scale = max(|y|, 1e-5) / 127

and with ``gated`` input [gate, up] (two halves of the row) x = act(gate) * up, act(g) either
g * sigmoid(g) or relu(g)^2, before the norm. gate * up cannot be part of the product's epilogue:
the scale needs the whole row, and its columns belong to many programs. With ``add`` the rows of
a residual stream are summed on the way (x + add, kept in float32): a launch less a layer.

A row that holds NaN or Inf gets x_scale = NaN, so every output computed from it is NaN.

Bytes a row: K * (2 + 1) for bf16 (gated: 2K * 2 + K), + 4 for x_scale + K/32 for the sums. Floor at
4.3 TB/s: 4096 rows of 8192, 102 MB, 24 us; one row: the launch.
With a rotation (:func:`ternary_kernels.quantizers.rotate`) y is turned in blocks of inputs before
it is rounded, in a kernel of its own that holds the whole row: log2(block) additions an element on
registers, no byte more. Forward only: training rotates in PyTorch.

The backward of norm and quantisation (straight through the rounding) is RMSNorm's:

    dx = rstd * (w dy - xhat * mean(w dy xhat)),   dw = sum over rows of dy xhat,   xhat = x rstd

in two kernels; each reads x and dy once: (2 + 2) * 2 + 2 bytes an element, floor 4096 x 8192:
336 MB, 78 us. dw is summed in a fixed order (slabs of rows, then the slabs): deterministic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantizers import rotation_block
from . import checks
from .layout import GROUP, OPTIONS, interleaved, round_half_even, wait_for_inputs

ACTIVATIONS = {"none": 0, "silu": 1, "relu2": 2}
DW_SLABS = 64


class QuantizedRows(NamedTuple):
    """INT8 activations as the products read them.

    q: int8 [M, 128 G], interleaved order, zeros beyond K. x_scale: fp32 [M]; x is about
    q * x_scale. sums: int32 [M, G], the sum of q in each group of 128.
    """

    q: Tensor
    x_scale: Tensor
    sums: Tensor


@triton.jit
def _value(x_ptr, add_ptr, k, K, ACT: tl.constexpr, ADD: tl.constexpr):
    """x, x + add, or act(gate) * up, in float32; zero beyond K."""
    x = tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(add_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    if ACT == 1:
        x = tl.div_rn(x, 1.0 + tl.exp(-x)) * tl.load(x_ptr + K + k, mask=k < K, other=0.0).to(
            tl.float32
        )
    if ACT == 2:
        x = tl.where(x > 0, x, x * 0.0)  # keeps NaN, which max(x, 0) would lose
        x = x * x * tl.load(x_ptr + K + k, mask=k < K, other=0.0).to(tl.float32)
    return x


@triton.jit
def quantize_rows_kernel(
    x_ptr, add_ptr, w_ptr, q_ptr, x_scale_ptr, sums_ptr, rstd_ptr, total_ptr, K, G, x_stride, eps,
    ACT: tl.constexpr, ADD: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    if ADD:
        add_ptr += row * K
    at = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    nan_or_zero = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        x = _value(x_ptr, add_ptr, start + at, K, ACT, ADD)
        if ADD:
            tl.store(total_ptr + row * K + start + at, x, mask=start + at < K)
        if NORM:
            squares += x * x
            x *= tl.load(w_ptr + start + at, mask=start + at < K, other=0.0).to(tl.float32)
        nan_or_zero += x * 0.0  # NaN as soon as one value, or the norm's weight, is NaN or Inf
        largest = tl.maximum(largest, tl.abs(x))
    absmax = tl.max(largest, 0)
    rstd = 1.0
    if NORM:
        rstd = tl.div_rn(
            1.0, tl.sqrt_rn(tl.div_rn(tl.sum(squares, 0), tl.cast(K, tl.float32)) + eps)
        )
        absmax *= rstd
        tl.store(rstd_ptr + row, rstd)
    absmax = tl.maximum(absmax, 1e-5)
    factor = tl.div_rn(1.0, absmax) * 127.0  # as torch evaluates 127 / absmax
    tl.store(x_scale_ptr + row, tl.div_rn(absmax, 127.0) + tl.sum(nan_or_zero, 0))
    for start in range(0, K, BLOCK):
        x = _value(x_ptr, add_ptr, start + at, K, ACT, ADD)
        if NORM:
            x = (
                x
                * rstd
                * tl.load(w_ptr + start + at, mask=start + at < K, other=0.0).to(tl.float32)
            )
        q = round_half_even(x * factor).to(tl.int8)
        inside = start + at < G * 128
        tl.store(q_ptr + row * G * 128 + interleaved(start + at), q, mask=inside)
        group = start // 128 + tl.arange(0, BLOCK // 128)
        sums = tl.sum(q.to(tl.int32).reshape(BLOCK // 128, 128), 1)
        tl.store(sums_ptr + row * G + group, sums, mask=group < G)


@triton.jit
def rotate_quantize_rows_kernel(
    x_ptr, w_ptr, q_ptr, x_scale_ptr, sums_ptr, K, G, x_stride, eps, scale,
    NORM: tl.constexpr, LOG_ROTATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_stride + k, mask=k < K, other=0.0).to(tl.float32)
    if NORM:
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x * x, 0), tl.cast(K, tl.float32)) + eps))
        x = x * rstd * tl.load(w_ptr + k, mask=k < K, other=0.0).to(tl.float32)
    nan_or_zero = tl.sum(x * 0.0, 0)
    for i in tl.static_range(LOG_ROTATION):
        pairs = tl.permute(tl.reshape(x, (BLOCK >> (i + 1), 2, 1 << i)), (0, 2, 1))
        a, b = tl.split(pairs)
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (BLOCK,))
    x = x * scale
    absmax = tl.maximum(tl.max(tl.abs(x), 0), 1e-5)
    factor = tl.div_rn(1.0, absmax) * 127.0
    tl.store(x_scale_ptr + row, tl.div_rn(absmax, 127.0) + nan_or_zero)
    q = round_half_even(x * factor).to(tl.int8)
    tl.store(q_ptr + row * G * 128 + interleaved(k), q, mask=k < G * 128)
    group = tl.arange(0, BLOCK // 128)
    sums = tl.sum(q.to(tl.int32).reshape(BLOCK // 128, 128), 1)
    tl.store(sums_ptr + row * G + group, sums, mask=group < G)


@triton.jit
def dequantize_rows_kernel(q_ptr, x_scale_ptr, y_ptr, K, G, BLOCK: tl.constexpr):
    wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    x_scale = tl.load(x_scale_ptr + row)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + row * G * 128 + interleaved(k), mask=k < K, other=0)
        y = (q.to(tl.float32) * x_scale).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + row * K + k, y, mask=k < K)


@triton.jit
def rms_norm_dx_kernel(dy_ptr, x_ptr, w_ptr, rstd_ptr, dx_ptr, K, BLOCK: tl.constexpr):
    wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    rstd = tl.load(rstd_ptr + row)
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        k = start + at
        x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        products += dy * w * x * rstd
    mean = tl.div_rn(tl.sum(products, 0), tl.cast(K, tl.float32))
    for start in range(0, K, BLOCK):
        k = start + at
        x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        dx = (dy * w - x * rstd * mean) * rstd
        tl.store(dx_ptr + row * K + k, dx.to(dx_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def rms_norm_dw_kernel(
    dy_ptr, x_ptr, rstd_ptr, partial_ptr, M, K, rows_each, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    wait_for_inputs()
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slab = tl.program_id(1)
    first = slab * rows_each
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(first, tl.minimum(first + rows_each, M), ROWS):
        row = start + tl.arange(0, ROWS)
        live = (row < tl.minimum(first + rows_each, M))[:, None] & (k < K)[None, :]
        at = row.to(tl.int64)[:, None] * K + k[None, :]
        x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=live, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, mask=row < M, other=0.0)
        total += dy * x * rstd[:, None]
    tl.store(partial_ptr + slab.to(tl.int64) * K + k, tl.sum(total, 0), mask=k < K)


@torch.library.custom_op("ternary_gpu::quantize_rows", mutates_args=())
def quantize_rows(
    x: Tensor, norm_weight: Tensor | None, eps: float, activation: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [M, K] (or [M, 2K] with an activation) -> q, x_scale, sums, rstd; see QuantizedRows."""
    return _launch(x, None, norm_weight, eps, activation)[:4]


@torch.library.custom_op("ternary_gpu::add_quantize_rows", mutates_args=())
def add_quantize_rows(
    x: Tensor, add: Tensor, norm_weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, add [M, K] -> q, x_scale, sums of norm(x + add), and x + add in float32."""
    checks.addend(add, x)
    q, x_scale, sums, _, total = _launch(x, add.contiguous(), norm_weight, eps, "none")
    return q, x_scale, sums, total


@add_quantize_rows.register_fake
def _(x, add, norm_weight, eps):
    outputs = _quantize_rows_outputs(x, norm_weight, "none")
    return *outputs[:3], x.new_empty(x.shape, dtype=torch.float32)


def _launch(x, add, norm_weight, eps, activation) -> tuple[Tensor, ...]:
    """q, x_scale, sums, rstd, and x + add where something is added."""
    q, x_scale, sums, rstd = outputs = _quantize_rows_outputs(x, norm_weight, activation)
    M, G = sums.shape
    K = x.shape[1] if activation == "none" else x.shape[1] // 2
    checks.rows(x, "x")
    if norm_weight is not None:
        checks.vector(norm_weight, K, "norm_weight", x)
    total = None if add is None else x.new_empty((M, K), dtype=torch.float32)
    if M == 0:
        return *outputs, total
    x = x if x.stride(1) == 1 else x.contiguous()
    block = min(triton.next_power_of_2(G * GROUP), 8192)
    quantize_rows_kernel[(M,)](
        x, add, norm_weight, q, x_scale, sums, rstd, total, K, G, x.stride(0), eps,
        ACT=ACTIVATIONS[activation], ADD=add is not None, NORM=norm_weight is not None,
        BLOCK=block, num_warps=max(1, min(16, block // 512)), **OPTIONS,
    )  # fmt: skip
    return *outputs, total


def _quantize_rows_outputs(x, norm_weight, activation):
    M, K = x.shape[0], x.shape[1] if activation == "none" else x.shape[1] // 2
    G = -(-K // GROUP)
    return (
        x.new_empty((M, G * GROUP), dtype=torch.int8),
        x.new_empty((M,), dtype=torch.float32),
        x.new_empty((M, G), dtype=torch.int32),
        x.new_empty((0 if norm_weight is None else M,), dtype=torch.float32),
    )


@quantize_rows.register_fake
def _(x, norm_weight, eps, activation):
    return _quantize_rows_outputs(x, norm_weight, activation)


@torch.library.custom_op("ternary_gpu::rotate_quantize_rows", mutates_args=())
def rotate_quantize_rows(
    x: Tensor, norm_weight: Tensor | None, eps: float, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """x [M, K] -> q, x_scale, sums of the normed row, rotated in blocks of ``block`` inputs."""
    q, x_scale, sums, _ = _quantize_rows_outputs(x, None, "none")
    M, K = x.shape
    checks.rows(x, "x")
    if norm_weight is not None:
        checks.vector(norm_weight, K, "norm_weight", x)
    if M:
        x = x if x.stride(1) == 1 else x.contiguous()
        whole = triton.next_power_of_2(max(K, GROUP))
        rotate_quantize_rows_kernel[(M,)](
            x, norm_weight, q, x_scale, sums, K, sums.shape[1], x.stride(0), eps,
            1.0 / math.sqrt(block), NORM=norm_weight is not None,
            LOG_ROTATION=block.bit_length() - 1, BLOCK=whole,
            num_warps=max(1, min(16, whole // 512)), **OPTIONS,
        )  # fmt: skip
    return q, x_scale, sums


@rotate_quantize_rows.register_fake
def _(x, norm_weight, eps, block):
    return _quantize_rows_outputs(x, None, "none")[:3]


@torch.library.custom_op("ternary_gpu::dequantize_rows", mutates_args=())
def dequantize_rows(q: Tensor, x_scale: Tensor, K: int, dtype: torch.dtype) -> Tensor:
    """The activations [M, K] that q and x_scale stand for, in natural order."""
    M, y = q.shape[0], q.new_empty((q.shape[0], K), dtype=dtype)
    if M:
        block = min(triton.next_power_of_2(K), 4096)
        dequantize_rows_kernel[(M,)](
            q, x_scale, y, K, q.shape[1] // GROUP, BLOCK=block,
            num_warps=max(1, min(8, block // 256)), **OPTIONS,
        )  # fmt: skip
    return y


@dequantize_rows.register_fake
def _(q, x_scale, K, dtype):
    return q.new_empty((q.shape[0], K), dtype=dtype)


@torch.library.custom_op("ternary_gpu::rms_norm_backward", mutates_args=())
def rms_norm_backward(
    dy: Tensor, x: Tensor, norm_weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """(dx [M, K] in x's dtype, dw fp32 [K]) of y = x * rstd(x) * w."""
    M, K = x.shape
    dy, x = dy.contiguous(), x.contiguous()
    dx = torch.empty_like(x)
    if M == 0:
        return dx, x.new_zeros((K,), dtype=torch.float32)
    block = min(triton.next_power_of_2(K), 8192)
    rms_norm_dx_kernel[(M,)](
        dy, x, norm_weight, rstd, dx, K, BLOCK=block,
        num_warps=max(1, min(16, block // 512)), **OPTIONS,
    )  # fmt: skip
    rows_each = -(-M // DW_SLABS)
    slabs = -(-M // rows_each)
    partial = x.new_empty((slabs, K), dtype=torch.float32)
    rms_norm_dw_kernel[(-(-K // 128), slabs)](
        dy, x, rstd, partial, M, K, rows_each, ROWS=16, BLOCK=128, num_warps=4, **OPTIONS
    )
    return dx, partial.sum(0)


@rms_norm_backward.register_fake
def _(dy, x, norm_weight, rstd):
    return torch.empty_like(x), x.new_empty((x.shape[1],), dtype=torch.float32)


def quantize(
    x: Tensor, norm_weight: Tensor | None = None, eps: float = 1e-5, rotation: int = 0
) -> QuantizedRows:
    """Quantise x [..., K] (bf16, fp16 or fp32), after RMSNorm when ``norm_weight`` [K] is given.

    rotation: of a threshold version; the normed row is turned in blocks of at most so many inputs.
    Not differentiable by itself: training goes through :func:`ternary_kernels.gpu.qat_linear`.
    """
    rows = checks.matrix(x)
    block = rotation_block(rows.shape[1], rotation)
    if block > 1:
        return QuantizedRows(*rotate_quantize_rows(rows, norm_weight, eps, block))
    return QuantizedRows(*quantize_rows(checks.matrix(x), norm_weight, eps, "none")[:3])


def add_quantize(
    x: Tensor, add: Tensor, norm_weight: Tensor | None = None, eps: float = 1e-5
) -> tuple[QuantizedRows, Tensor]:
    """Quantise norm(x + add) of two [M, K]; the rows, and x + add in float32 for what follows."""
    q, x_scale, sums, total = add_quantize_rows(x, add, norm_weight, eps)
    return QuantizedRows(q, x_scale, sums), total


def quantize_gated(
    gate_up: Tensor, activation: str, norm_weight: Tensor | None = None, eps: float = 1e-5
) -> QuantizedRows:
    """Quantise act(gate) * up of gate_up [..., 2K] (gate first), after RMSNorm if asked.

    activation: 'silu' or 'relu2' (squared ReLU).
    """
    if activation not in ("silu", "relu2"):
        raise ValueError(f"activation {activation!r}; allowed: 'silu', 'relu2'")
    if gate_up.shape[-1] % 2:
        raise ValueError(
            f"gate_up has shape {tuple(gate_up.shape)}; allowed: [..., 2K], gate then up"
        )
    return QuantizedRows(*quantize_rows(checks.matrix(gate_up), norm_weight, eps, activation)[:3])
