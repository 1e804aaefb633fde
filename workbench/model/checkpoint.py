"""A team's own checkpoint, read in one place and normalised: what comes out is a plain network.

Whatever a checkpoint was published as, both arms start from full-precision linear layers with no
quantisation of their own. Master weights of BitNet name a quantiser in their configuration, which
transformers would apply: the baseline would be ternary too, and every ratio to it wrong. So the
quantiser is left out and said, packed weights are refused (their masters are gone), and what came
out is asserted layer by layer. No code that comes with a checkpoint is run, and nothing is asked.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from workbench.errors import ConfigError, reason_of
from workbench.gguf_reader import GgufFile, is_gguf, read_gguf
from workbench.model.ends import generation_config, join_ends
from workbench.model.gguf_checkpoint import gguf_config, load_gguf
from workbench.wording.counts import number_of

UNLOADABLE = (
    AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError,
    TypeError, ValueError, SafetensorError, StrictDataclassError, pickle.UnpicklingError,
)  # fmt: skip
"""What transformers raises for files and configurations that are not what they should be."""

MOST_PADDING = 1024
"""Rows that an embedding may have beyond a tokenizer that was trained for it here; more is another
tokenizer's embedding."""

UNQUANTISED = "give the unquantised checkpoint that it was made from"

Say = Callable[[str], None]
"""Is told, a sentence each, what a reader must know of a checkpoint."""


def nobody(text: str) -> None:
    """For those who need not be told."""


def checkpoint_config(checkpoint: str, *, ask_hub: bool = False) -> PretrainedConfig | None:
    """The configuration of a checkpoint's text model, without a quantiser.

    None for ``hf:owner/name``, which may need the network, unless ``ask_hub``. Raises ConfigError
    for what :func:`load_checkpoint` refuses in the folder.
    """
    if checkpoint.startswith("hf:") and not ask_hub:
        return None
    return _plain_config(checkpoint, nobody).get_text_config()


def require_fit(
    config: PretrainedConfig,
    vocab_size: int,
    context: int,
    checkpoint: str,
    *,
    trained_tokenizer: bool = False,
    say: Say = nobody,
) -> None:
    """ConfigError unless a model of ``config`` takes the tokenizer's ``vocab_size`` tokens and
    ``context`` positions.

    trained_tokenizer: it is made from the pilot's own text. An embedding may have any number of
    rows that no token uses (some are padded); many of them beside a tokenizer of our own mean
    that the checkpoint was trained with another.
    """
    rows = config.vocab_size
    if rows < vocab_size or (trained_tokenizer and rows > vocab_size + MOST_PADDING):
        most = f" to {vocab_size + MOST_PADDING}" if trained_tokenizer else " or more"
        raise ConfigError(
            f"model.checkpoint {checkpoint} has {number_of(rows, 'row')} in its embedding, the "
            f"tokenizer has {number_of(vocab_size, 'token')}",
            allowed=f"{vocab_size}{most} rows (some checkpoints are padded)",
            next_step="set data.tokenizer to the checkpoint's own folder or hf:owner/name",
        )
    if rows > vocab_size:
        say(
            f"model.checkpoint {checkpoint} has {number_of(rows, 'row', form=',')} in its "
            f"embedding, the tokenizer {number_of(vocab_size, 'token', form=',')}: the "
            f"{number_of(rows - vocab_size, 'spare row is', 'spare rows are', ',')} kept as they "
            "are"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions < context:
        raise ConfigError(
            f"model.checkpoint {checkpoint} takes {number_of(positions, 'position')}, {context} "
            "are asked",
            next_step=f"set data.sequence_length to {positions} or less",
        )


def load_checkpoint(checkpoint: str, say: Say = nobody) -> PreTrainedModel:
    """A causal language model from a folder, a GGUF file or ``hf:owner/name``, float32, evaluation
    mode.

    Its linear layers are plain, its configuration names no quantiser, and its ``eos_token_id``
    holds the end tokens of ``generation_config.json`` too. ``say`` is told what was left out and
    of matrices that hold only zeros.

    Raises ConfigError when there is none, when it is packed or quantised, when it brings code of
    its own, when the file is damaged, when tensors are missing or left over (such a model is not
    the one that was trained) or hold values that are not finite.
    """
    if is_gguf(checkpoint):
        model = load_gguf(_gguf(checkpoint), say)
        normalise(model, checkpoint, None, say)
        return model
    on_hub = checkpoint.startswith("hf:")
    where = checkpoint.removeprefix("hf:")
    config = _plain_config(checkpoint, say)
    ends = None if on_hub else generation_config(Path(where))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            config=config,
            dtype=torch.float32,
            local_files_only=not on_hub,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are told apart below
            output_loading_info=True,
        )
    except UNLOADABLE as error:
        raise cannot_be_loaded(checkpoint, error) from error
    model, info = loaded
    _require_all_tensors(checkpoint, info)
    normalise(model, checkpoint, ends, say)
    return model


