"""From the pilot's ``model`` section to a Hugging Face model with float32 weights.

Both arms start from this model; the ternary arm then has its layers replaced
(:func:`workbench.ternary.to_ternary`). Whatever does not fit together is refused here, before
a step is paid for: a model that silently lacks weights trains, and gives wrong numbers.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from workbench.errors import ConfigError, reason_of
from workbench.model.presets import PRESETS
from workbench.pilot.problems import did_you_mean
from workbench.pilot.sections.model import Model

UNLOADABLE = (
    AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError,
    TypeError, ValueError, SafetensorError, StrictDataclassError, pickle.UnpicklingError,
)  # fmt: skip
"""What transformers raises for files and configurations that are not what they should be."""

MOST_PADDING = 1024
"""Rows that a checkpoint's embedding may have beyond its tokenizer; more is another tokenizer."""

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip

UNQUANTISED = "give the unquantised checkpoint that it was made from"


def build_model(
    model: Model, vocab_size: int, context: int, seed: int, device: str = "cpu"
) -> PreTrainedModel:
    """The model of the section, with float32 weights, on ``device``, in training mode.

    vocab_size: tokens of the tokenizer. context: positions the model must take, in tokens.
    seed: of a preset's random weights, which are made on the device (a CPU and a GPU draw
    different ones); the global random state is left as it was.

    Raises ConfigError for an unknown preset or override, a checkpoint that cannot be read or
    lacks weights, and a vocabulary or context that does not fit.
    """
    if model.checkpoint is None:
        return _from_preset(model, vocab_size, context, seed, device)
    refuse_overrides(model)
    built = load_checkpoint(model.checkpoint)
    require_fit(built.config.get_text_config(), vocab_size, context, model.checkpoint)
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
            f"model.overrides.vocab_size: got {asked!r}, but the tokenizer has {vocab_size} tokens",
            allowed=f"{vocab_size} or more",
            next_step="remove the override: the vocabulary follows the tokenizer",
        )
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


def checkpoint_config(checkpoint: str, *, ask_hub: bool = False) -> PretrainedConfig | None:
    """The configuration of a checkpoint's text model.

    None for ``hf:owner/name``, which may need the network, unless ``ask_hub``. Raises ConfigError
    for what :func:`load_checkpoint` refuses in the folder.
    """
    on_hub = checkpoint.startswith("hf:")
    if on_hub and not ask_hub:
        return None
    if not on_hub:
        _check_folder(Path(checkpoint))
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.removeprefix("hf:"), local_files_only=not on_hub
        )
    except UNLOADABLE as error:
        raise _cannot_be_loaded(checkpoint, error) from error
    return config.get_text_config()


def require_fit(config: PretrainedConfig, vocab_size: int, context: int, checkpoint: str) -> None:
    """ConfigError unless a model of ``config`` takes the tokenizer's ``vocab_size`` tokens and
    ``context`` positions."""
    _check_vocabulary(config.vocab_size, vocab_size, checkpoint)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < context:
        raise ConfigError(
            f"model.checkpoint {checkpoint} takes {positions} positions, {context} are asked",
            next_step=f"set data.sequence_length to {positions} or less",
        )


def load_checkpoint(checkpoint: str) -> PreTrainedModel:
    """A causal language model from a folder or ``hf:owner/name``, float32, evaluation mode.

    Raises ConfigError when there is none, when the file is damaged, when tensors are missing or
    left over (such a model is not the one that was trained) or hold values that are not finite.
    """
    on_hub = checkpoint.startswith("hf:")
    where = checkpoint.removeprefix("hf:") if on_hub else checkpoint
    if not on_hub:
        _check_folder(Path(where))
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.float32, local_files_only=not on_hub, output_loading_info=True
        )
    except UNLOADABLE as error:
        raise _cannot_be_loaded(checkpoint, error) from error
    for kind, names in (
        ("lacks", info["missing_keys"]),
        ("has, beyond its architecture,", info["unexpected_keys"]),
        ("has with another shape", [entry[0] for entry in info["mismatched_keys"]]),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")
            raise ConfigError(
                f"model.checkpoint {checkpoint} {kind} {len(names)} tensors: {shown}",
                next_step="give a whole checkpoint of the architecture its config.json names",
            )
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ConfigError(
                f"model.checkpoint {checkpoint}: {name} holds values that are not finite",
                next_step="give a checkpoint whose training did not diverge, or copy it again",
            )
    _say_whether_tied(model)
    return model


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
        raise ValueError(f"{heads} attention heads cannot share {kv_heads} key-value heads evenly")
    if not 0 <= config.attention_dropout < 1:
        raise ValueError(f"attention_dropout is {config.attention_dropout}, it is a share below 1")


def _no_model(model: Model, error: Exception) -> ConfigError:
    if model.checkpoint is not None:
        return _cannot_be_loaded(model.checkpoint, error)
    return ConfigError(
        f"model.overrides of {model.preset} give no model: {reason_of(error)}",
        next_step=f"the preset without overrides: {PRESETS[model.preset].describe()}",
    )


def _say_whether_tied(model: PreTrainedModel) -> None:
    """A file may hold a head of its own although its config.json ties it to the embedding.

    The model then has both matrices, but whoever reads the configuration alone (the engine, the
    packed folder) would take the embedding for the head, and measure another model.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not table.weight:
        model.config.tie_word_embeddings = False


def _cannot_be_loaded(checkpoint: str, error: Exception) -> ConfigError:
    if isinstance(error, ImportError):
        cure = f"install what it asks for, or {UNQUANTISED}"
    elif checkpoint.startswith("hf:"):
        cure = (
            "check the name and the network; offline, download it where there is a network "
            "and give the folder instead of hf:owner/name"
        )
    else:
        cure = "give the folder of a causal language model saved with save_pretrained"
    return ConfigError(
        f"model.checkpoint {checkpoint} cannot be loaded: {reason_of(error)}", next_step=cure
    )


def _check_folder(folder: Path) -> None:
    path = folder / "config.json"
    try:
        has_config = path.is_file()
    except OSError as error:
        raise _cannot_be_loaded(str(folder), error) from error
    if not has_config:
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise ConfigError(
            f"model.checkpoint {folder} {what}",
            allowed="a Hugging Face model folder (config.json, *.safetensors) or hf:owner/name",
        )
    marker = folder / "ternary.json"
    if marker.is_file() and _json(marker).get("kind") == "packed":
        raise ConfigError(
            f"model.checkpoint {folder} is a packed model: its master weights are gone",
            next_step="give the master checkpoint (artefact ternary_master of train_qat)",
        )
    quantization = _json(path).get("quantization_config") or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in (None, "bitnet"):
        raise ConfigError(
            f"model.checkpoint {folder} is quantised with {method}",
            allowed="weights in full or half precision: both arms are trained from them",
            next_step=UNQUANTISED,
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "cannot be read" if isinstance(error, OSError) else "is not JSON"
        raise ConfigError(
            f"{path} {what}: {error}", next_step="copy the checkpoint again"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}", allowed="a JSON object")
    return value


def _check_vocabulary(rows: int, tokens: int, checkpoint: str) -> None:
    if rows < tokens or rows > tokens + MOST_PADDING:
        raise ConfigError(
            f"model.checkpoint {checkpoint} has {rows} rows in its embedding, "
            f"the tokenizer has {tokens} tokens",
            allowed=f"{tokens} to {tokens + MOST_PADDING} rows (some checkpoints are padded)",
            next_step="set data.tokenizer to the checkpoint's own folder or hf:owner/name",
        )
