"""How many tokens to guess: what acceptance and the measured costs of both models say now.

k guesses, each right with probability a where those before it are, give (1 - a^(k+1)) / (1 - a)
tokens a verification (Leviathan et al. 2023, eq. 1), for k draft steps and one verification of
k + 1 rows. The length that costs the least time a token is taken, 0 included: where guessing does
not pay, nothing is guessed but for a trial now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 8
"""Guesses, at most."""
FIRST = 3
"""Guesses while nothing is known."""
TRIAL_EVERY = 16
"""Steps without a guess, after which one is tried."""
FORGET = 0.97
"""Weight of what was seen one step earlier."""
FIRST_RATE, PRIOR_GUESSES = 0.6, 4.0
"""A text's acceptance before anything is known of any, and how many guesses that of all texts is
worth beside its own."""


class StepCost:
    """Seconds of a step by its rows: a line through what was seen lately."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def saw(self, rows: float, seconds: float) -> None:
        """A step of so many rows took so long. One that took five times as long as expected was
        interrupted and says nothing."""
        if self._n > 3 and seconds > 5.0 * self.of(rows):
            return
        self._n = FORGET * self._n + 1.0
        self._x, self._y = FORGET * self._x + rows, FORGET * self._y + seconds
        self._xx = FORGET * self._xx + rows * rows
        self._xy = FORGET * self._xy + rows * seconds

    @property
    def known(self) -> bool:
        return self._n > 0

    def of(self, rows: float) -> float:
        """Seconds that a step of so many rows takes. More rows never count as cheaper."""
        x, y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - x * x
        slope = max(0.0, (self._xy / self._n - x * y) / spread) if spread > 1e-9 else 0.0
        return max(0.2 * y, y + slope * (rows - x))


@dataclass
class Acceptance:
    """Of one text. judged: guesses before whose place all were right."""

    accepted: float = 0.0
    judged: float = 0.0

    def saw(self, guessed: int, right: int) -> None:
        """So many guesses, of which the first ``right`` were right."""
        fade = FORGET**guessed
        self.accepted = fade * self.accepted + right
        self.judged = fade * self.judged + min(guessed, right + 1)


class DraftLength:
    """Chooses, and learns from every step. longest: guesses at most. fixed: always so many, for a
    measurement."""

    def __init__(self, longest: int = LONGEST, fixed: int | None = None) -> None:
        self.longest, self.fixed = longest, fixed
        self.verifying, self.drafting = StepCost(), StepCost()
        self._all, self._without = Acceptance(), 0

    def rate(self, text: Acceptance) -> float:
        """The text's own acceptance, leaning on that of all while little is known."""
        everyone = FIRST_RATE
        if self._all.judged:
            prior = PRIOR_GUESSES * FIRST_RATE
            everyone = (self._all.accepted + prior) / (self._all.judged + PRIOR_GUESSES)
        return (text.accepted + PRIOR_GUESSES * everyone) / (text.judged + PRIOR_GUESSES)

    def choose(self, texts: Sequence[Acceptance], rooms: Sequence[int]) -> list[int]:
        """Guesses for each text, none above its room."""
        length = self._length(texts, rooms) if self.fixed is None else self.fixed
        return [min(length, room) for room in rooms]

    def saw(self, text: Acceptance, guessed: int, right: int) -> None:
        text.saw(guessed, right)
        self._all.saw(guessed, right)

    def _length(self, texts: Sequence[Acceptance], rooms: Sequence[int]) -> int:
        if not (self.verifying.known and self.drafting.known):
            return min(FIRST, self.longest)
        rates = [min(self.rate(text), 0.999) for text in texts]
        seconds_per_token = [
            self._seconds(rates, [min(k, room) for room in rooms]) for k in range(self.longest + 1)
        ]
        best = min(range(len(seconds_per_token)), key=seconds_per_token.__getitem__)
        self._without = 0 if best else self._without + 1
        return 1 if self._without and self._without % TRIAL_EVERY == 0 else best

    def _seconds(self, rates: Sequence[float], lengths: Sequence[int]) -> float:
        rows = len(lengths) + sum(lengths)
        tokens = sum((1 - a ** (k + 1)) / (1 - a) for a, k in zip(rates, lengths, strict=True))
        drafting = max(lengths) * self.drafting.of(len(lengths))
        return (drafting + self.verifying.of(rows)) / tokens
