"""Drafts: what the next tokens of a text may be, at little cost and with no promise.

:class:`ModelDraft` asks a cheaper model with the same tokenizer, a ternary one beside its
full-precision teacher; :class:`PromptLookup` finds the text's latest tokens earlier in it and
guesses that it goes on as it did there, which costs nothing and is often right where an answer
quotes its prompt. :mod:`.speculative` verifies them, so a wrong guess costs time and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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

    backend: str
    """What guesses, in a few words for the record."""
    weight_bytes: int
    kv_bytes: int
    notes: list[str]

    def read(self, tokens: Sequence[int], slots: Sequence[int]) -> None:
        """Rows that texts have grown by; a draft may leave them for :meth:`propose`."""
        ...

    def propose(self, asked: Sequence[DraftAsked]) -> list[list[Guess]]:
        """At most so many guesses for each."""
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
    further, no token past the smaller is guessed."""

    def __init__(self, engine: Engine, vocab_size: int) -> None:
        self.engine, self._words = engine, min(vocab_size, engine.vocab_size)
        self._lost = np.zeros(engine.slots, dtype=bool)
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

    def read(self, tokens: Sequence[int], slots: Sequence[int]) -> None:
        rows = [(t, s) for t, s in zip(tokens, slots, strict=True) if self._knows(t, s)]
        if rows:
            self.engine.step(*zip(*rows, strict=True), False)

    def propose(self, asked: Sequence[DraftAsked]) -> list[list[Guess]]:
        """The first step reads what each text has beyond the draft's cache, each further one a
        guess of the step before, for as many texts as want it."""
        guesses: list[list[Guess]] = [[] for _ in asked]
        tokens, slots, want, active = [], [], [], []
        for place, one in enumerate(asked):
            missing = one.text[self.engine.core.filled[one.slot] :]
            if all(self._knows(token, one.slot) for token in missing):
                tokens += missing
                slots += [one.slot] * len(missing)
                want += [False] * (len(missing) - 1) + [True]
                active.append(place)
        while active:
            logits_nV = self.engine.step(tokens, slots, want)[:, : self._words]
            for place, logits_V in zip(active, logits_nV, strict=True):
                guesses[place].append(asked[place].sampler.guess(logits_V))
            active = [place for place in active if len(guesses[place]) < asked[place].most]
            tokens = [guesses[place][-1].token for place in active]
            slots = [asked[place].slot for place in active]
            want = [True] * len(active)
        return guesses

    def keep(self, slot: int, length: int) -> None:
        self.engine.core.truncate(slot, min(length, int(self.engine.core.filled[slot])))

    def reset(self, slot: int) -> None:
        self.engine.release(slot)
        self._lost[slot] = False

    def close(self) -> None:
        self.engine.close()

    def _knows(self, token: int, slot: int) -> bool:
        if token >= self.engine.vocab_size:
            self._lost[slot] = True
        return not self._lost[slot]


class PromptLookup(Draft):
    """Guesses that the text goes on as after its latest ``longest`` tokens, or fewer, before."""

    backend = "prompt look-up"
    weight_bytes = kv_bytes = 0

    def __init__(self, longest: int = 3) -> None:
        self._longest, self.notes = longest, []

    def read(self, tokens: Sequence[int], slots: Sequence[int]) -> None:
        """Nothing: a text holds itself."""

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
