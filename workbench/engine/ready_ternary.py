"""A ready ternary model of others, taken in as a packed folder of the workbench, code by code.

It needs no training: its codes and scales are what its authors trained, and they are kept as they
are, whatever they were packed as. From there on it is an arm like any other: the engine, the
server, ``workbench check`` and ``workbench export`` read the packed folder.

Read are the workbench's own packed and master folders, Hugging Face's BitNet folders (both scale
conventions, packed or to be quantised when used, Falcon-E) and GGUF files whose layers are TQ1_0,
TQ2_0, Q2_0 or I2_S. What a GGUF file keeps in other types stays as it is, in bf16 or, for rows
of one INT8 scale and for a ternary embedding, in INT8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from ternary_kernels.quantizers import GROUP, quantize_int8
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from workbench.engine.bitnet_checkpoint import BitnetCheckpoint
from workbench.engine.build import read_config
from workbench.errors import ConfigError, StageError, reason_of
from workbench.gguf_reader import Blocks, GgufFile, is_gguf, read_gguf
from workbench.model.gguf_checkpoint import (
    gguf_config,
    hf_names,
    require_same_names,
    rows_as_in_transformers,
)
from workbench.ternary.convert import bit_linears
from workbench.ternary.manifest import NAME as MANIFEST
from workbench.ternary.manifest import Manifest, read_json_object
from workbench.ternary.master import load_master
from workbench.ternary.packed import load_packed
from workbench.ternary.packed_layers import Int8Embedding, Int8Linear, PackedTernaryLinear
from workbench.ternary.policy import Precision
from workbench.ternary.quantize import ternarize
from workbench.ternary.threshold import Granularity, ThresholdVersion
from workbench.wording.counts import number_of

GRANULARITIES: tuple[Granularity, ...] = ("tensor", "row", "group128")
ONLINE = ThresholdVersion()
"""How transformers makes unpacked BitNet weights ternary when it uses them."""
Layers = dict[str, nn.Module]
HUB = "hf:"


@dataclass(frozen=True)
class ReadyTernary:
    """model: on the CPU, its layers packed (BitLinears of a master folder). precisions: of all of
    them. threshold: the version that the packed folder will name; of a GGUF file only the
    granularity is known, and the rule, absmean, is the usual one. format: in words."""

    model: PreTrainedModel
    precisions: dict[str, Precision]
    threshold: ThresholdVersion
    format: str

    @property
    def ternary_parameters(self) -> int:
        layers: list[Any] = [self.model.get_submodule(name) for name in self._ternary]
        return sum(layer.in_features * layer.out_features for layer in layers)

    @property
    def body_parameters(self) -> int:
        """Parameters outside embedding and head, codes counted as such."""
        outside = {id(self.model.get_input_embeddings()), id(self.model.get_output_embeddings())}
        total = 0
        for module in self.model.modules():
            if id(module) in outside:
                continue
            if isinstance(module, PackedTernaryLinear):
                total += module.in_features * module.out_features
            elif isinstance(module, Int8Linear):
                total += module.int8.numel()
            total += sum(p.numel() for p in module.parameters(recurse=False))
        return total

    @property
    def _ternary(self) -> list[str]:
        return [name for name, its in self.precisions.items() if its == "ternary"]


def local_path(name: str) -> Path:
    """A ready ternary model's file or folder; ``hf:owner/name`` is fetched first.

    Raises ConfigError where the Hub does not give it.
    """
    if not name.startswith(HUB):
        return Path(name)
    try:
        found = snapshot_download(name.removeprefix(HUB), ignore_patterns=["*.bin", "*.gguf"])
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ConfigError(
            f"model.ternary {name} cannot be had: {reason_of(error)}",
            next_step="check the name and the network; offline, download it where there is a "
            "network and give the folder instead of hf:owner/name",
        ) from error
    return Path(found)


def load_ready_ternary(path: Path, say: Callable[[str], None]) -> ReadyTernary:
    """Read a ready ternary model. ``say`` is told what could not be kept as it was.

    Raises ConfigError or StageError for what is none, is damaged, or needs a transform that is
    not computed here.
    """
    if is_gguf(str(path)):
        return _of_gguf(read_gguf(path), say)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"model.ternary {path} {'has no config.json' if path.is_dir() else 'is no folder'}",
            allowed="a packed folder, a Hugging Face BitNet folder or a .gguf file",
        )
    if (path / MANIFEST).exists():
        return _of_the_workbench(path)
    return _of_hugging_face(path)


def ready_config(path: Path) -> PretrainedConfig:
    """The configuration of a ready ternary model, without its weights; errors as above."""
    if is_gguf(str(path)):
        file = read_gguf(path)
        _require_ternary_gguf(file)
        return gguf_config(file)
    config = read_config(path)
    if not (path / MANIFEST).exists():
        _bitnet(path, config)
    return config


def _of_the_workbench(folder: Path) -> ReadyTernary:
    if read_json_object(folder / MANIFEST).get("kind") == "master":
        model = load_master(folder)
        layers = bit_linears(model)
        precisions: dict[str, Precision] = dict.fromkeys((name for name, _ in layers), "ternary")
        return ReadyTernary(model, precisions, layers[0][1].threshold, "ternary master weights")
    manifest = Manifest.read(folder)
    if not manifest.named("ternary"):
        raise _not_ternary(folder)
    own = {name: entry.precision for name, entry in manifest.layers.items()}
    return ReadyTernary(load_packed(folder), own, manifest.threshold, "packed folder")


def _of_hugging_face(folder: Path) -> ReadyTernary:
    config = read_config(folder)
    bitnet = _bitnet(folder, config)
    tensors = _Tensors(folder)
    del config.quantization_config
    model = _empty(config)
    layers: Layers = {}
    packed = False
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not bitnet.converts(name):
            continue
        if name == "lm_head" and f"{name}.weight" not in tensors:
            continue  # tied, and an embedding is not packed
        weight, bias = tensors.take(f"{name}.weight"), tensors.take(f"{name}.bias", needed=False)
        bias = None if bias is None else bias.float()
        if weight.dtype == torch.uint8:
            packed = True
            codes = bitnet.codes(weight)
            if bool((codes == 3).any()):
                raise _damaged(folder, f"{name}.weight holds the forbidden code 3")
            try:
                stored = tensors.take(f"{name}.weight_scale", needed=False)
                values, scale = codes.char() - 1, bitnet.scale(name, stored)
            except ValueError as error:
                raise _damaged(folder, str(error)) from error
        else:
            values, scale = ternarize(weight, ONLINE)
        if tuple(values.shape) != (module.out_features, module.in_features):
            raise _damaged(
                folder, f"{name} is {list(values.shape)}, not {list(module.weight.shape)}"
            )
        layers[name] = PackedTernaryLinear.from_values(values, scale, bias=bias)
    stored_as = "packed" if packed else "weights that are made ternary when used"
    rest = {name: tensors.take(name) for name in tensors.left()}
    return _assembled(
        folder, model, layers, rest, ONLINE, f"Hugging Face BitNet folder, {stored_as}"
    )


def _of_gguf(file: GgufFile, say: Callable[[str], None]) -> ReadyTernary:
    _require_ternary_gguf(file)
    config = gguf_config(file)
    names = hf_names(file)
    model = _empty(config)
    require_same_names(file, model, names.values())
    codes: dict[str, tuple[Tensor, np.ndarray]] = {}
    layers: Layers = {}
    rest: dict[str, Tensor] = {}
    for stored, name in names.items():
        tensor, module = file.tensors[stored], name.removesuffix(".weight")

        def ordered(value: np.ndarray, name: str = name) -> np.ndarray:
            return rows_as_in_transformers(file, name, value)

        is_table = module in ("model.embed_tokens", "lm_head")
        if len(tensor.shape) == 2 and (blocks := tensor.blocks()) is not None and not is_table:
            codes[module] = torch.from_numpy(ordered(blocks.codes)), ordered(blocks.scales)
        elif (rows := tensor.int8_rows()) is not None:
            int8, scale = (torch.from_numpy(ordered(each)) for each in rows)
            kind = Int8Embedding if module == "model.embed_tokens" else Int8Linear
            layers[module] = kind(int8, scale)
        elif is_table and isinstance(tensor.blocks(), Blocks):
            say(f"model.ternary {file.path}: {module} is ternary there and INT8 here")
            int8, scale = quantize_int8(torch.from_numpy(tensor.values()))
            kind = Int8Embedding if module == "model.embed_tokens" else Int8Linear
            layers[module] = kind(int8, scale)
        else:
            rest[name] = torch.from_numpy(ordered(tensor.values()))
    granularity = max(
        (_granularity(file, name, scales, layer.shape[1]) for name, (layer, scales)
         in codes.items()), key=GRANULARITIES.index,
    )  # fmt: skip
    for name, (values, scales) in codes.items():
        scale, bias = _scale(scales, values.shape[1], granularity), rest.pop(f"{name}.bias", None)
        layers[name] = PackedTernaryLinear.from_values(values, scale, bias=bias)
    kinds = sorted({file.tensors[s].type_name for s, name in names.items()
                    if name.removesuffix(".weight") in codes})  # fmt: skip
    threshold = ThresholdVersion(granularity=granularity)
    words = f"GGUF file ({', '.join(kinds)})"
    return _assembled(file.path, model, layers, rest, threshold, words)


def _assembled(
    where: Path,
    model: PreTrainedModel,
    layers: Layers,
    rest: dict[str, Tensor],
    threshold: ThresholdVersion,
    words: str,
) -> ReadyTernary:
    """``model``, which is empty, with ``layers`` in their places and all the rest from tensors."""
    tied = model.config.tie_word_embeddings
    for name, layer in layers.items():
        model.set_submodule(name, layer, strict=True)
    table = layers.get("model.embed_tokens")
    if tied and isinstance(table, Int8Embedding):
        model.lm_head = Int8Linear(table.int8, table.scale)
    wanted = model.state_dict()
    floats = {name: value.float() for name, value in rest.items()}
    inside = {f"{name}.{key}" for name in layers for key in ("codes", "scale", "int8", "bias")}
    if tied:
        inside |= {"lm_head.weight", "lm_head.int8", "lm_head.scale"}
    for says, names in (
        ("lacks", wanted.keys() - floats.keys() - inside),
        ("holds, beyond its model,", floats.keys() - wanted.keys()),
    ):
        if names:
            raise _damaged(
                where, f"{says} {number_of(len(names), 'tensor')}: {', '.join(sorted(names)[:3])}"
            )
    for name, value in floats.items():
        if value.shape != wanted[name].shape:
            shapes = f"{list(value.shape)}, not {list(wanted[name].shape)}"
            raise _damaged(where, f"{name} is {shapes}")
        if not bool(value.isfinite().all()):
            raise _damaged(where, f"{name} holds values that are not finite")
    model.load_state_dict(floats, strict=False, assign=True)
    if tied and not isinstance(table, Int8Embedding):
        model.tie_weights()
    precisions: dict[str, Precision] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedTernaryLinear):
            precisions[name] = "ternary"
        elif isinstance(module, Int8Linear | Int8Embedding):
            precisions[name] = "int8"
    return ReadyTernary(model.eval(), precisions, threshold, words)


class _Tensors:
    """The tensors of a folder's safetensors files, read once each, when they are taken."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._taken = folder, set[str]()
        self._of: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise _damaged(folder, f"{path.name} cannot be read: {reason_of(error)}") from error
            self._of |= dict.fromkeys(file.keys(), file)

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def take(self, name: str, *, needed: bool = True) -> Any:
        if name not in self._of:
            if needed:
                raise _damaged(self._folder, f"has no tensor {name}")
            return None
        self._taken.add(name)
        return self._of[name].get_tensor(name)

    def left(self) -> Iterator[str]:
        return iter([name for name in self._of if name not in self._taken])


