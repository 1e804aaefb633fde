"""``model``: which network, and which of its layers become ternary."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from workbench.pilot.sections.base import Positive, Section, input_path


class Threshold(Section):
    """When a weight becomes zero; travels in every checkpoint as the threshold version."""

    rule: Literal["absmean", "absmedian", "twn", "learned"] = Field(
        "absmean", description="what the threshold and the scale are made from"
    )
    granularity: Literal["tensor", "row", "group128"] = Field(
        "tensor", description="weights that share one scale"
    )
    rounding: Literal["half_even", "half_up", "half_away"] = Field(
        "half_even", description="where a scaled weight lies halfway"
    )
    eps: Positive = Field(1e-5, description="least scale, so that a layer of zeros divides nothing")
    ratio: Positive = Field(0.75, description="of the mean magnitude, for rule twn")
    rotation: Literal["none", 128, 256, 512, 1024] = Field(
        "none",
        description="Hadamard rotation of what a ternary layer takes, in blocks of so many inputs; "
        "its weights are rotated alike before they are rounded, so full precision stays. A "
        "width that it does not divide takes the largest power of two that does (576: 64)",
    )


class Policy(Section):
    """Which layers get which precision: shell patterns over module names. ``high_precision`` is
    looked at first, then ``int8``, then ``ternary``; what matches nothing stays precise.

    >>> from workbench.api import Policy
    >>> Policy(high_precision=["*.layers.0.*"], int8=[]).ternary[:2]
    ['*.q_proj', '*.k_proj']
    """

    ternary: list[str] = Field(
        [
            "*.q_proj",
            "*.k_proj",
            "*.v_proj",
            "*.o_proj",
            "*.gate_proj",
            "*.up_proj",
            "*.down_proj",
            "*.qkv_proj",
            "*.gate_up_proj",
            "*.in_proj",
            "*.out_proj",
        ],
        description="trained with ternary weights; fused layers (Phi-3) and those of a state space "
        "(Falcon-H1) included",
    )
    int8: list[str] = Field(
        ["*embed_tokens", "*lm_head"],
        description="one INT8 scale a row in the packed artefact; trained in full precision",
    )
    high_precision: list[str] = Field([], description="exceptions, looked at first")


class Model(Section):
    """A Hugging Face causal language model whose linear layers are replaced."""

    preset: str = Field("tiny-2m", description="a shape of workbench.model.presets")
    overrides: dict[str, Any] = Field({}, description="fields of the preset's config to change")
    checkpoint: input_path(hub=True) | None = Field(  # type: ignore[valid-type]
        None,
        description="a Hugging Face model folder, a .gguf file or hf:owner/name, in full or half "
        "precision (a GGUF file's blocks are unpacked); null starts from scratch",
    )
    ternary: input_path(hub=True) | None = Field(  # type: ignore[valid-type]
        None,
        description="a ready ternary model: a Hugging Face BitNet folder, a .gguf file whose "
        "layers are TQ1_0, TQ2_0, Q2_0 or I2_S, a packed folder, or hf:owner/name; it is the arm "
        "ternary as it is, beside model.checkpoint, and nothing is trained",
    )
    activations: Literal["int8", "none"] = Field(
        "int8", description="activations of ternary layers: per-token INT8 or left as they are"
    )
    sub_norm: bool = Field(False, description="RMSNorm inside each ternary layer, before it")
    threshold: Threshold = Threshold()
    policy: Policy = Policy()
