"""The graph of one step of an engine's core: rows of several slots, caches kept outside of it.

Of the exported graph (:mod:`.onnx_graph`) it takes every layer. What an engine needs differs:

- the past comes as the core keeps it, one array a layer that all slots share, and only the new
  keys and values leave, so that no step copies a cache;
- what a row sees is given (``hidden``), since rows of slots that are filled unevenly share a step;
- the last norm and the head compute the ``wanted`` rows alone;
- activations are rounded to INT8 by onnxruntime's own kernels, in blocks of a matrix's inputs (128;
  of INT4 32), each by its largest value. That is finer than a token's one scale. Rounded by the
  graph first and multiplied in float32, which is exact, 2 and 8 bits ran 300 times slower in
  onnxruntime 1.32: every run unpacked every matrix. Rounding makes numbers of NaN, so what enters
  a product is summed, and ``entering`` is finite where all of it is.

Matrices are handed over as arrays (:attr:`HeldGraph.held`), not written into a file, which protobuf
would limit to 2 GiB. Half precision is held as float32: onnxruntime multiplies no bf16 on a CPU.

Shape legend: B slots of a step, S new rows of each, P past positions that are given, T = P + S,
G KV heads, D head size, W wanted rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from ternary_kernels import PackedHalf, PackedWeight
from ternary_kernels.packing import untile16
from torch import Tensor

from workbench.engine.onnx_graph import Graph, LlamaGraph
from workbench.ternary.nbits import OPERATOR

if TYPE_CHECKING:
    from onnx import TensorProto

INT8_ACCURACY = 4
"""MatMulNBits' ``accuracy_level``: activations in INT8, which it has fast kernels for."""
SMALL_TENSOR = 1024
"""Bytes; what is smaller stands in the graph itself."""


class HeldGraph(Graph):
    """A graph whose matrices lie outside of it, by the names of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, np.ndarray] = {}

    def constant(self, name: str, values: np.ndarray | Tensor) -> str:
        array = values.numpy() if isinstance(values, Tensor) else values
        if array.nbytes <= SMALL_TENSOR:
            return super().constant(name, array)
        if name not in self.constants:
            self.held[name] = np.ascontiguousarray(array)
            self.constants[name] = _elsewhere(name, array)
        return name


def _elsewhere(name: str, array: np.ndarray) -> TensorProto:
    from onnx import TensorProto, helper

    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="held by the engine")
    return tensor


class StepGraph(LlamaGraph):
    """Inputs: ``input_ids`` and ``position_ids`` int64 [B, S]; ``hidden`` float32 [B, 1, 1, S, T],
    added to the scores; ``wanted`` int64 [W], rows of the flattened [B * S]; ``past.<i>.k`` and
    ``.v`` float16 [P, B, G, D]. Outputs: ``logits`` float32 [W, V]; ``entering`` float32 [];
    ``new.<i>.k`` and ``.v`` float16 [S, B, G, D].
    """

    graph: HeldGraph

    def build(self) -> HeldGraph:
        from onnx import TensorProto

        self.graph = g = HeldGraph()
        self._entering: dict[str, str] = {}
        ids = self._input("input_ids", TensorProto.INT64, ["slots", "new"])
        positions = self._input("position_ids", TensorProto.INT64, ["slots", "new"])
        seen = ["slots", 1, 1, "new", "seen"]
        hidden = self._input("hidden", TensorProto.FLOAT, seen)
        wanted = self._input("wanted", TensorProto.INT64, ["wanted"])
        x = self._layers(ids, positions, hidden)
        rows = g.node("Reshape", x, g.whole(-1, self.config.hidden_size))
        logits = self._head(g.node("Gather", rows, wanted, axis=0))
        entering = g.node("Sum", *self._entering.values())
        self._output("entering", entering, TensorProto.FLOAT, [])
        g.outputs.insert(0, g.outputs.pop())
        self._output("logits", logits, TensorProto.FLOAT, ["wanted", self.config.vocab_size])
        g.outputs.insert(0, g.outputs.pop())
        return g

    def _seen(self, i: int, keys: str, values: str) -> tuple[str, str]:
        from onnx import TensorProto

        g, c = self.graph, self.config
        seen = []
        for name, new, perm in (("k", keys, [1, 2, 3, 0]), ("v", values, [1, 2, 0, 3])):
            shape = ["past", "slots", c.num_kv_heads, c.head_dim]
            past = self._input(f"past.{i}.{name}", TensorProto.FLOAT16, shape)
            half = g.node("Cast", new, to=TensorProto.FLOAT16)
            now = g.node("Transpose", half, perm=[2, 0, 1, 3])
            shape = ["new", "slots", c.num_kv_heads, c.head_dim]
            self._output(f"new.{i}.{name}", now, TensorProto.FLOAT16, shape)
            both = g.node("Concat", past, now, axis=0)
            seen.append(g.node("Transpose", g.node("Cast", both, to=TensorProto.FLOAT), perm=perm))
        return seen[0], seen[1]

    def _linear(self, x: str, key: str, module: str) -> str:
        g, weight = self.graph, self.weights[key]
        assert isinstance(weight, PackedWeight)
        if x not in self._entering:
            self._entering[x] = g.node("ReduceSum", x, keepdims=0)
        if isinstance(weight, PackedHalf):
            return self._half_product(x, key, weight, module)
        codes, matrix = self._codes(key, weight)
        self.matrices[module] = matrix
        scales = matrix.scales if matrix.behind is None else matrix.scales * matrix.behind[:, None]
        given = [x, codes, g.constant(f"{key}.scales", scales)]
        if matrix.zero_points is not None:
            given.append(g.constant(f"{key}.zero_points", matrix.zero_points))
        N, K = matrix.shape
        sizes = {"N": N, "K": K, "bits": matrix.bits, "block_size": matrix.block}
        return g.node(OPERATOR, *given, name=module, accuracy_level=INT8_ACCURACY, **sizes)

    def _half(self, key: str, weight: PackedHalf) -> str:
        return self.graph.constant(key, untile16(weight.tiles, *weight.shape).to(torch.float32))

    def _half_product(self, x: str, key: str, weight: PackedHalf, module: str) -> str:
        g = self.graph
        if key == "embed":  # tied: one matrix for the look-up and the head, whose x is [W, H]
            return g.node("Gemm", x, self._half(key, weight), transB=1, name=module)
        turned = untile16(weight.tiles, *weight.shape).to(torch.float32).T.contiguous()
        return g.node("MatMul", x, g.constant(f"{key}.turned", turned), name=module)
