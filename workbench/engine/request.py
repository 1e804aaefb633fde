"""What is asked of the engine: a prompt, how far to go, and how to choose among the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""stop: an end or stop token; length: ``max_tokens``; the other two speak for themselves."""


class QueueFull(RuntimeError):
    """As many requests wait as may wait; try again later (a server answers 429).

    retry_after_s: when to try again, where whoever refuses can tell.
    """

    def __init__(self, waiting: int, retry_after_s: float | None = None) -> None:
        super().__init__(f"{waiting} requests wait already, which is the limit")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to make.

    prompt_tokens: ids, at least one. max_tokens: output tokens at most.
    min_tokens: end and stop tokens cannot be chosen before that many are out.
    ignore_eos: the model's end tokens count as ordinary ones (a replay that must match
        lengths); ``stop_tokens`` still stop.
    temperature: 0 takes the most likely token. top_p: the smallest set of tokens with at
        least this probability is sampled from. seed: None draws a fresh one.

    Raises ValueError for a field out of its range.

    >>> from workbench.api import GenerationRequest
    >>> GenerationRequest((3, 1, 4), max_tokens=16, temperature=0.7, seed=1).top_p
    1.0
    """

    prompt_tokens: tuple[int, ...]
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt_tokens:
            raise ValueError("the prompt has no tokens; allowed: at least one. Send some text.")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; allowed: at least 1")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}; allowed: 0 to max_tokens ({self.max_tokens})"
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; allowed: 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; allowed: above 0, at most 1")
