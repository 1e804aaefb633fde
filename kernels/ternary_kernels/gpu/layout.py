"""What all kernels share: the order of the operands and a few device functions.

**Weights** stay in the one packed copy, ``tiles2`` of :mod:`ternary_kernels.packing`: byte
(g, kb, r, b) holds the codes (w + 1) of row 16 g + r at k = 16 kb + 4 p + b, p = 0..3. Eight
blocks kb are one *group* of 128 inputs: 512 bytes that lie together for 16 rows. A thread that
holds the four bytes b of a row unpacks them with three shifts and four ANDs into four 32-bit
words, word p holding k = 16 kb + 4 p + (0..3): 0.44 instructions a weight, no byte is ever moved.

**Activations** are laid to match, once, when they are quantised: inside each group of 128 the
value of k = 16 kb + 4 p + b stands at 32 p + 4 kb + b (*interleaved order*). Then both operands
of a tensor-core product run over p first, and a tile of activations is contiguous.

**Codes are 0, 1, 2**, so a product over K exceeds the wanted one by the sum of the activations;
the quantiser delivers that sum for each group of 128, and the epilogue takes it off. Integers,
hence exact: |q| <= 127 and K <= 131072 keep every sum below 2**31.

Under ``TRITON_INTERPRET=1``, which knows no inline assembly, the device functions that use it
compute the same in Triton.
"""

from __future__ import annotations

import os

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantizers import GROUP

FIXED = (3, 9)
"""The first Triton known to interpret loops with numpy 2.4; 3.6 is known not to."""

ROW_GROUP = 16
MAX_K = 131072

INTERPRETED = bool(triton.knobs.runtime.interpret)

# TERNARY_GPU_PDL=1 (read when this is imported; sm_90 and newer): programmatic dependent launch.
# A kernel may be started while the one before it still runs, and waits for its end before it
# touches memory, so that starting costs nothing in between. Off until it is measured.
PDL = os.environ.get("TERNARY_GPU_PDL") == "1" and not INTERPRETED

# Every launch passes these. Without fusion a*b + c is rounded twice, as in the references.
OPTIONS = {"enable_fp_fusion": False} | ({"launch_pdl": True} if PDL else {})


def interpreter_problem() -> str | None:
    """Why TRITON_INTERPRET=1 cannot run these kernels with the versions here; None if it can.

    Compiled kernels do not care.
    """
    both = [tuple(int(n) for n in m.__version__.split(".")[:2]) for m in (triton, numpy)]
    if both[0] >= FIXED or both[1] < (2, 4):
        return None
    return (
        f"Triton {triton.__version__} cannot interpret loops with numpy {numpy.__version__}: "
        "Triton 3.9 or numpy 2.3 can"
    )


_EMULATE = tl.constexpr(INTERPRETED)
_PDL = tl.constexpr(PDL)
_UNPACK_ASM = tl.constexpr(
    """{
    .reg .b32 shifted;
    and.b32 $0, $4, 0x03030303;
    shr.b32 shifted, $4, 2;
    and.b32 $1, shifted, 0x03030303;
    shr.b32 shifted, $4, 4;
    and.b32 $2, shifted, 0x03030303;
    shr.b32 shifted, $4, 6;
    and.b32 $3, shifted, 0x03030303;
    }"""
)
# Each byte less one. Bit 7 lends to its own byte, so no borrow crosses into the next.
_CENTRE_ASM = tl.constexpr(
    """{
    .reg .b32 lent;
    or.b32 lent, $1, 0x80808080;
    sub.u32 lent, lent, 0x01010101;
    xor.b32 $0, lent, 0x80808080;
    }"""
)
# 1.5 * 2**23: adding it leaves a float32 no fraction bits, so the hardware's own rounding
# (half to even) does the work, for |x| < 2**22.
_TO_INTEGER = tl.constexpr(12582912.0)


@triton.jit
def wait_for_inputs():
    """The first statement of every kernel: nothing is read or written before it; see PDL."""
    if _PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def round_half_even(x):
    """Nearest integer of a float32 with |x| < 2**22, half to even."""
    return (x + _TO_INTEGER) - _TO_INTEGER


@triton.jit
def unpack4(byte):
    """uint8 [...] -> four int8 [...]: the codes at bits 0, 2, 4 and 6."""
    if _EMULATE:
        return (
            (byte & 3).to(tl.int8),
            ((byte >> 2) & 3).to(tl.int8),
            ((byte >> 4) & 3).to(tl.int8),
            (byte >> 6).to(tl.int8),
        )
    return tl.inline_asm_elementwise(
        _UNPACK_ASM,
        "=&r,=&r,=&r,=r,r",
        [byte],
        dtype=(tl.int8, tl.int8, tl.int8, tl.int8),
        is_pure=True,
        pack=4,
    )


