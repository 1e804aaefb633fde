"""Which Hugging Face models the kernels run, and what their parts are called.

Llama, Mistral, Qwen2, Qwen3 and BitNet b1.58 are one computation with small differences:
biases (Qwen2), a norm of each head (Qwen3), norms in front of ``o_proj`` and ``down_proj`` and
a squared ReLU (BitNet). What differs in a way the kernels do not know is refused with its
reason, and the engine then runs the model through ``transformers``.
"""

from __future__ import annotations

from typing import NoReturn

from ternary_kernels.llama import LlamaConfig
from transformers import GenerationConfig, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workbench.model.ends import end_tokens

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "bitnet")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""The others change their frequencies with the length of the sequence."""
ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu2": "relu2"}

LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Name in the kernels' model -> module below ``model.layers.<i>``."""
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
FAMILY_NORMS = {
    "qwen3": {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"},
    "bitnet": {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
}


class NotForKernels(ValueError):
    """The kernels cannot compute this model as it is meant; the message says why."""


def kernel_config(config: PretrainedConfig) -> LlamaConfig:
    """The shape and constants of a Llama-type model. Raises NotForKernels with the reason."""
    family = config.model_type
    if family not in FAMILIES:
        raise NotForKernels(f"model type {family!r} is none of {', '.join(FAMILIES)}")
    rope_type = config.rope_parameters["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise NotForKernels(f"RoPE type {rope_type!r} is none of {', '.join(ROPE_TYPES)}")
    if config.hidden_act not in ACTIVATIONS:
        raise NotForKernels(f"activation {config.hidden_act!r} is none of {', '.join(ACTIVATIONS)}")
    rotary = LlamaRotaryEmbedding(config)
    heads = config.num_attention_heads
    return LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        inv_freq=tuple(rotary.inv_freq.tolist()),
        rope_scaling=float(rotary.attention_scaling),
        rms_norm_eps=config.rms_norm_eps,
        activation=ACTIVATIONS[config.hidden_act],
        sliding_window=_sliding_window(config),
    )


def eos_tokens(
    config: PretrainedConfig, generation: GenerationConfig | None = None
) -> frozenset[int]:
    """The tokens that end a text, by either configuration; none, one or several in the wild."""
    return frozenset(end_tokens(config, generation))


def require_int8_activations(activations: str, where: str) -> None:
    """The kernels multiply codes with per-token INT8 activations and know nothing else."""
    if activations != "int8":
        raise NotForKernels(f"{where} leaves its activations as they are (model.activations)")


def refuse_norm_inside(where: str) -> NoReturn:
    """The kernels have norms where the families above have them, not in front of each layer."""
    raise NotForKernels(f"{where} has a norm inside (model.sub_norm)")


def refuse_rotation(rotation: int) -> None:
    """The GPU's kernels multiply a layer's input as it is; the CPU's rotate it."""
    if rotation:
        raise NotForKernels(
            f"rotated ternary layers (model.threshold.rotation {rotation}) run on a CPU alone"
        )


def _sliding_window(config: PretrainedConfig) -> int:
    window = getattr(config, "sliding_window", None)
    # A model without the list (Mistral) has its window, if any, in every layer.
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if window is None or kinds == {"full_attention"}:
        return 0
    if kinds != {"sliding_attention"}:
        raise NotForKernels(f"its layers differ in attention: {', '.join(sorted(kinds))}")
    return window
