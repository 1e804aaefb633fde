"""The engine's door: whatever is a Core runs, and every core that ships is one."""

from __future__ import annotations

import numpy as np
import pytest
from ternary_kernels.core import Core
from ternary_kernels.llama import LlamaNative, LlamaReference

from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.engine.scheduler import Scheduler
from workbench.engine.transformers_core import TransformersCore

WORDS = 11


class CountingCore(Core):
    """The smallest core: the likeliest token is the sum of the slot's tokens, modulo WORDS."""

    def __init__(self, slots: int, context: int) -> None:
        self.slots, self.context = slots, context
        self.filled = np.zeros(slots, dtype=np.int64)
        self._tokens = np.zeros((slots, context), dtype=np.int64)

    @property
    def vocab_size(self) -> int:
        return WORDS

    @property
    def backend(self) -> str:
        return "counting"

    @property
    def weight_bytes(self) -> int:
        return 0

    @property
    def kv_bytes(self) -> int:
        return self._tokens.nbytes

    def forward(self, tokens, slots, positions, want_logits) -> np.ndarray:
        wanted = np.broadcast_to(want_logits, len(tokens))
        logits_nV = np.zeros((len(tokens), WORDS), dtype=np.float32)
        for row, (token, slot, position) in enumerate(zip(tokens, slots, positions, strict=True)):
            assert position == self.filled[slot]
            self._tokens[slot, position] = token
            self.filled[slot] += 1
            logits_nV[row, self._tokens[slot, : position + 1].sum() % WORDS] = 1
        return logits_nV[wanted]

    def reset(self, slot: int) -> None:
        self.filled[slot] = 0

    def close(self) -> None:
        self._tokens = np.zeros((0, 0))


def doubling(prompt: tuple[int, ...], count: int) -> list[int]:
    """What CountingCore writes: every token is the sum of all before it."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(sum(tokens) % WORDS)
    return tokens[len(prompt) :]


def test_a_core_from_elsewhere_runs_with_what_it_must_have_and_nothing_more() -> None:
    engine = Engine(CountingCore(slots=2, context=16))
    request = GenerationRequest((3, 4), max_tokens=5)
    engine.warm()
    assert engine.generate(request).tokens == doubling((3, 4), 5) == [7, 3, 6, 1, 2]
    first = [int(engine.prefill(slot, [3, 4 + slot]).argmax()) for slot in (0, 1)]
    rest = engine.decode_greedy([0, 1], first, 4)
    assert rest.dtype == np.int32 and rest.shape == (4, 2)
    for slot in (0, 1):
        assert [first[slot], *rest[:, slot]] == doubling((3, 4 + slot), 5)
        engine.release(slot)
    assert (engine.backend, engine.notes, engine.prefill_rows) == ("counting", [], 256)
    with Scheduler(engine) as scheduler:
        submitted = [scheduler.submit(GenerationRequest((n, 1), max_tokens=4)) for n in range(5)]
        assert all(each.wait(10) for each in submitted)
    assert [each.tokens for each in submitted] == [doubling((n, 1), 4) for n in range(5)]


@pytest.mark.parametrize("kind", [LlamaNative, LlamaReference, TransformersCore, "gpu"])
def test_every_core_that_ships_is_one_and_leaves_nothing_open(kind) -> None:
    if kind == "gpu":
        pytest.importorskip("triton", reason="Triton has no wheel for this platform")
        from ternary_kernels.gpu.llama import LlamaGpu as kind
    assert Core in kind.__mro__
    needed = ("vocab_size", "backend", "weight_bytes", "kv_bytes", "forward", "reset", "close")
    assert [name for name in needed if getattr(kind, name) is getattr(Core, name)] == []
