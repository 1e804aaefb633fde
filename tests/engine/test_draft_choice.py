"""Which draft guesses and how often, by counted costs: cores that say what is written down, on a
clock that only their rows move."""

from __future__ import annotations

import numpy as np
import pytest
from ternary_kernels.core import Core

from workbench.engine.draft import PromptLookup
from workbench.engine.draft_length import DraftLength, Prospect, StepCost
from workbench.engine.engine import Engine, Speculated
from workbench.engine.request import GenerationRequest
from workbench.engine.sampling import Sampler
from workbench.engine.speculative import SpeculativeEngine

WORDS = 5000
STEP_S, ROW_S = 10.0, 0.5
"""Of the model that verifies; a draft's are a fifth."""


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class ScriptCore(Core):
    """After the token at a position comes ``script[position + 1]``, whatever stands before."""

    rows_apart, prefill_rows = True, 64
    backend, weight_bytes, kv_bytes = "script", 0, 0
    vocab_size = WORDS

    def __init__(self, script: list[int], clock: Clock, speed: float = 1.0, slots: int = 1) -> None:
        self.script, self.clock, self.speed = script, clock, speed
        self.slots, self.context = slots, len(script) - 1
        self.filled = np.zeros(slots, dtype=np.int64)
        self.steps: list[int] = []
        """Rows of each."""

    def forward(self, tokens, slots, positions, want_logits) -> np.ndarray:
        for slot, position in zip(slots, positions, strict=True):
            self.filled[slot] = position + 1
        self.steps.append(len(tokens))
        self.clock.now_s += (STEP_S + ROW_S * len(tokens)) / self.speed
        wanted = np.flatnonzero(np.broadcast_to(want_logits, len(tokens)))
        logits_nV = np.zeros((len(wanted), WORDS), dtype=np.float32)
        logits_nV[range(len(wanted)), [self.script[positions[i] + 1] for i in wanted]] = 1.0
        return logits_nV

    def reset(self, slot: int) -> None:
        self.filled[slot] = 0

    def close(self) -> None: ...


