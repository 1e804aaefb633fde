"""Ternary inference and training on GPUs with Triton, from the one packed copy of the weights.

=====================  ==================================================================
inference              :func:`linear`, :func:`linear_weight_only`, :func:`to_device`
activations            :func:`quantize` (with RMSNorm), :func:`quantize_gated`
weights                :func:`pack_weights`, :func:`pack_codes`, :func:`pack_portable`,
                       :func:`unpack_weights`, :func:`unpack_codes`
training               :func:`qat_linear`, the product with its gradients
a whole model          :class:`.llama.LlamaGpu`: cache, attention, CUDA graphs; with it
                       :mod:`.int8`, :mod:`.norm`, :mod:`.attention`, :mod:`.graphs`
=====================  ==================================================================

>>> weight = to_device(PackedTernary.from_float(matrix), "cuda")
>>> y = linear(x, weight)                       # any number of rows, any K and N
>>> rows = quantize(x, norm_weight=gain)        # RMSNorm and INT8 in one kernel ...
>>> q, k = linear(rows, w_q), linear(rows, w_k)     # ... for several layers

Every kernel runs on NVIDIA GPUs from sm_80 and, for tests, on a CPU under
``TRITON_INTERPRET=1`` (set before the first import). :mod:`ternary_kernels.reference` and
:mod:`ternary_kernels.packing` hold the readable references; :mod:`.layout` the idea.
"""

from __future__ import annotations

from .linear import linear, linear_weight_only, to_device
from .pack import pack_codes, pack_portable, pack_weights, unpack_codes, unpack_weights
from .qat import qat_linear
from .quantize import QuantizedRows, quantize, quantize_gated

__all__ = [
    "QuantizedRows",
    "linear",
    "linear_weight_only",
    "pack_codes",
    "pack_portable",
    "pack_weights",
    "qat_linear",
    "quantize",
    "quantize_gated",
    "to_device",
    "unpack_codes",
    "unpack_weights",
]
