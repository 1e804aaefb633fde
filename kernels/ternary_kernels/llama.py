"""A Llama-type model as one object: tokens in, logits out, KV cache inside.

:class:`LlamaCore` runs a whole step - embedding, layers, final norm, head - for a batch of
rows in one native call, so that Python costs nothing per layer. A row is one token of one
*slot* (a conversation) at one position; rows of many slots, decoding and prefilling, may share
a step (continuous batching). :class:`LlamaReference` is the same interface in plain PyTorch:
the reference of the tests, and what :func:`create` returns where no compiler is.

Weights (a dict; ``i`` is the layer, N x K of each in brackets, H heads of D, G KV heads):

==============================  =====================================================
``embed``                       PackedInt8 | PackedHalf [vocab, hidden]
``head``                        any packed weight [vocab, hidden]; absent: ``embed`` is tied
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

Every linear may have its own precision: PackedTernary, PackedTernary5, PackedInt8, PackedHalf.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import native, reference
from .weights import PackedHalf, PackedWeight

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
KV_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a model and the constants its weights do not hold."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    # float32 [head_dim / 2]: radians a position, any RoPE scaling (linear, llama3, yarn)
    # already applied; see transformers' ROPE_INIT_FUNCTIONS.
    inv_freq: tuple[float, ...]
    # Factor on cos and sin ("attention_scaling" of transformers; 1 except for yarn, longrope).
    rope_scaling: float = 1.0
    rms_norm_eps: float = 1e-5
    # "silu" (Llama, Mistral, Qwen) or "relu2" (squared ReLU, BitNet b1.58 2B4T).
    activation: str = "silu"
    # A row sees this many positions, its own included; 0: all (Mistral 7B v0.1: 4096).
    sliding_window: int = 0

    def __post_init__(self) -> None:
        if self.activation not in ("silu", "relu2"):
            raise ValueError(f"activation {self.activation!r}; allowed: 'silu', 'relu2'")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} heads over {self.num_kv_heads} KV heads; "
                "allowed: a whole number of heads each KV head"
            )
        if self.head_dim < 2 or self.head_dim % 2 or len(self.inv_freq) != self.head_dim // 2:
            raise ValueError(
                f"head_dim {self.head_dim} with {len(self.inv_freq)} RoPE frequencies; "
                "allowed: an even head_dim and head_dim / 2 frequencies"
            )
        sizes = (self.hidden_size, self.intermediate_size, self.num_layers, self.vocab_size)
        if min(sizes) < 1 or self.sliding_window < 0:
            raise ValueError(f"sizes must be at least 1 and sliding_window at least 0: {self}")

    def linear_shape(self, name: str) -> tuple[int, int]:
        """(N, K) of the linear 'q', 'k', 'v', 'o', 'gate', 'up' or 'down'."""
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q": (heads, self.hidden_size),
            "k": (kv, self.hidden_size),
            "v": (kv, self.hidden_size),
            "o": (self.hidden_size, heads),
            "gate": (self.intermediate_size, self.hidden_size),
            "up": (self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }[name]


class LlamaModel:
    """The interface, and what both implementations share: checks and bookkeeping.

    Parameters
    ----------
    config, weights: see the module's text.
    slots: conversations whose caches are kept side by side.
    context: positions a slot can hold.
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
        self.weights = _checked_weights(config, weights)
        # Positions of each slot that hold keys and values. A forward may rewrite from any
        # position up to this one (a shared prefix, a rejected draft), never skip ahead.
        self.filled = np.zeros(slots, dtype=np.int64)

    def forward(self, tokens, slots, positions, want_logits) -> np.ndarray:
        """Run rows through the model; float32 logits [rows wanted, vocab] in row order.

        ``tokens``, ``slots``, ``positions``: integers [n]; ``want_logits``: bool [n] (or one
        bool for all). Row j is token ``tokens[j]`` of slot ``slots[j]`` at ``positions[j]``;
        it sees positions 0..``positions[j]`` of its slot (the sliding window apart), earlier
        rows of this call included. Rows of one slot stand in rising positions, and begin at
        most at ``filled[slot]``. Raises ValueError for bad rows and for activations that are
        not finite; the cache of earlier positions is untouched then.
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
        return _linear(x_MK, w.get("head", w["embed"]), None, "head").numpy()

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


class LlamaCore(LlamaModel):
    """The model in native code: one call a step, threads and kernels of csrc/llama.cpp."""

    def __init__(self, config, weights, slots, context, kv_dtype="float16") -> None:
        self._model = None
        super().__init__(config, weights, slots, context, kv_dtype)
        self._lib = native.library()
        if self._lib is None:
            raise RuntimeError(
                f"no native library: {native.backend().reason}. Use create(), which falls back "
                "to LlamaReference."
            )
        self._model = self._lib.tk_llama_create(ctypes.byref(self._spec()))
        if not self._model:
            raise MemoryError(
                f"no memory for a KV cache of {super().kv_bytes / 1e9:.2f} GB ({slots} slots x "
                f"{context} positions); lower slots or context"
            )

    @property
    def kv_bytes(self) -> int:
        return self._lib.tk_llama_kv_bytes(self._model) if self._model else 0

    def close(self) -> None:
        super().close()
        if self._model:
            self._lib.tk_llama_free(self._model)
            self._model = None

    def __del__(self) -> None:
        self.close()

    def _forward(self, tokens, slots, positions, want) -> np.ndarray:
        logits = np.empty((int(want.sum()), self.config.vocab_size), dtype=np.float32)
        rows = (tokens.ctypes.data, slots.ctypes.data, positions.ctypes.data)
        code = self._lib.tk_llama_forward(
            self._model, *rows, len(tokens), want.ctypes.data, logits.ctypes.data
        )
        if code:
            where = "head" if code < 0 else _where(code - 1)
            raise ValueError(_not_finite(where))
        return logits

    def _spec(self) -> native.Llama:
        c, w = self.config, self.weights
        layers = (native.Layer * c.num_layers)(*(self._layer(i) for i in range(c.num_layers)))
        # The C++ side copies the frequencies; everything else stays owned by self.weights.
        inv_freq = np.asarray(c.inv_freq, dtype=np.float32)
        self._kept = (layers, inv_freq)
        return native.Llama(
            c.hidden_size, c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads,
            c.head_dim, c.vocab_size, self.slots, self.context,
            list(KV_DTYPES).index(self.kv_dtype), native.MODES[c.activation], c.sliding_window,
            c.rms_norm_eps, c.rope_scaling, inv_freq.ctypes.data,
            native.weight_struct(w["embed"]), native.weight_struct(w.get("head", w["embed"])),
            w["norm"].data_ptr(), layers,
        )  # fmt: skip

    def _layer(self, i: int) -> native.Layer:
        w, layer = self.weights, f"layers.{i}."

        def at(name: str) -> int | None:
            return native.pointer(w.get(layer + name))

        linears = (native.Weight * 7)(*(native.weight_struct(w[layer + n]) for n in LINEARS))
        biases = (ctypes.c_void_p * 7)(*(at(f"{name}.bias") for name in LINEARS))
        names = ("attn_norm", "ffn_norm", "q_norm", "k_norm", "attn_sub_norm", "ffn_sub_norm")
        return native.Layer(linears, biases, *map(at, names))


def create(config, weights, slots: int, context: int, kv_dtype: str = "float16") -> LlamaModel:
    """A :class:`LlamaCore`, or a :class:`LlamaReference` where the native library is missing."""
    model = LlamaReference if native.library() is None else LlamaCore
    return model(config, weights, slots, context, kv_dtype)


def _where(place: int) -> str:
    layer, step = divmod(place, 4)
    return f"layers.{layer}." + ("q, k and v", "o", "gate and up", "down")[step]


def _not_finite(where: str) -> str:
    return (
        f"the activations entering {where} hold NaN or Inf; allowed: finite values. "
        "Check the weights of the layers before it."
    )


def _linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, name: str) -> Tensor:
    if not bool(x.isfinite().all()):
        raise ValueError(_not_finite(name))
    return reference.linear(x, weight, bias)


def _embedding_rows(embed: PackedWeight, tokens: Tensor) -> Tensor:
    """float32 [M, hidden] of the rows ``tokens``, without unpacking the others."""
    groups, lanes = tokens // 16, tokens % 16
    if isinstance(embed, PackedHalf):
        return embed.tiles[groups, :, lanes].float()
    rows = (embed.tiles[groups, :, lanes] ^ 0x80).view(torch.int8).flatten(1)
    return rows[:, : embed.shape[1]].float() * embed.row_scales[tokens][:, None]


def _check_range(name: str, values: np.ndarray, limit: int, cure: str) -> None:
    bad = np.flatnonzero((values < 0) | (values >= limit))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] = {values[bad[0]]}; allowed: 0 to {limit - 1}. {cure}")


def _checked_weights(config: LlamaConfig, weights: dict) -> dict:
    """The weights the model knows, each of the right class and shape; refuse all others."""
    c = config
    vocab = (c.vocab_size, c.hidden_size)
    packed: dict[str, tuple[int, int]] = {"embed": vocab, "head": vocab}
    vectors: dict[str, int] = {"norm": c.hidden_size}
    optional = {"head"}
    for i in range(c.num_layers):
        layer = f"layers.{i}."
        for name in LINEARS:
            packed[layer + name] = c.linear_shape(name)
            vectors[f"{layer}{name}.bias"] = c.linear_shape(name)[0]
            optional.add(f"{layer}{name}.bias")
        vectors |= {layer + "attn_norm": c.hidden_size, layer + "ffn_norm": c.hidden_size}
        extra = {
            layer + "q_norm": c.head_dim,
            layer + "k_norm": c.head_dim,
            layer + "attn_sub_norm": c.num_heads * c.head_dim,
            layer + "ffn_sub_norm": c.intermediate_size,
        }
        vectors |= extra
        optional |= extra.keys()
    missing = (packed.keys() | vectors.keys()) - optional - weights.keys()
    unknown = weights.keys() - packed.keys() - vectors.keys()
    if missing or unknown:
        raise ValueError(
            f"weights missing: {sorted(missing)[:5]}, unknown: {sorted(unknown)[:5]}; "
            "allowed: the names in the text of ternary_kernels.llama"
        )
    checked: dict = {}
    for name, value in weights.items():
        if name in packed:
            # By kind and not by class: the GPU's matrices have kinds of the same names.
            kinds = ("int8", "half") if name == "embed" else None
            known = isinstance(value, PackedWeight) and (kinds is None or value.kind in kinds)
            if not known or value.shape != packed[name]:
                allowed = "PackedInt8 or PackedHalf" if kinds else "PackedWeight"
                raise ValueError(f"{name} is {_describe(value)}; allowed: {allowed} {packed[name]}")
            checked[name] = value
        else:
            if not isinstance(value, Tensor) or tuple(value.shape) != (vectors[name],):
                raise ValueError(
                    f"{name} is {_describe(value)}; allowed: a tensor ({vectors[name]},)"
                )
            checked[name] = value.detach().to("cpu", torch.float32).contiguous()
    return checked


def _describe(value: object) -> str:
    return f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
