"""The pilot's network at other widths: same depth, same heads, the rest in proportion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from workbench.errors import ConfigError
from workbench.model.build import preset_config
from workbench.model.presets import PRESETS, Shape
from workbench.paths import shown
from workbench.pilot.resolve import ResolvedPilot

FFN_STEP = 8
"""The feed-forward width is rounded to a multiple of this."""


def shape_of_width(resolved: ResolvedPilot, width: int) -> Shape:
    """The pilot's network with hidden size ``width``.

    Raises ConfigError for a model that is no preset and a width that is no multiple of a head.
    """
    model, data = resolved.pilot.model, resolved.pilot.data
    if model.checkpoint is not None:
        raise ConfigError(
            f"{shown(resolved.path)}: model.checkpoint {model.checkpoint}: a checkpoint has one "
            "width",
            allowed="model.preset, whose shape can be widened",
            next_step="remove model.checkpoint",
        )
    config = preset_config(model, data.vocab_size, data.sequence_length)
    hidden, head = config.hidden_size, config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    if width % (head * group):
        raise ConfigError(
            f"{shown(resolved.path)}: width {width} in study",
            allowed=f"multiples of {head * group}, whole heads of {head}",
        )
    ffn = round(config.intermediate_size * width / hidden / FFN_STEP) * FFN_STEP
    return replace(
        PRESETS[model.preset],
        hidden=width,
        ffn=max(FFN_STEP, ffn),
        layers=config.num_hidden_layers,
        heads=width // head,
        kv_heads=width // head // group,
        vocab=data.vocab_size,
        tied=config.tie_word_embeddings,
    )


def values_of_width(resolved: ResolvedPilot, width: int) -> dict[str, Any]:
    """That network as an arm's values, with the rates that ``study.width_lr_power`` gives it."""
    fields = shape_of_width(resolved, width).config_fields()
    names = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    pilot = resolved.pilot
    own = preset_config(pilot.model, pilot.data.vocab_size, pilot.data.sequence_length).hidden_size
    factor = (own / width) ** pilot.study.width_lr_power
    rates = {"lr": pilot.train.lr, "ternary_lr": pilot.train.ternary_lr}
    return {
        "model": {"overrides": {name: fields[name] for name in names}},
        "train": {name: rate * factor for name, rate in rates.items() if rate is not None},
    }
