"""``train``: a full-precision baseline and a ternary model at equal tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.pilot.sections.base import Count, Positive, Section, Share


class Warmup(Section):
    """Phase 1: full precision (threshold strength 0)."""

    share: Share = Field(0.2, description="of all steps")
    weight_decay: float = Field(0.1, ge=0)
    lr_factor: Positive = 1.0


class ThresholdOn(Section):
    """Phase 2: the threshold's strength goes from 0 to 1."""

    share: Share = Field(0.2, description="of all steps")
    ramp: Literal["linear", "exponential", "sigmoid", "none"] = "linear"
    weight_decay: float = Field(0.1, ge=0)
    lr_factor: Positive = 1.0
    quantised_lr_factor: Positive = Field(1.0, description="extra factor for quantised weights")


class Finetune(Section):
    """Phase 3: strength 1, master weights still learn; the remaining steps."""

    weight_decay: float = Field(0.0, ge=0)
    lr_factor: Positive = 1.0
    quantised_lr_factor: Positive = Field(1.0, description="extra factor for quantised weights")


class Train(Section):
    """Both arms see the same batches in the same order: ``steps`` x ``batch_size`` sequences."""

    steps: Count = 300
    batch_size: Count = Field(8, description="sequences a step and device")
    gradient_accumulation: Count = 1
    lr: Positive = Field(1e-3, description="peak learning rate of the full-precision arm")
    ternary_lr: Positive | None = Field(None, description="of the ternary arm; null: same as lr")
    lr_warmup_share: Share = 0.05
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    betas: list[float] = Field([0.9, 0.95], min_length=2, max_length=2)
    grad_clip: Positive = 1.0
    warmup: Warmup = Warmup()
    threshold: ThresholdOn = ThresholdOn()
    finetune: Finetune = Finetune()
    evaluations: Count = Field(6, description="evaluations of each arm, evenly spread")
    eval_sequences: Count = Field(32, description="held-out sequences of each evaluation")
    save_every: Count = Field(50, description="steps between checkpoints")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the computation")
    gradient_checkpointing: bool = False
    compile: bool = False
    optimizer: str = Field("adamw_torch", description="a transformers.Trainer optimizer name")
