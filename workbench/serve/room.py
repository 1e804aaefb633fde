"""What all arms of a server share, and whether they fit: known before any of them is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import ConfigError
from workbench.machine.gpu import torch_gpu, torch_gpu_memory
from workbench.machine.memory import memory
from workbench.serve.spec import ServeSpec
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MB, GB = 1e6, 1e9


def shared_tokenizer(arms: dict[str, Path]) -> PreTrainedTokenizerBase:
    """The tokenizer of all arms: a prompt is encoded before its arm is known."""
    from workbench.data.tokenizer import load_tokenizer

    tokenizers = {name: load_tokenizer(str(folder)) for name, folder in arms.items()}
    (first, tokenizer), *others = tokenizers.items()
    for name, other in others:
        if other.get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                f"the arms {first} and {name} have different tokenizers",
                allowed="arms of one training, which share their tokenizer",
                next_step="serve them with two servers",
            )
    return tokenizer


def shared_context(spec: ServeSpec) -> int:
    """Tokens that a request may have in every arm."""
    from workbench.engine.build import LONGEST_CONTEXT

    longest = LONGEST_CONTEXT if spec.context is None else spec.context
    for config in _configs(spec):
        longest = min(longest, getattr(config, "max_position_embeddings", None) or longest)
    return longest


def require_room(spec: ServeSpec, context: int) -> None:
    """ConfigError unless the keys and values of all slots fit what is free; nothing of the models
    is loaded yet."""
    configs = _configs(spec)
    on_gpu = spec.device == "cuda" and torch_gpu()[0]
    free = torch_gpu_memory()[0] if on_gpu else memory().available_bytes
    slot_bytes = sum(_slot_bytes(config.get_text_config(), context) for config in configs)
    if spec.all_slots * slot_bytes > free:
        raise ConfigError(
            f"{number_of(spec.all_slots, 'slot keeps', 'slots keep')} "
            f"{spec.all_slots * slot_bytes / GB:.1f} GB of keys and values: {slot_bytes / MB:.1f} "
            f"MB each, {number_of(context, 'token')} in {number_of(len(configs), 'arm')}",
            allowed=f"at most {free // slot_bytes}, and the weights come on top: "
            f"{free / GB:.1f} GB are free",
            next_step="lower slots (workbench serve: --slots, a pilot: deploy_rollback.slots)",
        )


def _configs(spec: ServeSpec) -> list[PretrainedConfig]:
    from workbench.engine.build import read_config

    drafts = [folder for folder in spec.drafts.values() if folder is not None]
    return [read_config(folder) for folder in [*spec.arms.values(), *drafts]]


def _slot_bytes(config: PretrainedConfig, context: int) -> int:
    """Bytes of a conversation's keys and values, two a value; 0 of a model that keeps none."""
    heads = getattr(config, "num_attention_heads", 0)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    return 2 * 2 * config.num_hidden_layers * context * kv_heads * head_dim
