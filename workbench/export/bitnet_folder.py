"""A Hugging Face folder in its BitNet format, which ``transformers`` and what reads it load.

Ternary layers with one scale a tensor keep their codes: ``weight`` uint8 ``[out/4, in]``, code =
w + 1, where with R = out/4 byte ``[r, c]`` holds the rows r, r + R, r + 2R and r + 3R at bits 0, 2,
4 and 6, and ``weight_scale``. Of the format's two layer classes ``autobitlinear`` multiplies by
that scale, the bias included, which is right for a layer without one; ``bitlinear`` divides by it
and adds the bias afterwards. So models with biases (Qwen 2) get ``bitlinear`` and 1/scale.

The format knows nothing else that is quantised. The rest, scales and norms included, is bf16,
because transformers gives a quantised model no other type than its file's; matrices that are not
packed are named in ``modules_to_not_convert``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from ternary_kernels.packing import unpack_portable
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.errors import ConfigError
from workbench.export.parts import (
    MatrixModule,
    dense,
    matrices,
    norm_inside,
    refuse_rotation,
    vectors,
)
from workbench.ternary.folder import replacing_folder
from workbench.ternary.packed_layers import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    PackedTernaryLinear,
)
from workbench.wording.counts import number_of

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class WrittenFolder:
    """ternary: layers that keep their codes. widened: quantised ones that became bf16.
    scale_error: the largest relative error of a scale in bf16."""

    size_bytes: int
    ternary: list[str]
    widened: list[str]
    scale_error: float

    def __str__(self) -> str:
        text = (
            f"{self.size_bytes / 1e6:.1f} MB, {number_of(len(self.ternary), 'ternary layer')} "
            f"packed: codes as they are, their scales within {self.scale_error:.2%} (bf16)"
        )
        if self.widened:
            text += (
                f"; rounded to bf16, because the format has no place for them: "
                f"{', '.join(self.widened[:3])}"
            )
            text += " ..." if len(self.widened) > 3 else ""
        return text


def write_bitnet_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> WrittenFolder:
    """Write a packed ``model`` to ``folder``, whole or not at all.

    Raises ConfigError for a model that transformers would compute differently: without a layer
    that keeps its codes, with activations that are not INT8, or with norms inside its layers.
    """
    parts = matrices(model)
    ternary = [name for name, module in parts.items() if _keeps_codes(module)]
    _require_sayable(model, ternary)
    tensors = {name: value.bfloat16() for name, value in vectors(model).items()}
    divides = any(parts[name].bias is not None for name in ternary)
    scale_error = 0.0
    for name, module in parts.items():
        if name in ternary:
            exact = 1 / module.scale if divides else module.scale
            scale = tensors[f"{name}.weight_scale"] = exact.bfloat16()
            scale_error = max(scale_error, float((scale / exact - 1).abs()))
            tensors[f"{name}.weight"] = _rows_a_quarter_apart(module)
        else:
            tensors[f"{name}.weight"] = dense(module).bfloat16().contiguous()
    config = copy.deepcopy(model.config)
    config.dtype = torch.bfloat16
    config.quantization_config = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear" if divides else "autobitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": _precise_layers(model, ternary),
    }
    with replacing_folder(folder) as partial:
        config.save_pretrained(partial)
        model.generation_config.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        save_file(dict(sorted(tensors.items())), partial / WEIGHTS, metadata={"format": "pt"})
        size = (partial / WEIGHTS).stat().st_size
    quantised = PackedTernaryLinear | Int8Linear | Int4Linear | Int8Embedding
    widened = [n for n, m in parts.items() if isinstance(m, quantised) and n not in ternary]
    return WrittenFolder(size, ternary, widened, scale_error)


def _keeps_codes(module: MatrixModule) -> bool:
    is_ternary = isinstance(module, PackedTernaryLinear)
    return is_ternary and module.scale.numel() == 1 and module.out_features % 4 == 0


def _rows_a_quarter_apart(layer: PackedTernaryLinear) -> Tensor:
    quarters = unpack_portable(layer.codes, layer.in_features).chunk(4)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def _precise_layers(model: PreTrainedModel, ternary: list[str]) -> list[str]:
    """Linear layers that are not packed, a head tied to the embedding included."""
    linear = nn.Linear | PackedTernaryLinear | Int8Linear | Int4Linear
    return [n for n, m in model.named_modules() if isinstance(m, linear) and n not in ternary]


def _require_sayable(model: PreTrainedModel, ternary: list[str]) -> None:
    refuse_rotation(model, "cannot be written as a Hugging Face BitNet folder")
    if not ternary:
        raise ConfigError(
            "no layer of this model keeps its ternary codes in Hugging Face's BitNet format",
            allowed="ternary layers with one scale a tensor (model.threshold.granularity: tensor)",
            next_step="a GGUF file holds scales a row or a group, INT8 and full precision too: "
            "give a name that ends in .gguf",
        )
    norm = norm_inside(model)
    precise = next((n for n in ternary if model.get_submodule(n).activations != "int8"), None)
    if norm or precise:
        what = f"{norm} has a norm inside (model.sub_norm)" if norm else (
            f"{precise} leaves its activations as they are (model.activations: none)"
        )  # fmt: skip
        raise ConfigError(
            f"{what}, which Hugging Face's BitNet format cannot say",
            allowed="layers with INT8 activations and no norm of their own",
            next_step="workbench serve runs the folder as it is",
        )