def normalise(model: PreTrainedModel, checkpoint: str, ends: Any, say: Say = nobody) -> None:
    """Make a loaded model what :func:`load_checkpoint` promises, and assert that it is.

    ends: a configuration that names end tokens beside the model's own; None: none but those.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ConfigError(
                f"model.checkpoint {checkpoint}: {name} holds values that are not finite",
                next_step="give a checkpoint whose training did not diverge, or copy it again",
            )
    own = model.generation_config if model.can_generate() else None
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        join_ends(config, own)
        join_ends(config, ends)
    if own is not None:
        own.eos_token_id = model.config.get_text_config().eos_token_id
    _say_whether_tied(model)
    _require_plain(model, checkpoint)
    if dead := dead_matrices(model):
        shown = ", ".join(dead[:3]) + (f" and {len(dead) - 3} more" if len(dead) > 3 else "")
        say(
            f"model.checkpoint {checkpoint}: {len(dead)} of its matrices hold only zeros "
            f"({shown}): those layers answer nothing, whatever they are given; if that is not "
            "meant, copy the checkpoint again or give another"
        )


def dead_matrices(model: nn.Module) -> list[str]:
    """Names of the matrices that are zero everywhere."""
    return [name for name, p in model.named_parameters() if p.ndim >= 2 and not bool(p.any())]


def cannot_be_loaded(checkpoint: str, error: Exception) -> ConfigError:
    """What a library said of a checkpoint, with what to do."""
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


def _plain_config(checkpoint: str, say: Say) -> PretrainedConfig:
    """The whole configuration without its quantiser, which is said; see :func:`load_checkpoint`."""
    if is_gguf(checkpoint):
        return gguf_config(_gguf(checkpoint))
    on_hub = checkpoint.startswith("hf:")
    if not on_hub:
        _check_folder(Path(checkpoint))
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.removeprefix("hf:"), local_files_only=not on_hub, trust_remote_code=False
        )
    except UNLOADABLE as error:
        raise cannot_be_loaded(checkpoint, error) from error
    _refuse_own_code(checkpoint, config.to_dict())
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        if (named := getattr(part, "quantization_config", None)) is None:
            continue
        fields = named if isinstance(named, dict) else named.to_dict()
        _refuse_other_quantiser(checkpoint, fields)
        say(
            f"model.checkpoint {checkpoint} holds master weights: the quantiser that its "
            f"configuration names (bitnet, {fields.get('quantization_mode') or 'no mode'}) is left "
            "out, so that the full-precision arm is full precision"
        )
        del part.quantization_config
    return config


def _gguf(checkpoint: str) -> GgufFile:
    file = read_gguf(Path(checkpoint))
    file.refuse_turned()
    if file.is_ternary():
        raise _packed(checkpoint, "its layers hold codes")
    return file


def _require_all_tensors(checkpoint: str, info: dict[str, Any]) -> None:
    if any(str(name).endswith(".weight_scale") for name in info["unexpected_keys"]):
        raise _packed(checkpoint, "it has a weight_scale beside its weights")
    for kind, names in (
        ("lacks", info["missing_keys"]),
        ("has, beyond its architecture,", info["unexpected_keys"]),
        ("has with another shape", [entry[0] for entry in info["mismatched_keys"]]),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")
            raise ConfigError(
                f"model.checkpoint {checkpoint} {kind} {number_of(len(names), 'tensor')}: {shown}",
                next_step="give a whole checkpoint of the architecture its config.json names",
            )


@torch.no_grad()
def _require_plain(model: PreTrainedModel, checkpoint: str) -> None:
    """What came out has plain linear layers: each computes x W^T + b of its float32 weights.

    A layer of another class is asked with one input; a quantised one answers otherwise.
    """
    wrong = next((n for n, p in model.named_parameters() if p.dtype != torch.float32), None)
    generator = torch.Generator().manual_seed(0)
    for name, layer in model.named_modules():
        if wrong or not isinstance(layer, nn.Linear) or type(layer).forward is nn.Linear.forward:
            continue
        x = torch.randn(1, layer.in_features, generator=generator)
        try:
            plain = torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-4)
        except UNLOADABLE:
            plain = False
        wrong = None if plain else name
    if wrong or getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError(
            f"model.checkpoint {checkpoint}: {wrong or 'its configuration'} is quantised",
            allowed="plain linear layers with float weights: both arms are trained from them",
            next_step=UNQUANTISED,
        )


def _say_whether_tied(model: PreTrainedModel) -> None:
    """A file may hold a head of its own although its config.json ties it to the embedding.

    The model then has both matrices, but whoever reads the configuration alone (the engine, the
    packed folder) would take the embedding for the head, and measure another model.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not table.weight:
        model.config.tie_word_embeddings = False


