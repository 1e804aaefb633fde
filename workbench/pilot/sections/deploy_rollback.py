"""``deploy_rollback``: the load replayed against two precisions, and the way back."""

from __future__ import annotations

from pydantic import Field

from workbench.pilot.sections.base import Count, Positive, Section


class DeployRollback(Section):
    """The hybrid artefact served next to the full-precision one, both warm."""

    duration_s: Positive = Field(20.0, description="length of the replayed load, s")
    speedup: Positive | None = Field(
        None, description="2 replays twice as fast; null fits the load to what the server can do"
    )
    target_utilisation: float = Field(
        0.5, gt=0, lt=1, description="of the measured capacity, when speedup is null"
    )
    rollback_at: float = Field(0.5, gt=0, lt=1, description="moment of the rollback, as a share")
    slots: Count = Field(4, description="requests decoded together in each arm")
    queue: Count = Field(256, description="requests that may wait; beyond it a client gets 429")
    max_prompt_tokens: Count = Field(
        256, description="longer prompts of the trace are cut, and said"
    )
    max_output_tokens: Count = Field(
        64, description="longer outputs of the trace are cut, and said"
    )
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535, description="0 takes a free one")
