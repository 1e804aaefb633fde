"""The engine's core for models that the kernels do not know: ``transformers`` itself.

Each slot has a cache of its own and its rows run as one call of the model, so that sequences do
not share a step: right for every architecture, and slower in batches than the native core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ternary_kernels.core import Core, NotFiniteError
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class TransformersCore(Core):
    """Runs ``model`` on ``device``. reason: why the kernels do not, for :attr:`notes`."""

    def __init__(
        self, model: PreTrainedModel, slots: int, context: int, device: str, reason: str = ""
    ) -> None:
        self.model = model.to(device).eval()
        self.config, self.slots, self.context, self.device = model.config, slots, context, device
        self.filled = np.zeros(slots, dtype=np.int64)
        self._caches: list[DynamicCache | None] = [None] * slots
        self._reason = reason

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def backend(self) -> str:
        return f"transformers on {self.device}"

    @property
    def notes(self) -> list[str]:
        if not self._reason:
            return []
        where = f"runs through transformers on {self.device}, not through the kernels"
        return [f"{where}: {self._reason}"]

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        want_logits: Sequence[bool] | bool,
    ) -> np.ndarray:
        """See :meth:`ternary_kernels.core.Core.forward`."""
        slots_n, tokens_n = np.asarray(slots), np.asarray(tokens)
        positions_n = np.asarray(positions)
        want_n = np.broadcast_to(np.asarray(want_logits, dtype=bool), slots_n.shape)
        self._check(tokens_n, slots_n, positions_n)
        logits_nV = np.zeros((len(tokens_n), self.config.vocab_size), dtype=np.float32)
        for slot in np.unique(slots_n):
            rows = np.flatnonzero(slots_n == slot)
            wanted = rows[want_n[rows]]
            # The head is only computed from the first row on whose logits are wanted.
            keep = len(rows) - int(np.argmax(want_n[rows])) if len(wanted) else 1
            ids = torch.from_numpy(tokens_n[rows]).long()[None].to(self.device)
            cache = self._caches[slot] or DynamicCache(config=self.config)
            self._caches[slot] = None  # a failed call may have left it half filled
            self.filled[slot] = 0
            output = self.model(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep
            )
            self._caches[slot] = output.past_key_values
            self.filled[slot] = positions_n[rows[-1]] + 1
            logits_nV[rows[-keep:]] = output.logits[0].float().cpu().numpy()
        if not np.isfinite(logits_nV).all():
            raise NotFiniteError("head")
        return logits_nV[want_n]

    @property
    def truncates(self) -> bool:
        layers = DynamicCache(config=self.config).layers
        return all(type(layer) is DynamicLayer for layer in layers)

    def truncate(self, slot: int, length: int) -> None:
        """See :meth:`ternary_kernels.core.Core.truncate`."""
        held = int(self.filled[slot])
        super().truncate(slot, length)
        if length < held:
            if length:
                self._caches[slot].crop(length - held)  # negative: how many less
            else:
                self.reset(slot)

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers, and of what packed layers keep unpacked; shared ones
        count once."""
        unpacked = [getattr(module, "_dense", None) for module in self.model.modules()]
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [dense for dense in unpacked if dense is not None]
        return sum({t.data_ptr(): t.nbytes for t in tensors}.values())

    @property
    def kv_bytes(self) -> int:
        """Bytes that the caches hold now; they grow with the conversations."""
        layers = [layer for cache in self._caches if cache for layer in cache.layers]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    def reset(self, slot: int) -> None:
        """Forget a slot's conversation."""
        self._caches[slot], self.filled[slot] = None, 0

    def close(self) -> None:
        """Let go of the model and the caches."""
        self.model, self._caches = None, []

    def _check(self, tokens_n: np.ndarray, slots_n: np.ndarray, positions_n: np.ndarray) -> None:
        if not tokens_n.shape == slots_n.shape == positions_n.shape:
            raise ValueError(
                f"tokens {tokens_n.shape}, slots {slots_n.shape}, positions {positions_n.shape}; "
                "allowed: three lists of the same length"
            )
        if len(tokens_n) and not 0 <= tokens_n.min() <= tokens_n.max() < self.vocab_size:
            raise ValueError(
                f"tokens {tokens_n.min()} to {tokens_n.max()}; allowed: 0 to "
                f"{self.vocab_size - 1}. Use the tokenizer that belongs to the model."
            )
        if len(slots_n) and not 0 <= slots_n.min() <= slots_n.max() < self.slots:
            raise ValueError(f"slots {set(slots_n.tolist())}; allowed: 0 to {self.slots - 1}")
        if len(positions_n) and positions_n.max() >= self.context:
            raise ValueError(
                f"position {positions_n.max()}; allowed: 0 to {self.context - 1}. Shorten the "
                "prompt or load the engine with a larger context."
            )
        for slot in np.unique(slots_n):
            own = positions_n[slots_n == slot]
            if not np.array_equal(own, self.filled[slot] + np.arange(len(own))):
                raise ValueError(
                    f"positions {own.tolist()} of slot {slot}; allowed: those that follow the "
                    f"{self.filled[slot]} it holds"
                )