class Answers:
    """A model that writes ``script``, a draft that expects ``guessed`` (or none), look-up."""

    def __init__(
        self, script: list[int], guessed: list[int] | None, *, lookup: bool = True,
        draft_speed: float = 5.0, slots: int = 1,
    ) -> None:  # fmt: skip
        self.script, self.clock = script, Clock()
        self.target = ScriptCore(script, self.clock, slots=slots)
        drafts: list = []
        if guessed is not None:
            self.draft = ScriptCore(guessed, self.clock, draft_speed, slots)
            drafts.append(Engine(self.draft))
        drafts += [PromptLookup()] if lookup else []
        self.engine = SpeculativeEngine(Engine(self.target), *drafts, clock=self.clock)

    def answer(self, prompt: int, tokens: int) -> tuple[float, float]:
        """Seconds over those of the model alone; tokens a verification."""
        before, began_s = len(self.target.steps), self.clock.now_s
        request = GenerationRequest(tuple(self.script[:prompt]), tokens, ignore_eos=True)
        assert self.engine.generate(request).tokens == self.script[prompt : prompt + tokens]
        pieces = -(-prompt // 64)
        alone_s = (pieces + tokens - 1) * STEP_S + (prompt + tokens - 1) * ROW_S
        verifications = len(self.target.steps) - before - pieces
        return (self.clock.now_s - began_s) / alone_s, (tokens - 1) / verifications

    def guessed(self, draft: str) -> int:
        return self.engine.counts.drafts[draft].guessed


def new_words(length: int, seed: int = 0) -> list[int]:
    """No word twice, so that look-up finds nothing."""
    return np.random.default_rng(seed).permutation(WORDS)[:length].tolist()


def wrong(script: list[int]) -> list[int]:
    return [(token + 1) % WORDS for token in script]


def repeated(length: int, period: int = 40) -> list[int]:
    return (new_words(period) * (length // period + 1))[:length]


@pytest.mark.parametrize("prompt", [8, 300])
def test_a_draft_that_is_never_right_costs_a_few_steps_and_reads_no_prompts(prompt: int) -> None:
    script = new_words(500)
    answers = Answers(script, wrong(script), lookup=False)
    first = answers.answer(prompt, 64)[0]
    read = sum(answers.draft.steps)
    later = [answers.answer(prompt, 64)[0] for _ in range(40)]
    assert first < 1.25 and answers.engine.counts.accepted == 0
    assert 1.0 <= np.mean(later) < 1.02
    assert max(later) < 1.15
    # Trials go on, though, and each reads its text.
    assert 0 < sum(answers.draft.steps) - read < 40 * (prompt + 64) / 2
    assert answers.guessed("model") < 60  # of 2,600 tokens


def test_a_batch_is_not_promised_what_its_rows_cost_alone() -> None:
    """Four rows cost little more than one, each further one an eighth of a step. Answers of 32
    tokens, alone and four together in turns; look-up finds something in six of ten steps."""

    def cost(rows: int) -> float:
        return 9.6 + 0.3 * min(rows, 4) + 1.28 * max(0, rows - 4)

    def over_no_guesses(batch: int, acceptance: float) -> float:
        left, spent = [32] * batch, 0.0
        while active := [slot for slot in range(batch) if left[slot] > 0]:
            found = 8 if draw.random() < 0.6 else 0
            lengths = length.plan([Prospect(slot, found, 0, left[slot]) for slot in active]).lengths
            rows = len(active) + sum(lengths)
            seconds = cost(rows) * draw.normal(1.0, 0.05)
            verifying.saw(rows, seconds)
            drafting.saw(1, 0.001)
            spent += seconds
            for slot, guessed in zip(active, lengths, strict=True):
                right = 0
                while right < guessed and draw.random() < acceptance:
                    right += 1
                if guessed:
                    length.saw(slot, guessed, right)
                left[slot] -= right + 1
        for slot in range(batch):
            length.forget(slot)
        return spent / (32 * cost(batch))

    verifying, drafting, draw = StepCost(), StepCost(), np.random.default_rng(0)
    length = DraftLength(verifying, drafting, 4)
    turns = [(over_no_guesses(1, 0.56), over_no_guesses(4, 0.3)) for _ in range(40)]
    alone, together = np.mean(turns[5:], axis=0)
    assert alone < 0.72 and together < 1.045  # with a line alone 1.05


def test_what_was_dear_once_is_tried_again() -> None:
    """A step that something else held up is no lasting verdict on its number of rows."""
    steps = StepCost()
    for rows in (1, 2, 3, 4) * 3:
        steps.saw(rows, 10.0)
    steps.saw(5, 30.0)
    assert steps.of(5) > 20.0
    for rows in (1, 2, 3, 4) * 100:
        steps.saw(rows, 10.0)
    assert steps.of(5) < 11.0


def test_trials_that_bring_nothing_come_more_and_more_seldom() -> None:
    script = new_words(4500)
    answers = Answers(script, wrong(script), lookup=False)
    answers.answer(8, 4400)
    places = np.cumsum(answers.target.steps)
    trials = [int(places[i]) for i, rows in enumerate(answers.target.steps[1:], 1) if rows > 1]
    gaps = np.diff(trials[1:])
    assert 10 < len(trials) < 20
    assert (gaps[1:4] > 1.8 * gaps[:3]).all() and np.ptp(gaps[4:]) < 2


def test_look_up_is_chosen_beside_a_bad_model() -> None:
    script = repeated(900)
    answers = Answers(script, wrong(script))
    times, tokens = answers.answer(100, 700)
    alone = Answers(script, None).answer(100, 700)
    assert tokens > 6 and times < 1.2 * alone[0]
    assert answers.guessed("prompt_lookup") > 20 * answers.guessed("model")


def test_a_good_model_is_chosen_where_look_up_finds_nothing() -> None:
    script = new_words(900)
    answers = Answers(script, script)
    times, tokens = answers.answer(100, 700)
    assert tokens > 5 and times < 0.6
    assert answers.guessed("prompt_lookup") == 0 < answers.engine.counts.accepted


def test_a_good_model_is_chosen_where_look_up_is_wrong() -> None:
    """Each word follows another one each time."""
    rounds = [np.random.default_rng(seed).permutation(60).tolist() for seed in range(15)]
    script = [token for each in rounds for token in each]
    answers = Answers(script, script)
    times, tokens = answers.answer(100, 700)
    assert tokens > 5 and times < 0.65
    assert answers.guessed("model") > 10 * answers.guessed("prompt_lookup")


def test_a_model_that_saves_less_than_look_up_fills_its_gaps() -> None:
    """A text that quotes in turns: each draft does what it does best."""
    new, old = new_words(2000), new_words(64)
    script = [t for i in range(14) for t in [*old, *new[100 + 64 * i : 164 + 64 * i]]]
    both = Answers(script, script, draft_speed=3.0).answer(64, 1600)[0]
    model = Answers(script, script, draft_speed=3.0, lookup=False).answer(64, 1600)[0]
    text = Answers(script, None).answer(64, 1600)[0]
    assert both < 0.95 * min(model, text)


def test_changes_within_a_text_are_followed() -> None:
    script = new_words(4500)
    fails = [*script[:1500], *wrong(script)[1500:3000], *script[3000:]]
    answers = Answers(script, fails, lookup=False)
    answers.answer(8, 4400)
    ends = np.cumsum(answers.target.steps)
    of_steps = np.array(answers.target.steps)

    def rows(begin: int, end: int) -> float:
        """Of a verification, on the way from one place of the text to another. Where all guesses
        are right a place is the rows before it."""
        return float(of_steps[(ends > begin) & (ends <= end)].mean())

    verified = len(script[8:1500]) / max(1, int((ends < 1500).sum()))
    assert verified > 6
    wasted = ends[-1] - 4407
    assert wasted < 150
    assert rows(1600, 3000) < 1.1
    assert rows(3700, int(ends[-1])) > 6


def test_a_long_prompt_is_read_in_pieces_that_delay_the_others_little() -> None:
    """A text whose draft has 300 rows to read joins one that is drafted already."""
    script = new_words(1200)
    answers = Answers(script, script, lookup=False, slots=2)
    engine = answers.engine
    sampler = Sampler(GenerationRequest((0,), max_tokens=1, ignore_eos=True), frozenset())
    texts = {0: 8, 1: 300}
    engine.prefill(0, script[:8])
    engine.prefill(1, script[:300])
    for _ in range(40):
        asked = [Speculated(slot, script[at], 500, sampler) for slot, at in texts.items()]
        for one, rows in zip(asked, engine.speculate(asked), strict=True):
            engine.keep(one.slot, rows, [int(logits_V.argmax()) for _, logits_V in rows])
            texts[one.slot] += len(rows)
    assert max(answers.draft.steps) == 64
    assert min(texts.values()) > 300 and texts[0] > 8 + 40 * 5 and texts[1] > 300 + 30 * 5


def test_reading_a_prompt_that_little_follows_is_left_out() -> None:
    script = new_words(2000)
    answers = Answers(script, script, lookup=False)
    answers.answer(100, 64)
    read = sum(answers.draft.steps)
    assert answers.answer(1500, 12)[0] < 1.02
    assert sum(answers.draft.steps) == read
    assert answers.answer(100, 64)[1] > 4
