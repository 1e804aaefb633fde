"""The engine's core in ONNX Runtime: ``MatMulNBits`` at 2, 4 and 8 bits, on any provider.

The first core that is not ours, and the pattern for an accelerator behind onnxruntime: the graph of
:mod:`.onnx_steps` is compiled once, and a step of the engine becomes one run of it. Ternary codes
are held in 2 bits (or in 4 or 8, for a provider without 2: the same codes), INT4 layers in 4, INT8
in 8, none rounded. Activations are rounded to INT8 in blocks, by onnxruntime itself: finer than our
one scale a token, so answers are as near as two such roundings are. Half precision is float32.

The execution providers are those that the installed onnxruntime has, in its order of preference
(``onnxruntime-openvino`` brings OpenVINO's before the CPU's); :attr:`OnnxRuntimeCore.backend` names
those that took part of the graph.

**Cache.** One float16 array a layer for keys and one for values, ``[context, slots, G, D]``: the
past of a step of all slots is a slice that lies in one piece, so nothing is copied; a step of some
of the slots copies theirs. A row sees what its mask lets through, so slots filled unevenly share
a step. Rows of as many new tokens run together: a prompt beside decoding slots is a run of its own.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnxruntime
from onnx import helper
from ternary_kernels import PackedHalf, PackedWeight
from ternary_kernels.core import Blueprint, Core, NotFiniteError
from ternary_kernels.llama import LlamaConfig, LlamaModel

from workbench.engine.architecture import NotForKernels
from workbench.engine.onnx_graph import HIDDEN
from workbench.engine.onnx_steps import StepGraph
from workbench.ternary.nbits import DOMAIN, Bits
from workbench.wording.counts import number_of

OPSET, IR_VERSION = 21, 10
NOT_LOCAL = "AzureExecutionProvider"
"""In every build of onnxruntime; it sends what it is given elsewhere."""


class OnnxRuntimeCore(LlamaModel):
    """See the module's text. bits: of ternary layers. The weights are let go of once they are
    packed for onnxruntime."""

    def __init__(
        self,
        config: LlamaConfig,
        weights: dict,
        slots: int,
        context: int,
        kv_dtype: str = "float16",
        *,
        threads: int = 1,
        bits: Bits = 2,
    ) -> None:
        if kv_dtype != "float16":
            raise ValueError(f"kv_dtype {kv_dtype!r}; allowed in onnxruntime: 'float16'")
        super().__init__(config, weights, slots, context, kv_dtype)
        turned = [n for n, w in self.weights.items() if getattr(w, "rotation", 1) > 1]
        if turned:
            raise NotForKernels(f"{turned[0]} is rotated, which the graph for onnxruntime is not")
        self._halves = sum(isinstance(w, PackedHalf) for w in self.weights.values())
        graph = StepGraph(config, self.weights, bits)
        parts = graph.build()
        small = sum(len(tensor.raw_data) for tensor in parts.constants.values())
        self._weight_bytes = small + sum(array.nbytes for array in parts.held.values())
        self._session = _session(parts, threads)
        self._backend = _words(self._session, graph, threads)
        self._held = parts.held  # onnxruntime reads them where they lie
        self.weights = {n: w for n, w in self.weights.items() if not isinstance(w, PackedWeight)}
        shape = (context, slots, config.num_kv_heads, config.head_dim)
        names = [f"{i}.{name}" for i in range(config.num_layers) for name in ("k", "v")]
        self._cache = {name: np.zeros(shape, np.float16) for name in names}

    @property
    def backend(self) -> str:
        return self._backend

    @property
    def notes(self) -> list[str]:
        if not self._halves:
            return []
        return [
            number_of(self._halves, "matrix in half precision is", "matrices in half precision are")
            + " held as float32, twice the bytes: "
            "onnxruntime multiplies no bf16 on a CPU"
        ]

    @property
    def weight_bytes(self) -> int:
        """As the graph holds them; what a provider packs again shows in the memory that grew."""
        return self._weight_bytes

    @property
    def kv_bytes(self) -> int:
        return sum(array.nbytes for array in self._cache.values())

    def close(self) -> None:
        super().close()
        self._session, self._held, self._cache = None, {}, {}

    def _forward(self, tokens, slots, positions, want) -> np.ndarray:
        logits_nV = np.empty((len(tokens), self.config.vocab_size), dtype=np.float32)
        news = []
        for rows_BS in _alike(slots):
            new, logits_WV = self._run(rows_BS, tokens, slots, positions, want)
            logits_nV[rows_BS[want[rows_BS]]] = logits_WV
            news.append((rows_BS, new))
        for rows_BS, new in news:  # only now: a run that failed leaves every slot as it was
            at = positions[rows_BS].T, slots[rows_BS].T
            for name, values_SBGD in new.items():
                self._cache[name][at] = values_SBGD
        return logits_nV[want]

    def _run(self, rows_BS, tokens, slots, positions, want) -> tuple[dict, np.ndarray]:
        """New keys and values, and the logits of the wanted rows, in the order of the rows."""
        slots_B, begins_B = slots[rows_BS[:, 0]], positions[rows_BS[:, 0]]
        past = int(begins_B.max())
        wanted = np.flatnonzero(want[rows_BS])
        given = {
            "input_ids": tokens[rows_BS].astype(np.int64),
            "position_ids": positions[rows_BS].astype(np.int64),
            "hidden": self._hidden(positions[rows_BS], begins_B, past),
            # Where none is wanted the first is computed, and left.
            "wanted": wanted if len(wanted) else np.zeros(1, np.int64),
        }
        every = np.array_equal(slots_B, np.arange(self.slots))
        for name, cache in self._cache.items():
            given[f"past.{name}"] = cache[:past] if every else cache[:past, slots_B]
        logits_WV, entering, *new = self._session.run(None, given)
        if not np.isfinite(entering):
            raise NotFiniteError("a product")
        found = dict(zip(self._cache, new, strict=True))
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise NotFiniteError(f"layers.{name}")
        if not np.isfinite(logits_WV).all():
            raise NotFiniteError("head")
        return found, logits_WV[: len(wanted)]

    def _hidden(self, positions_BS, begins_B, past: int) -> np.ndarray:
        """0 where a row sees a position, else far below any score: float32 [B, 1, 1, S, T]."""
        of_past = np.broadcast_to(np.arange(past), (len(positions_BS), past))
        of_past = np.where(of_past < begins_B[:, None], of_past, self.context)
        keys_BT = np.concatenate([of_past, positions_BS], axis=1)
        queries = positions_BS[:, :, None]
        seen = keys_BT[:, None] <= queries
        if self.config.sliding_window:
            seen &= keys_BT[:, None] > queries - self.config.sliding_window
        return np.where(seen, np.float32(0), np.float32(HIDDEN))[:, None, None]


def _alike(slots: np.ndarray) -> list[np.ndarray]:
    """The rows of a step [B, S], grouped by how many each slot has; slots rise within a group."""
    by_count: dict[int, list[np.ndarray]] = {}
    for slot in np.unique(slots):
        rows = np.flatnonzero(slots == slot)
        by_count.setdefault(len(rows), []).append(rows)
    return [np.stack(rows) for rows in by_count.values()]


def _session(parts, threads: int):
    graph = helper.make_graph(
        parts.nodes, "step", parts.inputs, parts.outputs, list(parts.constants.values())
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in parts.held.values()]
    options.add_external_initializers(list(parts.held), values)
    providers = [name for name in onnxruntime.get_available_providers() if name != NOT_LOCAL]
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers)


def _words(session, graph: StepGraph, threads: int) -> str:
    taken = [name.removesuffix("ExecutionProvider") for name in session.get_providers()]
    words = [f"onnxruntime {onnxruntime.__version__} on {' and '.join(taken)}"]
    if bits := sorted({matrix.bits for matrix in graph.matrices.values()}):
        words.append(f"MatMulNBits of {' and '.join(map(str, bits))} bits")
    return ", ".join([*words, number_of(threads, "thread")])


def _build(plan: Blueprint, bits: Bits) -> Core:
    room = plan.slots, plan.context, plan.kv_dtype
    return OnnxRuntimeCore(*plan.packed(), *room, threads=plan.threads, bits=bits)


two_bits, four_bits, eight_bits = (partial(_build, bits=bits) for bits in (2, 4, 8))
