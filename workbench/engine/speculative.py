"""Full precision's own answers, sooner: a draft guesses tokens, one step of the model judges them.

Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192). Each round a :mod:`.draft` guesses
the next k tokens of every text, and the model takes them all in one step, which reads its weights
once: that step costs little more than one token's. Guesses are kept up to the first wrong one, in
whose place the model's own token stands, or follows where all were right; all caches go back to
what was kept. Greedy answers are those of the model token for token, sampled ones have its
distribution (:mod:`.sampling`), and any draft will do: a bad one costs time alone. Of several the
one that saves most guesses in a step, and how much is guessed follows from what is right and what
it costs (:mod:`.draft_length`).

The step that judges has several rows. Where a core's ``rows_apart`` holds, as the native one's
does, each token's logits are those that it would have had alone, to the bit. Elsewhere (Triton,
transformers) sums are taken in another order with more rows, as in any batch: where two tokens are
equally likely but for that, the other one may come. The prompt is read as without drafts.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from ternary_kernels.core import NotFiniteError

from workbench.engine.draft import Draft, DraftAsked, ModelDraft, PromptLookup
from workbench.engine.draft_length import LONGEST, DraftLength, Prospect, StepCost, choose_draft
from workbench.engine.engine import ChoosableRow, Engine, Speculated
from workbench.engine.request import GenerationRequest
from workbench.engine.sampling import Guess, Sampler
from workbench.engine.speculation_counts import DraftCounts, SpeculationCounts
from workbench.errors import StageError
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from typing import Unpack

    from workbench.engine.build import SetupFields


Proposed = TypeVar("Proposed")


@dataclass
class _Drafter:
    """A draft, how much it is to guess, how that went, and why it guesses no more."""

    draft: Draft
    length: DraftLength
    counts: DraftCounts
    failed: str | None = None


@dataclass
class _Text:
    """What the model's cache holds of a slot, and whose guesses are judged now."""

    tokens: array[int] = field(default_factory=lambda: array("i"))
    drafter: _Drafter | None = None
    judging: bool = False
    """Rows are out, and what was chosen from them is not known yet."""


