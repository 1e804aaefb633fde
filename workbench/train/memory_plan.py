"""What the training of an arm needs of a GPU's memory, part by part, before it starts.

An estimate from counts, as :meth:`workbench.model.presets.Shape.training_bytes` is, but for any
model and for the settings that decide at 3B: activation checkpointing, bf16, the optimizer's
state. Counted at the fullest moment of a step; allocator slack and CUDA's own half GB are left
to ``USABLE``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from workbench.errors import StageError
from workbench.pilot.sections.model import Model, Policy
from workbench.pilot.sections.train import Train
from workbench.ternary.policy import resolve

USABLE = 0.92
GB = 1e9
STATE_BYTES = {"8bit": 2, "4bit": 1, "adafactor": 0, "sgd": 4, "lion": 4}
"""Optimizer bytes a parameter by a word of its name; all others: two float32 moments."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of each part of one arm's training."""

    arm: str
    parts: dict[str, float]

    @property
    def total_bytes(self) -> float:
        return sum(self.parts.values())

    def __str__(self) -> str:
        each = ", ".join(f"{name} {size / GB:.1f}" for name, size in self.parts.items())
        return f"memory plan, {self.arm}: {self.total_bytes / GB:.1f} GB ({each})"


def memory_plans(
    config: PretrainedConfig, model: Model, train: Train, sequence: int
) -> tuple[TrainingMemory, TrainingMemory]:
    """Of the full-precision arm and of the ternary arm, on each GPU of ``train.launch``.

    sequence: tokens.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    parameters = sum(p.numel() for p in empty.parameters())
    linear = sum(m.weight.numel() for m in empty.modules() if isinstance(m, nn.Linear))
    ternary = _ternary_parameters(empty, model.policy)
    tokens = train.share[0] * sequence
    value = 2 if train.precision == "bfloat16" else 4
    shared = {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": _state_bytes(train.optimizer) * parameters,
    }
    launch = train.launch
    if launch.is_sharded:
        shared = {name: size / launch.shards for name, size in shared.items()}
        # A block's weights while it computes and the next one's on their way; what embeds and the
        # head stay whole from the forward pass to the backward one.
        block = (parameters - _embedding_parameters(empty)) / config.num_hidden_layers
        shared["gathered weights"] = 4 * (2 * block + _embedding_parameters(empty))
    elif launch.together > 1:
        shared["buckets of gradients"] = 4 * parameters  # what the processes exchange
    logits = 12 * tokens * config.vocab_size
    plans = []
    for arm in ("full precision", "ternary"):
        # bf16: autocast keeps a copy of each matrix during the forward pass. Ternary layers keep
        # what they have quantised instead, in the type of the computation.
        copies = 2 * linear if value == 2 else 0
        if arm == "ternary" and value == 4:
            copies = 4 * ternary
        if launch.is_sharded:  # those of the block that computes
            copies /= config.num_hidden_layers
        block = tokens * value * _kept_values(config, arm == "ternary")
        layers = config.num_hidden_layers
        # The residual stream is float32 under autocast too.
        kept = 4 * tokens * config.hidden_size * layers + block
        activations = kept if train.gradient_checkpointing else block * layers
        parts = {**shared, "copies of weights": copies, "activations": activations}
        if arm == "ternary" and train.distillation.teacher != "none":
            # Its weights; its logits and both distributions that the divergence compares.
            parts["teacher"] = value * parameters + (value + 12) * tokens * config.vocab_size
        plans.append(TrainingMemory(arm, {**parts, "logits": logits}))
    return plans[0], plans[1]


def require_memory(
    config: PretrainedConfig,
    model: Model,
    train: Train,
    sequence: int,
    free_bytes: float,
    say: Callable[[str], None],
) -> None:
    """Say both plans; StageError with what would fit unless they fit ``free_bytes``."""
    plans = memory_plans(config, model, train, sequence)
    for plan in plans:
        say(str(plan))
    room = USABLE * free_bytes
    needed = max(plan.total_bytes for plan in plans)
    free = f"{free_bytes / GB:.1f} GB are free on the GPU"
    say(f"memory plan: {free}, {room / GB:.1f} GB of them to plan with")
    if needed <= room:
        return
    raise StageError(
        f"training needs about {needed / GB:.1f} GB of GPU memory "
        f"({max(plans, key=lambda p: p.total_bytes)})",
        allowed=f"{room / GB:.1f} GB: {USABLE:.0%} of what is free",
        next_step=_remedy(config, model, train, sequence, room),
    )


def _remedy(
    config: PretrainedConfig, model: Model, train: Train, sequence: int, room: float
) -> str:
    """The mildest change that fits: each adds to the one before it."""
    changes: list[tuple[str, dict]] = []
    if not train.gradient_checkpointing:
        changes.append(("train.gradient_checkpointing: true", {"gradient_checkpointing": True}))
    batch, accumulation = train.batch_size, train.gradient_accumulation
    while batch > 1 and batch % 2 == 0:
        batch, accumulation = batch // 2, accumulation * 2
        text = f"train.batch_size: {batch} with train.gradient_accumulation: {accumulation}"
        changes.append((text, {"batch_size": batch, "gradient_accumulation": accumulation}))
    if _state_bytes(train.optimizer) > 2:
        text = "train.optimizer: adamw_bnb_8bit (needs bitsandbytes)"
        changes.append((text, {"optimizer": "adamw_bnb_8bit"}))
    so_far: dict = {}
    chosen: dict[str, str] = {}
    for text, fields in changes:
        so_far |= fields
        chosen[next(iter(fields))] = text
        tried = train.model_copy(update=so_far)
        if max(p.total_bytes for p in memory_plans(config, model, tried, sequence)) <= room:
            return "set " + ", ".join(chosen.values())
    return "choose a smaller model.preset or data.sequence_length, or a GPU with more memory"


def _embedding_parameters(model: PreTrainedModel) -> int:
    found = {id(m.weight): m.weight.numel() for m in (model.get_input_embeddings(),
             model.get_output_embeddings()) if m is not None}  # fmt: skip
    return sum(found.values())


def _kept_values(config: PretrainedConfig, ternary: bool) -> int:
    """Values a token that one block keeps for its backward pass; see Shape.training_bytes."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv = getattr(config, "num_key_value_heads", heads) * size
    kept = 8 * config.hidden_size + 2 * kv + 4 * config.intermediate_size
    return kept + config.hidden_size if ternary else kept


def _ternary_parameters(model: nn.Module, policy: Policy) -> int:
    precisions = resolve(policy, model).precisions
    return sum(
        model.get_submodule(name).weight.numel()
        for name, precision in precisions.items()
        if precision == "ternary"
    )


def _state_bytes(optimizer: str) -> int:
    return next((size for word, size in STATE_BYTES.items() if word in optimizer), 8)
