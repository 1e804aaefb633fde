"""``slots`` conversations side by side over one model, with their keys and values cached.

The engine is thin on purpose: a step is one native call for all rows, so that the Python
around it stays far below the time of a token. It is not thread-safe; a
:class:`~workbench.engine.scheduler.Scheduler` owns one and takes requests from any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ternary_kernels.core import Core

from workbench.engine.request import FinishReason, GenerationRequest
from workbench.engine.sampling import Guess, Sampler
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from typing import Unpack

    from torch import nn
    from transformers import PretrainedConfig

    from workbench.engine.build import SetupFields
    from workbench.engine.random_weights import WeightKind


ChoosableRow = tuple[Guess | None, np.ndarray]
"""What a token is chosen from: what a draft expects there, and the logits ``[V]``."""


@dataclass(frozen=True)
class Speculated:
    """A text to go on with. token: its latest, not in the cache yet. room: tokens that may come
    after the next one."""

    slot: int
    token: int
    room: int
    sampler: Sampler


def _goes_on(guess: Guess | None, token: int) -> bool:
    """Whether the next row's logits are those after ``token``."""
    return guess is not None and guess.token == token


@dataclass(frozen=True)
class Generation:
    """One completion. Times: seconds after the call; ``first_token_s`` None without a token."""

    tokens: list[int]
    finish_reason: FinishReason
    first_token_s: float | None
    end_s: float


