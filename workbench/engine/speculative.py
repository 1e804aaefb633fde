"""Full precision's own answers, sooner: a draft guesses tokens, one step of the model judges them.

Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192). Each round a :mod:`.draft` guesses
the next k tokens of every text, and the model takes them all in one step, which reads its weights
once: that step costs little more than one token's. Guesses are kept up to the first wrong one, in
whose place the model's own token stands, or follows where all were right; both caches go back to
what was kept. Greedy answers are those of the model token for token, sampled ones have its
distribution (:mod:`.sampling`), and any draft will do: a bad one costs time alone, and how much is
guessed follows from what is right and what it costs (:mod:`.draft_length`).

The step that judges has several rows. Where a core's ``rows_apart`` holds, as the native one's
does, each token's logits are those that it would have had alone, to the bit. Elsewhere (Triton,
transformers) sums are taken in another order with more rows, as in any batch: where two tokens are
equally likely but for that, the other one may come. The prompt is read as without drafts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from ternary_kernels.core import NotFiniteError

from workbench.engine.draft import Draft, DraftAsked, ModelDraft, PromptLookup
from workbench.engine.draft_length import LONGEST, Acceptance, DraftLength
from workbench.engine.engine import ChoosableRow, Engine, Speculated
from workbench.engine.request import GenerationRequest
from workbench.engine.sampling import Guess, Sampler
from workbench.errors import StageError
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from typing import Unpack

    from workbench.engine.build import SetupFields


Proposed = TypeVar("Proposed")


@dataclass
class SpeculationCounts:
    """Since the engine was made. verifications: of texts, one for each text in a step; guessed,
    accepted: tokens of the draft; written: tokens that came out, the model's own included."""

    verifications: int = 0
    guessed: int = 0
    accepted: int = 0
    written: int = 0


@dataclass
class _Text:
    """What the model's cache holds of a slot, and how its guesses fared."""

    tokens: list[int] = field(default_factory=list)
    acceptance: Acceptance = field(default_factory=Acceptance)
    judging: bool = False
    """Rows are out, and what was chosen from them is not known yet."""


