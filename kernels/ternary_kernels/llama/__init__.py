"""A Llama-type model as one object: tokens in, logits out, KV cache inside.

- :class:`LlamaNative` (:mod:`.native`) runs a whole step - embedding, layers, final norm, head -
  for a batch of rows in one native call, so that Python costs nothing per layer.
- :class:`LlamaReference` (:mod:`.reference`) is the same in plain PyTorch: what the tests hold
  the others against, and what :func:`create` gives where no compiler is.
- :class:`LlamaModel` (:mod:`.model`) is what they share with the GPU's model: the checks and the
  bookkeeping behind :class:`ternary_kernels.core.Core`.

A row is one token of one *slot* (a conversation) at one position; rows of many slots, decoding
and prefilling, may share a step (continuous batching).

Weights (a dict; ``i`` is the layer, N x K of each in brackets, H heads of D, G KV heads):

==============================  =====================================================
``embed``                       PackedMixed | PackedInt4 | PackedInt8 | PackedHalf
                                [vocab, hidden]
``head``                        PackedMixed or any packed weight [vocab, hidden]; absent:
                                ``embed`` is tied
``norm``                        float32 [hidden], the final norm
``layers.i.attn_norm``          float32 [hidden]
``layers.i.ffn_norm``           float32 [hidden]
``layers.i.q`` / ``k`` / ``v``  packed [H*D, hidden] / [G*D, hidden] / [G*D, hidden]
``layers.i.o``                  packed [hidden, H*D]
``layers.i.gate`` / ``up``      packed [inter, hidden]
``layers.i.down``               packed [hidden, inter]
``layers.i.<linear>.bias``      optional float32 [N] of any of the seven (Qwen2: q, k, v)
``layers.i.q_norm`` / ``k_norm``  optional float32 [D]: norm of each head before RoPE (Qwen3)
``layers.i.attn_sub_norm``      optional float32 [H*D] before ``o`` (BitNet b1.58 SubLN)
``layers.i.ffn_sub_norm``       optional float32 [inter] before ``down``
==============================  =====================================================

Every linear may have its own precision: PackedTernary, PackedTernary3 or 5, PackedInt4,
PackedInt8, PackedHalf.
"""

from __future__ import annotations

from .config import LINEARS, TOGETHER, LlamaConfig
from .model import KV_DTYPES, LlamaModel
from .native import LlamaNative, create
from .reference import LlamaReference

__all__ = [
    "KV_DTYPES",
    "LINEARS",
    "TOGETHER",
    "LlamaConfig",
    "LlamaModel",
    "LlamaNative",
    "LlamaReference",
    "create",
]
