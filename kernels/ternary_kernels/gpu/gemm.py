"""Two rows and more: INT8 tensor cores straight from the packed weights.

The product is computed as y^T[BN, BM] = W[BN, 128] x^T[128, BM], a group of 128 inputs at a
time. Packed bytes go to shared memory by asynchronous copies, 16 bytes a thread, and from there
into registers in the very layout of the tensor cores' first operand; they are unpacked in
registers (W is never written in a wider type), x is the operand in shared memory. One ``wgmma``
chain a group on sm_90, ``mma.sync`` on sm_80.

- Small batch (2 to 64 rows): bound by the bytes of W. Few output tiles would leave most of the
  chip idle, so K is split over programs; each writes a partial sum, a second kernel adds them
  in a fixed order. No atomics: the same bits every time. The split is kept so small that the
  partial sums stay under the bytes of W; they are read where they were written, in L2.
- Prefill: bound by the tensor cores. 128 x 128 tiles, programs in groups of eight tiles of rows
  so that neighbours share W in L2.

Bytes: N K / 4 + M K + 2 M N (+ 8 S M N for S > 1 partial sums), operations 2 M N K, unpacking
0.44 instructions a weight and tile of rows. Floors (4.3 TB/s, 1500 TOPS INT8): 8192 x 8192 with
16 rows 4.0 us, 64 rows 4.2 us, 128 rows 11.5 us of tensor cores, 4096 rows 367 us.

``half_kernel`` is the weight-only variant: bf16 or fp16 activations, not rounded to INT8
(only put into interleaved order, one small copy), the codes widened in registers, sums in
float32, on the half-precision tensor cores.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import (
    GROUP,
    OPTIONS,
    dot_half,
    load_codes,
    load_scale,
    one_scale,
    wait_for_inputs,
    widen,
)

SUMS_AT_ONCE = tl.constexpr(16)
PLANNED = ["M", "groups_each", "SPLITS"]
"""What changes with the number of rows: no address needs it to be divisible by anything, so one
compiled kernel serves all of them."""


@triton.jit
def _program(M, N, SPLITS, BM: tl.constexpr, BN: tl.constexpr):
    """(tile of rows, tile of columns, split): eight tiles of rows side by side share W."""
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    split = tl.program_id(0) % SPLITS
    tile = tl.program_id(0) // SPLITS
    band = 8 * tiles_n
    first = tile // band * 8
    height = tl.minimum(tiles_m - first, 8)
    return first + tile % band % height, tile % band // height, split


@triton.jit
def _store(y_ptr, bias_ptr, y, m, n, M, N, offset, BIAS: tl.constexpr):
    """Write y^T [BN, BM] plus bias to rows m and columns n of y [M, N]."""
    if BIAS:
        bias = tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        y += bias[:, None]
    at = offset + m.to(tl.int64)[:, None] * N + n[None, :]
    live = (m < M)[:, None] & (n < N)[None, :]
    tl.store(y_ptr + at, tl.trans(y).to(y_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=PLANNED)
def int8_kernel(
    q_ptr, w_ptr, x_scale_ptr, sums_ptr, scale_ptr, bias_ptr, y_ptr, partial_ptr,
    M, N, KB, G, groups_each, SPLITS,
    GROUPED: tl.constexpr, ONE: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    tile_m, tile_n, split = _program(M, N, SPLITS, BM, BN)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    owner = tile_n * (BN // 16) + tl.arange(0, BN // 16)
    owned = owner < tl.cdiv(N, 16)
    w_row = w_ptr + (owner.to(tl.int64) * KB * 64)[:, None]
    row = tl.minimum(m, M - 1).to(tl.int64)
    q_row = q_ptr + row[None, :] * (G * 128) + tl.arange(0, 128)[:, None]
    begin = split * groups_each
    end = tl.minimum(begin + groups_each, G)
    if GROUPED:
        total = tl.zeros((BN, BM), tl.float32)
        scale_row = scale_ptr + (n // 16).to(tl.int64) * G * 16 + n % 16
        for g in range(begin, end):
            sums = tl.load(sums_ptr + row * G + g)
            scale = tl.load(scale_row + g * 16, mask=n < N, other=0.0)
            codes = load_codes(w_row + g * 512, owned, KB - g * 8, BN, EVEN)
            dot = tl.dot(codes, tl.load(q_row + g * 128), out_dtype=tl.int32)
            total += (dot - sums[None, :]).to(tl.float32) * scale[:, None]
        y = total
    else:
        dot = tl.zeros((BN, BM), tl.int32)
        for g in range(begin, end):
            codes = load_codes(w_row + g * 512, owned, KB - g * 8, BN, EVEN)
            dot = tl.dot(codes, tl.load(q_row + g * 128), dot, out_dtype=tl.int32)
        sums = tl.zeros((BM,), tl.int32)
        for start in range(begin, end, SUMS_AT_ONCE):
            some = start + tl.arange(0, SUMS_AT_ONCE)
            at = sums_ptr + row[:, None] * G + some[None, :]
            sums += tl.sum(tl.load(at, mask=(some < end)[None, :], other=0), 1)
        y = dot - sums[None, :]
    if SPLIT:
        offset = split.to(tl.int64) * M * N
        _store(partial_ptr, bias_ptr, y, m, n, M, N, offset, BIAS=False)
    else:
        if not GROUPED:
            y = y.to(tl.float32) * load_scale(scale_ptr, n, N, ONE)[:, None]
        y = y * tl.load(x_scale_ptr + row)[None, :]
        _store(y_ptr, bias_ptr, y, m, n, M, N, 0, BIAS)


@triton.jit(do_not_specialize=PLANNED)
def half_kernel(
    x_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, partial_ptr,
    M, N, KB, G, groups_each, SPLITS,
    GROUPED: tl.constexpr, ONE: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    tile_m, tile_n, split = _program(M, N, SPLITS, BM, BN)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    owner = tile_n * (BN // 16) + tl.arange(0, BN // 16)
    owned = owner < tl.cdiv(N, 16)
    w_row = w_ptr + (owner.to(tl.int64) * KB * 64)[:, None]
    row = tl.minimum(m, M - 1).to(tl.int64)
    x_row = x_ptr + row[None, :] * (G * 128) + tl.arange(0, 128)[:, None]
    begin = split * groups_each
    end = tl.minimum(begin + groups_each, G)
    total = tl.zeros((BN, BM), tl.float32)
    scale_row = scale_ptr + (n // 16).to(tl.int64) * G * 16 + n % 16
    for g in range(begin, end):
        codes = load_codes(w_row + g * 512, owned, KB - g * 8, BN, EVEN)
        w = widen(codes, x_ptr.dtype.element_ty)
        x = tl.load(x_row + g * 128)
        if GROUPED:
            scale = tl.load(scale_row + g * 16, mask=n < N, other=0.0)
            total += dot_half(w, x, tl.zeros((BN, BM), tl.float32)) * scale[:, None]
        else:
            total = dot_half(w, x, total)
    if SPLIT:
        _store(partial_ptr, bias_ptr, total, m, n, M, N, split.to(tl.int64) * M * N, BIAS=False)
    else:
        if not GROUPED:
            total *= load_scale(scale_ptr, n, N, ONE)[:, None]
        _store(y_ptr, bias_ptr, total, m, n, M, N, 0, BIAS)


@triton.jit(do_not_specialize=PLANNED)
def add_splits_kernel(
    partial_ptr, x_scale_ptr, scale_ptr, bias_ptr, y_ptr, M, N, SPLITS,
    GROUPED: tl.constexpr, ONE: tl.constexpr, BIAS: tl.constexpr, X_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """y = (sum of the partial sums, in order) * scale * x_scale + bias: one row, BLOCK columns."""
    wait_for_inputs()
    blocks = tl.cdiv(N, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    at = partial_ptr + row * N + n
    total = tl.load(at, mask=n < N, other=0)
    for split in range(1, SPLITS):
        total += tl.load(at + tl.cast(split, tl.int64) * M * N, mask=n < N, other=0)
    y = total.to(tl.float32)
    if not GROUPED:
        y *= load_scale(scale_ptr, n, N, ONE)
    if X_SCALE:
        y *= tl.load(x_scale_ptr + row)
    if BIAS:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * N + n, y.to(y_ptr.dtype.element_ty), mask=n < N)


@functools.lru_cache(maxsize=64)
def multiprocessors(device: torch.device) -> int:
    """How many programs run side by side at least; of an H200 where nothing can be asked."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def plan(
    M: int, N: int, G: int, device: torch.device, grouped: bool
) -> tuple[int, int, int, int, int]:
    """(BM, BN, splits, warps, stages) for a shape: a rule, so no first call ever measures.

    Small batches: a tile over all rows, and K split until the chip holds about two programs a
    multiprocessor, but never under four groups each, nor into partial sums (8 bytes a split, row
    and column, written and read) of more than half the bytes of W (32 a group and column); from
    33 rows on, where arithmetic is the limit and idle multiprocessors cost more, all of them.
    Every tile of columns reads all activations again, 128 bytes a row and group beside 32 a
    column: so 128 columns at a time wherever their splits still reach the whole chip, and 64
    otherwise.
    Scales a group need a second set of sums: 64 rows at a time, or registers would spill.
    """
    most = 64 if grouped else 128
    if M > 128:
        return most, 128, 1, 8, 3
    BM = min(most, max(16, triton.next_power_of_2(M)))
    chip = multiprocessors(device)
    most_splits = max(1, min((2 if M <= 32 else 4) * G // M, G // 4, 16))
    BN = 128 if M > 64 or -(-N // 128) * most_splits >= chip else 64
    splits = max(1, min(2 * chip // -(-N // BN), most_splits))
    return BM, BN, splits, 4 if BN == 64 else 8, 5 if BM <= 64 else 4


def launch_gemm(
    x: Tensor, x_scale: Tensor | None, sums: Tensor | None, tiles: Tensor, row_scales: Tensor,
    bias: Tensor | None, y: Tensor,
) -> None:  # fmt: skip
    """Fill y [M, N] from quantised rows (x_scale given) or half-precision x, both interleaved."""
    (M, N), KB, G = y.shape, tiles.shape[1], x.shape[1] // GROUP
    int8, grouped = x_scale is not None, row_scales.ndim == 3
    BM, BN, splits, warps, stages = plan(M, N, G, y.device, grouped)
    if not int8:  # operands of twice the bytes: fewer at a time, in registers and shared memory
        BM, stages = min(BM, 64), 3
    groups_each = -(-G // splits)
    splits = -(-G // groups_each)
    exact = torch.int32 if int8 and not grouped else torch.float32
    partial = y.new_empty((splits, M, N), dtype=exact) if splits > 1 else None
    flags = {"GROUPED": grouped, "ONE": one_scale(row_scales), "BIAS": bias is not None}
    options = {"BM": BM, "BN": BN, "num_warps": warps, "num_stages": stages} | OPTIONS
    grid = (-(-M // BM) * -(-N // BN) * splits,)
    if int8:
        int8_kernel[grid](
            x, tiles, x_scale, sums, row_scales, bias, y, partial, M, N, KB, G, groups_each, splits,
            SPLIT=splits > 1, EVEN=KB % 8 == 0, **flags, **options,
        )  # fmt: skip
    else:
        half_kernel[grid](
            x, tiles, row_scales, bias, y, partial, M, N, KB, G, groups_each, splits,
            SPLIT=splits > 1, EVEN=KB % 8 == 0, **flags, **options,
        )  # fmt: skip
    if splits > 1:
        add_splits_kernel[(M * -(-N // 1024),)](
            partial, x_scale, row_scales, bias, y, M, N, splits, X_SCALE=int8, BLOCK=1024,
            num_warps=4, **flags, **OPTIONS,
        )  # fmt: skip
