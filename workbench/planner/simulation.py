"""Replicas of one arm under a load, event by event, by the rules of :class:`.engine.scheduler`.

A replica has so many slots. Each of its steps decodes one token of every request that has its first
one, and reads a bounded piece of the prompts that wait for theirs, the oldest first: ``chunk``
tokens beside others that decode, four times as many where none does. Who waits gets a slot between
two steps, in the order of arrival. Several replicas stand behind the router, which gives each
request to the one with the fewest under way, and among equals to the one that was asked longest ago
(:class:`workbench.serve.replicas.Replicas`).

Steps that are alike are taken together: while nobody reads a prompt, all steps until the next
arrival or the next end cost the same. So the work is by the requests, not by their tokens. A
request with one output token ends with its first.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

ALONE = 4
"""Times ``chunk`` that a step reads where nothing decodes."""


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a step: of those that decode, by their number, and of each prompt token.

    rows, decode_s: points of a line, by rising rows; between them it is straight, beyond the last
    it goes on. base_s: of a step in which nobody decodes, beside its prompt tokens.
    """

    rows: tuple[float, ...]
    decode_s: tuple[float, ...]
    prompt_s: float
    base_s: float = 0.0

    def step_s(self, decoding: int, prompt_tokens: int) -> float:
        own = self._decode_s(decoding) if decoding else self.base_s
        return own + self.prompt_s * prompt_tokens

    def scaled(self, factor: float) -> StepCosts:
        """All costs times ``factor``: what the same steps take beside other work."""
        return StepCosts(
            self.rows,
            tuple(factor * s for s in self.decode_s),
            factor * self.prompt_s,
            factor * self.base_s,
        )

    def table(self, slots: int) -> list[float]:
        """``step_s`` of 0 to ``slots`` that decode, without prompt tokens."""
        return [self.step_s(decoding, 0) for decoding in range(slots + 1)]

    def _decode_s(self, rows: int) -> float:
        if len(self.rows) == 1 or rows <= self.rows[-1]:
            return float(np.interp(rows, self.rows, self.decode_s))
        (x0, x1), (y0, y1) = self.rows[-2:], self.decode_s[-2:]
        return y1 + max(0.0, (y1 - y0) / (x1 - x0)) * (rows - x1)


@dataclass(frozen=True)
class Arrivals:
    """Of each request, in the order of ``start_s``, which rises: prompt and output tokens."""

    start_s: np.ndarray
    prompt: np.ndarray
    output: np.ndarray


@dataclass(frozen=True)
class Answered:
    """Of each request, in the order of the arrivals, s: first token, last token; ``busy_s`` of all
    replicas together, until the last answer. Arrays ``[requests]``."""

    start_s: np.ndarray
    output: np.ndarray
    first_s: np.ndarray
    last_s: np.ndarray
    busy_s: float
    span_s: float

    @property
    def ttft_s(self) -> np.ndarray:
        return self.first_s - self.start_s

    @property
    def e2e_s(self) -> np.ndarray:
        return self.last_s - self.start_s

    @property
    def tpot_s(self) -> np.ndarray:
        """NaN of requests with one token."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(
                self.output > 1, (self.last_s - self.first_s) / (self.output - 1), np.nan
            )


@dataclass(eq=False)
class _Replica:
    """step_s: of a step without prompt tokens, by how many decode. now_s: end of its last step.
    decoding: a heap of (step at which it ends, number), counted in ``steps`` taken while anything
    decoded. reading: [number, prompt tokens left], oldest first."""

    slots: int
    chunk: int
    step_s: list[float]
    prompt_s: float
    now_s: float = 0.0
    steps: int = 0
    busy_s: float = 0.0
    decoding: list[tuple[int, int]] = field(default_factory=list)
    reading: list[list[int]] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)

    @property
    def outstanding(self) -> int:
        return len(self.decoding) + len(self.reading) + len(self.waiting)


def simulate(
    arrivals: Arrivals, costs: StepCosts, *, slots: int, chunk: int, replicas: int = 1
) -> Answered:
    """Every request of ``arrivals``, answered by ``replicas`` of one arm.

    slots: requests that run together in each. chunk: prompt tokens of a step beside others.
    """
    count = len(arrivals.start_s)
    first, last = np.full(count, np.nan), np.full(count, np.nan)
    prompts = [max(1, int(n)) for n in arrivals.prompt]
    outputs = [max(1, int(n)) for n in arrivals.output]
    step_s = costs.table(slots)
    fleet = [_Replica(slots, chunk, step_s, costs.prompt_s) for _ in range(replicas)]
    for number, start_s in enumerate(arrivals.start_s.tolist()):
        for replica in fleet:
            _run_until(replica, start_s, prompts, outputs, first, last)
        chosen = min(fleet, key=attrgetter("outstanding"))
        fleet.remove(chosen)
        fleet.append(chosen)
        if not chosen.outstanding:
            chosen.now_s = max(chosen.now_s, start_s)
        chosen.waiting.append(number)
    for replica in fleet:
        _run_until(replica, math.inf, prompts, outputs, first, last)
    busy_s = sum(replica.busy_s for replica in fleet)
    begun = float(arrivals.start_s[0]) if count else 0.0
    span_s = float(last.max()) - begun if count else 0.0
    return Answered(arrivals.start_s, arrivals.output, first, last, busy_s, span_s)


def _run_until(
    replica: _Replica,
    until_s: float,
    prompts: Sequence[int],
    outputs: Sequence[int],
    first: np.ndarray,
    last: np.ndarray,
) -> None:
    """All steps that begin before ``until_s``: who arrives then can be in the next one only."""
    while replica.outstanding and replica.now_s < until_s:
        while replica.waiting and len(replica.decoding) + len(replica.reading) < replica.slots:
            number = replica.waiting.popleft()
            replica.reading.append([number, prompts[number]])
        if replica.reading:
            _reading_step(replica, outputs, first, last)
        else:
            _decoding_steps(replica, until_s, last)


def _reading_step(
    replica: _Replica, outputs: Sequence[int], first: np.ndarray, last: np.ndarray
) -> None:
    """One step: a token of each that decodes, and pieces of the prompts."""
    decoding = len(replica.decoding)
    left = budget = replica.chunk * (1 if decoding else ALONE)
    for entry in replica.reading:
        piece = min(entry[1], left)
        entry[1] -= piece
        left -= piece
        if not left:
            break
    took_s = replica.step_s[decoding] + replica.prompt_s * (budget - left)
    replica.now_s += took_s
    replica.busy_s += took_s
    replica.steps += 1
    _end(replica, last)
    for number, rest in replica.reading:
        if rest:
            continue
        first[number] = replica.now_s
        if outputs[number] == 1:
            last[number] = replica.now_s
        else:
            heapq.heappush(replica.decoding, (replica.steps + outputs[number] - 1, number))
    replica.reading = [entry for entry in replica.reading if entry[1]]


def _decoding_steps(replica: _Replica, until_s: float, last: np.ndarray) -> None:
    """Equal steps until the next request ends or arrives."""
    each_s = replica.step_s[len(replica.decoding)]
    steps = replica.decoding[0][0] - replica.steps
    if until_s < math.inf and each_s > 0:
        steps = min(steps, max(1, math.ceil((until_s - replica.now_s) / each_s)))
    replica.now_s += steps * each_s
    replica.busy_s += steps * each_s
    replica.steps += steps
    _end(replica, last)


def _end(replica: _Replica, last: np.ndarray) -> None:
    while replica.decoding and replica.decoding[0][0] <= replica.steps:
        _, number = heapq.heappop(replica.decoding)
        last[number] = replica.now_s
