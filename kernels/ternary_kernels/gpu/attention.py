"""RoPE, the KV cache and attention over it, for rows of many conversations in one launch.

The cache of a layer is ``[slots, G, context, P]`` for keys and for values, P being the head
dimension filled up to a multiple of 8 so that every row begins at 16 bytes; what is beyond D
stays zero. Each row of a step has a slot and a position; a row with position -1 is padding: it
writes nothing and reads nothing, and its result is zero. So a step of any number of rows has
the shapes of its bucket, and a CUDA graph of it stays valid while conversations grow.

- ``rope_append``: norm of each head (Qwen3), rotation, and keys and values into the cache.
- ``decode_attention``: each row alone, one query position against its slot. Bound by the bytes
  of the cache; few rows would leave most of the chip idle, so positions are split over
  programs and the parts combined in a fixed order (flash decoding). The query heads of a KV
  head share its keys.
- ``tile_attention``: prefill. Rows of one slot stand together; a program takes up to BQ of them
  and one head (flash attention), so that keys are read once a tile.

Bytes of decoding: 2 G P (2 bytes) a cached position, row and layer; 3B shape with 1024
positions: 26 layers x 2 x 32 x 104 x 2 x 1024 = 354 MB, 82 us at 4.3 TB/s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .gemm import multiprocessors
from .layout import INTERPRETED, OPTIONS, wait_for_inputs

_EXACT = tl.constexpr(INTERPRETED)
SHORTEST_SPLIT = 256
"""Positions under which a split costs more than it hides."""
MOST_SPLITS = 32


def padded(head_dim: int) -> int:
    """Values a cached head takes: a multiple of 8."""
    return -(-head_dim // 8) * 8


@triton.jit
def _dot(a, b):
    """float32 a b; in float32 throughout where the operands are, or the interpreter asks it."""
    if _EXACT or a.dtype == tl.float32:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b)


@triton.jit
def rope_append_kernel(
    qkv_ptr, q_norm_ptr, k_norm_ptr, cos_ptr, sin_ptr, slot_ptr, position_ptr,
    q_ptr, k_ptr, v_ptr, context, stride, eps,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, P: tl.constexpr, NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    position = tl.load(position_ptr + row).to(tl.int64)
    slot = tl.load(slot_ptr + row).to(tl.int64)
    d = tl.arange(0, BLOCK)
    is_q, is_v = head + d * 0 < H, head + d * 0 >= H + KV
    is_k = (head + d * 0 >= H) & (head + d * 0 < H + KV)
    real = position + d * 0 >= 0  # blocks, because the interpreter takes no scalar as a mask
    half: tl.constexpr = D // 2
    inside = d < half
    at = qkv_ptr + row * stride + head * D
    a = tl.load(at + d, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + half + d, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        rstd = tl.div_rn(1.0, tl.sqrt_rn((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / D + eps))
        rstd = tl.where(is_v, 1.0, rstd)
        low = tl.load(q_norm_ptr + d, mask=inside & is_q, other=1.0)
        low *= tl.load(k_norm_ptr + d, mask=inside & is_k, other=1.0)
        high = tl.load(q_norm_ptr + half + d, mask=inside & is_q, other=1.0)
        high *= tl.load(k_norm_ptr + half + d, mask=inside & is_k, other=1.0)
        a *= rstd * low
        b *= rstd * high
    rotated = inside & (is_q | is_k) & real
    cos = tl.load(cos_ptr + position * half + d, mask=rotated, other=1.0)
    sin = tl.load(sin_ptr + position * half + d, mask=rotated, other=0.0)
    low, high = a * cos - b * sin, b * cos + a * sin
    q_at = q_ptr + (row * H + head) * D
    tl.store(q_at + d, low.to(q_ptr.dtype.element_ty), mask=inside & is_q)
    tl.store(q_at + half + d, high.to(q_ptr.dtype.element_ty), mask=inside & is_q)
    kept = inside & real
    k_at = k_ptr + ((slot * KV + head - H) * context + position) * P
    tl.store(k_at + d, low.to(k_ptr.dtype.element_ty), mask=kept & is_k)
    tl.store(k_at + half + d, high.to(k_ptr.dtype.element_ty), mask=kept & is_k)
    v_at = v_ptr + ((slot * KV + head - H - KV) * context + position) * P
    tl.store(v_at + d, low.to(v_ptr.dtype.element_ty), mask=kept & is_v)
    tl.store(v_at + half + d, high.to(v_ptr.dtype.element_ty), mask=kept & is_v)


@triton.jit
def _add_keys(k_at, v_at, q, live, total, peak, weight, scale, P: tl.constexpr):
    """One step of the online softmax. q [R, D]; k_at, v_at [N, D]; live [R, N].

    total [R, D]: weighted values; peak [R]: the largest score so far; weight [R]: the sum of
    exp(score - peak).
    """
    d = tl.arange(0, q.shape[1])[None, :]
    any_live = tl.max(live.to(tl.int32), 0)[:, None] > 0
    k = tl.load(k_at, mask=any_live & (d < P), other=0.0)
    score = tl.where(live, _dot(q, tl.trans(k)) * scale, float("-inf"))
    higher = tl.maximum(peak, tl.max(score, 1))
    reached = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: no NaN
    fade = tl.exp(peak - reached)
    p = tl.exp(score - reached[:, None])
    v = tl.load(v_at, mask=any_live & (d < P), other=0.0)
    total = total * fade[:, None] + _dot(p.to(v.dtype), v)
    return total, higher, weight * fade + tl.sum(p, 1)


@triton.jit
def decode_kernel(
    q_ptr, k_ptr, v_ptr, slot_ptr, position_ptr, y_ptr, part_ptr, stats_ptr,
    context, window, scale,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, P: tl.constexpr, SPLITS: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The query heads of one KV head of one row over one part of its positions."""
    wait_for_inputs()
    row, g, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    position = tl.load(position_ptr + row)
    slot = tl.load(slot_ptr + row).to(tl.int64)
    begin = tl.maximum(position + 1 - window, 0)
    each = tl.cdiv(tl.cdiv(position + 1 - begin, SPLITS), N) * N
    first = begin + split * each
    last = tl.minimum(first + each, position + 1)
    repeat: tl.constexpr = H // KV
    r, d = tl.arange(0, R), tl.arange(0, BLOCK)[None, :]
    head = g * repeat + r
    mine = (r < repeat)[:, None] & (d < D)
    q = tl.load(q_ptr + (row * H + head)[:, None] * D + d, mask=mine, other=0.0)
    q = q.to(k_ptr.dtype.element_ty)
    total = tl.zeros((R, BLOCK), tl.float32)
    peak = tl.full((R,), float("-inf"), tl.float32)
    weight = tl.zeros((R,), tl.float32)
    base = (slot * KV + g) * context
    for start in range(first, last, N):
        n = start + tl.arange(0, N)
        at = (base + n)[:, None] * P + d
        live = (n < last)[None, :] & (r >= 0)[:, None]
        total, peak, weight = _add_keys(
            k_ptr + at, v_ptr + at, q, live, total, peak, weight, scale, P
        )
    if SPLITS == 1:
        y = total / tl.maximum(weight, 1e-30)[:, None]
        tl.store(y_ptr + (row * H + head)[:, None] * D + d, y.to(y_ptr.dtype.element_ty), mask=mine)
    else:
        place = (row * H + head) * SPLITS + split
        tl.store(part_ptr + place[:, None] * D + d, total, mask=mine)
        tl.store(stats_ptr + place * 2, peak, mask=r < repeat)
        tl.store(stats_ptr + place * 2 + 1, weight, mask=r < repeat)


