"""What computes an engine's model: the interface that every core has.

A *core* holds one model and the conversations over it. The decode engine, the scheduler, the
server and the measurements reach a model through the members of :class:`Core` and through
nothing else, so that a kernel from elsewhere becomes measurable by writing one class.

Three ship: :class:`ternary_kernels.llama.LlamaNative` (native code on a CPU, with
:class:`ternary_kernels.llama.LlamaReference` where there is no compiler),
:class:`ternary_kernels.gpu.llama.LlamaGpu` (Triton kernels in CUDA graphs) and
``workbench.engine.transformers_core.TransformersCore`` (any architecture that ``transformers``
knows). The smallest core that works is the one of ``tests/engine/test_core.py``.

A core of another package is found by an entry point of the group :data:`CORES`: a function from a
:class:`Blueprint` to a core, under the name that a pilot's ``readiness.core`` calls it by.
docs/cores.md is the page for whoever writes one; ``workbench core check NAME`` proves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from .llama import LlamaConfig
    from .weights import PackedWeight

CORES = "ternary_workbench.cores"
"""Group of the entry points by which cores of other packages are found."""


class NotFiniteError(ValueError):
    """Activations or logits hold NaN or Inf: the weights are damaged, and any answer is noise."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"the activations entering {where} hold NaN or Inf; allowed: finite values. "
            "Check the weights of the layers before it."
        )


