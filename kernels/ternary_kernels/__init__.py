"""Ternary, INT8, INT4 and half-precision inference kernels for CPUs.

- :mod:`ternary_kernels.weights`: packed weights (2-bit, base-3, INT4, INT8, half)
- :mod:`ternary_kernels.ops`: linear layers and fused operations over them
- :mod:`ternary_kernels.llama`: a whole Llama-type model, one native call a step
- :mod:`ternary_kernels.core`: what such a model is to a decode engine, and how to write another
- :func:`backend`: which code computes, and why

The native library is compiled on first use (or by ``python -m ternary_kernels.build``); where
there is no compiler the same operations run in PyTorch, announced once.
"""

from __future__ import annotations

from .mixed import PackedMixed
from .native import Backend, available_isas, backend, force_isa, set_threads
from .ops import gated, linear, linear_int, linears, quantize
from .weights import (
    PackedHalf,
    PackedInt4,
    PackedInt8,
    PackedTernary,
    PackedTernary3,
    PackedTernary5,
    PackedWeight,
)

__all__ = [
    "Backend",
    "PackedHalf",
    "PackedInt4",
    "PackedInt8",
    "PackedMixed",
    "PackedTernary",
    "PackedTernary3",
    "PackedTernary5",
    "PackedWeight",
    "available_isas",
    "backend",
    "force_isa",
    "gated",
    "linear",
    "linear_int",
    "linears",
    "quantize",
    "set_threads",
]
