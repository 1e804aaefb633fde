"""The model in plain PyTorch, one readable layer after another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import native, reference
from ..core import NotFiniteError
from ..mixed import PackedMixed
from ..quantizers import INT4_GROUP, rotate, spread
from ..weights import PackedHalf, PackedInt4, PackedWeight
from .model import KV_DTYPES, LlamaModel


class LlamaReference(LlamaModel):
    """The model in plain PyTorch, one readable layer after another."""

    def __init__(self, config, weights, slots, context, kv_dtype="float16") -> None:
        super().__init__(config, weights, slots, context, kv_dtype)
        c = self.config
        shape = (c.num_layers, slots, context, c.num_kv_heads, c.head_dim)
        self._keys = torch.zeros(shape, dtype=KV_DTYPES[kv_dtype])
        self._values = torch.zeros(shape, dtype=KV_DTYPES[kv_dtype])

    @torch.inference_mode()
    def _forward(self, tokens, slots, positions, want) -> np.ndarray:
        if len(tokens) == 0 or not want.any():
            empty = np.zeros((0, self.config.vocab_size), dtype=np.float32)
            if len(tokens) == 0:
                return empty
        c, w = self.config, self.weights
        x_MK = _embedding_rows(w["embed"], torch.from_numpy(tokens).long())
        angles = torch.from_numpy(positions).float()[:, None] * torch.tensor(c.inv_freq)
        cos, sin = angles.cos() * c.rope_scaling, angles.sin() * c.rope_scaling
        for i in range(c.num_layers):
            x_MK = x_MK + self._attention(i, x_MK, slots, positions, cos, sin)
            x_MK = x_MK + self._ffn(i, x_MK)
        if not want.any():
            return empty
        x_MK = reference.rms_norm(x_MK[torch.from_numpy(want)], w["norm"], c.rms_norm_eps)
        return _head(x_MK, w.get("head", w["embed"])).numpy()

    @property
    def backend(self) -> str:
        threads = torch.get_num_threads()
        return f"ternary_kernels torch, {threads} thread" + "s" * (threads != 1)

    @property
    def notes(self) -> list[str]:
        reason = native.backend().reason
        return [f"the kernels compute in PyTorch, slower by far: {reason}"] if reason else []

    def _attention(self, i, x_MK, slots, positions, cos, sin) -> Tensor:
        c, w, layer = self.config, self.weights, f"layers.{i}."
        M = x_MK.shape[0]
        normed = reference.rms_norm(x_MK, w[layer + "attn_norm"], c.rms_norm_eps)
        heads = {}
        for name in ("q", "k", "v"):
            y = self._layer_linear(normed, layer, name).view(M, -1, c.head_dim)
            norm = w.get(f"{layer}{name}_norm")
            if norm is not None:
                y = reference.rms_norm(y, norm, c.rms_norm_eps)
            heads[name] = reference.rotate(y, cos, sin) if name != "v" else y
        keys, values = self._keys[i], self._values[i]
        keys[slots, positions] = heads["k"].to(keys.dtype)
        values[slots, positions] = heads["v"].to(values.dtype)
        out = torch.empty(M, c.num_heads, c.head_dim)
        for slot in np.unique(slots):
            rows = np.flatnonzero(slots == slot)
            own = torch.from_numpy(positions[rows])[:, None]
            seen = torch.arange(int(positions[rows].max()) + 1)[None]
            mask = seen <= own
            if c.sliding_window:
                mask &= seen > own - c.sliding_window
            C = seen.shape[1]
            out[rows] = reference.attention(
                heads["q"][rows], keys[slot, :C], values[slot, :C], mask
            )
        mixed = out.flatten(1)
        if layer + "attn_sub_norm" in w:
            mixed = reference.rms_norm(mixed, w[layer + "attn_sub_norm"], c.rms_norm_eps)
        return self._layer_linear(mixed, layer, "o")

    def _ffn(self, i, x_MK) -> Tensor:
        c, w, layer = self.config, self.weights, f"layers.{i}."
        normed = reference.rms_norm(x_MK, w[layer + "ffn_norm"], c.rms_norm_eps)
        gate = self._layer_linear(normed, layer, "gate")
        hidden = reference.activate(gate, c.activation) * self._layer_linear(normed, layer, "up")
        if layer + "ffn_sub_norm" in w:
            hidden = reference.rms_norm(hidden, w[layer + "ffn_sub_norm"], c.rms_norm_eps)
        return self._layer_linear(hidden, layer, "down")

    def _layer_linear(self, x, layer: str, name: str) -> Tensor:
        bias = self.weights.get(f"{layer}{name}.bias")
        return _linear(x, self.weights[layer + name], bias, layer + name)


def _linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, name: str) -> Tensor:
    if not bool(x.isfinite().all()):
        raise NotFiniteError(name)
    return reference.linear(x, weight, bias)


def _head(x: Tensor, head: PackedWeight | PackedMixed) -> Tensor:
    if isinstance(head, PackedWeight):
        return _linear(x, head, None, "head")
    parts = [_linear(x, part, None, "head") for part in (head.first, head.second)]
    return torch.cat(parts, dim=1)[:, head.places]


def _embedding_rows(embed: PackedWeight | PackedMixed, tokens: Tensor) -> Tensor:
    """float32 [M, hidden] of the rows ``tokens``, without unpacking the others."""
    if isinstance(embed, PackedMixed):
        places = embed.places[tokens].long()
        border = embed.first.shape[0]
        rows = torch.empty(len(tokens), embed.shape[1])
        early = places < border
        rows[early] = _embedding_rows(embed.first, places[early])
        rows[~early] = _embedding_rows(embed.second, places[~early] - border)
        return rows
    groups, lanes = tokens // 16, tokens % 16
    if isinstance(embed, PackedHalf):
        return embed.tiles[groups, :, lanes].float()
    if isinstance(embed, PackedInt4):
        pairs = embed.tiles[groups, :, lanes]
        codes = torch.stack([pairs & 15, pairs >> 4], dim=2).flatten(1)[:, : embed.shape[1]]
        scale = spread(embed.scale[tokens].float(), embed.shape[1], INT4_GROUP)
        return rotate((codes.float() - 8) * scale, embed.rotation)
    rows = (embed.tiles[groups, :, lanes] ^ 0x80).view(torch.int8).flatten(1)
    rows = rows[:, : embed.shape[1]].float() * embed.row_scales[tokens][:, None]
    return rotate(rows, embed.rotation)
