"""A GGUF file for llama.cpp and what is built on it, bitnet.cpp too, from a run's model folder.

Ternary codes and INT8 values are kept as they are (:mod:`workbench.export.blocks`), matrices in
high precision become bf16. llama.cpp quantises activations to INT8 by blocks of 32 or 256 inputs
where the workbench does it by token, so its logits are near ours and not the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from workbench.data.gguf_tokenizer import gguf_tokenizer
from workbench.engine.architecture import ACTIVATIONS, NotForKernels, eos_tokens, kernel_config
from workbench.errors import ConfigError
from workbench.export.blocks import (
    I2_S,
    NEWEST,
    Q8_0_SIZE,
    TERNARY_TYPES,
    WIDEST,
    BlockType,
    q4_0,
    q8_0,
    scale_error,
    ternary_blocks,
)
from workbench.export.parts import (
    MatrixModule,
    dense,
    matrices,
    norm_inside,
    refuse_rotation,
    vectors,
)
from workbench.export.vocabulary import (
    Vocabulary,
    end_of_turn,
    require_same_tokens,
    vocabulary,
    write_special_tokens,
)
from workbench.files import replacing
from workbench.gguf_reader import require_gguf
from workbench.ternary import i2_s
from workbench.ternary.packed_layers import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    PackedTernaryLinear,
)
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from gguf import GGUFWriter, TensorNameMap

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model type of the configuration -> llama.cpp's architecture."""
ROPE_TYPES = ("default", "linear", "llama3")
ROUNDED_ACTIVATIONS = (
    "llama.cpp rounds activations to INT8, which this model leaves as they are "
    "(model.activations: none): judge its quality again there"
)
NOT_AS_ASKED = "the file is llama.cpp's, of the types above alone"
Q8_0, BF16 = 8, 30
"""Numbers of types in a GGUF file."""


@dataclass
class Written:
    """What a file holds. types: block type -> matrices. instead: type -> ternary matrices that the
    wanted type could not hold. smaller: how many of them :data:`NEWEST` could. int8_instead: INT8
    matrices that Q8_0 could not hold. scale_error: the
    largest relative error of a scale in float16. notes: sentences for whoever asked for it."""

    wanted: BlockType
    size_bytes: int = 0
    types: Counter[str] = field(default_factory=Counter)
    instead: Counter[str] = field(default_factory=Counter)
    smaller: int = 0
    int8_instead: int = 0
    scale_error: float = 0.0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.types.items())
        lines = [f"{self.size_bytes / 1e6:.1f} MB, matrices: {counts}"]
        if self.types.keys() - {"BF16"}:
            lines[0] += f"; codes as they are, their scales within {self.scale_error:.2%} (float16)"
        for name, count in self.instead.items():
            what = "the same values, in more bytes" if name == WIDEST.name else "rounded"
            lines.append(
                f"{number_of(count, 'ternary matrix is', 'ternary matrices are')} {name}, {what}: "
                f"{self.wanted.name} needs rows that divide by {self.wanted.size}"
                + (
                    " and one scale a matrix"
                    if self.wanted.one_scale
                    else " and no scale a group"
                    if self.wanted.size > 128
                    else ""
                )
            )
        if self.int8_instead:
            lines.append(
                f"{number_of(self.int8_instead, 'INT8 matrix is', 'INT8 matrices are')} BF16, "
                f"rounded: Q8_0 needs rows that divide by {Q8_0_SIZE}"
            )
        if self.wanted is I2_S and self.types[I2_S.name]:
            lines.append("bitnet.cpp alone reads it, built for x86")
        elif self.instead and not self.types[self.wanted.name]:
            lines.append(f"no ternary matrix could be {self.wanted.name}: {NOT_AS_ASKED}")
        elif self.wanted is I2_S:
            lines.append(f"no matrix is ternary, so none is I2_S: {NOT_AS_ASKED}")
        if self.wanted is not I2_S and self.smaller and self.wanted.size > NEWEST.size:
            lines.append(
                f"--type {NEWEST.name.lower()} ({NEWEST.bits} bits a weight, rows that divide by "
                f"{NEWEST.size}) is smaller where llama.cpp is of 2026 or newer"
            )
        return "\n".join([*lines, *self.notes])


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    path: Path,
    wanted: str = "tq2_0",
    *,
    name: str,
    description: str = "",
) -> Written:
    """Write ``model``, packed or in full precision, to ``path``, whole or not at all.

    tokenizer: None for a file that takes token ids alone. wanted: of TERNARY_TYPES; a matrix that
    it cannot hold becomes Q4_0, or bf16 where that cannot either. name, description: for people.
    Raises ConfigError for a model or a tokenizer that llama.cpp would not compute as it is meant.
    """
    require_gguf()
    import gguf

    config, where = model.config, Path(model.config.name_or_path or name)
    _require_known(model)
    words = vocabulary(tokenizer, config.vocab_size, where) if tokenizer else Vocabulary("none")
    architecture = ARCHITECTURES[config.model_type]
    done = Written(TERNARY_TYPES[wanted])
    with replacing(path) as partial:
        writer = gguf.GGUFWriter(partial, architecture)
        writer.add_name(name)
        writer.add_description(description)
        _write_shape(writer, config)
        if done.wanted is I2_S and _holds_any(model, I2_S):
            writer.add_file_type(i2_s.FILE_TYPE)
        words.write(writer)
        if tokenizer:
            write_special_tokens(writer, tokenizer, eos_tokens(config))
        names = gguf.get_tensor_name_map(
            getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_hidden_layers
        )
        for tensor in _tensors(model, done):
            tensor.add_to(writer, names)
        if (factors := _rope_factors(config)) is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if tokenizer:
            count = require_same_tokens(tokenizer, gguf_tokenizer(partial), where)
            done.notes.append(_about_tokens(tokenizer, words, count))
        done.size_bytes = partial.stat().st_size
    return done


