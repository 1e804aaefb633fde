"""A GGUF file as a ``transformers`` model: the configuration, the tensors' names and their order.

Read here are the architectures that the engine has kernels for. Block types are unpacked to
float32, so the network is the one that llama.cpp runs of that file, with the rounding that its
blocks have. llama.cpp's architecture ``llama`` turns neighbouring elements of a head where Hugging
Face's models turn elements half a head apart: the rows of q and k change places.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.initialization import no_init_weights
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workbench.errors import ConfigError
from workbench.gguf_reader import GgufFile
from workbench.wording.counts import number_of

ARCHITECTURES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "bitnet": (BitNetConfig, {"hidden_act": "silu"}),
    "bitnet-b1.58": (BitNetConfig, {"hidden_act": "relu2"}),
}
"""llama.cpp's architecture -> the configuration, and what it says beyond the file's fields."""
NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}  # fmt: skip
"""A block's part in the file -> below ``model.layers.<i>``."""
WHOLE = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
}  # fmt: skip
FACTORS = "rope_freqs.weight"
ENDS = ("eos", "eot", "eom")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ORIGINAL_CONTEXTS = (8192, 4096, 16384, 32768)
"""Of models whose rotation is stretched as Llama 3's; the file holds the result alone."""


def gguf_config(file: GgufFile) -> PretrainedConfig:
    """The configuration that the file's fields describe. Raises ConfigError for an architecture
    or a rotation that is not known here."""
    if file.architecture not in ARCHITECTURES:
        raise ConfigError(
            f"{file.path} has the architecture {file.architecture}",
            allowed=f"in a GGUF file: {', '.join(ARCHITECTURES)}",
            next_step="give the model's Hugging Face folder",
        )
    if file.shape("expert_count"):
        raise ConfigError(
            f"{file.path} has experts, which are not read from a GGUF file",
            next_step="give the model's Hugging Face folder",
        )
    kind, more = ARCHITECTURES[file.architecture]
    hidden, heads = int(file.require("embedding_length")), int(file.require("attention.head_count"))
    tokens = {
        f"{name}_token_id": file.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("pad", "padding"))
    }
    ends = [file.get(f"tokenizer.ggml.{end}_token_id") for end in ENDS]
    ends = list(dict.fromkeys(int(end) for end in ends if end is not None))
    if "token_embd.weight" not in file.tensors:
        raise _lacks(file, ["token_embd.weight"])
    fields = {
        "hidden_size": hidden,
        "intermediate_size": int(file.require("feed_forward_length")),
        "num_hidden_layers": int(file.require("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.shape("attention.head_count_kv", heads)),
        "head_dim": int(file.shape("attention.key_length", hidden // heads)),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": int(file.shape("context_length", 2048)),
        "rms_norm_eps": float(file.require("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(file),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        **tokens,
        **more,
    }
    if kind is LlamaConfig and "blk.0.attn_q.bias" in file.tensors:
        fields["attention_bias"] = True
    config = kind(**fields)
    file.require_whole()  # its header is enough for the shape, and what is cut off is the end
    if FACTORS in file.tensors:
        _stretch_as_llama3(file, config)
    return config


def load_gguf(file: GgufFile, say: Any) -> PreTrainedModel:
    """The model, float32, evaluation mode, with all of the file's tensors; ``say`` is told which
    types they were rounded to."""
    config = gguf_config(file)
    values = {
        name: torch.from_numpy(rows_as_in_transformers(file, name, file.tensors[gguf].values()))
        for gguf, name in hf_names(file).items()
    }
    model = empty_gguf_model(config)
    require_same_names(file, model, values.keys())
    for name, like in model.state_dict().items():
        if name in values and values[name].shape != like.shape:
            raise ConfigError(
                f"{file.path}: {name} is {list(values[name].shape)}",
                allowed=f"{list(like.shape)}, as the file's fields say",
                next_step="the file is damaged or of another tool: copy or make it again",
            )
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()
    kinds = {t.type_name for t in file.tensors.values()} - {"F32", "F16", "BF16"}
    if kinds:
        say(
            f"model.checkpoint {file.path} was rounded to {', '.join(sorted(kinds))} before: the "
            "full-precision arm has those rounded weights, and no better ones"
        )
    return model.eval()


def empty_gguf_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of ``config`` without memory for weights."""
    with no_init_weights(), init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def hf_names(file: GgufFile) -> dict[str, str]:
    """The tensors' names in the file -> in transformers. Raises ConfigError for a stranger."""
    names = {}
    for name in file.tensors:
        if name == FACTORS:
            continue
        base, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)", base)
        inner = WHOLE.get(base) if block is None else NAMES.get(block[2])
        if inner is None:
            raise ConfigError(
                f"{file.path} has, beyond its architecture, the tensor {name}",
                allowed=f"those of {', '.join(ARCHITECTURES)}",
                next_step="give the model's Hugging Face folder",
            )
        names[name] = f"model.layers.{block[1]}.{inner}.{kind}" if block else f"{inner}.{kind}"
    return names


def require_same_names(file: GgufFile, model: PreTrainedModel, names: Any) -> None:
    """ConfigError unless the file has every tensor of ``model``, by ``names``, and no other."""
    tied = model.config.tie_word_embeddings
    wanted = {n for n in model.state_dict() if not (tied and n == "lm_head.weight")}
    if absent := sorted(wanted - set(names)):
        raise _lacks(file, absent)
    if more := sorted(set(names) - wanted):
        raise ConfigError(
            f"{file.path} has, beyond its architecture, {number_of(len(more), 'tensor')}: "
            f"{more[0]}",
            next_step="give the model's Hugging Face folder",
        )


def rows_as_in_transformers(file: GgufFile, name: str, value: np.ndarray) -> np.ndarray:
    """A tensor by its name in transformers with the rows of q and k in its order."""
    part = re.search(r"\.([qk])_proj\.(weight|bias)$", name)
    if part is None or file.architecture != "llama":
        return value
    heads = file.require("attention.head_count")
    count = int(heads if part[1] == "q" else file.shape("attention.head_count_kv", heads))
    half = len(value) // count // 2
    return np.ascontiguousarray(
        value.reshape(count, half, 2, -1).swapaxes(1, 2).reshape(value.shape)
    )


def _rope(file: GgufFile) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(file.shape("rope.freq_base", 10000.0)),
    }
    kind, factor = file.shape("rope.scaling.type", "none"), file.shape("rope.scaling.factor", 1.0)
    if kind in ("none", "linear") and factor == 1.0:
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn":
        original = file.require("rope.scaling.original_context_length")
        return rope | {
            "rope_type": "yarn", "factor": float(factor),
            "original_max_position_embeddings": int(original),
        }  # fmt: skip
    raise ConfigError(
        f"{file.path} stretches its rotation by {kind}",
        allowed="none, linear, yarn, or Llama 3's",
        next_step="give the model's Hugging Face folder",
    )


def _stretch_as_llama3(file: GgufFile, config: PretrainedConfig) -> None:
    """Let ``config`` have the rotation whose frequencies the file holds divided already."""
    if not isinstance(config, LlamaConfig):
        raise _unknown_rotation(file)
    factors = file.tensors[FACTORS].values().reshape(-1)
    plain: dict[str, Any] = dict(config.rope_parameters or {})
    head_dim = int(config.head_dim or config.hidden_size // config.num_attention_heads)
    exponent = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    wanted = plain["rope_theta"] ** -exponent / factors
    for original in ORIGINAL_CONTEXTS:
        config.rope_parameters = plain | LLAMA3 | {
            "rope_type": "llama3", "factor": float(factors.max()),
            "original_max_position_embeddings": original,
        }  # fmt: skip
        found: Tensor = LlamaRotaryEmbedding(config).inv_freq
        if np.allclose(found.numpy(), wanted, rtol=1e-3):
            return
    raise _unknown_rotation(file)


def _unknown_rotation(file: GgufFile) -> ConfigError:
    return ConfigError(
        f"{file.path}: {FACTORS} is no rotation of Llama 3's kind",
        next_step="give the model's Hugging Face folder",
    )


def _lacks(file: GgufFile, names: list[str]) -> ConfigError:
    return ConfigError(
        f"{file.path} lacks {number_of(len(names), 'tensor')}: {', '.join(names[:3])}",
        next_step="the file is cut off or of another tool: copy or make it again",
    )
