"""A Llama-type model as a graph of ONNX, operation for operation what the engine computes.

The inputs and outputs have the names that onnxruntime's tools for language models use:
``input_ids`` and ``position_ids`` [batch, new], ``attention_mask`` [batch, past + new],
``past_key_values.<i>.key`` and ``.value`` float16 [batch, KV heads, past, head size], all to
``logits`` float32 [batch, new, vocabulary] and ``present.<i>.key`` and ``.value``. Like the engine
it keeps keys and values in float16 and everything else in float32, and quantises the
activations of ternary and INT8 layers to INT8 per token, with the same rounding.

Shape legend: B sequences, S new tokens, T past and new, G KV heads, R query heads for each, D head
size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ternary_kernels import PackedHalf, PackedInt4, PackedInt8, PackedTernary, PackedWeight
from ternary_kernels.llama import LlamaConfig
from ternary_kernels.packing import untile16
from torch import Tensor

from workbench.engine.architecture import LINEARS
from workbench.engine.build import Weights
from workbench.ternary.nbits import (
    DOMAIN,
    OPERATOR,
    Bits,
    NBitsMatrix,
    int4_matrix,
    int8_matrix,
    rounded_matrix,
    ternary_matrix,
)

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto, ValueInfoProto

FLOAT32_ACCURACY = 1
"""MatMulNBits' ``accuracy_level``: it must not round the activations once more."""
HIDDEN = -1e30
"""Added to a score that must not count."""


