"""The quantisers in plain PyTorch: weights to ternary, INT8 or INT4, activations to per-token INT8.

What every kernel and the training layers are held against; :mod:`workbench.ternary` trains with
these very functions. Shapes: N outputs, K inputs, G = ceil(K/128) groups. A *scale* has the
shape of its granularity: ``[1]`` ('tensor'), ``[N]`` ('row') or ``[N, G]`` (groups of 128 inputs
of a row, the last one shorter where K is no multiple of 128; of INT4 groups of 32).

All arithmetic is float32, on the tensor's own device, and in the order that BitNet's public code
uses (multiply by the reciprocal, divide by it again), so a checkpoint gives the same codes here
and there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 128
ACTIVATION_EPS = 1e-5
WEIGHT_EPS = 1e-5
INT8_BLOCK = 4096
INT4_GROUP = 32
INT4_BLOCK = 4096
"""Groups that are searched at a time: half a megabyte, which stays in the cache."""
INT4_REACHES = (7.0, *(7.0 + 0.125 * i for i in range(1, 17)))
ROTATED_AT_ONCE = 1 << 17
"""Elements that are turned together on a CPU: half a megabyte, which a core's cache holds."""


def absmean(
    w_NK: Tensor, granularity: str, rounding: str = "half_even", eps: float = WEIGHT_EPS
) -> tuple[Tensor, Tensor]:
    """BitNet b1.58: s = max(mean |w|, eps) of each cell, code = clamp(round(w / s), -1, 1).

    Returns the codes as float32 [N, K], a fresh tensor, and the scale s (arXiv 2402.17764).
    """
    mean = per_cell(w_NK.abs(), granularity, lambda x: x.mean(-1))
    inverse = 1.0 / mean.clamp_(min=eps)
    return ternary_codes(w_NK, inverse, rounding), 1.0 / inverse


def ternary_codes(w_NK: Tensor, inverse: Tensor, rounding: str) -> Tensor:
    """-1, 0, 1 as float32 [N, K], given the reciprocal of the scale."""
    return round_to(w_NK * spread(inverse, w_NK.shape[1]), rounding).clamp_(-1, 1)


def quantize_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] in -127..127 and the float32 scale [N] of each row: max(absmax, 1e-12) / 127.

    In blocks of rows, so that a large embedding needs no float32 copy of itself.
    """
    N, K = weight_NK.shape
    values = torch.empty((N, K), dtype=torch.int8, device=weight_NK.device)
    scale = torch.empty(N, device=weight_NK.device)
    for start in range(0, N, INT8_BLOCK):
        rows = slice(start, start + INT8_BLOCK)
        w = weight_NK[rows].detach().float()
        scale[rows] = w.abs().amax(1).clamp_(min=1e-12) / 127.0
        values[rows] = (w / scale[rows, None]).round_().clamp_(-127, 127).to(torch.int8)
    return values, scale


def quantize_int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] in -8..7 and a float16 scale for each 32 inputs of a row [N, ceil(K/32)].

    Weights w of a group are about s q. For given codes the best scale is that of least squares,
    s = sum(w q) / sum(q q), whose squared error is sum(w w) - sum(w q)^2 / sum(q q). The codes
    come from a search: let m be the weight of the largest magnitude, then for each reach r of
    ``INT4_REACHES`` (7 to 9) the codes are clamp(round(-w r / m), -8, 7), so that m falls on the
    longer, negative side, and those with the least error are taken; a scale may be negative. It is
    rounded to float16, and the codes are at last the nearest to w / s under the rounded scale,
    which can only lower the error. The plain start, absmax / 7, is among the candidates, so the
    search is never worse. (llama.cpp searches Q4_0's scales in the same spirit.)

    Raises ValueError where a scale does not fit float16, whose largest number is 65504, or is NaN.
    """
    N, K = weight_NK.shape
    G = -(-K // INT4_GROUP)
    values = torch.empty((N, G * INT4_GROUP), dtype=torch.int8, device=weight_NK.device)
    scale = torch.empty((N, G), dtype=torch.float16, device=weight_NK.device)
    rows = max(1, INT4_BLOCK // G)
    for start in range(0, N, rows):
        w = weight_NK[start : start + rows].detach().float()
        w = torch.nn.functional.pad(w, (0, G * INT4_GROUP - K)).view(-1, INT4_GROUP)
        codes, scales = _int4_groups(w)
        values[start : start + rows] = codes.view(-1, G * INT4_GROUP)
        scale[start : start + rows] = scales.view(-1, G)
    if not bool(scale.isfinite().all()):
        raise ValueError(
            "a scale of INT4 is not finite in float16; allowed: finite weights up to about 450000. "
            "Check the checkpoint."
        )
    return values[:, :K].contiguous(), scale


def _int4_groups(w_GE: Tensor) -> tuple[Tensor, Tensor]:
    """Groups G of E weights: codes int8 [G, E] and float16 scales [G]."""
    largest = w_GE.gather(1, w_GE.abs().argmax(1, keepdim=True))
    inverse_G1 = torch.where(largest == 0, 0.0, -1.0 / largest)
    unit_GE = w_GE * inverse_G1  # -1 where the largest is
    best_G = torch.full((len(w_GE),), -1.0, device=w_GE.device)
    scale_G = torch.zeros_like(best_G)
    # The plain start keeps the sign of the weights: |m| falls on 7 or -7.
    starts = [(w_GE * inverse_G1.abs(), 7.0), *((unit_GE, reach) for reach in INT4_REACHES)]
    for scaled_GE, reach in starts:
        q_GE = (scaled_GE * reach).round_().clamp_(-8, 7)
        product_G = (w_GE * q_GE).sum(1)
        square_G = q_GE.square_().sum(1)
        # The squared error is sum(w w) less this.
        explained_G = product_G.square() / square_G.clamp_(min=1.0)
        better = explained_G > best_G
        best_G = torch.where(better, explained_G, best_G)
        scale_G = torch.where(better, product_G / square_G, scale_G)
    scale_G = scale_G.to(torch.float16)
    inverse_G = torch.where(scale_G == 0, 0.0, 1.0 / scale_G.float())
    return (w_GE * inverse_G[:, None]).round_().clamp_(-8, 7).to(torch.int8), scale_G


def activation_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token INT8 of x [..., K]: q = round_half_even(x * 127 / absmax), as float32 [..., K].

    The second is absmax = max(max |x|, 1e-5), float32 [..., 1]; x is about q * absmax / 127. No
    clamp is needed, q is 127 at most. A token with NaN or Inf gives NaN.
    """
    x = x.float()
    # max |x| without a copy of x; NaN and infinity come through as they would there.
    absmax = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())
    absmax = absmax.clamp_(min=ACTIVATION_EPS)
    # PyTorch computes 127 / t as reciprocal(t) * 127, in BitNet's own code too.
    return (x * (127.0 / absmax)).round_(), absmax


def rotation_block(K: int, rotation: int) -> int:
    """Inputs of a width K that are turned together: the largest power of two that divides K, at
    most ``rotation``. 1, which changes nothing, for rotation 0 and for odd widths."""
    return math.gcd(K, rotation) if rotation else 1


def rotate(x: Tensor, rotation: int) -> Tensor:
    """x [..., K] with each block of :func:`rotation_block` inputs times the Hadamard matrix of
    Sylvester over sqrt(block), in x's dtype; applied twice it gives x back. Differentiable.

    >>> rotate(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), 128)
    tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    block = rotation_block(x.shape[-1], rotation)
    return x if block == 1 else _Rotate.apply(x, block)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, block: int) -> Tensor:
        ctx.block = block
        return _turned(x, block)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _turned(gradient, ctx.block), None


