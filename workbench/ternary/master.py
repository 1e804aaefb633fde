"""Master checkpoints: a ternary model as it trains, to go on training or to pack differently.

A Hugging Face folder with the master weights under their usual names, so that any tool can read
it, and ``ternary.json`` beside it with the threshold version and the layers, so that ours
rebuilds the same ternary model and refuses to do so under another threshold.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from workbench.errors import ConfigError, reason_of
from workbench.ternary.bitlinear import BitLinear
from workbench.ternary.convert import bit_linears
from workbench.ternary.folder import replacing_folder
from workbench.ternary.manifest import FORMAT, NAME, read_json_object
from workbench.ternary.threshold import ThresholdVersion

WEIGHTS = "model.safetensors"


def save_master(
    model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write a model with BitLinears; an existing folder is replaced only by a whole one."""
    folder, layers = Path(folder), bit_linears(model)
    versions = {layer.threshold.id: layer.threshold for _, layer in layers}
    if len(versions) != 1:
        raise ConfigError(
            f"a master checkpoint with threshold versions {sorted(versions) or 'none'}",
            allowed="a model with ternary layers under one threshold version",
        )
    first = layers[0][1]
    value = {
        "format": FORMAT,
        "kind": "master",
        "threshold": first.threshold.to_json(),
        "threshold_id": first.threshold.id,
        "activations": first.activations,
        "sub_norm": first.norm is not None,
        "layers": [name for name, _ in layers],
    }
    with replacing_folder(folder) as partial:
        model.config.save_pretrained(partial)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        (partial / NAME).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        safetensors.torch.save_model(model, str(partial / WEIGHTS), metadata={"format": "pt"})


def require_plain_master(folder: Path, expected: ThresholdVersion) -> None:
    """ConfigError if ``folder`` holds master weights that a plain model cannot take up.

    Read as a plain Hugging Face checkpoint, those under another threshold would train on under
    the new one without a word; trained norms and scales have no place in a plain model.
    """
    path = folder / NAME
    try:
        is_ours = path.is_file()
    except OSError as error:
        raise ConfigError(
            f"model.checkpoint {folder} cannot be read: {reason_of(error)}",
            next_step="give yourself the right to read it, or copy it to where you have it",
        ) from error
    if not is_ours or (value := read_json_object(path)).get("kind") != "master":
        return
    found = ThresholdVersion.from_json(value.get("threshold"), str(path))
    found.require(expected, str(folder))
    extra = (
        "sub_norm"
        if value.get("sub_norm")
        else "a learned threshold"
        if found.rule == "learned"
        else None
    )
    if extra:
        raise ConfigError(
            f"model.checkpoint {folder}: ternary master weights trained with {extra}, which adds "
            "tensors that a plain model has no place for",
            allowed="master weights without sub_norm and without a learned threshold",
            next_step="give the full-precision checkpoint that they came from",
        )


def load_master(folder: str | Path, *, expect: ThresholdVersion | None = None) -> PreTrainedModel:
    """The ternary model (BitLinears at strength 1, float32, evaluation mode) of such a folder.

    expect: the threshold version the caller needs. Raises ConfigError when the folder has
    another, is no master checkpoint, or lacks tensors.

    >>> import tempfile
    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import load_master, to_ternary
    >>> from workbench.ternary.master import save_master
    >>> model = AutoModelForCausalLM.from_config(LlamaConfig(
    ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...     vocab_size=50))
    >>> report = to_ternary(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_master(model, f"{folder}/master")
    ...     again = load_master(f"{folder}/master", expect=report.threshold)
    >>> bool((again.lm_head.weight == model.lm_head.weight).all())
    True
    """
    folder = Path(folder)
    path = folder / NAME
    value = read_json_object(path)
    if value.get("kind") != "master" or value.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: kind {value.get('kind')!r}, format {value.get('format')!r}",
            allowed=f"kind 'master', format {FORMAT}",
            next_step="give the folder of ternary master weights",
        )
    threshold = ThresholdVersion.from_json(value.get("threshold"), str(path))
    threshold.require(expect, str(folder))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config)
        for name in value["layers"]:
            linear = model.get_submodule(name)
            layer = BitLinear.from_linear(
                linear, threshold, value["activations"], value["sub_norm"]
            )
            model.set_submodule(name, layer, strict=True)
        safetensors.torch.load_model(model, folder / WEIGHTS)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"{folder} cannot be loaded: {reason_of(error)}",
            next_step="the folder is damaged or incomplete; run the training stage again",
        ) from error
    return model.eval()
