"""From the pilot's ``model`` section to a Hugging Face model with float32 weights.

Both arms start from this model; the ternary arm then has its layers replaced
(:func:`workbench.ternary.to_ternary`). Whatever does not fit together is refused here, before
a step is paid for: a model that silently lacks weights trains, and gives wrong numbers.
"""

from __future__ import annotations

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel

from workbench.errors import ConfigError, reason_of
from workbench.model.checkpoint import (
    UNLOADABLE,
    Say,
    cannot_be_loaded,
    load_checkpoint,
    nobody,
    require_fit,
)
from workbench.model.presets import PRESETS
from workbench.pilot.problems import did_you_mean
from workbench.pilot.sections.model import Model
from workbench.wording.counts import number_of

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip


def build_model(
    model: Model,
    vocab_size: int,
    context: int,
    seed: int,
    device: str = "cpu",
    say: Say = nobody,
) -> PreTrainedModel:
    """The model of the section, with float32 weights, on ``device``, in training mode.

    vocab_size: tokens of the tokenizer. context: positions the model must take, in tokens.
    seed: of a preset's random weights, which are made on the device (a CPU and a GPU draw
    different ones); the global random state is left as it was. say: is told what a reader must
    know of a checkpoint.

    Raises ConfigError for an unknown preset or override, a checkpoint that cannot be read or
    lacks weights, and a vocabulary or context that does not fit.
    """
    if model.checkpoint is None:
        return _from_preset(model, vocab_size, context, seed, device)
    refuse_overrides(model)
    built = load_checkpoint(model.checkpoint, say)
    require_fit(built.config.get_text_config(), vocab_size, context, model.checkpoint, say=say)
    return built.to(device).train()


def refuse_overrides(model: Model) -> None:
    """ConfigError for ``model.overrides`` beside a checkpoint."""
    if model.overrides:
        raise ConfigError(
            f"model.overrides: {sorted(model.overrides)} with model.checkpoint {model.checkpoint}",
            allowed="overrides change a preset; a checkpoint keeps the shape it was trained with",
            next_step="remove model.overrides, or set model.checkpoint to null",
        )


def preset_config(model: Model, vocab_size: int, context: int) -> LlamaConfig:
    """The configuration of the section's preset with its overrides; see :func:`build_model`."""
    if model.preset not in PRESETS:
        raise ConfigError(
            f"model.preset {model.preset}: unknown{did_you_mean(model.preset, PRESETS)}"
        )
    shape = PRESETS[model.preset].with_vocab(vocab_size)
    fields = shape.config_fields()
    allowed = {*fields, *LlamaConfig().to_dict()} - {"model_type", "transformers_version"}
    for name in model.overrides:
        if name not in allowed:
            raise ConfigError(
                f"model.overrides.{name}: unknown{did_you_mean(name, sorted(allowed))}"
            )
    asked = model.overrides.get("vocab_size", vocab_size)
    if not isinstance(asked, int) or asked < vocab_size:
        raise ConfigError(
            f"model.overrides.vocab_size: got {asked!r}, but the tokenizer has "
            f"{number_of(vocab_size, 'token')}",
            allowed=f"{vocab_size} or more",
            next_step="remove the override: the vocabulary follows the tokenizer",
        )
    # LlamaConfig's own end token is 2, in a new vocabulary a letter like any other.
    fields |= {"bos_token_id": None, "eos_token_id": None}
    fields |= {"max_position_embeddings": max(shape.context, context)} | model.overrides
    if "head_dim" not in model.overrides:
        del fields["head_dim"]
    try:
        config = LlamaConfig(**fields)
        _require_possible(config)
    except (StrictDataclassError, TypeError, ValueError, ZeroDivisionError) as error:
        raise _no_model(model, error) from error
    return config


def empty_model(model: Model, config: PretrainedConfig) -> PreTrainedModel:
    """The section's model on the meta device: its modules without any weights, in no time.

    Raises ConfigError for what passes as a configuration and is refused by the model's own code.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except UNLOADABLE as error:
        raise _no_model(model, error) from error


def _from_preset(
    model: Model, vocab_size: int, context: int, seed: int, device: str
) -> PreTrainedModel:
    config = preset_config(model, vocab_size, context)
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def _require_possible(config: LlamaConfig) -> None:
    """ValueError for values of the right type that break only when the model computes."""
    for name in SIZES:
        if (value := getattr(config, name)) <= 0:
            raise ValueError(f"{name} is {value}, it must be above 0")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise ValueError(
            f"{number_of(heads, 'attention head')} cannot share "
            f"{number_of(kv_heads, 'key-value head')} evenly"
        )
    if not 0 <= config.attention_dropout < 1:
        raise ValueError(f"attention_dropout is {config.attention_dropout}, it is a share below 1")


def _no_model(model: Model, error: Exception) -> ConfigError:
    if model.checkpoint is not None:
        return cannot_be_loaded(model.checkpoint, error)
    return ConfigError(
        f"model.overrides of {model.preset} give no model: {reason_of(error)}",
        next_step=f"the preset without overrides: {PRESETS[model.preset].describe()}",
    )
