"""Drafts: what the next tokens of a text may be, at little cost and with no promise.

:class:`ModelDraft` asks a cheaper model with the same tokenizer, a ternary one beside its
full-precision teacher; :class:`PromptLookup` finds the text's latest tokens earlier in it and
guesses that it goes on as it did there, which costs nothing and is often right where an answer
quotes its prompt. :mod:`.speculative` verifies them, so a wrong guess costs time and nothing else.

A draft reads a text when it is asked for guesses, not before: one that is seldom asked because its
guesses do not pay costs nothing while others guess, or nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from workbench.engine.draft_length import StepCost
from workbench.engine.engine import Engine
from workbench.engine.sampling import Guess, Sampler


@dataclass(frozen=True)
class DraftAsked:
    """A text to go on with. text: all its tokens so far. most: guesses wanted, at least one."""

    slot: int
    text: Sequence[int]
    most: int
    sampler: Sampler


class Draft(Protocol):
    """What guesses tokens. Slots and texts are those of the engine that verifies."""

    name: str
    """For figures: ``model``, ``prompt_lookup``."""
    backend: str
    """What guesses, in a few words for the record."""
    weight_bytes: int
    kv_bytes: int
    notes: list[str]
    cost: StepCost
    """Seconds of a step, which gives each text a guess, by the rows that it reads."""
    free: bool
    """It finds what it has at next to no cost: it is asked in every step, and judged by that."""

    def behind(self, slot: int, length: int) -> int | None:
        """Rows of the slot's text, of so many tokens, that it reads before the latest one; None:
        it cannot guess here."""
        ...

    def propose(self, asked: Sequence[DraftAsked]) -> list[list[Guess]]:
        """At most so many guesses for each; none where the text is not read yet."""
        ...

    def keep(self, slot: int, length: int) -> None:
        """Only the first ``length`` tokens of what the slot's text was to be are right."""
        ...

    def reset(self, slot: int) -> None:
        """The slot's text has ended."""
        ...

    def close(self) -> None: ...


class ModelDraft(Draft):
    """``engine`` drafts. vocab_size: of the model that verifies; where one of both has been padded
    further, no token past the smaller is guessed. clock: seconds, for its costs."""

    name, free = "model", False

    def __init__(
        self, engine: Engine, vocab_size: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.engine, self._words = engine, min(vocab_size, engine.vocab_size)
        self._clock, self.cost = clock, StepCost()
        self._lost: set[int] = set()
        """Slots whose text has a token that the draft does not know."""
        self.backend = engine.backend

    @property
    def weight_bytes(self) -> int:
        return self.engine.weight_bytes

    @property
    def kv_bytes(self) -> int:
        return self.engine.kv_bytes

    @property
    def notes(self) -> list[str]:
        return self.engine.notes

    def behind(self, slot: int, length: int) -> int | None:
        return None if slot in self._lost else length - 1 - int(self.engine.core.filled[slot])

    def propose(self, asked: Sequence[DraftAsked]) -> list[list[Guess]]:
        """The first step reads what each text has beyond the draft's cache, ``prefill_rows`` in
        all, so that a long prompt delays other texts by a piece; each further one reads a guess of
        the step before, for as many texts as want it."""
        guesses: list[list[Guess]] = [[] for _ in asked]
        tokens: list[int] = []
        slots: list[int] = []
        want: list[bool] = []
        active: list[int] = []
        for place, one in enumerate(asked):
            begin = int(self.engine.core.filled[one.slot])
            piece = one.text[begin : begin + self.engine.prefill_rows - len(tokens)]
            if len(piece) and max(piece) >= self.engine.vocab_size:
                self._lost.add(one.slot)
            if not len(piece) or one.slot in self._lost:
                continue
            whole = begin + len(piece) == len(one.text)
            tokens += piece
            slots += [one.slot] * len(piece)
            want += [False] * (len(piece) - 1) + [whole]
            active += [place] if whole else []
        while tokens:
            began = self._clock()
            logits_nV = self.engine.step(tokens, slots, want)[:, : self._words]
            for place, logits_V in zip(active, logits_nV, strict=True):
                guesses[place].append(asked[place].sampler.guess(logits_V))
            self.cost.saw(len(tokens), self._clock() - began)
            active = [place for place in active if len(guesses[place]) < asked[place].most]
            tokens = [guesses[place][-1].token for place in active]
            slots = [asked[place].slot for place in active]
            want = [True] * len(active)
        return guesses

    def keep(self, slot: int, length: int) -> None:
        self.engine.core.truncate(slot, min(length, int(self.engine.core.filled[slot])))

    def reset(self, slot: int) -> None:
        self.engine.release(slot)
        self._lost.discard(slot)

    def close(self) -> None:
        self.engine.close()


class PromptLookup(Draft):
    """Guesses that the text goes on as after its latest ``longest`` tokens, or fewer, before."""

    name, backend, free = "prompt_lookup", "prompt look-up", True
    weight_bytes = kv_bytes = 0

    def __init__(self, longest: int = 3) -> None:
        self._longest, self.notes, self.cost = longest, [], StepCost()
        self.cost.saw(1, 0.0)

    def behind(self, slot: int, length: int) -> int | None:
        """Nothing: a text holds itself."""
        return 0

    def propose(self, asked: Sequence[DraftAsked]) -> list[list[Guess]]:
        return [[Guess(token) for token in self._after(one)] for one in asked]

    def keep(self, slot: int, length: int) -> None:
        """Nothing is held."""

    def reset(self, slot: int) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def _after(self, one: DraftAsked) -> list[int]:
        text = np.asarray(one.text)
        for length in range(min(self._longest, len(text) - 1), 0, -1):
            end = len(text) - length
            same = np.ones(end, dtype=bool)
            for place in range(length):
                same &= text[place : place + end] == text[end + place]
            if same.any():
                begin = int(np.flatnonzero(same)[-1]) + length
                return text[begin : begin + one.most].tolist()
        return []