@triton.jit
def load_codes(tile_ptr, owned, kb_left, BN: tl.constexpr, EVEN: tl.constexpr):
    """int8 [BN, 128]: the codes of BN rows and one group of 128 inputs, in interleaved order.

    tile_ptr: [BN/16, 1] pointers to the group's 512 bytes; owned [BN/16]: which exist. Loaded as
    they lie, 16 bytes a thread; the permutation only renames registers. kb_left: blocks of 16
    inputs that are left from here (EVEN: always eight). What is masked reads as code 0 and
    meets activations of 0.
    """
    at = tl.arange(0, 512)[None, :]
    if EVEN:
        byte = tl.load(tile_ptr + at, mask=owned[:, None], other=0)
    else:
        byte = tl.load(tile_ptr + at, mask=owned[:, None] & (at < kb_left * 64), other=0)
    byte = byte.reshape(BN // 16, 8, 16, 4).permute(0, 2, 1, 3).reshape(BN, 32)
    c0, c1, c2, c3 = unpack4(byte)
    both = tl.join(tl.join(c0, c2), tl.join(c1, c3))  # last two axes: p = 2 * first + second
    return both.permute(0, 2, 3, 1).reshape(BN, 128)


@triton.jit
def widen(codes, dtype: tl.constexpr):
    """int8 codes 0, 1, 2 -> weights -1, 0, 1 in bf16 or fp16."""
    if _EMULATE:
        return (codes - 1).to(tl.float32).to(dtype)
    weights = tl.inline_asm_elementwise(
        _CENTRE_ASM, "=r,r", [codes], dtype=tl.int8, is_pure=True, pack=4
    )
    return weights.to(dtype)


@triton.jit
def dot_half(w, x, total):
    """float32 total + w x for bf16 or fp16 operands."""
    if _EMULATE:  # the interpreter keeps bf16 as raw bits, which it would multiply
        return tl.dot(w.to(tl.float32), x.to(tl.float32), total, out_dtype=tl.float32)
    return tl.dot(w, x, total, out_dtype=tl.float32)


@triton.jit
def dot4(codes, x, total):
    """int32 total + the sum over four bytes of codes (unsigned) times x (signed)."""
    if _EMULATE:
        for byte in tl.static_range(4):
            code = (codes >> (8 * byte)) & 255
            value = (x << (24 - 8 * byte)) >> 24
            total += code * value
        return total
    return tl.inline_asm_elementwise(
        "dp4a.u32.s32 $0, $1, $2, $3;",
        "=r,r,r,r",
        [codes, x, total],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def dot4_signed(w, x, total):
    """int32 total + the sum over four bytes of w times x, both signed."""
    if _EMULATE:
        for byte in tl.static_range(4):
            total += ((w << (24 - 8 * byte)) >> 24) * ((x << (24 - 8 * byte)) >> 24)
        return total
    return tl.inline_asm_elementwise(
        "dp4a.s32.s32 $0, $1, $2, $3;",
        "=r,r,r,r",
        [w, x, total],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def interleaved(k):
    """Where the value of input k stands in a row of quantised activations."""
    inside = k % 128
    return k - inside + ((inside // 4) % 4) * 32 + (inside // 16) * 4 + inside % 4


def interleave(x: Tensor) -> Tensor:
    """x [M, K] in interleaved order, padded with zeros to whole groups of 128."""
    M, K = x.shape
    x = torch.nn.functional.pad(x, (0, -K % GROUP))
    return x.unflatten(1, (-1, 8, 4, 4)).transpose(2, 3).reshape(M, -1)


def natural_order(x: Tensor, K: int) -> Tensor:
    """Inverse of :func:`interleave`: [M, 128 G] -> [M, K]."""
    return x.unflatten(1, (-1, 4, 8, 4)).transpose(2, 3).reshape(x.shape[0], -1)[:, :K]


def one_scale(row_scales: Tensor) -> bool:
    """Whether the scales are those of one tile of 16 rows, the same for all: one a tensor."""
    return row_scales.numel() == ROW_GROUP


@triton.jit
def load_scale(scale_ptr, n, N, ONE: tl.constexpr):
    """The scale of row n: one a tensor stands 16 times over, one a row stands at n."""
    return tl.load(scale_ptr + (n % 16 if ONE else n), mask=n < N, other=0.0)
