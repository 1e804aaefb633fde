"""INT8 weights: embedding, head, and the layers that a hybrid keeps at 8 bits.

    y[m, n] = x_scale[m] * scale[n] * sum_k q[m, k] w[n, k]  (+ bias[n])

Both operands are signed and in the same interleaved order (:mod:`.matrices`), so a product is a
plain integer one: ``dp4a`` for one row, INT8 tensor cores for more, K split as in :mod:`.gemm`
where there are few tiles. |q|, |w| <= 127 and K <= 131072 keep every sum below 2**31: exact.

Bytes: N K + 4 N + M K + 2 M N (4 M N for a head's float32 logits). Floor at 4.3 TB/s for the head
of the 3B shape, 32002 x 3200: 102 MB, 24 us; operations 2 M N K.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .gemm import PLANNED, _program, _store, add_splits_kernel, plan
from .layout import GROUP, OPTIONS, dot4_signed, interleaved, wait_for_inputs
from .matrices import Int8Matrix
from .quantize import QuantizedRows


@triton.jit
def int8_gemv_kernel(
    q_ptr, w_ptr, x_scale_ptr, scale_ptr, bias_ptr, y_ptr, N, W,
    BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of activations. q_ptr, w_ptr: int32 words, W of them a row."""
    wait_for_inputs()
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = w_ptr + n.to(tl.int64)[:, None] * W
    total = tl.zeros((ROWS, BLOCK), tl.int32)
    for start in range(0, W, BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = (n < N)[:, None] & (at < W)[None, :]
        word = tl.load(row + at[None, :], mask=live, other=0)
        x = tl.load(q_ptr + at, mask=at < W, other=0)[None, :]
        total = dot4_signed(word, x, total)
    y = tl.sum(total, 1).to(tl.float32) * tl.load(scale_ptr + n, mask=n < N, other=0.0)
    y *= tl.load(x_scale_ptr)
    if BIAS:
        y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=n < N)


