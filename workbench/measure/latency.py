"""One turn of one arm: requests one after another, or sequences decoded together.

Closed loop, nothing queued: the next request starts when the one before has ended, so a
latency here is that of the model alone. Lengths are forced, greedy, with end tokens ignored:
every arm does the same work. What is timed holds the choice of the tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest

Prompt = tuple[int, ...]


@dataclass(frozen=True)
class LoadClass:
    """What is asked of an arm in a turn.

    batch: sequences decoded together; None for interactive requests, alone on the machine.
    """

    name: str
    prompt_tokens: int
    output_tokens: int
    batch: int | None = None

    @classmethod
    def interactive(cls, prompt_tokens: int, output_tokens: int) -> LoadClass:
        return cls(f"interactive_{output_tokens}", prompt_tokens, output_tokens)

    @classmethod
    def batched(cls, prompt_tokens: int, output_tokens: int, batch: int) -> LoadClass:
        return cls(f"batch_{batch}", prompt_tokens, output_tokens, batch)

    @property
    def sequences(self) -> int:
        return self.batch or 1


@dataclass(frozen=True)
class Span:
    """What ran: ``phase`` prefill, decode or request (both). tokens: of the prompts in
    prefill, of the output otherwise. sequences: requests, or sequences of the batches."""

    phase: str
    seconds: float
    tokens: int
    sequences: int


def take_turn(
    engine: Engine, wanted: LoadClass, prompts: Sequence[Prompt], repeats: int
) -> list[Span]:
    """Run the class ``repeats`` times, each time with the next of ``prompts``; sums over them."""
    run = _one_request if wanted.batch is None else _one_batch
    total: dict[str, Span] = {}
    for repeat in range(repeats):
        first = repeat * wanted.sequences
        own = [prompts[(first + i) % len(prompts)] for i in range(wanted.sequences)]
        for span in run(engine, wanted, own):
            so_far = total.get(span.phase, Span(span.phase, 0.0, 0, 0))
            total[span.phase] = Span(
                span.phase,
                so_far.seconds + span.seconds,
                so_far.tokens + span.tokens,
                so_far.sequences + span.sequences,
            )
    return list(total.values())


def _one_request(engine: Engine, wanted: LoadClass, prompts: list[Prompt]) -> list[Span]:
    request = GenerationRequest(prompts[0], wanted.output_tokens, ignore_eos=True)
    done = engine.generate(request)
    spans = [
        Span("prefill", done.first_token_s, len(prompts[0]), 1),
        Span("request", done.end_s, wanted.output_tokens, 1),
    ]
    if wanted.output_tokens > 1:
        spans.append(Span("decode", done.end_s - done.first_token_s, wanted.output_tokens - 1, 1))
    return spans


def _one_batch(engine: Engine, wanted: LoadClass, prompts: list[Prompt]) -> list[Span]:
    slots = list(range(len(prompts)))
    began = time.perf_counter()
    try:
        tokens = [
            int(engine.prefill(slot, prompt).argmax())
            for slot, prompt in zip(slots, prompts, strict=True)
        ]
        prefilled = time.perf_counter()
        engine.decode_greedy(slots, tokens, wanted.output_tokens)
        ended = time.perf_counter()
    finally:
        for slot in slots:
            engine.release(slot)
    prompt_tokens, output_tokens = sum(map(len, prompts)), wanted.output_tokens * len(slots)
    return [
        Span("prefill", prefilled - began, prompt_tokens, len(slots)),
        Span("decode", ended - prefilled, output_tokens, len(slots)),
        Span("request", ended - began, output_tokens, len(slots)),
    ]
