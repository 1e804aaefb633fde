"""Which draft guesses, and how many tokens: what acceptances and measured costs say now.

k guesses, each right with probability a where those before it are, give (1 - a^(k+1)) / (1 - a)
tokens a verification (Leviathan et al. 2023, eq. 1), for k draft steps and one verification of
k + 1 rows. What a draft has not read of a text it reads before it guesses: the first reading, which
is the prompt's, is spread over tokens that may still come; later ones, of what came while others
guessed, count for the step at hand. Of all drafts and lengths the one that costs the least time a
token is taken, 0 included: where guessing does not pay, nothing is guessed.

A draft that is left out is tried now and then, one guess in one text, since texts change. A trial
has to wait until the time since the last one is :data:`PATIENCE` times what it costs, its reading
included, so trials take 1.6 % at most, whatever they cost. One that brings nothing doubles the wait
for the guess, a draft that pays and a text that ends take that back. The wait for the reading
stays: a draft falls behind meanwhile, and would never be tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 8
"""Guesses, at most."""
FIRST = 3
"""Guesses while nothing is known."""
PATIENCE, MOST_PATIENCE = 64.0, 512.0
"""Times what a trial costs, for which it waits: at first, and after trials that brought nothing."""
TRIES = 4
"""Guesses of a trial, one a step, while all are right."""
AHEAD = 256
"""Tokens that a text is taken to go on for at most. Half of what may come is counted: texts end
before their limit, and other drafts take their part."""
WORTH = 0.92
"""Of the time without guesses, which guesses must stay below: costs are known no better."""
FORGET = 0.97
"""Weight of what was seen one step earlier."""
FADE, FAINT, LEAN = 0.99, 0.05, 0.25
"""Of what steps of one number of rows took: its weight a step later, the least that is kept, and
that of the line beside it. It fades, so that what was dear once is tried again."""
FIRST_RATE, PRIOR_GUESSES = 0.6, 4.0
"""A text's acceptance before anything is known of any, and how many guesses that of all texts is
worth beside its own."""


class StepCost:
    """Seconds of a step by its rows: what steps of just as many took lately, and straight lines
    between these; a line through all of them leans in where few were seen, and goes on beyond.

    Kernels take rows in tiles, so a line alone would promise large steps what small ones cost: each
    time that a batch grows, guesses would be made that do not pay.
    """

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = self._most = 0.0
        self._own: dict[int, tuple[float, float]] = {}
        """Rows -> how many steps had just so many, and their seconds; both fade."""
        self.per_row = 0.0
        """Seconds that one more row takes, by the line. More rows never count as cheaper."""

    def saw(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long. One that took five times as long as expected was
        interrupted and says nothing, unless none was as large before."""
        if self._n > 3 and rows <= self._most and seconds > 5.0 * self.of(rows):
            return
        self._most = max(self._most, rows)
        self._n = FORGET * self._n + 1.0
        self._x, self._y = FORGET * self._x + rows, FORGET * self._y + seconds
        self._xx = FORGET * self._xx + rows * rows
        self._xy = FORGET * self._xy + rows * seconds
        x, y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - x * x
        self.per_row = max(0.0, (self._xy / self._n - x * y) / spread) if spread > 1e-9 else 0.0
        kept = {each: (FADE * n, FADE * s) for each, (n, s) in self._own.items() if n > FAINT}
        n, own_s = kept.get(rows, (0.0, 0.0))
        self._own = kept | {rows: (n + 1.0, own_s + seconds)}

    @property
    def known(self) -> bool:
        return self._n > 0

    def of(self, rows: int) -> float:
        """Seconds that a step of so many rows takes."""
        fewer = max((each for each in self._own if each <= rows), default=None)
        more = min((each for each in self._own if each >= rows), default=None)
        if fewer is None or more is None:
            nearest = more if fewer is None else fewer
            assert nearest is not None
            beyond = self._seen(nearest) + self.per_row * (rows - nearest)
            return max(0.2 * self._y / self._n, beyond)
        if fewer == more:
            return self._seen(rows)
        share = (rows - fewer) / (more - fewer)
        return (1.0 - share) * self._seen(fewer) + share * self._seen(more)

    def _seen(self, rows: int) -> float:
        line = self._y / self._n + self.per_row * (rows - self._x / self._n)
        n, seconds = self._own[rows]
        return (LEAN * line + seconds) / (LEAN + n)


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


@dataclass(frozen=True)
class Prospect:
    """What a draft can do for a text. most: guesses. behind: rows of the text that it has to read
    before the latest one. room: tokens that may come after the next one."""

    slot: int
    most: int
    behind: int
    room: int


@dataclass(frozen=True)
class DraftPlan:
    """Guesses of one draft for each text of a step; seconds: of a token then, as expected."""

    lengths: list[int]
    seconds: float


