"""One row: y[N] = W q with two-bit weights, every byte of W read once, no tensor core.

A program owns 16 rows of W, whose tiles lie in one piece, and walks along K with all its warps
side by side, so the pieces in flight cover the latency of memory; nothing is written before
the end, hence no second kernel and no atomics. A thread loads 16 bytes (4 rows of one block of
16 inputs). ``dp4a`` multiplies four codes at once. The codes are masked where they stand
instead of shifted: p gives factor 4^p, each p has its own accumulator, and one shift at the
end takes the factor off (exact: every term is a multiple of it). |q| * 2 * 64 * K/4 < 2^31.

Bytes: N K / 4 + N * 4 (+ N K / 32 for group scales) + 2N. Floor at 4.3 TB/s: 8192 x 8192
3.9 us, 2560 x 2560 0.4 us (there the launch, about 2 us, is the floor). Integer operations:
8 for each 16 weights (4 AND, 4 dp4a); at 64 a clock on 132 multiprocessors and 1.7 GHz 2.3 us
for 8192 x 8192: under the time of the bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import GROUP, OPTIONS, dot4, load_scale, one_scale, wait_for_inputs


@triton.jit
def gemv_kernel(
    q_ptr, w_ptr, x_scale_ptr, sums_ptr, scale_ptr, bias_ptr, y_ptr, N, KB, G,
    GROUPED: tl.constexpr, ONE: tl.constexpr, BIAS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """q_ptr, w_ptr: int32 words; BLOCKS: blocks of 16 inputs at a time, a multiple of 8.

    BLOCKS is under the number of threads, and must be: then Triton loads q straight into the
    layout that W has, every thread what it needs; from there on it would go through shared
    memory, with eight barriers a trip.
    """
    wait_for_inputs()
    owner = tl.program_id(0)
    r = tl.arange(0, 16)
    w_ptr += owner.to(tl.int64) * KB * 16
    block = tl.arange(0, BLOCKS)
    w_at = w_ptr + block[:, None] * 16 + r[None, :]
    q_at = q_ptr + block // 8 * 32 + block % 8
    a0 = tl.zeros((BLOCKS, 16), tl.int32)
    a1 = tl.zeros((BLOCKS, 16), tl.int32)
    a2 = tl.zeros((BLOCKS, 16), tl.int32)
    a3 = tl.zeros((BLOCKS, 16), tl.int32)
    sums = tl.zeros((BLOCKS // 8,), tl.int32)
    total = tl.zeros((16,), tl.float32)
    for start in range(0, KB, BLOCKS):
        kb = start + block
        word = tl.load(w_at + start * 16, mask=(kb < KB)[:, None], other=0)
        at = q_at + start * 4
        x0 = tl.load(at, mask=kb < KB, other=0)[:, None]
        x1 = tl.load(at + 8, mask=kb < KB, other=0)[:, None]
        x2 = tl.load(at + 16, mask=kb < KB, other=0)[:, None]
        x3 = tl.load(at + 24, mask=kb < KB, other=0)[:, None]
        g = start // 8 + tl.arange(0, BLOCKS // 8)
        group_sums = tl.load(sums_ptr + g, mask=g < G, other=0)
        if GROUPED:
            zero = tl.zeros((BLOCKS, 16), tl.int32)
            dot = dot4(word & 0x03030303, x0, zero)
            dot = dot4((word >> 2) & 0x03030303, x1, dot)
            dot = dot4((word >> 4) & 0x03030303, x2, dot)
            dot = dot4((word >> 6) & 0x03030303, x3, dot)
            dot = tl.sum(dot.reshape(BLOCKS // 8, 8, 16), 1) - group_sums[:, None]
            scale = tl.load(
                scale_ptr + (owner.to(tl.int64) * G + g)[:, None] * 16 + r[None, :],
                mask=(g < G)[:, None],
                other=0.0,
            )
            total += tl.sum(dot.to(tl.float32) * scale, 0)
        else:
            a0 = dot4(word & 0x03030303, x0, a0)
            a1 = dot4(word & 0x0C0C0C0C, x1, a1)
            a2 = dot4(word & 0x30303030, x2, a2)
            a3 = dot4(word & -0x3F3F3F40, x3, a3)  # 0xC0C0C0C0
            sums += group_sums
    n = owner * 16 + r
    if not GROUPED:
        dot = a0 + (a1 >> 2) + (a2 >> 4) + (a3 >> 6)
        total = (tl.sum(dot, 0) - tl.sum(sums, 0)).to(tl.float32)
        total *= load_scale(scale_ptr, n, N, ONE)
    y = total * tl.load(x_scale_ptr)
    if BIAS:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=n < N)


def launch_gemv(
    q: Tensor, x_scale: Tensor, sums: Tensor, tiles: Tensor, row_scales: Tensor,
    bias: Tensor | None, y: Tensor,
) -> None:  # fmt: skip
    """Fill y [1, N]. Warps grow with K; 64 registers let four programs of eight run at a time."""
    KB = tiles.shape[1]
    if tiles.storage_offset() % 4:  # a view at an odd byte: words need aligned addresses
        tiles = tiles.clone()
    warps = max(2, min(8, triton.next_power_of_2(KB) // 64))
    gemv_kernel[(tiles.shape[0],)](
        q.view(torch.int32), tiles.view(torch.int32), x_scale, sums, row_scales, bias, y,
        y.shape[1], KB, q.shape[1] // GROUP,
        GROUPED=row_scales.ndim == 3, ONE=one_scale(row_scales), BIAS=bias is not None,
        BLOCKS=warps * 16, num_warps=warps, **OPTIONS,
    )  # fmt: skip
