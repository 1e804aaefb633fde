"""What every Llama-type core shares: the checks of rows, and how far each slot is filled."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core import Core
from ..weights import PackedWeight
from .config import LlamaConfig, checked_weights

KV_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class LlamaModel(Core):
    """:class:`ternary_kernels.core.Core` without the computation, which is :meth:`_forward`'s.

    config, weights: see :mod:`ternary_kernels.llama`. slots, context: as every core has them.
    kv_dtype: 'float16' (default), 'bfloat16' or 'float32': the type of the KV cache.

    Use::

        core = create(config, weights, slots=2, context=4096)
        prompt = np.arange(5)                       # five tokens of slot 0 ...
        mask = np.arange(5) == 4                    # ... and logits for the last alone
        logits = core.forward(prompt, np.zeros(5), np.arange(5), mask)   # [1, vocab]
        logits = core.forward([7], [0], [5], [True])                     # decode one more
        core.close()
    """

    def __init__(
        self,
        config: LlamaConfig,
        weights: dict[str, PackedWeight | Tensor],
        slots: int,
        context: int,
        kv_dtype: str = "float16",
    ) -> None:
        if slots < 1 or context < 1:
            raise ValueError(f"slots = {slots}, context = {context}; allowed: at least 1 each")
        if kv_dtype not in KV_DTYPES:
            raise ValueError(f"kv_dtype {kv_dtype!r}; allowed: {', '.join(map(repr, KV_DTYPES))}")
        self.config, self.slots, self.context, self.kv_dtype = config, slots, context, kv_dtype
        self.weights = checked_weights(config, weights)
        # Positions of each slot that hold keys and values. A forward may rewrite from any
        # position up to this one (a shared prefix, a rejected draft), never skip ahead.
        self.filled = np.zeros(slots, dtype=np.int64)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def forward(self, tokens, slots, positions, want_logits) -> np.ndarray:
        """See :meth:`Core.forward`. A slot's rows may begin before ``filled[slot]`` and rewrite
        from there; a row sees its positions but for the sliding window. Where ValueError is
        raised the cache of earlier positions is untouched.
        """
        rows = [np.ascontiguousarray(r, dtype=np.int32) for r in (tokens, slots, positions)]
        want = np.array(np.broadcast_to(want_logits, rows[0].shape), dtype=bool)
        filled = self._checked_rows(*rows)
        logits = self._forward(*rows, want)
        self.filled = filled
        return logits

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that stay resident (a tied head counts once)."""
        return sum(w.nbytes for w in self.weights.values())

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache."""
        c = self.config
        positions = self.slots * self.context * c.num_layers
        return 2 * positions * c.num_kv_heads * c.head_dim * KV_DTYPES[self.kv_dtype].itemsize

    def reset(self, slot: int) -> None:
        """Forget a slot's conversation."""
        self.filled[slot] = 0

    def close(self) -> None:
        """Free the cache and let go of the weights; the object cannot be used afterwards."""
        self.weights = {}

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forward(self, tokens, slots, positions, want) -> np.ndarray:
        raise NotImplementedError

    def _checked_rows(self, tokens, slots, positions) -> np.ndarray:
        if not self.weights:
            raise ValueError("the model is closed; create another one")
        if not (tokens.ndim == 1 and tokens.shape == slots.shape == positions.shape):
            raise ValueError(
                f"tokens {tokens.shape}, slots {slots.shape}, positions {positions.shape}; "
                "allowed: three lists of the same length"
            )
        _check_range("tokens", tokens, self.config.vocab_size, "Is it the right tokenizer?")
        _check_range("slots", slots, self.slots, "Create the model with more slots.")
        _check_range(
            "positions", positions, self.context,
            "Shorten the prompt or create the model with a larger context.",
        )  # fmt: skip
        filled = self.filled.copy()
        last = np.full(self.slots, -1)
        for j, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
            if position <= last[slot]:
                raise ValueError(
                    f"row {j}: position {position} of slot {slot} comes after position "
                    f"{last[slot]}; allowed: rising positions within a slot"
                )
            reach = filled[slot] if last[slot] < 0 else last[slot] + 1
            if position > reach:
                raise ValueError(
                    f"row {j}: position {position} of slot {slot}, whose cache is filled up to "
                    f"{reach}; allowed: at most {reach}. Feed the positions between first."
                )
            last[slot] = position
            filled[slot] = position + 1
        return filled


def _check_range(name: str, values: np.ndarray, limit: int, cure: str) -> None:
    bad = np.flatnonzero((values < 0) | (values >= limit))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] = {values[bad[0]]}; allowed: 0 to {limit - 1}. {cure}")