def _granularity(file: GgufFile, name: str, scales: np.ndarray, K: int) -> Granularity:
    """The coarsest granularity of ours that says all block scales [N, K/B]."""
    B = K // scales.shape[1]
    if (scales == scales.flat[0]).all():
        return "tensor"
    if (scales == scales[:, :1]).all():
        return "row"
    each = max(1, GROUP // B)
    first = np.repeat(scales[:, ::each], each, axis=1)[:, : scales.shape[1]]
    if (B % GROUP == 0 or GROUP % B == 0) and (scales == first).all():
        return "group128"
    raise ConfigError(
        f"model.ternary {file.path}: {name} has a scale for every {B} inputs",
        allowed=f"one scale a tensor, a row or {GROUP} inputs",
        next_step="give the model in another format, such as its Hugging Face folder",
    )


def _scale(scales: np.ndarray, K: int, granularity: Granularity) -> Tensor:
    """Block scales [N, K/B] as ours: [1], [N] or [N, ceil(K/128)]."""
    B = K // scales.shape[1]
    if granularity == "tensor":
        return torch.tensor([float(scales.flat[0])])
    if granularity == "row":
        return torch.from_numpy(np.ascontiguousarray(scales[:, 0]))
    groups = -(-K // GROUP)
    inputs = np.repeat(scales, B, axis=1)[:, ::GROUP]
    return torch.from_numpy(np.ascontiguousarray(inputs[:, :groups]))


def _require_ternary_gguf(file: GgufFile) -> None:
    file.refuse_turned()
    if not file.is_ternary():
        raise _not_ternary(file.path)


def _bitnet(folder: Path, config: PretrainedConfig) -> BitnetCheckpoint:
    bitnet = BitnetCheckpoint.of(getattr(config, "quantization_config", None), folder)
    if bitnet is None:
        raise _not_ternary(folder)
    return bitnet


def _empty(config: PretrainedConfig) -> PreTrainedModel:
    with no_init_weights(), init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _not_ternary(path: Path) -> ConfigError:
    return ConfigError(
        f"model.ternary {path} is not ternary: none of its layers holds codes",
        allowed="a packed folder, a Hugging Face BitNet folder, or a GGUF file whose layers are "
        "TQ1_0, TQ2_0, Q2_0 or I2_S",
        next_step="a model in full precision is named as model.checkpoint",
    )


def _damaged(path: Path, what: str) -> StageError:
    return StageError(
        f"model.ternary {path}: {what}",
        next_step="the files are damaged or of another tool: copy or make them again",
    )
