"""Packing, unpacking and ternary quantisation of weights on the device.

    s = mean |w| over the tensor, a row, or 128 inputs of a row; at least eps
    code = clamp(round(w / s), -1, 1) + 1            (BitNet b1.58, arXiv 2402.17764)

Two kernels: sums of |w| a row or group (the few sums are then added by PyTorch: a fixed order,
no atomics), and rounding with packing. Nothing waits for the device: the scale stays there.
Bytes: N K * 4 + N K / 4 with bf16 master weights (they are read twice), floor for 8192 x 8192
at 4.3 TB/s 66 us; unpacking to bf16 N K * 2.25, 35 us.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import packing
from ..weights import PackedTernary, _check_scale, _kernel_scales
from . import checks
from .layout import (
    GROUP,
    OPTIONS,
    ROW_GROUP,
    load_scale,
    one_scale,
    round_half_even,
    wait_for_inputs,
)

GRANULARITIES = {"tensor": 0, "row": 1, "group128": 2}
ROUNDINGS = {"half_even": 0, "half_up": 1, "half_away": 2}
BLOCKS = 16  # blocks of 16 inputs that a packing program takes: 1 KB of codes


@triton.jit
def abs_sums_kernel(w_ptr, sums_ptr, K, G, GROUPED: tl.constexpr, BLOCK: tl.constexpr):
    wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        magnitude = tl.abs(tl.load(w_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32))
        if GROUPED:
            group = start // 128 + tl.arange(0, BLOCK // 128)
            sums = tl.sum(magnitude.reshape(BLOCK // 128, 128), 1)
            tl.store(sums_ptr + row * G + group, sums, mask=group < G)
        else:
            total += magnitude
    if not GROUPED:
        tl.store(sums_ptr + row, tl.sum(total, 0))


@triton.jit
def pack_kernel(
    w_ptr, inverse_ptr, tiles_ptr, N, K, KB, G,
    CODES: tl.constexpr, GRANULARITY: tl.constexpr, ROUNDING: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One row group and BLOCKS blocks: tile [BLOCKS, 16 rows, 4 bytes], stored as it lies."""
    wait_for_inputs()
    chunks = tl.cdiv(KB, BLOCKS)
    owner = (tl.program_id(0) // chunks).to(tl.int64)
    kb = (tl.program_id(0) % chunks * BLOCKS + tl.arange(0, BLOCKS))[:, None, None]
    n = owner * 16 + tl.arange(0, 16)[None, :, None]
    b = tl.arange(0, 4)[None, None, :]
    byte = tl.zeros((BLOCKS, 16, 4), tl.int32)
    for p in tl.static_range(4):
        k = kb * 16 + 4 * p + b
        live = (n < N) & (k < K)
        if CODES:
            code = tl.load(w_ptr + n * K + k, mask=live, other=1).to(tl.int32)
        else:
            w = tl.load(w_ptr + n * K + k, mask=live, other=0.0).to(tl.float32)
            if GRANULARITY == 0:
                ratio = w * tl.load(inverse_ptr)
            elif GRANULARITY == 1:
                ratio = w * tl.load(inverse_ptr + n, mask=n < N, other=0.0)
            else:
                ratio = w * tl.load(inverse_ptr + n * G + k // 128, mask=live, other=0.0)
            ratio = tl.minimum(tl.maximum(ratio, -2.0), 2.0)
            if ROUNDING == 0:
                level = round_half_even(ratio)
            elif ROUNDING == 1:
                level = tl.floor(ratio + 0.5)
            else:
                level = tl.floor(tl.abs(ratio) + 0.5)
                level = tl.where(ratio < 0, -level, level)
            code = tl.minimum(tl.maximum(level, -1.0), 1.0).to(tl.int32) + 1
        byte |= code << (2 * p)
    at = owner * KB * 64 + kb * 64 + tl.arange(0, 16)[None, :, None] * 4 + b
    tl.store(tiles_ptr + at, byte.to(tl.uint8), mask=(kb < KB) & (n >= 0) & (b >= 0))


@triton.jit
def unpack_kernel(
    tiles_ptr, scales_ptr, dense_ptr, N, K, KB, G,
    SCALED: tl.constexpr, GROUPED: tl.constexpr, ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Dense weights of one row group and BLOCK inputs, codes alone (w + 1) or code * scale."""
    wait_for_inputs()
    chunks = tl.cdiv(K, BLOCK)
    owner = (tl.program_id(0) // chunks).to(tl.int64)
    k = (tl.program_id(0) % chunks * BLOCK + tl.arange(0, BLOCK))[None, :]
    r = tl.arange(0, 16)[:, None]
    n = owner * 16 + r
    live = (n < N) & (k < K)
    at = owner * KB * 64 + k // 16 * 64 + r * 4 + k % 4
    code = tl.load(tiles_ptr + at, mask=live, other=0).to(tl.int32) >> (k // 4 % 4 * 2) & 3
    if SCALED:
        if GROUPED:
            scale = tl.load(scales_ptr + (owner * G + k // 128) * 16 + r, mask=live, other=0.0)
        else:
            scale = load_scale(scales_ptr, n, N, ONE)
        value = (code - 1).to(tl.float32) * scale
    else:
        value = code
    tl.store(dense_ptr + n * K + k, value.to(dense_ptr.dtype.element_ty), mask=live)


@torch.library.custom_op("ternary_gpu::abs_sums", mutates_args=())
def abs_sums(weight: Tensor, grouped: bool) -> Tensor:
    """fp32 sums of |w|: [N], or [N, G] for each group of 128 inputs."""
    N, K = weight.shape
    checks.rows(weight, "weight")
    sums = _abs_sums_output(weight, grouped)
    block = max(GROUP, min(triton.next_power_of_2(K), 4096))
    abs_sums_kernel[(N,)](
        weight.contiguous(), sums, K, -(-K // GROUP), GROUPED=grouped, BLOCK=block,
        num_warps=max(1, min(8, block // 512)), **OPTIONS,
    )  # fmt: skip
    return sums


@abs_sums.register_fake
def _abs_sums_output(weight, grouped):
    N, K = weight.shape
    shape = (N, -(-K // GROUP)) if grouped else (N,)
    return weight.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("ternary_gpu::pack", mutates_args=())
def pack(weight: Tensor, inverse: Tensor | None, rounding: str) -> Tensor:
    """Tiles of round(weight * inverse), or of integer codes where inverse is None."""
    (N, K), tiles = weight.shape, _pack_output(weight, inverse, rounding)
    granularity = 0 if inverse is None or inverse.numel() == 1 else inverse.ndim
    checks.runnable(weight, "weight")
    pack_kernel[(tiles.shape[0] * -(-tiles.shape[1] // BLOCKS),)](
        weight.contiguous(), inverse, tiles, N, K, tiles.shape[1], -(-K // GROUP),
        CODES=inverse is None, GRANULARITY=granularity, ROUNDING=ROUNDINGS[rounding],
        BLOCKS=BLOCKS, num_warps=4, **OPTIONS,
    )  # fmt: skip
    return tiles


@pack.register_fake
def _pack_output(weight, inverse, rounding):
    N, K = weight.shape
    return weight.new_empty((-(-N // ROW_GROUP), -(-K // 16), 16, 4), dtype=torch.uint8)


@torch.library.custom_op("ternary_gpu::unpack", mutates_args=())
def unpack(tiles: Tensor, row_scales: Tensor | None, N: int, K: int, dtype: torch.dtype) -> Tensor:
    """Dense [N, K]: codes * scales in ``dtype``, or the codes 0, 1, 2 without scales."""
    dense = tiles.new_empty((N, K), dtype=dtype)
    checks.runnable(tiles, "tiles")
    unpack_kernel[(tiles.shape[0] * -(-K // 256),)](
        tiles, row_scales, dense, N, K, tiles.shape[1], -(-K // GROUP),
        SCALED=row_scales is not None, GROUPED=row_scales is not None and row_scales.ndim == 3,
        ONE=row_scales is not None and one_scale(row_scales), BLOCK=256, num_warps=4, **OPTIONS,
    )  # fmt: skip
    return dense


@unpack.register_fake
def _(tiles, row_scales, N, K, dtype):
    return tiles.new_empty((N, K), dtype=dtype)


def absmean(weight: Tensor, granularity: str = "tensor", eps: float = 1e-5) -> Tensor:
    """The inverse scale 1 / max(mean |w|, eps), fp32 [1], [N] or [N, G], on the device."""
    N, K = weight.shape
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"granularity {granularity!r}; allowed: {', '.join(map(repr, GRANULARITIES))}"
        )
    if granularity == "group128" and K <= GROUP:
        granularity = "row"
    sums = abs_sums(weight, granularity == "group128")
    if granularity == "tensor":
        mean = (sums.sum() / (N * K)).reshape(1)
    elif granularity == "row":
        mean = sums / K
    else:
        widths = torch.full((sums.shape[1],), float(GROUP), device=sums.device)
        widths[-1] = K - GROUP * (sums.shape[1] - 1)
        mean = sums / widths
    inverse = 1.0 / mean.clamp(min=eps)
    return inverse.reshape(1) if inverse.numel() == 1 else inverse


def pack_weights(
    weight: Tensor,
    granularity: str = "tensor",
    *,
    rounding: str = "half_even",
    eps: float = 1e-5,
    inverse: Tensor | None = None,
) -> PackedTernary:
    """Quantise and pack float weights [N, K] on their device, without waiting for it.

    inverse: 1 / scale by another rule than the mean of |w|, fp32 [1], [N] or [N, ceil(K/128)]
    (then granularity and eps are not used). rounding: 'half_even', 'half_up', 'half_away'.
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; allowed: [N, K], N, K >= 1")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding {rounding!r}; allowed: {', '.join(map(repr, ROUNDINGS))}")
    checks.rows(weight, "weight")
    weight = weight.detach()
    N, K = weight.shape
    if inverse is None:
        inverse = absmean(weight, granularity, eps)
    else:
        _check_scale_shape(inverse, "inverse", N, K)
        inverse = inverse.detach().to(weight.device, torch.float32).contiguous()
    scale = 1.0 / inverse
    tiles = pack(weight, inverse, rounding)
    return PackedTernary((N, K), tiles, _kernel_scales(scale, (N, K)), scale)


def pack_codes(codes: Tensor, scale: Tensor | float) -> PackedTernary:
    """Pack integer codes [N, K] of 0, 1, 2 on their device; their range is checked (a sync)."""
    packing.check_codes(codes)
    N, K = codes.shape
    checks.runnable(codes, "codes")
    scale = torch.as_tensor(scale, dtype=torch.float32, device=codes.device)
    scale = scale.reshape(1) if scale.numel() == 1 else scale.clone()
    _check_scale_shape(scale, "scale", N, K)
    tiles = pack(codes.to(torch.uint8), None, "half_even")
    return PackedTernary((N, K), tiles, _kernel_scales(scale, (N, K)), scale)


def pack_portable(packed: Tensor, K: int, scale: Tensor | float) -> PackedTernary:
    """From the interchange form uint8 [N, ceil(K/4)] on its device, as a model folder holds it.

    The twin of ``PackedTernary.from_portable``, with the same checks; N K bytes of codes and
    their masks are needed for a moment.
    """
    codes = packing.unpack_portable(packed, K)
    return pack_codes(codes, _check_scale(scale, *codes.shape))


def unpack_weights(weight: PackedTernary, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The matrix [N, K] that a packed weight stands for, in ``dtype``, on its device."""
    N, K = checks.packed(weight).shape
    return unpack(weight.tiles, weight.row_scales, N, K, dtype)


def unpack_codes(weight: PackedTernary) -> Tensor:
    """uint8 codes 0, 1, 2 [N, K] of a packed weight, on its device."""
    N, K = checks.packed(weight).shape
    return unpack(weight.tiles, None, N, K, torch.uint8)


def _check_scale_shape(scale: Tensor, name: str, N: int, K: int) -> None:
    allowed = ((1,), (N,), (N, -(-K // GROUP)))
    if tuple(scale.shape) not in allowed:
        raise ValueError(f"{name} has shape {tuple(scale.shape)}; allowed: {allowed}")
