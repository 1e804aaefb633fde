"""How a load is replayed to served models, wherever a stage does that."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from workbench.pilot.sections.base import MOST_SLOTS, MOST_WAITING, Count, Positive, Section

Tokens = Annotated[int, Field(ge=1, le=2**20)]


class Replay(Section):
    """A load replayed to models behind the workbench's own server."""

    target_utilisation: float = Field(
        0.5, gt=0, lt=1, description="of the measured capacity, when speedup is null"
    )
    max_dispatch_delay_ms: Positive = Field(
        10.0,
        description="a replay whose client sent later than this (p99) is refused: its latencies, "
        "shares and goodput are not measured, ms",
    )
    slots: Count = Field(4, le=MOST_SLOTS, description="requests decoded together in each arm")
    queue: Count = Field(
        256, le=MOST_WAITING, description="requests that may wait; beyond it a client gets 429"
    )
    max_prompt_tokens: Tokens | None = Field(
        None,
        description="longer prompts of the load are cut, and counted in cut_share; null cuts only "
        "what the models cannot hold",
    )
    max_output_tokens: Tokens | None = Field(
        None,
        description="longer outputs of the load are cut, and counted in cut_share; null cuts only "
        "what the models cannot hold",
    )
