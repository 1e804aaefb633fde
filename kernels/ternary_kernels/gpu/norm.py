"""What stands between the products of the full-precision arm: norm, gate * up, residual sum.

The same passes as in :mod:`.quantize`, one program a row, but the row goes on in bf16 (or the
type of the computation) instead of INT8: so that both arms of an engine have the same fusions
and the same number of launches, and their ratio is that of the products.

Bytes a row: as there, with 2 K written in place of K.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import checks
from .layout import OPTIONS, wait_for_inputs
from .quantize import ACTIVATIONS, _value


@triton.jit
def half_rows_kernel(
    x_ptr, add_ptr, w_ptr, y_ptr, total_ptr, K, x_stride, eps,
    ACT: tl.constexpr, ADD: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    if ADD:
        add_ptr += row * K
    at = tl.arange(0, BLOCK)
    rstd = 1.0
    if NORM:
        squares = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, K, BLOCK):
            x = _value(x_ptr, add_ptr, start + at, K, ACT, ADD)
            squares += x * x
        mean = tl.div_rn(tl.sum(squares, 0), tl.cast(K, tl.float32))
        rstd = tl.div_rn(1.0, tl.sqrt_rn(mean + eps))
    for start in range(0, K, BLOCK):
        live = start + at < K
        x = _value(x_ptr, add_ptr, start + at, K, ACT, ADD)
        if ADD:
            tl.store(total_ptr + row * K + start + at, x, mask=live)
        if NORM:
            x = x * rstd * tl.load(w_ptr + start + at, mask=live, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * K + start + at, x.to(y_ptr.dtype.element_ty), mask=live)


@torch.library.custom_op("ternary_gpu::half_rows", mutates_args=())
def half_rows(
    x: Tensor, norm_weight: Tensor | None, eps: float, activation: str, dtype: torch.dtype
) -> Tensor:
    """norm(x) [M, K] in ``dtype``; x: [M, K], or [M, 2K] of gate and up with an activation.

    activation: 'none', 'silu' or 'relu2'. norm_weight: [K]; None: no norm.
    """
    return _launch(x, None, norm_weight, eps, activation, dtype)[0]


@half_rows.register_fake
def _(x, norm_weight, eps, activation, dtype):
    return x.new_empty((x.shape[0], _width(x, activation)), dtype=dtype)


@torch.library.custom_op("ternary_gpu::add_half_rows", mutates_args=())
def add_half_rows(
    x: Tensor, add: Tensor, norm_weight: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(norm(x + add) in ``dtype``, x + add in float32), [M, K] each."""
    checks.addend(add, x)
    return _launch(x, add.contiguous(), norm_weight, eps, "none", dtype)


@add_half_rows.register_fake
def _(x, add, norm_weight, eps, dtype):
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape, dtype=torch.float32)


def _width(x: Tensor, activation: str) -> int:
    return x.shape[1] if activation == "none" else x.shape[1] // 2


def _launch(x, add, norm_weight, eps, activation, dtype) -> tuple[Tensor, Tensor | None]:
    """The rows, and x + add where something is added."""
    checks.rows(x, "x")
    M, K = x.shape[0], _width(x, activation)
    if norm_weight is not None:
        checks.vector(norm_weight, K, "norm_weight", x)
    y = x.new_empty((M, K), dtype=dtype)
    total = None if add is None else x.new_empty((M, K), dtype=torch.float32)
    if M == 0:
        return y, total
    x = x if x.stride(1) == 1 else x.contiguous()
    block = min(triton.next_power_of_2(K), 4096)
    half_rows_kernel[(M,)](
        x, add, norm_weight, y, total, K, x.stride(0), eps,
        ACT=ACTIVATIONS[activation], ADD=add is not None, NORM=norm_weight is not None,
        BLOCK=block, num_warps=max(1, block // 256), **OPTIONS,
    )  # fmt: skip
    return y, total