@triton.jit
def combine_kernel(
    part_ptr, stats_ptr, y_ptr,
    H: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The parts of one head of one row, in order, to y."""
    wait_for_inputs()
    row = tl.program_id(0).to(tl.int64) * H + tl.program_id(1)
    s, d = tl.arange(0, S), tl.arange(0, BLOCK)[None, :]
    at = row * SPLITS + s
    peak = tl.load(stats_ptr + at * 2, mask=s < SPLITS, other=float("-inf"))
    weight = tl.load(stats_ptr + at * 2 + 1, mask=s < SPLITS, other=0.0)
    highest = tl.max(peak, 0)
    factor = tl.exp(peak - tl.where(highest == float("-inf"), 0.0, highest))
    live = (s < SPLITS)[:, None] & (d < D)
    part = tl.load(part_ptr + at[:, None] * D + d, mask=live, other=0.0)
    y = tl.sum(part * factor[:, None], 0) / tl.maximum(tl.sum(weight * factor, 0), 1e-30)
    d = tl.arange(0, BLOCK)
    tl.store(y_ptr + row * D + d, y.to(y_ptr.dtype.element_ty), mask=d < D)


@triton.jit
def tile_kernel(
    q_ptr, k_ptr, v_ptr, slot_ptr, position_ptr, tile_ptr, y_ptr,
    context, window, scale, tile_stride,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
    BQ: tl.constexpr, BLOCK: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Up to BQ rows of one slot and one head. tile_ptr: first row of each tile, then its rows."""
    wait_for_inputs()
    tile, head = tl.program_id(0), tl.program_id(1)
    first_row = tl.load(tile_ptr + tile)
    count = tl.load(tile_ptr + tile_stride + tile)
    r, d = tl.arange(0, BQ), tl.arange(0, BLOCK)[None, :]
    row = (first_row + r).to(tl.int64)
    mine = r < count
    position = tl.load(position_ptr + row, mask=mine, other=-1)
    slot = tl.load(slot_ptr + first_row).to(tl.int64)
    q_at = (row * H + head)[:, None] * D + d
    q = tl.load(q_ptr + q_at, mask=mine[:, None] & (d < D), other=0.0)
    q = q.to(k_ptr.dtype.element_ty)
    total = tl.zeros((BQ, BLOCK), tl.float32)
    peak = tl.full((BQ,), float("-inf"), tl.float32)
    weight = tl.zeros((BQ,), tl.float32)
    base = (slot * KV + head // (H // KV)) * context
    lowest = tl.min(tl.where(position >= 0, position, 2147483647), 0)
    begin = tl.maximum(tl.minimum(lowest, context) + 1 - window, 0) // N * N
    last = tl.max(position, 0) + 1
    for start in range(begin, last, N):
        n = start + tl.arange(0, N)
        at = (base + n)[:, None] * P + d
        live = (n[None, :] <= position[:, None]) & (n[None, :] > (position - window)[:, None])
        total, peak, weight = _add_keys(
            k_ptr + at, v_ptr + at, q, live, total, peak, weight, scale, P
        )
    y = total / tl.maximum(weight, 1e-30)[:, None]
    tl.store(y_ptr + q_at, y.to(y_ptr.dtype.element_ty), mask=mine[:, None] & (d < D))


@dataclass(frozen=True)
class StepRows:
    """The rows of a step on the device: int32 [M] each; position -1: padding.

    tiles: int32 [2, T], first row and number of rows of each tile (0: none), for prefill; None
    where every row is a slot of its own.
    """

    tokens: Tensor
    slots: Tensor
    positions: Tensor
    tiles: Tensor | None = None


def rope_append(
    qkv: Tensor,
    rows: StepRows,
    tables: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
) -> Tensor:
    """q [M, H, D] rotated, from qkv [M, (H + 2G) D]; keys and values go into ``cache``.

    tables: cos and sin, float32 [context, D/2]. norms: of each head of q and of k, float32 [D].
    """
    return _rope_append(
        qkv, rows.slots, rows.positions, *tables, *cache, *(norms or (None, None)), eps
    )


@torch.library.custom_op("ternary_gpu::rope_append", mutates_args=("keys", "values"))
def _rope_append(
    qkv: Tensor, slots: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, keys: Tensor,
    values: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """The operator behind :func:`rope_append`; keys and values are written to."""
    checks.runnable(qkv, "qkv")
    q = _rotated(qkv, cos, keys)
    M, H, D = q.shape
    KV, context, P = keys.shape[1:]
    if M:
        rope_append_kernel[(M, H + 2 * KV)](
            qkv, q_norm, k_norm, cos, sin, slots, positions, q, keys, values,
            context, qkv.stride(0), eps,
            H=H, KV=KV, D=D, P=P, NORM=q_norm is not None,
            BLOCK=triton.next_power_of_2(D // 2), num_warps=1, **OPTIONS,
        )  # fmt: skip
    return q


@_rope_append.register_fake
def _(qkv, slots, positions, cos, sin, keys, values, q_norm, k_norm, eps):
    return _rotated(qkv, cos, keys)


def _rotated(qkv: Tensor, cos: Tensor, keys: Tensor) -> Tensor:
    """An empty q [M, H, D] for qkv [M, (H + 2G) D], cos [context, D/2], keys [slots, G, ...]."""
    D = 2 * cos.shape[1]
    return qkv.new_empty((qkv.shape[0], qkv.shape[1] // D - 2 * keys.shape[1], D))


def splits(M: int, kv_heads: int, context: int, device: torch.device) -> int:
    """Parts of the positions of a decoding row: about two programs a multiprocessor."""
    wanted = -(-2 * multiprocessors(device) // (M * kv_heads))
    return max(1, min(wanted, -(-context // SHORTEST_SPLIT), MOST_SPLITS))


def attend(q: Tensor, rows: StepRows, cache: tuple[Tensor, Tensor], window: int) -> Tensor:
    """y [M, H D] in q's dtype: each row of q [M, H, D] over positions 0..its own of its slot.

    window: positions a row sees, its own included; 0: all.
    """
    return _attend(q, rows.slots, rows.positions, rows.tiles, *cache, window)


@torch.library.custom_op("ternary_gpu::attend", mutates_args=())
def _attend(
    q: Tensor, slots: Tensor, positions: Tensor, tiles: Tensor | None, keys: Tensor,
    values: Tensor, window: int,
) -> Tensor:  # fmt: skip
    """The operator behind :func:`attend`."""
    checks.runnable(q, "q")
    M, H, D = q.shape
    KV, context, P = keys.shape[1:]
    # Padding rows are in no tile: zeros, so that nothing undefined goes on through the layers.
    y = q.new_empty((M, H * D)) if tiles is None else q.new_zeros((M, H * D))
    if M == 0:
        return y
    shape = {"H": H, "KV": KV, "D": D, "P": P, "BLOCK": max(16, triton.next_power_of_2(P))}
    many = (context, window or context, D**-0.5)
    if tiles is not None:
        tile_kernel[(tiles.shape[1], H)](
            q, keys, values, slots, positions, tiles, y, *many, tiles.stride(0),
            BQ=tile_rows(M), N=32, num_warps=4, num_stages=2, **shape, **OPTIONS,
        )  # fmt: skip
        return y
    parts = splits(M, KV, context, q.device)
    part = stats = None
    if parts > 1:
        part = q.new_empty((M, H, parts, D), dtype=torch.float32)
        stats = q.new_empty((M, H, parts, 2), dtype=torch.float32)
    decode_kernel[(M, KV, parts)](
        q, keys, values, slots, positions, y, part, stats, *many,
        SPLITS=parts, R=max(16, triton.next_power_of_2(H // KV)), N=64,
        num_warps=4, num_stages=2, **shape, **OPTIONS,
    )  # fmt: skip
    if parts > 1:
        combine_kernel[(M, H)](
            part, stats, y, H=H, D=D, SPLITS=parts, S=triton.next_power_of_2(parts),
            BLOCK=shape["BLOCK"], num_warps=2, **OPTIONS,
        )  # fmt: skip
    return y


@_attend.register_fake
def _(q, slots, positions, tiles, keys, values, window):
    return q.new_empty((q.shape[0], q.shape[1] * q.shape[2]))


def tile_rows(M: int) -> int:
    """Rows that a tile of prefill takes at most, for a step of M."""
    return 16 if M <= 32 else 64