class SpeculativeEngine(Engine):
    """An :class:`Engine` whose tokens are ``target``'s, and mostly guessed by one of ``drafts``.

    drafts: engines of the same tokenizer with as many slots and as long a context, or any
    :class:`.draft.Draft`, each of another name. longest: guesses in a row, at most. fixed: always
    so many, of a single draft, for a measurement; with a fixed number a seed gives the same answer
    again, otherwise the odds alone are the same, since it then depends on time how much is guessed.
    clock: seconds, for the costs. All engines are this one's while it lives; ``close`` closes them.
    Raises ValueError for what does not fit together.
    """

    def __init__(
        self, target: Engine, *drafts: Engine | Draft, longest: int = LONGEST,
        fixed: int | None = None, clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        if not target.core.truncates:
            raise ValueError(
                f"{target.backend} as the model that verifies; allowed: a cache whose latest "
                "positions can be taken back, which one of a sliding window or a state is not"
            )
        super().__init__(target.core, eos_tokens=target.eos_tokens)
        self.target, self._clock, self._verifying = target, clock, StepCost()
        self.drafts: list[Draft] = []
        for draft in drafts:
            if isinstance(draft, Engine):
                _require_room(target, draft)
                draft = ModelDraft(draft, target.vocab_size, clock)
            self.drafts.append(draft)
        names = [draft.name for draft in self.drafts]
        if not names or len(set(names)) < len(names) or (fixed is not None and len(names) > 1):
            raise ValueError(
                f"drafts {names} with fixed={fixed}; allowed: at least one, each of another name, "
                "and a single one with a fixed number of guesses"
            )
        self._drafters = [
            _Drafter(
                draft,
                DraftLength(
                    self._verifying, draft.cost, self.slots, longest=longest, fixed=fixed
                ),
                DraftCounts(),
            )
            for draft in self.drafts
        ]  # fmt: skip
        self.counts = SpeculationCounts(
            drafts={drafter.draft.name: drafter.counts for drafter in self._drafters}
        )
        self._texts = [_Text() for _ in range(self.slots)]
        self._longest = longest if fixed is None else fixed

    @classmethod
    def load_pair(
        cls, folder: Path, draft: Path | None, **setup: Unpack[SetupFields]
    ) -> SpeculativeEngine:
        """From two model folders, with look-up in the text itself beside the model that drafts;
        ``draft`` None: by look-up alone.

        setup: see :meth:`Engine.load`. Raises StageError for folders that cannot be loaded and for
        a draft of another tokenizer.
        """
        if draft is None:
            return cls(Engine.load(folder, **setup), PromptLookup())
        require_same_tokenizer(folder, draft)
        target = Engine.load(folder, **setup)
        try:
            return cls(target, Engine.load(draft, **setup), PromptLookup())
        except BaseException:
            target.close()
            raise

    @property
    def backend(self) -> str:
        return f"{self.core.backend}; drafts by {' or '.join(d.backend for d in self.drafts)}"

    @property
    def notes(self) -> list[str]:
        own = []
        if not self.core.rows_apart:
            own.append(
                "several tokens in a step may differ in their last bits from one at a time here: "
                "an answer may differ where two tokens are equally likely but for those"
            )
        for drafter in self._drafters:
            if drafter.failed is not None:
                own.append(
                    f"nothing is guessed any more by {drafter.draft.backend}: {drafter.failed}"
                )
        return [*self.core.notes, *(note for draft in self.drafts for note in draft.notes), *own]

    @property
    def weight_bytes(self) -> int:
        """Of all models."""
        return self.core.weight_bytes + sum(draft.weight_bytes for draft in self.drafts)

    @property
    def kv_bytes(self) -> int:
        """Of all models."""
        return self.core.kv_bytes + sum(draft.kv_bytes for draft in self.drafts)

    def warm(self) -> None:
        self.core.warm()
        for draft in self.drafts:
            if isinstance(draft, ModelDraft):
                draft.engine.warm()

    def step(
        self, tokens: Sequence[int], slots: Sequence[int], want_logits: Sequence[bool] | bool
    ) -> np.ndarray:
        """As of an engine without a draft."""
        logits_nV = super().step(tokens, slots, want_logits)
        for token, slot in zip(tokens, slots, strict=True):
            self._texts[slot].tokens.append(int(token))
        return logits_nV

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        return self.step(tokens, slots, True)

    def logits(self, tokens: Sequence[int], *, slot: int = 0, first: int = 0) -> np.ndarray:
        return self.target.logits(tokens, slot=slot, first=first)

    def speculate(self, asked: Sequence[Speculated]) -> list[list[ChoosableRow]]:
        """Guess and judge: for each text its rows, one for each guess and one for what follows.

        Choose from the rows in their order, until a guess is not what was chosen or the text ends,
        and say what was chosen by :meth:`keep`. Raises NotFiniteError.
        """
        began = self._clock()
        for one in asked:
            self._texts[one.slot].tokens.append(one.token)
        guesses = self._guesses(asked)
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        for one, own in zip(asked, guesses, strict=True):
            self._texts[one.slot].judging = True
            tokens += [one.token, *(guess.token for guess in own)]
            slots += [one.slot] * (1 + len(own))
            begin = int(self.core.filled[one.slot])
            positions += range(begin, begin + 1 + len(own))
        drafted = self._clock()
        logits_nV = self.core.forward_apart(tokens, slots, positions)
        ended = self._clock()
        self._verifying.saw(len(tokens), ended - drafted)
        for drafter in self._drafters:
            drafter.length.passed(ended - began)
        if not np.isfinite(logits_nV.sum(axis=-1)).all():
            raise NotFiniteError("the choice of a token")
        rows, at = [], 0
        for own in guesses:
            ends = [*own, None]
            rows.append(list(zip(ends, logits_nV[at : at + len(ends)], strict=True)))
            at += len(ends)
        return rows

    def keep(self, slot: int, rows: Sequence[ChoosableRow], chosen: Sequence[int]) -> None:
        """All caches go back to what was right; the latest token is in none."""
        text = self._texts[slot]
        if not text.judging:
            return
        text.judging = False
        guesses = [guess.token for guess, _ in rows if guess is not None]
        right = 0
        while right < min(len(guesses), len(chosen)) and guesses[right] == chosen[right]:
            right += 1
        text.tokens.extend(guesses[:right])
        self.core.truncate(slot, len(text.tokens))
        self.counts.verifications += 1
        self.counts.written += len(chosen)
        if (drafter := text.drafter) is None:
            return
        text.drafter = None
        self._ask(drafter, lambda: drafter.draft.keep(slot, len(text.tokens)))
        judged = min(len(guesses), len(chosen))
        drafter.length.saw(slot, judged, right)
        drafter.counts.proposals += judged > 0
        drafter.counts.guessed += judged
        drafter.counts.accepted += right

    def decode_greedy(self, slots: Sequence[int], tokens: Sequence[int], steps: int) -> np.ndarray:
        likeliest = Sampler(GenerationRequest((0,), max_tokens=1, ignore_eos=True), frozenset())
        written: list[list[int]] = [[] for _ in slots]
        latest = [int(token) for token in tokens]
        while active := [i for i in range(len(slots)) if len(written[i]) < steps]:
            asked = [
                Speculated(slots[i], latest[i], steps - len(written[i]) - 1, likeliest)
                for i in active
            ]
            for i, rows in zip(active, self.speculate(asked), strict=True):
                chosen: list[int] = []
                for guess, logits_V in rows:
                    chosen.append(int(logits_V.argmax()))
                    if guess is None or chosen[-1] != guess.token:
                        break
                self.keep(slots[i], rows, chosen)
                written[i] += chosen
                latest[i] = chosen[-1]
        return np.array(written, dtype=np.int32).reshape(len(slots), steps).T

    def release(self, slot: int) -> None:
        super().release(slot)
        self._texts[slot] = _Text()
        for drafter in self._drafters:
            drafter.length.forget(slot)
            drafter.draft.reset(slot)

    def close(self) -> None:
        self.target.close()
        for draft in self.drafts:
            draft.close()

    def _guesses(self, asked: Sequence[Speculated]) -> list[list[Guess]]:
        """Of the draft that promises most in this step, for each text."""
        drafters = [drafter for drafter in self._drafters if drafter.failed is None]
        if not drafters:
            return [[] for _ in asked]
        mosts = [min(self._longest, one.room) for one in asked]
        found = [self._proposed(d, asked, mosts) if d.draft.free else None for d in drafters]
        prospects = [
            self._prospects(drafter, asked, mosts if own is None else [len(g) for g in own])
            for drafter, own in zip(drafters, found, strict=True)
        ]
        place, plan = choose_draft([drafter.length for drafter in drafters], prospects)
        guesses = found[place]
        if guesses is None:
            guesses = self._proposed(drafters[place], asked, plan.lengths)
        for i, (one, most) in enumerate(zip(asked, plan.lengths, strict=True)):
            guesses[i] = guesses[i][:most]
            self._texts[one.slot].drafter = drafters[place] if most else None
        return guesses

    def _proposed(
        self, drafter: _Drafter, asked: Sequence[Speculated], mosts: Sequence[int]
    ) -> list[list[Guess]]:
        """For each text at most so many guesses."""
        guesses: list[list[Guess]] = [[] for _ in asked]
        wanted = [i for i, most in enumerate(mosts) if most > 0]
        questions = [
            DraftAsked(asked[i].slot, self._texts[asked[i].slot].tokens, mosts[i], asked[i].sampler)
            for i in wanted
        ]
        answers = self._ask(drafter, lambda: drafter.draft.propose(questions)) if wanted else None
        if answers is not None:
            for i, own in zip(wanted, answers, strict=True):
                guesses[i] = own
        return guesses

    def _prospects(
        self, drafter: _Drafter, asked: Sequence[Speculated], mosts: Sequence[int]
    ) -> list[Prospect]:
        prospects = []
        for one, most in zip(asked, mosts, strict=True):
            behind = drafter.draft.behind(one.slot, len(self._texts[one.slot].tokens))
            prospects.append(
                Prospect(one.slot, 0 if behind is None else most, behind or 0, one.room)
            )
        return prospects

    def _ask(self, drafter: _Drafter, ask: Callable[[], Proposed]) -> Proposed | None:
        """A draft that fails ends no answer: without it everything is as before, and slower."""
        if drafter.failed is not None:
            return None
        try:
            return ask()
        except (ValueError, RuntimeError, MemoryError) as error:
            drafter.failed = f"{type(error).__name__}: {error}"
            return None


def require_same_tokenizer(folder: Path, draft: Path) -> None:
    """Raise StageError unless both models' tokens mean the same."""
    from workbench.data.tokenizer import load_tokenizer

    vocabularies = [load_tokenizer(str(each)).get_vocab() for each in (folder, draft)]
    if vocabularies[0] == vocabularies[1]:
        return
    ours, theirs = (set(each.items()) for each in vocabularies)
    raise StageError(
        f"{draft} as a draft of {folder}: their tokenizers differ in "
        f"{number_of(len(ours ^ theirs), 'token')}",
        allowed="two models of one tokenizer: a guess is a token, and must mean the same to both",
        next_step="draft with a model made from the one that verifies, or from its prompts",
    )


def _require_room(target: Engine, draft: Engine) -> None:
    if not draft.core.truncates:
        raise ValueError(
            f"{draft.backend} as a draft; allowed: a cache whose latest positions can be taken back"
        )
    if draft.slots < target.slots or draft.context < target.context:
        raise ValueError(
            f"a draft with {number_of(draft.slots, 'slot')} of "
            f"{number_of(draft.context, 'token')}; allowed: at least {target.slots} of "
            f"{target.context}, those of the model that verifies"
        )