class SpeculativeEngine(Engine):
    """An :class:`Engine` whose tokens are ``target``'s and mostly ``draft``'s guess.

    draft: an engine of the same tokenizer with as many slots and as long a context, or any
    :class:`.draft.Draft`. longest: guesses in a row, at most. fixed: always so many, for a
    measurement; with a fixed number a seed gives the same answer again, otherwise the odds alone
    are the same, since it then depends on time how much is guessed.
    Both engines are this one's while it lives; ``close`` closes them.
    Raises ValueError for two that do not fit together.
    """

    def __init__(
        self, target: Engine, draft: Engine | Draft, *, longest: int = LONGEST,
        fixed: int | None = None,
    ) -> None:  # fmt: skip
        if not target.core.truncates:
            raise ValueError(
                f"{target.backend} as the model that verifies; allowed: a cache whose latest "
                "positions can be taken back, which one of a sliding window or a state is not"
            )
        super().__init__(target.core, eos_tokens=target.eos_tokens)
        if isinstance(draft, Engine):
            _require_room(target, draft)
            draft = ModelDraft(draft, target.vocab_size)
        self.target, self.draft = target, draft
        self.length, self.counts = DraftLength(longest, fixed), SpeculationCounts()
        self._texts = [_Text() for _ in range(self.slots)]
        self._failed: str | None = None

    @classmethod
    def load_pair(
        cls, folder: Path, draft: Path | None, **setup: Unpack[SetupFields]
    ) -> SpeculativeEngine:
        """From two model folders; ``draft`` None guesses from the text itself.

        setup: see :meth:`Engine.load`. Raises StageError for folders that cannot be loaded and for
        a draft of another tokenizer.
        """
        if draft is None:
            return cls(Engine.load(folder, **setup), PromptLookup())
        require_same_tokenizer(folder, draft)
        target = Engine.load(folder, **setup)
        try:
            return cls(target, Engine.load(draft, **setup))
        except BaseException:
            target.close()
            raise

    @property
    def backend(self) -> str:
        return f"{self.core.backend}; drafts by {self.draft.backend}"

    @property
    def notes(self) -> list[str]:
        own = []
        if not self.core.rows_apart:
            own.append(
                "several tokens in a step may differ in their last bits from one at a time here: "
                "an answer may differ where two tokens are equally likely but for those"
            )
        if self._failed is not None:
            own.append(f"nothing is drafted any more: {self._failed}")
        return [*self.core.notes, *self.draft.notes, *own]

    @property
    def weight_bytes(self) -> int:
        """Of both models."""
        return self.core.weight_bytes + self.draft.weight_bytes

    @property
    def kv_bytes(self) -> int:
        """Of both models."""
        return self.core.kv_bytes + self.draft.kv_bytes

    def warm(self) -> None:
        self.core.warm()
        if isinstance(self.draft, ModelDraft):
            self.draft.engine.warm()

    def step(
        self, tokens: Sequence[int], slots: Sequence[int], want_logits: Sequence[bool] | bool
    ) -> np.ndarray:
        """As of an engine without a draft, which reads along."""
        logits_nV = super().step(tokens, slots, want_logits)
        for token, slot in zip(tokens, slots, strict=True):
            self._texts[slot].tokens.append(int(token))
        self._ask_draft(lambda: self.draft.read(tokens, slots))
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
        texts = [self._texts[one.slot] for one in asked]
        guesses = self._guesses(asked, texts)
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        for one, text, own in zip(asked, texts, guesses, strict=True):
            text.tokens.append(one.token)
            text.judging = True
            tokens += [one.token, *(guess.token for guess in own)]
            slots += [one.slot] * (1 + len(own))
            begin = int(self.core.filled[one.slot])
            positions += range(begin, begin + 1 + len(own))
        began = time.perf_counter()
        logits_nV = self.core.forward_apart(tokens, slots, positions)
        self.length.verifying.saw(len(tokens), time.perf_counter() - began)
        if not np.isfinite(logits_nV.sum(axis=-1)).all():
            raise NotFiniteError("the choice of a token")
        rows, at = [], 0
        for own in guesses:
            ends = [*own, None]
            rows.append(list(zip(ends, logits_nV[at : at + len(ends)], strict=True)))
            at += len(ends)
        return rows

    def keep(self, slot: int, rows: Sequence[ChoosableRow], chosen: Sequence[int]) -> None:
        """Both caches go back to what was right; the latest token is in neither."""
        text = self._texts[slot]
        if not text.judging:
            return
        text.judging = False
        guesses = [guess.token for guess, _ in rows if guess is not None]
        right = 0
        while right < min(len(guesses), len(chosen)) and guesses[right] == chosen[right]:
            right += 1
        text.tokens += guesses[:right]
        self.core.truncate(slot, len(text.tokens))
        self._ask_draft(lambda: self.draft.keep(slot, len(text.tokens)))
        judged = min(len(guesses), len(chosen))
        self.length.saw(text.acceptance, judged, right)
        counts = self.counts
        counts.verifications += 1
        counts.guessed, counts.accepted = counts.guessed + judged, counts.accepted + right
        counts.written += len(chosen)

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
        self.draft.reset(slot)

    def close(self) -> None:
        self.target.close()
        self.draft.close()

    def _guesses(self, asked: Sequence[Speculated], texts: Sequence[_Text]) -> list[list[Guess]]:
        lengths = self.length.choose([t.acceptance for t in texts], [one.room for one in asked])
        wanted = [i for i, length in enumerate(lengths) if length > 0]
        guesses: list[list[Guess]] = [[] for _ in asked]
        if not wanted or self._failed is not None:
            return guesses
        began = time.perf_counter()
        proposed = self._ask_draft(
            lambda: self.draft.propose([
                DraftAsked(
                    asked[i].slot, [*texts[i].tokens, asked[i].token], lengths[i], asked[i].sampler
                )
                for i in wanted
            ])
        )  # fmt: skip
        for i, own in zip(wanted, proposed or [], strict=bool(proposed)):
            guesses[i] = own
        steps = max(map(len, guesses))
        self.length.drafting.saw(len(wanted), (time.perf_counter() - began) / max(1, steps))
        return guesses

    def _ask_draft(self, ask: Callable[[], Proposed]) -> Proposed | None:
        """A draft that fails ends no answer: without it everything is as before, and slower."""
        if self._failed is not None:
            return None
        try:
            return ask()
        except (ValueError, RuntimeError, MemoryError) as error:
            self._failed = f"{type(error).__name__}: {error}"
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