class DraftLength:
    """Of one draft: plans, and learns from every step.

    verifying: of the model, one for all its drafts. drafting: of a step of the draft, which gives
    each text a guess. slots: texts side by side. longest: guesses at most. fixed: always so many,
    for a measurement.
    """

    def __init__(
        self, verifying: StepCost, drafting: StepCost, slots: int, *,
        longest: int = LONGEST, fixed: int | None = None,
    ) -> None:  # fmt: skip
        self.verifying, self.drafting = verifying, drafting
        self.longest, self.fixed = longest, fixed
        self._all, self._texts = Acceptance(), [Acceptance() for _ in range(slots)]
        self._patience, self._since_s = PATIENCE, 0.0
        self._tried: int | None = None
        """The slot of the trial under way."""
        self._tries = 0

    def rate(self, slot: int) -> float:
        """The text's own acceptance, leaning on that of all while little is known."""
        everyone, text = FIRST_RATE, self._texts[slot]
        if self._all.judged:
            prior = PRIOR_GUESSES * FIRST_RATE
            everyone = (self._all.accepted + prior) / (self._all.judged + PRIOR_GUESSES)
        return (text.accepted + PRIOR_GUESSES * everyone) / (text.judged + PRIOR_GUESSES)

    def plan(self, texts: Sequence[Prospect]) -> DraftPlan:
        """The number of guesses that costs the least time a token, 0 included. A text whose
        reading costs more than guesses could save is left out."""
        if self.fixed is not None or not self._known:
            length = FIRST if self.fixed is None else self.fixed
            return DraftPlan([min(length, text.most) for text in texts], 0.0)
        n = len(texts)
        rates = [min(self.rate(text.slot), 0.999) for text in texts]
        length, least = 0, WORTH * self.verifying.of(n) / n
        mosts, once, spread = [], 0.0, 0.0
        for text, rate in zip(texts, rates, strict=True):
            reading = self.drafting.per_row * text.behind
            first = not self._texts[text.slot].judged
            a_token = reading / max(1.0, min(text.room, AHEAD) / 2) if first else 0.0
            taken = text.most > 0 and a_token < rate * least
            mosts.append(text.most if taken else 0)
            if taken:
                spread += a_token / n
                once += 0.0 if first else reading
        drafting = self.drafting.of(sum(most > 0 for most in mosts))
        tokens, rows, chances = float(n), n, [1.0] * n
        for k in range(1, min(self.longest, max(mosts)) + 1):
            for i, most in enumerate(mosts):
                if most >= k:
                    chances[i] *= rates[i]
                    tokens += chances[i]
                    rows += 1
            seconds = (once + k * drafting + self.verifying.of(rows)) / tokens + spread
            if seconds < least:
                length, least = k, seconds
        return DraftPlan([min(length, most) for most in mosts], least)

    def trial(self, texts: Sequence[Prospect], best: DraftPlan) -> DraftPlan | None:
        """One guess in the text that takes the least reading, where it is time for that; ``best``
        is what else would be done."""
        could = [i for i, text in enumerate(texts) if text.most]
        if self.fixed is not None or not self._known or not could:
            return None
        under_way = [i for i in could if texts[i].slot == self._tried]
        one = under_way[0] if under_way else min(could, key=lambda i: texts[i].behind)
        if not under_way:
            n = len(texts)
            reading_s = self.drafting.per_row * texts[one].behind
            guess_s = self.drafting.of(1) + self.verifying.of(n + 1) - n * best.seconds
            if self._since_s < PATIENCE * reading_s + self._patience * guess_s:
                return None
            self._tried, self._tries = texts[one].slot, 0
        return DraftPlan([int(i == one) for i in range(len(texts))], best.seconds)

    def pays(self) -> None:
        """It guesses now, and not as a trial."""
        self._end_trial(PATIENCE)

    def passed(self, seconds: float) -> None:
        """A step of the model and of whichever draft took so long."""
        self._since_s += seconds

    def saw(self, slot: int, guessed: int, right: int) -> None:
        """So many of its guesses were judged, of which the first ``right`` were right."""
        self._texts[slot].saw(guessed, right)
        self._all.saw(guessed, right)
        if slot == self._tried and guessed:
            self._tries += 1
            if right < guessed or self._tries == TRIES:
                self._end_trial(min(2.0 * self._patience, MOST_PATIENCE))

    def forget(self, slot: int) -> None:
        """The slot's text has ended."""
        self._texts[slot] = Acceptance()
        self._patience = PATIENCE
        if slot == self._tried:
            self._end_trial(PATIENCE)

    @property
    def _known(self) -> bool:
        return self.verifying.known and self.drafting.known

    def _end_trial(self, patience: float) -> None:
        self._tried, self._since_s, self._patience = None, 0.0, patience


def choose_draft(
    lengths: Sequence[DraftLength], texts: Sequence[Sequence[Prospect]]
) -> tuple[int, DraftPlan]:
    """The draft that guesses in this step, by its place, and its plan. texts: of each draft."""
    plans = [length.plan(own) for length, own in zip(lengths, texts, strict=True)]
    chosen = min(range(len(plans)), key=lambda i: plans[i].seconds)
    best = plans[chosen]
    guesses = any(best.lengths)
    for i, (length, own) in enumerate(zip(lengths, texts, strict=True)):
        if not (guesses and i == chosen) and (trial := length.trial(own, best)):
            return i, trial
    if guesses:
        lengths[chosen].pays()
    return chosen, best