def _check_folder(folder: Path) -> None:
    path = folder / "config.json"
    try:
        has_config = path.is_file()
    except OSError as error:
        raise cannot_be_loaded(str(folder), error) from error
    if not has_config:
        what = "has no config.json" if folder.is_dir() else "is no folder"
        raise ConfigError(
            f"model.checkpoint {folder} {what}",
            allowed="a Hugging Face model folder (config.json, *.safetensors), a .gguf file or "
            "hf:owner/name",
            next_step=", ".join(f"name {file}" for file in sorted(folder.glob("*.gguf"))[:1]),
        )
    config, marker = _json(path), folder / "ternary.json"
    if marker.is_file() and _json(marker).get("kind") == "packed":
        raise _packed(str(folder), "it is a packed folder of the workbench")
    _refuse_own_code(str(folder), config)
    quantisation = config.get("quantization_config") or {}
    _refuse_other_quantiser(
        str(folder), quantisation if isinstance(quantisation, dict) else {"quant_method": "unknown"}
    )
    if codes := _packed_weight(folder):
        raise _packed(str(folder), f"{codes} holds codes")


def _refuse_own_code(checkpoint: str, config: dict[str, Any]) -> None:
    if not (named := config.get("auto_map")):
        return
    classes = ", ".join(sorted(map(str, named.values()))) if isinstance(named, dict) else str(named)
    kind = config.get("model_type")
    first = "download it and " if checkpoint.startswith("hf:") else ""
    raise ConfigError(
        f"model.checkpoint {checkpoint} asks to run code of its own (auto_map: {classes})",
        allowed="architectures that transformers has itself; code of a checkpoint is never run",
        next_step=f"transformers has the model type {kind} itself: {first}take auto_map "
        "out of config.json to read the weights with that"
        if kind in CONFIG_MAPPING
        else "give a checkpoint of another architecture, or a newer transformers that has this one",
    )


def _refuse_other_quantiser(checkpoint: str, fields: dict[str, Any]) -> None:
    method = fields.get("quant_method")
    if method not in (None, "bitnet"):
        raise ConfigError(
            f"model.checkpoint {checkpoint} is quantised with {method}",
            allowed="weights in full or half precision: both arms are trained from them",
            next_step=UNQUANTISED,
        )


def _packed(checkpoint: str, how: str) -> ConfigError:
    return ConfigError(
        f"model.checkpoint {checkpoint} is a packed model ({how}): its masters are gone",
        allowed="master weights: both arms are trained from them",
        next_step="measure it as model.ternary, or name another checkpoint, such as the masters it "
        "was packed from (artefact ternary_master of train_qat)",
    )


def _packed_weight(folder: Path) -> str | None:
    """A matrix of whole numbers in the folder's files; files that cannot be read are left to
    whoever loads them."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    if name.endswith(".weight") and part.get_dtype() in ("U8", "I8"):
                        return name
        except (OSError, SafetensorError):
            continue
    return None


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
