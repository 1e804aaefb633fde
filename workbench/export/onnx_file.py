"""An ONNX file for onnxruntime and the accelerators behind it, from a model folder of a run.

What it computes is :mod:`.onnx_graph`, how its matrices are held :mod:`workbench.ternary.nbits`:
ternary and INT8 codes are kept as they are, so the greedy tokens are the engine's own. The
tokenizer is no part of the format. A file above :data:`LARGEST_FILE` has its matrices in a second
one beside it, as protobuf demands.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from workbench.engine.architecture import NotForKernels, eos_tokens, kernel_config
from workbench.engine.modules import ModelSource
from workbench.engine.onnx_graph import LlamaGraph
from workbench.engine.weights import collect_weights
from workbench.errors import ConfigError
from workbench.export.parts import refuse_rotation
from workbench.files import replacing
from workbench.ternary.nbits import DOMAIN, LUT_ROWS, Bits
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

OPSET, IR_VERSION = 21, 10
"""Of 2024: what onnxruntime reads since 1.20."""
LARGEST_FILE = 1_900_000_000
"""Bytes; protobuf refuses 2 GiB."""
SMALL_TENSOR = 1024
"""Bytes; what is smaller stays in the file."""


@dataclass(frozen=True)
class WrittenOnnx:
    """bits: of matrices -> how many. for_lut: ternary matrices whose rows onnxruntime's table
    look-up takes. rounded: matrices in high precision that were rounded. beside: the file with the
    matrices, where they are apart."""

    size_bytes: int
    bits: Counter[int]
    ternary: int
    for_lut: int
    rounded: int
    beside: Path | None

    def __str__(self) -> str:
        counts = ", ".join(f"{n} of {b} bits" for b, n in sorted(self.bits.items()))
        lines = [
            f"{self.size_bytes / 1e6:.1f} MB, MatMulNBits: {counts}; codes and scales as they are"
        ]
        if self.rounded:
            lines.append(
                f"{number_of(self.rounded, 'matrix')} in high precision are rounded: judge its "
                "quality again"
            )
        if self.bits[2]:
            lines.append(
                f"{self.for_lut} of {number_of(self.ternary, 'ternary matrix')} suit onnxruntime's "
                f"table look-up (outputs that divide by {LUT_ROWS}; session option "
                "mlas.use_lut_gemm), which rounds activations once more"
            )
        if self.beside:
            lines.append(f"the matrices are in {self.beside.name}, which belongs beside it")
        return "\n".join([*lines, "the tokenizer is no part of it: it stays in the model's folder"])


def require_onnx() -> None:
    """ConfigError without the package that writes the format."""
    if find_spec("onnx") is None:
        raise ConfigError(
            "ONNX files need the package onnx, which is not installed",
            next_step="pip install -c constraints.txt -e '.[onnx]'",
        )


def write_onnx(
    model: PreTrainedModel,
    path: Path,
    *,
    name: str,
    description: str = "",
    bits: Bits = 2,
    rest_bits: Bits | None = None,
) -> WrittenOnnx:
    """Write ``model``, packed or in full precision, to ``path``, whole or not at all.

    bits: of ternary layers; all hold the same codes. rest_bits: 4 or 8 for linear layers in high
    precision, which rounds them; None leaves them in bf16. name, description: for people.
    Raises ConfigError for a model that the graph cannot say.
    """
    require_onnx()
    from onnx import helper

    family, where = model.config.model_type, f"{name} cannot be written as ONNX"
    refuse_rotation(model, where)
    try:
        shape = kernel_config(model.config)
        tied = model.get_output_embeddings() is None or model.config.tie_word_embeddings
        weights = collect_weights(shape, family, tied and not _own_head(model), ModelSource(model))
    except NotForKernels as reason:
        raise ConfigError(
            f"{where}: {reason}",
            allowed="what the engine's own kernels run: Llama, Mistral, Qwen 2, Qwen 3 and BitNet "
            "with INT8 activations and no norms inside linear layers",
            next_step="workbench serve runs every model as it is",
        ) from None
    built = LlamaGraph(shape, weights, bits, rest_bits)
    parts = built.build()
    graph = helper.make_graph(
        parts.nodes, name, parts.inputs, parts.outputs, list(parts.constants.values())
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    made.producer_name, made.doc_string = "ternary-workbench", description
    helper.set_model_props(made, _properties(model, shape.num_layers))
    size, beside = _write(made, path)
    matrices = built.matrices.values()
    ternary = [m for m in matrices if m.bits == 2]
    return WrittenOnnx(
        size,
        Counter(m.bits for m in matrices),
        len(ternary),
        sum(m.shape[0] % LUT_ROWS == 0 for m in ternary),
        sum(m.block != 128 for m in matrices),
        beside,
    )


def _own_head(model: PreTrainedModel) -> bool:
    pair = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, head = (getattr(module, "weight", None) for module in pair)
    return embedding is not None and head is not None and embedding is not head


def _properties(model: PreTrainedModel, layers: int) -> dict[str, str]:
    config = model.config
    return {
        "model_type": config.model_type,
        "num_hidden_layers": str(layers),
        "context_length": str(config.max_position_embeddings),
        "eos_token_ids": json.dumps(sorted(eos_tokens(config))),
        "bos_token_id": json.dumps(config.bos_token_id),
    }


def _write(made: ModelProto, path: Path) -> tuple[int, Path | None]:
    """Bytes of all that was written, and the second file where there is one."""
    tensors = [t for t in made.graph.initializer if len(t.raw_data) > SMALL_TENSOR]
    beside = None
    apart = 0
    if sum(len(t.raw_data) for t in tensors) > LARGEST_FILE:
        beside = path.with_name(path.name + ".data")
        apart = _write_apart(tensors, beside)
    with replacing(path) as partial:
        partial.write_bytes(made.SerializeToString(deterministic=True))
        return partial.stat().st_size + apart, beside


def _write_apart(tensors: list[TensorProto], beside: Path) -> int:
    from onnx import TensorProto

    at = 0
    with replacing(beside) as partial, partial.open("wb") as file:
        for tensor in tensors:
            size = file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            fields = {"location": beside.name, "offset": str(at), "length": str(size)}
            for key, value in fields.items():
                tensor.external_data.add(key=key, value=value)
            at += size
    return at
