"""Operations over packed weights: native where the library is, else :mod:`reference`.

Shapes: M rows (tokens), K inputs, N outputs. Activations are float32 or bf16 (fp16 is widened
too); results are float32. Ternary, INT8 and INT4 weights quantise the activations per token as
BitNet does (see :func:`ternary_kernels.reference.quantize_activations`), take the exact
integer dot product, multiply by the scales and then add the bias.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import native, reference
from .core import NotFiniteError
from .quantizers import rotate, rotation_block
from .weights import PackedHalf, PackedInt4, PackedWeight, require_one_rotation

_NO_NORM = -1.0


def quantize(
    x: Tensor, norm: Tensor | None = None, eps: float | None = None, rotation: int = 0
) -> tuple[Tensor, Tensor]:
    """Per-token INT8 of x [M, K], after RMSNorm where ``eps`` is given, and rotated where
    ``rotation`` is (see :func:`ternary_kernels.quantizers.rotate`); one fused pass.

    Returns q, int8 [M, K], and x_scale, fp32 [M]: x is about q * x_scale.
    """
    x_MK = _activations(x, "x", x.shape[-1])
    norm = _vector(norm, "norm", x_MK.shape[1])
    lib = native.library()
    if lib is None or x_MK.shape[0] == 0:
        return reference.quantize_activations(rotate(_checked_norm(x_MK, norm, eps), rotation))
    q_MK = torch.empty(x_MK.shape, dtype=torch.int8)
    x_scale_M = torch.empty(x_MK.shape[0])
    _raise_for(
        lib.tk_quantize(
            x_MK.data_ptr(), *x_MK.shape, native.pointer(norm),
            _NO_NORM if eps is None else eps, rotation_block(x_MK.shape[1], rotation),
            q_MK.data_ptr(), x_scale_M.data_ptr(),
        )
    )  # fmt: skip
    return q_MK, x_scale_M


def linear_int(q: Tensor, weight: PackedWeight) -> Tensor:
    """Exact int32 [M, N] of int8 activations [M, K] with a ternary or INT8 weight.

    INT4 has none: its sums are of 32 inputs, each with a scale.
    """
    if isinstance(weight, PackedHalf | PackedInt4):
        raise ValueError(
            f"linear_int got a {type(weight).__name__}; allowed: ternary and INT8 weights"
        )
    if q.dtype != torch.int8 or q.ndim != 2 or q.shape[1] != weight.shape[1]:
        raise ValueError(
            f"q is {q.dtype} {tuple(q.shape)}; allowed: torch.int8 [M, {weight.shape[1]}]"
        )
    lib = native.library()
    if lib is None or q.shape[0] == 0:
        return reference.linear_int(q, weight)
    q = q.contiguous()
    out_MN = torch.empty((q.shape[0], weight.shape[0]), dtype=torch.int32)
    struct = native.weight_struct(weight)
    lib.tk_linear_int(ctypes.byref(struct), q.data_ptr(), q.shape[0], out_MN.data_ptr())
    return out_MN


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """float32 [..., N] = x [..., K] W^T + bias."""
    (y,) = linears(x, [weight], [bias])
    return y


def linears(
    x: Tensor,
    weights: list[PackedWeight],
    biases: list[Tensor | None] | None = None,
    *,
    norm: Tensor | None = None,
    eps: float | None = None,
) -> list[Tensor]:
    """Several weights over one activation (q, k and v): normed and quantised once.

    ``eps``: RMSNorm x first, with ``norm`` [K] as its weight if given.
    """
    K = weights[0].shape[1]
    if any(w.shape[1] != K for w in weights):
        raise ValueError(f"weights take {[w.shape[1] for w in weights]} inputs; allowed: one K")
    require_one_rotation(weights)
    x_MK = _activations(x, "x", K)
    norm = _vector(norm, "norm", K)
    biases = biases or [None] * len(weights)
    biases = [_vector(b, "bias", w.shape[0]) for b, w in zip(biases, weights, strict=True)]
    lib = native.library()
    if lib is None or x_MK.shape[0] == 0:
        normed = _checked_norm(x_MK, norm, eps)
        outs = [reference.linear(normed, w, b) for w, b in zip(weights, biases, strict=True)]
    else:
        M, n = x_MK.shape[0], len(weights)
        outs = [torch.empty((M, w.shape[0])) for w in weights]
        structs = [native.weight_struct(w) for w in weights]
        _raise_for(
            lib.tk_linears(
                (ctypes.c_void_p * n)(*map(ctypes.addressof, structs)), n, x_MK.data_ptr(), M,
                native.pointer(norm), _NO_NORM if eps is None else eps,
                (ctypes.c_void_p * n)(*map(native.pointer, biases)),
                (ctypes.c_void_p * n)(*map(native.pointer, outs)),
            )
        )  # fmt: skip
    return [out.view(*x.shape[:-1], out.shape[1]) for out in outs]


def gated(
    x: Tensor,
    gate: PackedWeight,
    up: PackedWeight,
    activation: str = "silu",
    *,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """activation(x gate^T) * (x up^T) in one pass; activation 'silu' or 'relu2'."""
    if gate.shape != up.shape:
        raise ValueError(f"gate {gate.shape} and up {up.shape}; allowed: one shape")
    if activation not in native.MODES:
        raise ValueError(f"activation {activation!r}; allowed: 'silu', 'relu2'")
    require_one_rotation([gate, up])
    N, K = gate.shape
    x_MK = _activations(x, "x", K)
    norm = _vector(norm, "norm", K)
    gate_bias, up_bias = _vector(gate_bias, "gate_bias", N), _vector(up_bias, "up_bias", N)
    lib = native.library()
    if lib is None or x_MK.shape[0] == 0:
        normed = _checked_norm(x_MK, norm, eps)
        left = reference.linear(normed, gate, gate_bias)
        right = reference.linear(normed, up, up_bias)
        out_MN = reference.activate(left, activation) * right
    else:
        out_MN = torch.empty((x_MK.shape[0], N))
        first, second = native.weight_struct(gate), native.weight_struct(up)
        _raise_for(
            lib.tk_gated(
                ctypes.byref(first), ctypes.byref(second), x_MK.data_ptr(), x_MK.shape[0],
                native.pointer(norm), _NO_NORM if eps is None else eps, native.pointer(gate_bias),
                native.pointer(up_bias), native.MODES[activation], out_MN.data_ptr(),
            )
        )  # fmt: skip
    return out_MN.view(*x.shape[:-1], N)


def _activations(x: Tensor, name: str, K: int) -> Tensor:
    """float32 contiguous [M, K] on the CPU."""
    if not x.dtype.is_floating_point or x.dtype == torch.float64:
        raise ValueError(f"{name} is {x.dtype}; allowed: float32, bfloat16 or float16")
    if x.device.type != "cpu":
        raise ValueError(f"{name} is on {x.device}; allowed: cpu. Move it with .cpu().")
    if x.ndim < 1 or x.shape[-1] != K or K < 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; allowed: [..., {K}]")
    return x.detach().reshape(-1, K).to(torch.float32).contiguous()


def _vector(v: Tensor | None, name: str, length: int) -> Tensor | None:
    if v is None:
        return None
    if tuple(v.shape) != (length,) or not v.dtype.is_floating_point:
        raise ValueError(f"{name} is {v.dtype} {tuple(v.shape)}; allowed: float [{length}]")
    return v.detach().to("cpu", torch.float32).contiguous()


def _checked_norm(x_MK: Tensor, norm: Tensor | None, eps: float | None) -> Tensor:
    if eps is not None:
        x_MK = reference.rms_norm(x_MK, norm, eps)
    bad = (~x_MK.isfinite()).any(1).nonzero()
    if bad.numel():
        _raise_for(-int(bad[0]) - 1)
    return x_MK


def _raise_for(code: int) -> None:
    if code:
        raise NotFiniteError(f"a product, in row {-code - 1},")