class Core(Protocol):
    """One model, ready to run, and ``slots`` conversations side by side over it.

    Inherit from this class: what has a body here is a default that holds for every core, and
    what has none must be there. Shapes: n rows of a step, V words of the vocabulary.

    **Slots and rows.** A *slot* holds the keys and values of one conversation, positions 0 to
    ``filled[slot] - 1``. A *row* is one token of one slot at one position. A step runs any
    number of rows, of one slot or of many, so decoding and prefilling may share it.

    **Packing.** How weights come into a core is its constructor's business, since no two
    kernels want the same layout. Those of :mod:`ternary_kernels.llama` take a configuration and
    a dict of packed matrices, which :meth:`Blueprint.packed` gives. Another layout is made from the
    same dict: a ternary matrix gives ``codes()`` and ``scale``, an INT8 or INT4 one ``values()``
    and ``scale``, every one ``dequantize()``.
    A matrix that a core cannot hold in its stored precision is refused, or changed and said so
    in :attr:`notes`.

    **Threads.** A core is used by one thread at a time and need not be thread-safe.

    **Errors.** ValueError with what is allowed for rows that cannot be; NotFiniteError for
    activations that are not finite; MemoryError where the cache or the weights do not fit. After
    an error in :meth:`forward` a slot may be short of rows, never hold wrong ones.
    """

    slots: int
    """Conversations that can be held side by side, numbered from 0."""

    context: int
    """Positions that a slot can hold, prompt and output together."""

    filled: np.ndarray
    """int64 ``[slots]``: positions of each slot that are held. A plain array on the host, as a
    step asks it for every row."""

    prefill_rows: int = 256
    """Rows of one prefill step that suit this core. On a CPU enough to use the matrix kernels
    fully, few enough to stay in the caches."""

    @property
    def vocab_size(self) -> int:
        """V: tokens are 0 to V - 1, and a row of logits has as many values."""
        ...

    @property
    def backend(self) -> str:
        """What computes, in a few words for the record: kernels, instruction set or device,
        threads. Equal for two cores exactly when their speeds may be compared as one backend's,
        but for the units that multiply (:attr:`units`), which are named for each precision."""
        ...

    @property
    def units(self) -> tuple[str, ...]:
        """What multiplies long prompts and large batches with the layers, each once, sorted:
        names of tile units ('amx_int8') and 'vectors'. Two arms on unlike kinds are no fair
        comparison of their weights. Empty where that is not the core's to know."""
        return ()

    @property
    def notes(self) -> list[str]:
        """Fallbacks taken so far, each a sentence with its reason: announced and recorded by
        whoever uses the core. May grow while the core runs."""
        return []

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that stay resident, scales and embedding included; a matrix that
        two layers share counts once. What ``model_memory_mb`` reports."""
        ...

    @property
    def kv_bytes(self) -> int:
        """Bytes of the cache of all slots; 0 where it is another core's."""
        ...

    def forward(
        self,
        tokens: Sequence[int] | np.ndarray,
        slots: Sequence[int] | np.ndarray,
        positions: Sequence[int] | np.ndarray,
        want_logits: Sequence[bool] | np.ndarray | bool,
    ) -> np.ndarray:
        """Run n rows; float32 logits ``[rows wanted, V]``, in the order of the rows.

        Row j is token ``tokens[j]`` of slot ``slots[j]`` at ``positions[j]`` and sees positions 0
        to ``positions[j]`` of its slot, earlier rows of the same call included. want_logits: one
        bool a row, or one for all. Rows of one slot stand in rising positions without a gap and
        begin at ``filled[slot]`` (a core may allow an earlier begin, which rewrites from there);
        afterwards ``filled`` counts them.
        """
        ...

    rows_apart: bool = False
    """Whether :meth:`forward_apart` gives each row to the bit what a step of it alone gives."""

    def forward_apart(
        self,
        tokens: Sequence[int] | np.ndarray,
        slots: Sequence[int] | np.ndarray,
        positions: Sequence[int] | np.ndarray,
    ) -> np.ndarray:
        """As :meth:`forward`, with every row's logits, for tokens that were guessed: as good as
        those of one step a token. Where :attr:`rows_apart` holds they are the same to the bit;
        elsewhere sums may be taken in another order with more rows, as in any batch.
        """
        return self.forward(tokens, slots, positions, True)

    truncates: bool = True
    """Whether :meth:`truncate` works: not where a cache has forgotten what it would go back to."""

    def truncate(self, slot: int, length: int) -> None:
        """Forget what the slot holds from position ``length`` on, as if it had never been there.

        Raises ValueError for more than it holds.
        """
        if not 0 <= length <= self.filled[slot]:
            raise ValueError(
                f"slot {slot} cut to {length} positions; allowed: 0 to {self.filled[slot]}, "
                "those that it holds"
            )
        self.filled[slot] = length

    def decode_greedy(self, slots: Sequence[int], tokens: Sequence[int], steps: int) -> np.ndarray:
        """``steps`` more tokens in each of ``slots`` (each once), the likeliest one each time;
        int32 ``[steps, n]``. Starts from ``tokens``, one a slot.

        A core that chooses tokens where the logits are spares their copy by its own method.
        """
        chosen = []
        for _ in range(steps):
            logits_nV = self.forward(tokens, slots, self.filled[list(slots)], True)
            tokens = logits_nV.argmax(axis=1).astype(np.int32)
            chosen.append(tokens)
        return np.stack(chosen)

    def warm(self) -> None:
        """Pay now for what first uses cost, such as compiling; no conversation is touched."""

    def reset(self, slot: int) -> None:
        """Forget a slot's conversation: ``filled[slot]`` becomes 0."""
        ...

    def close(self) -> None:
        """Give the memory back; the core cannot be used afterwards. May be called twice."""
        ...


@dataclass(frozen=True)
class Blueprint:
    """What a core is built from: one model, in either of two forms, and the room it shall have.

    packed: gives the shape and all weights under the names of :mod:`ternary_kernels.llama`, each in
    the precision that the model keeps; raises NotForKernels for an architecture that they do not
    know. model: the same as a module of ``transformers``, for a core that takes such; raises
    NotForKernels where there is none (random weights). Either is made when it is called.
    slots, context: of :class:`Core`. threads: of the CPU, at least 1. kv_dtype: 'float16',
    'bfloat16' or 'float32', of the cache. device: 'cpu' or 'cuda', what the pilot computes on.
    cache_of: a core of the same shape whose cache this one may share: only one of both
    holds conversations at a time; a core may leave it.

    A builder that cannot make a core of it raises ValueError with what is allowed, and MemoryError
    where it does not fit.
    """

    packed: Callable[[], tuple[LlamaConfig, dict[str, PackedWeight | Tensor]]]
    model: Callable[[], Any]
    slots: int
    context: int
    threads: int = 1
    kv_dtype: str = "float16"
    device: str = "cpu"
    cache_of: Core | None = None


BuildCore = Callable[[Blueprint], Core]
"""What an entry point of :data:`CORES` names."""
