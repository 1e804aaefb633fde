"""Every operation in plain PyTorch: what the native kernels are held against, bit for bit.

It is also the path that runs where no compiler is. Shapes: M rows (tokens), K inputs,
N outputs, G groups of 128 along K, H query heads, C cached positions, D head dimension.

Integer dot products are exact: |code| <= 1 and |x| <= 128 keep every partial sum of a float32
matmul an integer below 2**24 up to K = 131072; INT8 weights take float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .quantizers import GROUP, INT4_GROUP, activation_codes
from .quantizers import rotate as turn_blocks
from .weights import PackedHalf, PackedInt8, PackedWeight, Ternary

MAX_K = 131072


def quantize_activations(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """BitNet's per-token INT8: q = round_half_even(x * 127 / clamp(absmax, 1e-5)).

    Returns q, int8 [M, K], and x_scale = clamp(absmax, 1e-5) / 127, fp32 [M]: x is about
    q * x_scale.
    """
    q_MK, absmax_M1 = activation_codes(x_MK)
    return q_MK.to(torch.int8), absmax_M1[:, 0] / 127.0


def linear_int(q_MK: Tensor, weight: PackedWeight) -> Tensor:
    """Exact int32 dot products [M, N] of INT8 activations with ternary or INT8 weights."""
    if isinstance(weight, PackedInt8):
        return (q_MK.double() @ _dense_int8(weight).double().T).to(torch.int32)
    return (q_MK.float() @ _dense_int8(weight).float().T).to(torch.int32)


def linear(x_MK: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """float32 [M, N] = x W^T (+ bias, after the scale)."""
    x_MK = x_MK.float()
    if isinstance(weight, PackedHalf):
        if weight._dense is None:
            weight._dense = weight.dequantize()
        y_MN = x_MK @ weight._dense.T
    else:
        q_MK, x_scale_M = quantize_activations(turn_blocks(x_MK, weight.rotation))
        y_MN = scale_products(q_MK, x_scale_M, weight)
    return y_MN if bias is None else y_MN + bias


def scale_products(q_MK: Tensor, x_scale_M: Tensor, weight: PackedWeight) -> Tensor:
    """Integer products times the weight's scales, then times the activation's factor."""
    group = {"group128": GROUP, "group32": INT4_GROUP}.get(weight.granularity)
    if group is None:
        return (linear_int(q_MK, weight).float() * weight.scale) * x_scale_M[:, None]
    total_MN = torch.zeros(q_MK.shape[0], weight.shape[0])
    codes_NK, scale_NG = _dense_int8(weight), weight.scale.float()
    for g in range(weight.scale.shape[1]):
        part = slice(g * group, (g + 1) * group)
        dot_MN = q_MK[:, part].float() @ codes_NK[:, part].float().T
        total_MN += dot_MN * scale_NG[:, g]
    return total_MN * x_scale_M[:, None]


def rms_norm(x_MK: Tensor, weight_K: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    y_MK = x_MK * torch.rsqrt(x_MK.square().mean(-1, keepdim=True) + eps)
    return y_MK if weight_K is None else y_MK * weight_K


def activate(gate: Tensor, activation: str) -> Tensor:
    """'silu' or 'relu2' (squared ReLU)."""
    if activation == "silu":
        return torch.nn.functional.silu(gate)
    return torch.relu(gate).square()


def rotate(x_MHD: Tensor, cos_MD: Tensor, sin_MD: Tensor) -> Tensor:
    """Rotary embedding in the half-split convention of Hugging Face's Llama."""
    half = x_MHD.shape[-1] // 2
    a, b = x_MHD[..., :half], x_MHD[..., half:]
    cos, sin = cos_MD[:, None], sin_MD[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(q_MHD: Tensor, k_CGD: Tensor, v_CGD: Tensor, mask_MC: Tensor) -> Tensor:
    """Grouped-query attention; head h reads key/value head h // (H // G). Returns [M, H, D]."""
    repeat = q_MHD.shape[1] // k_CGD.shape[1]
    k_CHD = k_CGD.float().repeat_interleave(repeat, dim=1)
    v_CHD = v_CGD.float().repeat_interleave(repeat, dim=1)
    scores_HMC = torch.einsum("mhd,chd->hmc", q_MHD, k_CHD) * q_MHD.shape[-1] ** -0.5
    weights_HMC = scores_HMC.masked_fill(~mask_MC, float("-inf")).softmax(-1)
    return torch.einsum("hmc,chd->mhd", weights_HMC, v_CHD)


def _dense_int8(weight: PackedWeight) -> Tensor:
    """Unpacked int8 [N, K], kept after the first use: unpacking on every call costs more."""
    if weight._dense is None:
        if isinstance(weight, Ternary):
            weight._dense = weight.codes().to(torch.int8) - 1
        else:
            weight._dense = weight.values()
    return weight._dense
