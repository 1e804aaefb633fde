"""Training with ternary weights: INT8 tensor cores forward, straight-through backward.

    y  = Q8(norm(x)) Q3(W)^T + bias              forward, on the packed weights
    dW = dy^T Q8(norm(x)),   dx = norm'(dy Q3(W))     both quantisers pass their gradient on

The master weights W change once an optimizer step, so Q3(W) need not be computed in every forward
pass: the caller packs (``pack_weights``) and answers for the age of what it gives, and
micro-batches, checkpointed recomputation and the backward pass read the same packed copy. Kept
for the backward pass: the INT8 activations (half of bf16; with a norm also x itself), never a
dense copy of W; the two gradient products run in bf16 by cuBLAS on matrices unpacked just before.

Nothing waits for the device and no shape depends on data. The product is one operator of
torch.library with fake kernel and autograd formula: ``torch.compile`` traces through it,
``torch.utils.checkpoint`` recomputes it, a CUDA graph captures it. The layer over it is the
workbench's ``BitLinear``.

``int8_gradients`` takes the gradient products to the INT8 tensor cores as well:

    dx = Q8(dy s) C,         C the codes, s their scales: dy is rounded once a token
    dW = Q8((dy u)^T) q,     q u = Q8(norm(x)): dy is rounded once an output, q is there already

so the only new error is the rounding of dy, half a step of 127 of the largest value of its token
or output: relative errors of 0.5 to 1 % for normally distributed gradients, more where few
values tower over the rest. It is an option and not the default for that reason: watch the loss.
With group scales, or more than 131,072 tokens, those products stay in bf16.

Operations: forward 2 M N K in INT8, backward 4 M N K in bf16, so against three bf16 products the
bound is 1.2x at twice the bf16 rate: the rest of this layer must cost under that. Bytes beside
the products, for each element: x 2 + 1 (quantise), 1 + 2 (dequantise), W 2.25 (unpack).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .int8 import linear_int8_weight
from .layout import MAX_K, ROW_GROUP, interleave, natural_order, one_scale
from .linear import linear_int8
from .pack import pack, unpack
from .quantize import dequantize_rows, quantize_rows, rms_norm_backward


@torch.library.custom_op("ternary_gpu::qat_linear", mutates_args=())
def _qat_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, eps: float,
    tiles: Tensor, row_scales: Tensor, int8_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, q, x_scale, rstd) of x [M, K]; the last three are kept for the backward pass."""
    N, K = weight.shape
    q, x_scale, sums, rstd = quantize_rows(x, norm_weight, eps, "none")
    y = linear_int8(q, x_scale, sums, tiles, row_scales, bias, N, K, x.dtype)
    return y, q, x_scale, rstd


@_qat_linear.register_fake
def _(x, weight, bias, norm_weight, eps, tiles, row_scales, int8_gradients):
    q, x_scale, _, rstd = quantize_rows(x, norm_weight, eps, "none")
    return x.new_empty((x.shape[0], weight.shape[0])), q, x_scale, rstd


def _keep(ctx, inputs, output) -> None:
    x, weight, bias, norm_weight, _, tiles, row_scales, ctx.int8_gradients = inputs
    _, q, x_scale, rstd = output
    ctx.mark_non_differentiable(q, x_scale, rstd)
    ctx.save_for_backward(
        q, x_scale, tiles, row_scales, *((x, norm_weight, rstd) if norm_weight is not None else ())
    )
    ctx.shape, ctx.x_dtype, ctx.weight_dtype = weight.shape, x.dtype, weight.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx, dy, *_):
    q, x_scale, tiles, row_scales, *norm = ctx.saved_tensors
    (N, K), needs = ctx.shape, ctx.needs_input_grad
    dx = dweight = dbias = dnorm = None
    in_int8 = ctx.int8_gradients and 0 < len(dy) <= MAX_K and N <= MAX_K
    if needs[1]:
        if in_int8:
            dweight = int8_weight_gradient(dy, q, x_scale, K).to(ctx.weight_dtype)
        else:
            dweight = (dy.T @ dequantize_rows(q, x_scale, K, dy.dtype)).to(ctx.weight_dtype)
    if needs[2]:
        dbias = dy.sum(0).to(ctx.bias_dtype)
    if needs[0] or needs[3]:
        if in_int8 and row_scales.ndim == 1:
            dx = int8_input_gradient(dy, tiles, row_scales, N, K)
        else:
            dx = dy @ unpack(tiles, row_scales, N, K, dy.dtype)
        if norm:
            dx, dnorm = rms_norm_backward(dx, *norm)
            dnorm = dnorm.to(norm[1].dtype)
    return dx, dweight, dbias, dnorm, None, None, None, None


_qat_linear.register_autograd(_backward, setup_context=_keep)


def int8_input_gradient(dy: Tensor, tiles: Tensor, row_scales: Tensor, N: int, K: int) -> Tensor:
    """dx [M, K] in dy's type: Q8(dy * scales) times the codes, on INT8 tensor cores."""
    if one_scale(row_scales):
        scales, dy_scaled = row_scales, dy
    else:
        scales = row_scales.new_ones(ROW_GROUP)
        dy_scaled = dy * row_scales[:N].to(dy.dtype)
    q, x_scale, sums, _ = quantize_rows(dy_scaled, None, 0.0, "none")
    codes_KN = unpack(tiles, None, N, K, torch.uint8).T.contiguous()
    transposed = pack(codes_KN, None, "half_even")
    return linear_int8(q, x_scale, sums, transposed, scales, None, K, N, dy.dtype)


def int8_weight_gradient(dy: Tensor, q: Tensor, x_scale: Tensor, K: int) -> Tensor:
    """dW [N, K] in dy's type: Q8((dy * x_scale)^T) times the rows q that the forward pass kept."""
    M = len(dy)
    dy_NM = (dy * x_scale[:, None]).to(dy.dtype).T.contiguous()
    q_NM, x_scale_N, _, _ = quantize_rows(dy_NM, None, 0.0, "none")
    q_KM = interleave(natural_order(q, K).T.contiguous())
    return linear_int8_weight(q_NM, x_scale_N, q_KM, x_scale.new_ones(K), None, M, dy.dtype)


def qat_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tiles: Tensor,
    row_scales: Tensor,
    *,
    norm_weight: Tensor | None = None,
    eps: float = 1e-5,
    int8_gradients: bool = False,
) -> Tensor:
    """y [..., N] in x's dtype; gradients for x, weight, bias and norm_weight.

    x [..., K]. weight [N, K]: master weights, only their gradient is used. tiles, row_scales:
    of ``pack_weights(weight)``, as old as the caller answers for. norm_weight [K]: RMSNorm first.
    int8_gradients: gradient products in INT8; see the module's text.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; "
            "allowed: [..., K] and [N, K]"
        )
    y = _qat_linear(
        checks.matrix(x), weight, bias, norm_weight, eps, tiles, row_scales, int8_gradients
    )[0]
    return y.view(*x.shape[:-1], weight.shape[0])