class Graph:
    """Nodes and constants that grow; every value is called by the name of its tensor."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []

    def node(self, op: str, *inputs: str, name: str = "", outs: int = 1, **attributes: Any) -> Any:
        """The name of what it gives; a tuple of names where it gives several."""
        from onnx import helper

        stem = name or f"{op}_{len(self.nodes)}"
        made = [f"{stem}:{k}" for k in range(outs)]
        domain = DOMAIN if op == OPERATOR else ""
        self.nodes.append(
            helper.make_node(op, inputs, made, name=stem, domain=domain, **attributes)
        )
        return made[0] if outs == 1 else tuple(made)

    def constant(self, name: str, values: np.ndarray | Tensor) -> str:
        """A tensor of the file; bf16 comes as one of torch."""
        from onnx import TensorProto, helper, numpy_helper

        if name in self.constants:
            return name
        if isinstance(values, Tensor) and values.dtype == torch.bfloat16:
            raw = values.contiguous().view(torch.int16).numpy().tobytes()
            shape = tuple(values.shape)
            tensor = helper.make_tensor(name, TensorProto.BFLOAT16, shape, raw, raw=True)
        else:
            array = values.numpy() if isinstance(values, Tensor) else values
            tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
        self.constants[name] = tensor
        return name

    def number(self, value: float) -> str:
        return self.constant(f"float {value!r}", np.array(value, np.float32))

    def whole(self, *values: int) -> str:
        return self.constant(f"int64 {values}", np.array(values, np.int64))


class LlamaGraph:
    """Builds the graph of one model.

    bits: of ternary layers. rest_bits: of linear layers in high precision, which are rounded; None
    leaves them as they are. matrices: what became of each linear layer.
    """

    def __init__(
        self, config: LlamaConfig, weights: Weights, bits: Bits = 2, rest_bits: Bits | None = None
    ) -> None:
        self.config, self.weights = config, weights
        self.bits, self.rest_bits = bits, rest_bits
        self.graph = Graph()
        self.matrices: dict[str, NBitsMatrix] = {}
        self._quantised: dict[str, tuple[str, str]] = {}

    def build(self) -> Graph:
        from onnx import TensorProto

        g, c = self.graph, self.config
        ids, positions = (
            self._input(name, TensorProto.INT64, ["batch", "new"])
            for name in ("input_ids", "position_ids")
        )
        mask = self._input("attention_mask", TensorProto.INT64, ["batch", "past_and_new"])
        x = self._layers(ids, positions, self._hidden(ids, mask))
        shape = ["batch", "new", c.vocab_size]
        self._output("logits", self._head(x), TensorProto.FLOAT, shape)
        g.outputs.insert(0, g.outputs.pop())  # where tools expect it
        return g

    def _layers(self, ids: str, positions: str, hidden: str) -> str:
        """What the head is given, before the last norm."""
        g, x, turn = self.graph, self._embedding(ids), self._rotation(positions)
        for i in range(self.config.num_layers):
            layer = f"layers.{i}."
            normed = self._norm(x, layer + "attn_norm")
            x = g.node("Add", x, self._attention(i, normed, turn, hidden))
            normed = self._norm(x, layer + "ffn_norm")
            x = g.node("Add", x, self._ffn(layer, normed))
        return x

    def _head(self, x: str) -> str:
        head = "head" if "head" in self.weights else "embed"
        return self._linear(self._norm(x, "norm"), head, "lm_head")

    def _input(self, name: str, kind: int, shape: list[Any]) -> str:
        from onnx import helper

        self.graph.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def _output(self, name: str, value: str, kind: int, shape: list[Any]) -> None:
        from onnx import helper

        self.graph.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self.graph.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def _embedding(self, ids: str) -> str:
        g, embed = self.graph, self.weights["embed"]
        if isinstance(embed, PackedHalf):
            return _float(g, g.node("Gather", self._half("embed", embed), ids, name="embed"))
        assert isinstance(embed, PackedInt8)
        codes, matrix = self._codes("embed", embed)
        blocks = g.node("Gather", codes, ids, name="embed")
        flat = g.node("Reshape", blocks, g.whole(0, 0, matrix.codes.shape[1] * matrix.block))
        rows = g.node("Slice", flat, g.whole(0), g.whole(embed.shape[1]), g.whole(2))
        values = g.node("Sub", _float(g, rows), g.number(128.0))
        assert matrix.behind is not None
        scales = g.node("Gather", g.constant("embed.scale", matrix.behind), ids)
        return g.node("Mul", values, g.node("Unsqueeze", scales, g.whole(2)))

    def _rotation(self, positions: str) -> tuple[str, str]:
        """Cosines and sines [B, 1, S, D/2]."""
        g, c = self.graph, self.config
        frequencies = g.constant("rotary.inv_freq", np.array(c.inv_freq, np.float32))
        angles = g.node(
            "Mul", g.node("Unsqueeze", _float(g, positions), g.whole(1, 3)), frequencies
        )
        cos, sin = (
            g.node("Mul", g.node(op, angles), g.number(c.rope_scaling)) for op in ("Cos", "Sin")
        )
        return cos, sin

    def _hidden(self, ids: str, mask: str) -> str:
        """What is added to the scores [B, 1, 1, S, T]: a token sees itself and those before it."""
        g, window = self.graph, self.config.sliding_window
        new = g.node("Shape", ids, start=1, end=2)
        total = g.node("Shape", mask, start=1, end=2)
        zero, one = (g.constant(f"int64 {k}", np.array(k, np.int64)) for k in (0, 1))
        last, first = g.node("Squeeze", total), g.node("Squeeze", g.node("Sub", total, new))
        keys = g.node("Unsqueeze", g.node("Range", zero, last, one), g.whole(0))
        queries = g.node("Unsqueeze", g.node("Range", first, last, one), g.whole(1))
        seen = g.node("LessOrEqual", keys, queries)
        if window:
            near = g.node("Greater", keys, g.node("Sub", queries, g.whole(window)))
            seen = g.node("And", seen, near)
        from onnx import TensorProto

        there = g.node("Cast", g.node("Unsqueeze", mask, g.whole(1, 2, 3)), to=TensorProto.BOOL)
        return g.node("Where", g.node("And", seen, there), g.number(0.0), g.number(HIDDEN))

    def _attention(self, i: int, x: str, turn: tuple[str, str], hidden: str) -> str:
        g, c, layer = self.graph, self.config, f"layers.{i}."
        heads = {}
        for name, count in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
            y = self._layer_linear(x, layer, name)
            y = g.node("Reshape", y, g.whole(0, 0, count, c.head_dim))
            if f"{layer}{name}_norm" in self.weights:
                y = self._norm(y, f"{layer}{name}_norm")
            y = g.node("Transpose", y, perm=[0, 2, 1, 3])
            heads[name] = self._rotate(y, turn) if name != "v" else y
        keys, values = self._seen(i, heads["k"], heads["v"])
        share = c.num_heads // c.num_kv_heads
        query = g.node("Reshape", heads["q"], g.whole(0, c.num_kv_heads, share, -1, c.head_dim))
        scores = g.node("MatMul", query, g.node("Unsqueeze", keys, g.whole(2)))
        scores = g.node("Mul", scores, g.number(c.head_dim**-0.5))
        weights = g.node("Softmax", g.node("Add", scores, hidden), axis=-1)
        mixed = g.node("MatMul", weights, g.node("Unsqueeze", values, g.whole(2)))
        mixed = g.node("Reshape", mixed, g.whole(0, c.num_heads, -1, c.head_dim))
        mixed = g.node("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = g.node("Reshape", mixed, g.whole(0, 0, c.num_heads * c.head_dim))
        if layer + "attn_sub_norm" in self.weights:
            mixed = self._norm(mixed, layer + "attn_sub_norm")
        return self._layer_linear(mixed, layer, "o")

    def _seen(self, i: int, keys: str, values: str) -> tuple[str, str]:
        """Past and new keys [B, G, D, T] and values [B, G, T, D], from the new [B, G, S, D]."""
        from onnx import TensorProto

        g, c = self.graph, self.config
        seen = []
        for new, full in ((keys, "key"), (values, "value")):
            shape = ["batch", c.num_kv_heads, "past", c.head_dim]
            past = self._input(f"past_key_values.{i}.{full}", TensorProto.FLOAT16, shape)
            half = g.node("Cast", new, to=TensorProto.FLOAT16)
            now = g.node("Concat", past, half, axis=2)
            shape = ["batch", c.num_kv_heads, "past_and_new", c.head_dim]
            self._output(f"present.{i}.{full}", now, TensorProto.FLOAT16, shape)
            seen.append(_float(g, now))
        return g.node("Transpose", seen[0], perm=[0, 1, 3, 2]), seen[1]

    def _rotate(self, x: str, turn: tuple[str, str]) -> str:
        g, (cos, sin) = self.graph, turn
        a, b = g.node("Split", x, outs=2, axis=3, num_outputs=2)
        left = g.node("Sub", g.node("Mul", a, cos), g.node("Mul", b, sin))
        right = g.node("Add", g.node("Mul", b, cos), g.node("Mul", a, sin))
        return g.node("Concat", left, right, axis=3)

    def _ffn(self, layer: str, x: str) -> str:
        g = self.graph
        gate, up = (self._layer_linear(x, layer, name) for name in ("gate", "up"))
        if self.config.activation == "silu":
            active = g.node("Mul", gate, g.node("Sigmoid", gate))
        else:
            positive = g.node("Relu", gate)
            active = g.node("Mul", positive, positive)
        hidden = g.node("Mul", active, up)
        if layer + "ffn_sub_norm" in self.weights:
            hidden = self._norm(hidden, layer + "ffn_sub_norm")
        return self._layer_linear(hidden, layer, "down")

    def _norm(self, x: str, name: str) -> str:
        """x / sqrt(mean(x^2) + eps) * weight."""
        g, weight = self.graph, self.weights[name]
        assert isinstance(weight, Tensor)
        mean = g.node("ReduceMean", g.node("Mul", x, x), g.whole(-1))
        root = g.node("Sqrt", g.node("Add", mean, g.number(self.config.rms_norm_eps)))
        one = g.node("Mul", x, g.node("Reciprocal", root))
        return g.node("Mul", one, g.constant(name, weight))

    def _layer_linear(self, x: str, layer: str, name: str) -> str:
        y = self._linear(x, layer + name, f"model.{layer}{LINEARS[name]}")
        bias = self.weights.get(f"{layer}{name}.bias")
        if bias is None:
            return y
        assert isinstance(bias, Tensor)
        return self.graph.node("Add", y, self.graph.constant(f"{layer}{name}.bias", bias))

    def _linear(self, x: str, key: str, module: str) -> str:
        """x W^T of the weight ``key``; the node is called ``module``."""
        g, weight = self.graph, self.weights[key]
        assert isinstance(weight, PackedWeight)
        if isinstance(weight, PackedHalf) and self.rest_bits is None:
            return self._half_product(x, key, weight, module)
        if isinstance(weight, PackedHalf):
            return self._product(x, key, weight, module)
        values, factor = self._quantise(x)
        y = self._product(values, key, weight, module)
        behind = self.matrices[module].behind
        if behind is not None:
            scale = g.constant(f"{key}.scale", behind)
            y = g.node("Mul", y, scale, name=f"{module}.scaled")
        return g.node("Mul", y, factor)

    def _half_product(self, x: str, key: str, weight: PackedHalf, module: str) -> str:
        g, matrix = self.graph, _float(self.graph, self._half(key, weight))
        return g.node("MatMul", x, g.node("Transpose", matrix, perm=[1, 0]), name=module)

    def _product(self, x: str, key: str, weight: PackedWeight, module: str) -> str:
        g = self.graph
        codes, matrix = self._codes(key, weight)
        self.matrices[module] = matrix
        given = [x, codes, g.constant(f"{key}.scales", matrix.scales)]
        if matrix.zero_points is not None:
            given.append(g.constant(f"{key}.zero_points", matrix.zero_points))
        N, K = matrix.shape
        sizes = {"N": N, "K": K, "bits": matrix.bits, "block_size": matrix.block}
        return g.node(OPERATOR, *given, name=module, accuracy_level=FLOAT32_ACCURACY, **sizes)

    def _codes(self, key: str, weight: PackedWeight) -> tuple[str, NBitsMatrix]:
        if isinstance(weight, PackedTernary):
            matrix = ternary_matrix(weight, self.bits)
        elif isinstance(weight, PackedInt8):
            matrix = int8_matrix(weight)
        elif isinstance(weight, PackedInt4):
            matrix = int4_matrix(weight)
        else:
            assert isinstance(weight, PackedHalf) and self.rest_bits is not None
            matrix = rounded_matrix(weight, self.rest_bits)
        return self.graph.constant(f"{key}.codes", matrix.codes), matrix

    def _half(self, key: str, weight: PackedHalf) -> str:
        return self.graph.constant(key, untile16(weight.tiles, *weight.shape))

    def _quantise(self, x: str) -> tuple[str, str]:
        """Whole numbers in -127..127 as float32, and what they are to be multiplied by; once for
        each input: q, k and v share theirs."""
        if x not in self._quantised:
            g = self.graph
            largest = g.node("ReduceMax", g.node("Abs", x), g.whole(-1))
            absmax = g.node("Max", largest, g.number(1e-5))
            step = g.node("Mul", g.node("Reciprocal", absmax), g.number(127.0))
            values = g.node("Round", g.node("Mul", x, step))
            self._quantised[x] = values, g.node("Div", absmax, g.number(127.0))
        return self._quantised[x]


def _float(graph: Graph, value: str) -> str:
    from onnx import TensorProto

    return graph.node("Cast", value, to=TensorProto.FLOAT)
