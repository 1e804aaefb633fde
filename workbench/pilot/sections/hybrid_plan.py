"""``hybrid_plan``: which layers stay precise, under which budget."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workbench.pilot.sections.base import Count, Positive, Section


class HybridPlan(Section):
    """Per-layer sensitivity, then the plan that meets the budget."""

    precisions: list[Literal["ternary", "int8", "high_precision"]] = Field(
        ["ternary", "int8", "high_precision"], min_length=1, description="what a layer may become"
    )
    sequences: Count = Field(
        24, description="held-out pieces of data.sequence_length tokens that judge each layer"
    )
    max_quality_loss: float = Field(
        0.02, ge=0, description="bits per byte the plan may lose against the full-precision arm"
    )
    max_size_ratio: Positive = Field(
        0.6, description="bytes of the planned linear layers over their bytes in bf16, at most"
    )
    granularity: Literal["block", "linear"] = Field(
        "linear", description="what is decided as one: a whole block or a linear layer"
    )