def _turned(x: Tensor, block: int) -> Tensor:
    """The fast Walsh-Hadamard transform: butterflies at distances 1, 2, 4, ..., float32 sums, so
    that kernels which add the same pairs give the same bits. Blocks stand in columns meanwhile: at
    any distance whole runs of memory are added, and a portion stays in the cache."""
    blocks_RB = x.detach().reshape(-1, block)
    turned_RB = torch.empty(blocks_RB.shape, dtype=x.dtype, device=x.device)
    at_once = max(1, ROTATED_AT_ONCE // block) if x.device.type == "cpu" else len(blocks_RB) or 1
    for start in range(0, len(blocks_RB), at_once):
        rows = slice(start, start + at_once)
        now = blocks_RB[rows].t().contiguous().float()
        distance = 1
        while distance < block:
            a, b = now.view(block // (2 * distance), 2, -1).unbind(1)
            now = torch.empty_like(now)
            sums = now.view(block // (2 * distance), 2, -1)
            torch.add(a, b, out=sums[:, 0])
            torch.sub(a, b, out=sums[:, 1])
            distance *= 2
        turned_RB[rows] = now.t().mul(1.0 / math.sqrt(block))
    return turned_RB.reshape(x.shape)


def per_cell(x_NK: Tensor, granularity: str, statistic: Callable[[Tensor], Tensor]) -> Tensor:
    """``statistic`` (over the last axis) of each cell, shaped like a scale."""
    if granularity == "tensor":
        return statistic(x_NK.flatten()).reshape(1)
    if granularity == "row":
        return statistic(x_NK)
    whole = x_NK.shape[1] // GROUP * GROUP
    parts = [statistic(x_NK[:, :whole].unflatten(1, (-1, GROUP)))] if whole else []
    if whole < x_NK.shape[1]:
        parts.append(statistic(x_NK[:, whole:])[:, None])
    return torch.cat(parts, dim=1)


def spread(scale: Tensor, columns: int, group: int = GROUP) -> Tensor:
    """A scale in a shape that broadcasts against [N, K]; ``group``: inputs that share one."""
    if scale.ndim == 2:
        return scale.repeat_interleave(group, dim=1)[:, :columns]
    return scale[:, None]


def round_to(x: Tensor, rounding: str) -> Tensor:
    """To whole numbers; ``rounding`` of a half: 'half_even', 'half_up' or 'half_away'."""
    if rounding == "half_even":
        return x.round()
    if rounding == "half_up":
        return (x + 0.5).floor_()
    return (x + torch.copysign(x.new_tensor(0.5), x)).trunc_()