class Engine:
    """A model that is ready to run. Shapes: n rows, V vocabulary.

    Make one with :meth:`load`, :meth:`from_model` or :meth:`random`.

    core: computes the model; any class that is a :class:`ternary_kernels.core.Core`.
    eos_tokens: those that end a text.

    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import Engine, GenerationRequest, to_ternary
    >>> model = AutoModelForCausalLM.from_config(LlamaConfig(
    ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...     vocab_size=50))
    >>> report = to_ternary(model)
    >>> with Engine.from_model(model, slots=2, context=64) as engine:
    ...     done = engine.generate(GenerationRequest((3, 1, 4), max_tokens=8, ignore_eos=True))
    ...     engine.logits([3, 1, 4]).shape
    (3, 50)
    >>> len(done.tokens), done.finish_reason, done.first_token_s < done.end_s
    (8, 'length', True)
    """

    def __init__(self, core: Core, *, eos_tokens: frozenset[int] = frozenset()) -> None:
        self.core, self.eos_tokens = core, eos_tokens
        self.slots, self.context, self.vocab_size = core.slots, core.context, core.vocab_size

    @classmethod
    def load(cls, folder: Path, **setup: Unpack[SetupFields]) -> Engine:
        """From a packed model folder or a Hugging Face folder.

        slots: conversations side by side (1). context: tokens a slot can hold; None: what the
        model was made for, 4096 at most. threads: 0: one per physical core.
        packing: how embedding, head and ternary layers lie in memory, of the CPU's kernels alone;
        by default embedding and head are INT8 beside ternary layers when they are big, as they are
        stored otherwise. kv_dtype: ``float16``, ``bfloat16``, ``float32``.
        device: ``cpu`` or ``cuda``, each with its own kernels; other architectures run through
        transformers. cache_of: on ``cuda``, an engine of the same shape whose cache of keys and
        values this one uses too; only one of them may hold conversations at a time.
        core: what computes, by a name of :mod:`workbench.engine.cores`; ``auto``: the kernels of
        the device, and transformers for what they do not know.
        Raises StageError for a folder that is missing, truncated or of another format, and for
        a context the model was not made for.
        """
        from workbench.engine.build import Setup, from_folder

        return from_folder(Path(folder), Setup(**setup))

    @classmethod
    def from_model(cls, model: nn.Module, **setup: Unpack[SetupFields]) -> Engine:
        """From a ``transformers`` model in memory, replaced layers included; see :meth:`load`."""
        from workbench.engine.build import Setup, from_model

        return from_model(model, Setup(**setup))

    @classmethod
    def random(
        cls, config: PretrainedConfig, kind: WeightKind, **setup: Unpack[SetupFields]
    ) -> Engine:
        """A model of this shape whose weights mean nothing, for measuring speed and memory.

        kind: ``half``, ``int8`` or ``ternary`` linear layers. Speed does not depend on
        the weights' values; see :mod:`workbench.engine.random_weights`.
        """
        from workbench.engine.build import Setup, random_model

        return random_model(config, kind, Setup(**setup))

    @property
    def backend(self) -> str:
        """What computes, for the record."""
        return self.core.backend

    @property
    def units(self) -> tuple[str, ...]:
        """What multiplies long prompts and large batches; see :attr:`Core.units`."""
        return self.core.units

    @property
    def notes(self) -> list[str]:
        """Fallbacks taken so far, with their reasons."""
        return self.core.notes

    @property
    def prefill_rows(self) -> int:
        """Rows of one prefill step that suit what computes."""
        return self.core.prefill_rows

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that stay resident."""
        return self.core.weight_bytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache of keys and values of all slots."""
        return self.core.kv_bytes

    def warm(self) -> None:
        """Pay now for what first uses cost: on a GPU, compiling and capturing every step."""
        self.core.warm()

    def check_tokens(self, prompt: Sequence[int], output_tokens: int = 0) -> None:
        """Raise ValueError unless the prompt is valid and fits a slot with its output."""
        if not len(prompt):
            raise ValueError("the prompt has no tokens; allowed: at least one. Send some text.")
        if len(prompt) + output_tokens > self.context:
            raise ValueError(
                f"{len(prompt)} prompt and {number_of(output_tokens, 'output token')}; allowed: "
                f"{self.context} together. Shorten one of them, or load the engine with a larger "
                "context."
            )
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"token {low if low < 0 else high}; allowed: 0 to {self.vocab_size - 1}. "
                "Use the tokenizer that belongs to the model."
            )

    def step(
        self, tokens: Sequence[int], slots: Sequence[int], want_logits: Sequence[bool] | bool
    ) -> np.ndarray:
        """Append rows to their slots, in order; float32 logits ``[rows wanted, V]``."""
        filled, positions = self.core.filled, []
        ahead: dict[int, int] = {}
        for slot in slots:
            position = ahead.get(slot)
            if position is None:
                position = int(filled[slot]) if 0 <= slot < self.slots else 0
            positions.append(position)
            ahead[slot] = position + 1
        return self.core.forward(tokens, slots, positions, want_logits)

    def prefill(self, slot: int, tokens: Sequence[int], chunk: int = 0) -> np.ndarray:
        """Append a prompt to a slot in pieces of ``chunk`` (0: ``prefill_rows``); logits ``[V]``
        after its last token."""
        self.check_tokens(tokens)
        chunk = chunk or self.prefill_rows
        last = len(tokens) - 1
        for begin in range(0, len(tokens), chunk):
            piece = tokens[begin : begin + chunk]
            want = [begin + i == last for i in range(len(piece))]
            logits = self.step(piece, [slot] * len(piece), want)
        return logits[0]

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """One more token in each of ``slots``; logits ``[n, V]``."""
        every = np.ones(len(tokens), dtype=bool)
        return self.core.forward(tokens, slots, self.core.filled[list(slots)], every)

    def speculate(self, asked: Sequence[Speculated]) -> list[list[ChoosableRow]]:
        """What the next tokens of each text are chosen from: one row, as nothing drafts here; see
        :class:`.speculative.SpeculativeEngine`."""
        logits_nV = self.decode([one.slot for one in asked], [one.token for one in asked])
        return [[(None, logits_V)] for logits_V in logits_nV]

    def keep(self, slot: int, rows: Sequence[ChoosableRow], chosen: Sequence[int]) -> None:
        """What was chosen from the rows of :meth:`speculate`, in their order, until it was not what
        the draft had guessed, or the text ended."""

    def decode_greedy(self, slots: Sequence[int], tokens: Sequence[int], steps: int) -> np.ndarray:
        """``steps`` more tokens in each of ``slots``, the most likely one each time.

        Starts from ``tokens``; int32 ``[steps, n]``. On a GPU tokens are chosen on the device
        and no logits are copied.
        """
        return self.core.decode_greedy(slots, tokens, steps)

    def release(self, slot: int) -> None:
        """Forget the slot's conversation."""
        self.core.reset(slot)

    def logits(self, tokens: Sequence[int], *, slot: int = 0, first: int = 0) -> np.ndarray:
        """Float32 logits ``[len(tokens) - first, V]`` of a text of its own, from its token
        ``first`` on; ``slot`` must be empty."""
        self.check_tokens(tokens)
        if self.core.filled[slot]:
            raise ValueError(f"slot {slot} is in use; allowed: an empty one. Release it first.")
        try:
            rows = self.prefill_rows
            pieces = []
            for begin in range(0, len(tokens), rows):
                piece = tokens[begin : begin + rows]
                want = [begin + place >= first for place in range(len(piece))]
                pieces.append(self.step(piece, [slot] * len(piece), want if first else True))
        finally:
            self.release(slot)
        return np.concatenate(pieces)

    def generate(
        self,
        request: GenerationRequest,
        *,
        slot: int = 0,
        on_token: Callable[[int], None] | None = None,
    ) -> Generation:
        """Complete one prompt in an empty slot and release it.

        Raises ValueError for what the scheduler alone gives: log probabilities and grammars.
        """
        self.check_tokens(request.prompt_tokens, request.max_tokens)
        asked = request.logprobs, request.prompt_logprobs, request.grammar
        if asked != (None, None, None) or not request.max_tokens:
            raise ValueError(
                "log probabilities, a grammar or no output tokens; allowed here: none of them. "
                "Submit it to a Scheduler; Engine.logits scores a text."
            )
        sampler = Sampler(request, self.eos_tokens)
        tokens: list[int] = []
        reason: FinishReason = "length"
        began, first_token_s = time.perf_counter(), None
        try:
            rows: Sequence[ChoosableRow] = [(None, self.prefill(slot, request.prompt_tokens))]
            while True:
                chosen: list[int] = []
                for guess, logits_V in rows:
                    token = sampler.choose(logits_V, len(tokens), guess)
                    if first_token_s is None:
                        first_token_s = time.perf_counter() - began
                    chosen.append(token)
                    if token in sampler.ends:
                        reason = "stop"
                        break
                    tokens.append(token)
                    if on_token:
                        on_token(token)
                    if len(tokens) == request.max_tokens or not _goes_on(guess, token):
                        break
                self.keep(slot, rows, chosen)
                if reason == "stop" or len(tokens) == request.max_tokens:
                    break
                room = request.max_tokens - len(tokens) - 1
                rows = self.speculate([Speculated(slot, token, room, sampler)])[0]
        finally:
            self.release(slot)
        end_s = time.perf_counter() - began
        return Generation(tokens, reason, first_token_s if tokens else None, end_s)

    def close(self) -> None:
        """Give the memory back; the engine cannot be used afterwards."""
        self.core.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
