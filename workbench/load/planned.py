"""One request of a replay, apart from what needs pandas: a load client has to start quickly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedRequest:
    """intended_s: when an open-loop client sends it, from the start of the replay.
    cut: the trace's prompt or output was longer than the limits."""

    id: int
    intended_s: float
    prompt_tokens: int
    output_tokens: int
    class_: str
    cut: bool
