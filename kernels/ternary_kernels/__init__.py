"""Ternary, INT8 and half-precision inference kernels for CPUs. See :mod:`ternary_kernels.llama`."""

from __future__ import annotations

from .weights import PackedHalf, PackedInt8, PackedTernary, PackedTernary5, PackedWeight

__all__ = ["PackedHalf", "PackedInt8", "PackedTernary", "PackedTernary5", "PackedWeight"]
