"""What the kernels take, said before a launch: a wrong pointer on a GPU is no clear error."""

from __future__ import annotations

import torch
from torch import Tensor

from ..weights import PackedTernary
from .layout import INTERPRETED, MAX_K

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def runnable(tensor: Tensor, name: str) -> None:
    """Raise unless Triton can reach the tensor."""
    if tensor.is_cuda or INTERPRETED:
        return
    raise ValueError(
        f"{name} lies on {tensor.device}; allowed: a CUDA device (any device under "
        "TRITON_INTERPRET=1). Move it there, or use ternary_kernels.reference on the CPU."
    )


def matrix(x: Tensor) -> Tensor:
    """x [..., K] as [M, K]; a view where x allows one."""
    return x.flatten(0, -2) if x.ndim > 1 else x[None]


def rows(x: Tensor, name: str) -> None:
    """Raise unless x is a float matrix [M, K] that the kernels can read."""
    if x.ndim != 2 or x.shape[1] < 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; allowed: [..., K] with K >= 1")
    if x.dtype not in FLOATS:
        raise ValueError(
            f"{name} has dtype {x.dtype}; allowed: bfloat16, float16, float32. Convert it first."
        )
    if x.shape[1] > 2 * MAX_K:
        raise ValueError(f"{name} has {x.shape[1]} columns; allowed: at most {MAX_K} inputs")
    runnable(x, name)


def vector(v: Tensor, length: int, name: str, like: Tensor) -> None:
    """Raise unless v is a contiguous float vector of that length beside ``like``."""
    if tuple(v.shape) != (length,) or v.dtype not in FLOATS or not v.is_contiguous():
        raise ValueError(
            f"{name} is {v.dtype} {tuple(v.shape)}; allowed: a contiguous float tensor ({length},)"
        )
    same_device(v, name, like)


def addend(add: Tensor, x: Tensor) -> None:
    """Raise unless ``add`` can be summed with the rows x on the way."""
    if add.shape != x.shape or add.dtype not in FLOATS:
        raise ValueError(
            f"add is {add.dtype} {tuple(add.shape)}; allowed: a float tensor {tuple(x.shape)}"
        )
    same_device(add, "add", x)


def same_device(tensor: Tensor, name: str, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(
            f"{name} lies on {tensor.device} and the activations on {like.device}; allowed: one "
            f"device. Use {name}.to({str(like.device)!r}) (to_device for a packed weight)."
        )


def tiles(t: Tensor, row_scales: Tensor, N: int, K: int, like: Tensor) -> None:
    """Raise unless t, row_scales are a PackedTernary's own tensors of shape [N, K]."""
    shape = (-(-N // 16), -(-K // 16), 16, 4)
    if t.dtype != torch.uint8 or tuple(t.shape) != shape or not t.is_contiguous():
        raise ValueError(
            f"tiles are {t.dtype} {tuple(t.shape)}; allowed: contiguous uint8 {shape} for a "
            f"weight [{N}, {K}]. Pack them with PackedTernary or pack_weights."
        )
    if K > MAX_K:
        raise ValueError(f"K = {K}; allowed: at most {MAX_K} (int32 sums). Split the layer.")
    one, each, grouped = (16,), (shape[0] * 16,), (shape[0], -(-K // 128), 16)
    if (
        row_scales.dtype != torch.float32
        or tuple(row_scales.shape) not in (one, each, grouped)
        or not row_scales.is_contiguous()
    ):
        raise ValueError(
            f"scales are {row_scales.dtype} {tuple(row_scales.shape)}; allowed: contiguous fp32 "
            f"{one}, {each} or {grouped}, as PackedTernary.row_scales holds them"
        )
    same_device(t, "tiles", like)
    same_device(row_scales, "row_scales", like)


def packed(weight: object) -> PackedTernary:
    """Raise unless the weight is a PackedTernary."""
    if not isinstance(weight, PackedTernary):
        raise ValueError(
            f"weight is a {type(weight).__name__}; allowed: PackedTernary (2 bits a weight). "
            "The base-3 packing, INT8 and half precision have no Triton kernel."
        )
    return weight
