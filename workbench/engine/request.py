"""What is asked of the engine: a prompt, how far to go, and how to choose among the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from workbench.wording.counts import number_of

FinishReason = Literal["stop", "length", "cancelled", "error"]
"""stop: an end or stop token; length: ``max_tokens``; the other two speak for themselves."""


class QueueFull(RuntimeError):
    """As many requests wait as may wait; try again later (a server answers 429).

    retry_after_s: when to try again, where whoever refuses can tell.
    """

    def __init__(self, waiting: int, retry_after_s: float | None = None) -> None:
        super().__init__(
            f"{number_of(waiting, 'request waits', 'requests wait')} already, which is the limit"
        )
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to make.

    prompt_tokens: ids, at least one. max_tokens: output tokens at most; with 0 the prompt is only
        read, which gives its ``prompt_logprobs``.
    min_tokens: end and stop tokens cannot be chosen before that many are out.
    ignore_eos: the model's end tokens count as ordinary ones (a replay that must match
        lengths); ``stop_tokens`` still stop.
    temperature: 0 takes the most likely token. top_p: the smallest set of tokens with at
        least this probability is sampled from, of the ``top_k`` likeliest ones where that is not
        0. seed: None draws a fresh one.
    presence_penalty, frequency_penalty: taken off the logit of a token that is in the output,
        once, and for each time that it is there.
    logprobs: with each output token come its log probability and those of so many of the likeliest
        tokens in its place; None: none of it. prompt_logprobs: the same of the prompt.
    grammar: what the output must be, as llguidance writes it; see :mod:`.grammar`.
    given_output: tokens at the prompt's end that are output already, of another engine that
        cannot go on: penalties and grammar go on from them.

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
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None
    given_output: int = 0

    def __post_init__(self) -> None:
        if not self.prompt_tokens:
            raise ValueError("the prompt has no tokens; allowed: at least one. Send some text.")
        if self.max_tokens < 0:
            raise ValueError(f"max_tokens is {self.max_tokens}; allowed: 0 or more")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens}; allowed: 0 to max_tokens ({self.max_tokens})"
            )
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; allowed: 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; allowed: above 0, at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; allowed: 0, for all tokens, or more")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: a finite number")
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 or more, or None")
        if self.grammar is not None and (self.min_tokens or self.ignore_eos):
            raise ValueError(
                "a grammar with min_tokens or ignore_eos; allowed: one of them, since a grammar "
                "says itself where the output may end"
            )
        if not 0 <= self.given_output < len(self.prompt_tokens):
            raise ValueError(
                f"given_output is {self.given_output}; allowed: 0 to "
                f"{len(self.prompt_tokens) - 1}, fewer than the prompt has"
            )