def _holds_any(model: PreTrainedModel, kind: BlockType) -> bool:
    return any(
        isinstance(module, PackedTernaryLinear) and kind.holds(module.in_features, module.scale)
        for module in matrices(model).values()
    )


def _about_tokens(tokenizer: PreTrainedTokenizerBase, words: Vocabulary, count: int) -> str:
    of = f"tokenizer {words.model}" + (f", cuts text as {words.pre}" if words.pre else "")
    said = f"{of}: the same tokens for {number_of(count, 'text')}"
    if tokenizer.chat_template is None:
        return f"{said}; no chat template"
    end = end_of_turn(tokenizer)
    turn = "no special token" if end is None else str(tokenizer.convert_ids_to_tokens(end))
    return f"{said}, conversations of its chat template among them; {turn} ends a turn"


@dataclass(frozen=True)
class _Tensor:
    """A tensor by its Hugging Face name. shape: of the values; data: bytes of a block type's rows,
    or the values themselves. type_id: None for what numpy's type says."""

    name: str
    data: np.ndarray
    shape: tuple[int, ...]
    type_id: int | None = None

    def add_to(self, writer: GGUFWriter, names: TensorNameMap) -> None:
        name = names.get_name(self.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ConfigError(
                f"{self.name} has no place in a GGUF file of this architecture",
                allowed="the tensors of Llama, Mistral, Qwen 2 and Qwen 3",
            )
        # As int8, because uint8 would make the writer derive the shape from a type that an
        # older gguf package may not know.
        data = self.data if self.type_id is None else self.data.view(np.int8)
        writer.add_tensor(name, data, raw_shape=self.shape, raw_dtype=self.type_id)


def _require_known(model: PreTrainedModel) -> None:
    config = model.config
    refuse_rotation(model, "cannot be written as GGUF")
    try:
        kernel_config(config)
    except NotForKernels as reason:
        raise _not_for_llama_cpp(str(reason)) from None
    family, rope = config.model_type, config.rope_parameters["rope_type"]
    if family not in ARCHITECTURES:
        raise _not_for_llama_cpp(f"model type {family!r}")
    if ACTIVATIONS[config.hidden_act] != "silu":
        raise _not_for_llama_cpp(f"activation {config.hidden_act!r}")
    if rope not in ROPE_TYPES or (rope == "llama3" and ARCHITECTURES[family] != "llama"):
        raise _not_for_llama_cpp(f"RoPE type {rope!r} in a model of type {family!r}")
    if family == "qwen3" and getattr(config, "attention_bias", False):
        raise _not_for_llama_cpp("biases in a model of type 'qwen3'")
    if name := norm_inside(model):
        raise _not_for_llama_cpp(f"{name} has a norm inside (model.sub_norm)")


def _not_for_llama_cpp(reason: str) -> ConfigError:
    return ConfigError(
        f"cannot be written as GGUF: {reason}",
        allowed="Llama, Mistral, Qwen 2 and Qwen 3 with SiLU, RoPE "
        f"{', '.join(ROPE_TYPES)}, and no norms inside linear layers",
        next_step="a Hugging Face folder (a name without .gguf) holds all but norms inside layers; "
        "workbench serve runs every model as it is",
    )


def _write_shape(writer: GGUFWriter, config: PretrainedConfig) -> None:
    import gguf

    shape = kernel_config(config)
    rope = config.rope_parameters
    writer.add_block_count(shape.num_layers)
    writer.add_context_length(_context(config, shape.sliding_window))
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _context(config: PretrainedConfig, sliding_window: int) -> int:
    """Positions up to which llama.cpp, which knows no window here, computes the same."""
    return min(config.max_position_embeddings, sliding_window or config.max_position_embeddings)


def _rope_factors(config: PretrainedConfig) -> np.ndarray | None:
    """float32 [head_dim/2]: what Llama 3 divides each frequency by; None for the others."""
    if config.rope_parameters["rope_type"] != "llama3":
        return None
    shape = kernel_config(config)
    exponent = np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim
    plain = config.rope_parameters["rope_theta"] ** -exponent
    return (plain / np.array(shape.inv_freq)).astype(np.float32)


def _tensors(model: PreTrainedModel, done: Written) -> Iterator[_Tensor]:
    order = _rows_by_pairs(model.config)
    for name, module in matrices(model).items():
        yield _matrix_tensor(f"{name}.weight", module, order(name), done)
    for name, value in vectors(model).items():
        rows = order(name.removesuffix(".bias"))
        yield _Tensor(name, value.numpy() if rows is None else value[rows].numpy(), value.shape)


def _rows_by_pairs(config: PretrainedConfig) -> Any:
    """Module name -> the order of its rows in the file, None for as they are.

    llama.cpp's architecture ``llama`` turns neighbouring elements of a head, Hugging Face's models
    elements half a head apart: the rows of q and k change places so that both mean the same.
    """
    shape = kernel_config(config)
    heads = {"q_proj": shape.num_heads, "k_proj": shape.num_kv_heads}

    def order(name: str) -> Tensor | None:
        count = heads.get(name.rpartition(".")[2])
        if count is None or ARCHITECTURES[config.model_type] != "llama":
            return None
        rows = torch.arange(count * shape.head_dim).view(count, 2, shape.head_dim // 2)
        return rows.transpose(1, 2).flatten()

    return order


def _matrix_tensor(name: str, module: MatrixModule, rows: Tensor | None, done: Written) -> _Tensor:
    def ordered(x: Tensor) -> Tensor:
        return x if rows is None or len(x) == 1 else x[rows]

    if isinstance(module, PackedTernaryLinear):
        if module.activations != "int8" and ROUNDED_ACTIVATIONS not in done.notes:
            done.notes.append(ROUNDED_ACTIVATIONS)
        K, shape = module.in_features, (module.out_features, module.in_features)
        kind = next((t for t in (done.wanted, WIDEST) if t.holds(K, module.scale)), None)
        if kind is not done.wanted:
            done.instead["BF16" if kind is None else kind.name] += 1
            done.smaller += NEWEST.holds(K, module.scale)
        if kind is not None:
            done.types[kind.name] += 1
            data, error = ternary_blocks(
                kind, ordered(module.codes), ordered(module.scale), K, name
            )
            done.scale_error = max(done.scale_error, error)
            return _Tensor(name, data, shape, kind.id)
    elif isinstance(module, Int8Linear | Int8Embedding) and module.int8.shape[1] % Q8_0_SIZE == 0:
        done.types["Q8_0"] += 1
        # A row of zeros, as checkpoints have for tokens that are none, has the smallest scale.
        scale = ordered(torch.where(module.int8.any(dim=1), module.scale, 1.0)).numpy()
        done.scale_error = max(done.scale_error, scale_error(scale, name))
        return _Tensor(name, q8_0(ordered(module.int8).numpy(), scale), module.int8.shape, Q8_0)
    elif isinstance(module, Int4Linear) and module.in_features % WIDEST.size == 0:
        done.types[WIDEST.name] += 1  # its codes and scales to the bit
        data = q4_0(ordered(module.values()).numpy(), ordered(module.scale).numpy())
        return _Tensor(name, data, (module.out_features, module.in_features), WIDEST.id)
    if isinstance(module, Int8Linear | Int8Embedding):
        done.int8_instead += 1
    done.types["BF16"] += 1
    bits = ordered(dense(module)).bfloat16().contiguous().view(torch.int16).numpy()
    return _Tensor(name, bits, bits.shape, BF16)
