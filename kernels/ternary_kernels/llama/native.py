"""The model in native code: one call a step, threads and kernels of csrc/llama.cpp."""

from __future__ import annotations

import ctypes

import numpy as np

from .. import native
from ..core import NotFiniteError
from ..weights import PackedWeight
from .config import LINEARS
from .model import KV_DTYPES, LlamaModel
from .reference import LlamaReference

DENSE = {"ternary3": "triples", "ternary5": "base 3"}
"""Kind of ternary weights with fewer than two bits each -> its name."""


class LlamaNative(LlamaModel):
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
    def backend(self) -> str:
        computes = native.backend()
        kernels = (computes.vectors, *(unit for unit in self.units if unit != "vectors"))
        threads = f"{computes.threads} thread" + "s" * (computes.threads != 1)
        dense = [f"{kind} tables" for kind in ("mixed", "int4") if kind == self._kind("embed")]
        kinds = {self._kind(name) for name in self.weights}
        dense += [text for kind, text in DENSE.items() if kind in kinds]
        return ", ".join([f"ternary_kernels native {' + '.join(kernels)}", threads, *dense])

    def _kind(self, name: str) -> str:
        return getattr(self.weights.get(name), "kind", "")

    @property
    def units(self) -> tuple[str, ...]:
        computes = native.backend()
        layers = (w for name, w in self.weights.items() if name.startswith("layers."))
        return tuple(sorted({computes.unit(w) for w in layers if isinstance(w, PackedWeight)}))

    @property
    def notes(self) -> list[str]:
        computes, notes = native.backend(), []
        if computes.no_tiles:
            notes.append(f"the processor's tile unit (AMX) is not used: {computes.no_tiles}")
        triples = any(self._kind(name) == "ternary3" for name in self.weights)
        if triples and not computes.vectors.startswith("avx512"):
            notes.append(
                f"triples are unpacked for every product with {computes.vectors}, which is slow; "
                "two bits or base 3 are quicker there"
            )
        return notes

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

    rows_apart = True

    def forward_apart(self, tokens, slots, positions) -> np.ndarray:
        """See :meth:`Core.forward_apart`: to the bit, since no sum hangs on the rows beside it.

        A tile unit would round activations that meet bf16 weights, as it does in large batches: so
        many rows at a time as stay below it.
        """
        computes = native.backend()
        packed = (w for w in self.weights.values() if isinstance(w, PackedWeight))
        rounded = any(computes.unit(w).endswith("bf16") for w in packed)
        most = computes.tile_rows - 1 if rounded else len(tokens)
        parts = [slice(at, at + most) for at in range(0, len(tokens), most)]
        of_each = [self.forward(tokens[p], slots[p], positions[p], True) for p in parts]
        return np.concatenate(of_each)

    def _forward(self, tokens, slots, positions, want) -> np.ndarray:
        logits = np.empty((int(want.sum()), self.config.vocab_size), dtype=np.float32)
        rows = (tokens.ctypes.data, slots.ctypes.data, positions.ctypes.data)
        code = self._lib.tk_llama_forward(
            self._model, *rows, len(tokens), want.ctypes.data, logits.ctypes.data
        )
        if code:
            where = "head" if code < 0 else _where(code - 1)
            raise NotFiniteError(where)
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
            native.table_struct(w["embed"]), native.table_struct(w.get("head", w["embed"])),
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
    """A :class:`LlamaNative`, or a :class:`LlamaReference` where the native library is missing."""
    model = LlamaReference if native.library() is None else LlamaNative
    return model(config, weights, slots, context, kv_dtype)


def _where(place: int) -> str:
    layer, step = divmod(place, 4)
    return f"layers.{layer}." + ("q, k and v", "o", "gate and up", "down")[step]
