"""The shape of a Llama-type model, and which weights belong to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..weights import require_one_rotation

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
TOGETHER = (("q", "k", "v"), ("gate", "up"))
"""Those that read one input."""
LINEAR_KINDS = ("ternary", "ternary3", "ternary5", "int4", "int8", "half")
KINDS_OF = {"embed": ("mixed", "int4", "int8", "half"), "head": ("mixed", *LINEAR_KINDS)}
"""The packings that embedding and head can have; any other matrix has one of LINEAR_KINDS."""


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


def checked_weights(config: LlamaConfig, weights: dict) -> dict:
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
            kinds = KINDS_OF.get(name, LINEAR_KINDS)
            if getattr(value, "kind", None) not in kinds or value.shape != packed[name]:
                raise ValueError(
                    f"{name} is {_describe(value)}; allowed: a packed weight {packed[name]} of "
                    f"kind {', '.join(kinds)}"
                )
            checked[name] = value
        else:
            if not isinstance(value, Tensor) or tuple(value.shape) != (vectors[name],):
                raise ValueError(
                    f"{name} is {_describe(value)}; allowed: a tensor ({vectors[name]},)"
                )
            checked[name] = value.detach().to("cpu", torch.float32).contiguous()
    for i in range(c.num_layers):
        for group in TOGETHER:
            require_one_rotation([checked[f"layers.{i}.{name}"] for name in group])
    return checked


def _describe(value: object) -> str:
    return f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