@triton.jit(do_not_specialize=PLANNED)
def int8_gemm_kernel(
    q_ptr, w_ptr, x_scale_ptr, scale_ptr, bias_ptr, y_ptr, partial_ptr, M, N, G, groups_each,
    SPLITS, BIAS: tl.constexpr, SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y^T[BN, BM] = w[BN, 128] q^T[128, BM], a group of 128 inputs at a time; see gemm.py."""
    wait_for_inputs()
    tile_m, tile_n, split = _program(M, N, SPLITS, BM, BN)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    row = tl.minimum(m, M - 1).to(tl.int64)
    column = tl.minimum(n, N - 1).to(tl.int64)
    q_row = q_ptr + row[None, :] * (G * 128) + tl.arange(0, 128)[:, None]
    w_row = w_ptr + column[:, None] * (G * 128) + tl.arange(0, 128)[None, :]
    dot = tl.zeros((BN, BM), tl.int32)
    begin = split * groups_each
    for g in range(begin, tl.minimum(begin + groups_each, G)):
        dot = tl.dot(tl.load(w_row + g * 128), tl.load(q_row + g * 128), dot, out_dtype=tl.int32)
    if SPLIT:
        offset = split.to(tl.int64) * M * N
        _store(partial_ptr, bias_ptr, dot, m, n, M, N, offset, BIAS=False)
    else:
        y = dot.to(tl.float32) * tl.load(scale_ptr + n, mask=n < N, other=0.0)[:, None]
        y = y * tl.load(x_scale_ptr + row)[None, :]
        _store(y_ptr, bias_ptr, y, m, n, M, N, 0, BIAS)


@triton.jit
def embed_kernel(token_ptr, w_ptr, scale_ptr, y_ptr, K, G, BLOCK: tl.constexpr):
    """One row of y [M, K]: the table's row of a token, in natural order."""
    wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(token_ptr + row).to(tl.int64)
    scale = tl.load(scale_ptr + token)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        w = tl.load(w_ptr + token * G * 128 + interleaved(k), mask=k < K, other=0)
        tl.store(y_ptr + row * K + k, w.to(tl.float32) * scale, mask=k < K)


@torch.library.custom_op("ternary_gpu::linear_int8_weight", mutates_args=())
def linear_int8_weight(
    q: Tensor, x_scale: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, K: int,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """y [M, N] in ``dtype`` from quantised rows and an :class:`Int8Matrix`'s own tensors."""
    (M, N), G = (q.shape[0], values.shape[0]), -(-K // GROUP)
    for name, tensor, rows in (("quantised rows", q, M), ("INT8 weights", values, N)):
        if tensor.dtype != torch.int8 or tuple(tensor.shape) != (rows, G * GROUP):
            raise ValueError(
                f"{name} are {tensor.dtype} {tuple(tensor.shape)}; allowed for K = {K}: int8 "
                f"[{rows}, {G * GROUP}], from quantize() and Int8Matrix"
            )
    checks.runnable(q, "the activations")
    checks.same_device(values, "values", q)
    checks.vector(scale, N, "scale", q)
    if bias is not None:
        checks.vector(bias, N, "bias", q)
    y = q.new_empty((M, N), dtype=dtype)
    if M == 1:
        _launch_gemv(q, x_scale, values.contiguous(), scale, bias, y)
    elif M > 1:
        _launch_gemm(q.contiguous(), x_scale, values.contiguous(), scale, bias, y)
    return y


@linear_int8_weight.register_fake
def _(q, x_scale, values, scale, bias, K, dtype):
    return q.new_empty((q.shape[0], values.shape[0]), dtype=dtype)


def linear_int8_rows(
    rows: QuantizedRows,
    weight: Int8Matrix,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """y [M, N] = x W^T (+ bias [N], after the scale) for rows that :func:`quantize` made."""
    q, x_scale, _ = rows
    return linear_int8_weight(q, x_scale, weight.tiles, weight.scale, bias, weight.shape[1], dtype)


def embed(tokens: Tensor, table: Int8Matrix) -> Tensor:
    """float32 [M, K]: the rows ``tokens`` (int32 or int64 [M], each below N) of a table."""
    return _embed(tokens, table.tiles, table.scale, table.shape[1])


@torch.library.custom_op("ternary_gpu::embed", mutates_args=())
def _embed(tokens: Tensor, values: Tensor, scale: Tensor, K: int) -> Tensor:
    """The operator behind :func:`embed`, over an :class:`Int8Matrix`'s own tensors."""
    checks.runnable(tokens, "tokens")
    y = scale.new_empty((tokens.shape[0], K))
    if len(tokens):
        embed_kernel[(len(tokens),)](
            tokens, values, scale, y, K, -(-K // GROUP),
            BLOCK=min(triton.next_power_of_2(K), 2048), num_warps=4, **OPTIONS,
        )  # fmt: skip
    return y


@_embed.register_fake
def _(tokens, values, scale, K):
    return scale.new_empty((tokens.shape[0], K))


def _launch_gemv(q, x_scale, values, scale, bias, y) -> None:
    W = values.shape[1] // 4
    if values.storage_offset() % 4:  # a view at an odd byte: words need aligned addresses
        values = values.clone()
    if q.storage_offset() % 4:
        q = q.clone()
    block = min(256, triton.next_power_of_2(W))
    int8_gemv_kernel[(-(-y.shape[1] // 8),)](
        q.view(torch.int32), values.view(torch.int32), x_scale, scale, bias, y, y.shape[1], W,
        BIAS=bias is not None, ROWS=8, BLOCK=block, num_warps=4, **OPTIONS,
    )  # fmt: skip


def _launch_gemm(q, x_scale, values, scale, bias, y) -> None:
    (M, N), G = y.shape, q.shape[1] // GROUP
    BM, BN, splits, warps, stages = plan(M, N, G, y.device, False)
    groups_each = -(-G // splits)
    splits = -(-G // groups_each)
    partial = y.new_empty((splits, M, N), dtype=torch.int32) if splits > 1 else None
    biased = bias is not None
    int8_gemm_kernel[(-(-M // BM) * -(-N // BN) * splits,)](
        q, values, x_scale, scale, bias, y, partial, M, N, G, groups_each, splits,
        BIAS=biased, SPLIT=splits > 1, BM=BM, BN=BN, num_warps=warps, num_stages=min(stages, 3),
        **OPTIONS,
    )  # fmt: skip
    if splits > 1:
        add_splits_kernel[(M * -(-N // 1024),)](
            partial, x_scale, scale, bias, y, M, N, splits, GROUPED=False, ONE=False, BIAS=biased,
            X_SCALE=True, BLOCK=1024, num_warps=4, **OPTIONS,
        )  # fmt: skip
