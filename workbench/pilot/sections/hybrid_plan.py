"""``hybrid_plan``: which layers stay precise, under which budget."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.pilot.sections.base import Count, Positive, Section


class HybridPlan(Section):
    """Per-layer sensitivity, then the plan that meets the budget."""

    precisions: list[Literal["ternary", "int4", "int8", "high_precision"]] = Field(
        ["ternary", "int8", "high_precision"],
        min_length=1,
        description="what a layer may become. INT8 and INT4 layers of a plan that comes first are "
        "trained precise and rounded when the model is packed",
    )
    sequences: Count = Field(
        64,
        description="held-out pieces of data.sequence_length tokens that judge each layer; of "
        "fewer than 64 documents its loss has no interval",
    )
    max_quality_loss: float = Field(
        0.02, ge=0, description="bits per byte the plan may lose against the full-precision arm"
    )
    max_size_ratio: Positive = Field(
        0.6, description="bytes of the planned linear layers over their bytes in bf16, at most"
    )
    max_latency_ratio: Positive | None = Field(
        None,
        description="time of their products for one token over that in bf16, at most, as timed "
        "here; of a plan made before training. null: no such budget",
    )
    max_energy_ratio: Positive | None = Field(
        None,
        description="gross energy of their products for one token over that in bf16, at most, as "
        "a meter of measure_ab.meters reads it here; refused without one; of a plan made before "
        "training. null: no such budget",
    )
    when: Literal["before_training", "after_training"] | None = Field(
        None,
        description="before_training: the plan of least loss within the budgets of size, time and "
        "energy, then one more training, like the ternary arm's, with it in place; after_training: "
        "layers exchanged in the trained arms. null: before, where there is a model.checkpoint",
    )
    granularity: Literal["block", "linear"] = Field(
        "linear", description="what is decided as one: a whole block or a linear layer"
    )
