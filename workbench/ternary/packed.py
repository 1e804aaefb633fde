"""Packed model folders: written whole or not at all, read with every doubt raised.

The format is in docs/design.md. Ternary codes, INT8 and INT4 values and their scales are what
the model computes with; of the rest, matrices in high precision are stored as bf16, norms and
biases as they are. Tied modules are stored once, under the first's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from ternary_kernels.quantizers import INT4_GROUP
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from workbench.errors import ConfigError
from workbench.pilot.problems import did_you_mean
from workbench.ternary.bitlinear import Activations, NormedLinear
from workbench.ternary.folder import replacing_folder
from workbench.ternary.manifest import LayerEntry, Manifest
from workbench.ternary.packed_layers import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    Packed,
    PackedTernaryLinear,
    pack_layer,
)
from workbench.ternary.policy import PRECISIONS, Precision, require_width
from workbench.ternary.quantize import scale_shape
from workbench.ternary.threshold import ThresholdVersion
from workbench.wording.counts import number_of

WEIGHTS = "model.safetensors"


def save_packed(
    model: PreTrainedModel,
    folder: str | Path,
    precisions: Mapping[str, Precision],
    threshold: ThresholdVersion,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write ``model`` to ``folder`` with the layers of ``precisions`` packed; others stay precise.

    precisions: module name -> ``ternary`` (a quarter of a byte a weight), ``int4`` (half a byte),
    ``int8`` (one byte) or ``high_precision`` (bf16), as a conversion's report has them. ``model``
    may hold BitLinears, plain linear layers and packed ones; it is not changed. An existing folder
    is replaced only when the new one is whole on the disk.

    Raises ConfigError for a name that is no linear layer or embedding, a BitLinear with another
    threshold version, a layer too wide for the kernels, tied modules with two precisions, and
    weights that are not finite.

    >>> import tempfile
    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import Engine, load_packed, save_packed, to_ternary
    >>> model = AutoModelForCausalLM.from_config(LlamaConfig(
    ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...     vocab_size=50))
    >>> report = to_ternary(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_packed(model, f"{folder}/packed", report.precisions, report.threshold)
    ...     with Engine.load(f"{folder}/packed") as engine:
    ...         engine.logits([3, 1, 4]).shape
    (3, 50)
    """
    folder = Path(folder)
    modules = _packable(model)
    manifest = _plan(modules, precisions, threshold)
    tensors: dict[str, Tensor] = {}
    for name in modules.keys() - manifest.later_of_ties():
        _require_finite(name, modules[name])
        precision = manifest.layers[name].precision
        form = pack_layer(modules[name], precision, threshold, manifest.activations)
        for key, value in form.state_dict().items():
            dtype = torch.bfloat16 if key == "weight" else value.dtype
            tensors[f"{name}.{key}"] = value.to("cpu", dtype).contiguous()
    owned = tuple(f"{name}." for name in modules)
    for key, value in model.state_dict().items():
        if not key.startswith(owned):
            tensors[key] = value.to("cpu").contiguous()
    with replacing_folder(folder) as partial:
        model.config.save_pretrained(partial)
        if model.can_generate():
            model.generation_config.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        manifest.write(partial)
        save_file(dict(sorted(tensors.items())), partial / WEIGHTS, metadata={"format": "pt"})


def load_packed(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    expect: ThresholdVersion | None = None,
) -> PreTrainedModel:
    """The model of a packed folder, on the CPU, in evaluation mode; for speed take ``Engine``.

    dtype: of computation, and of what the file keeps in high precision. expect: the threshold
    version the caller needs; None takes the file's.

    Raises ConfigError naming the file or tensor for anything missing, left over, truncated, of
    another shape, or with a forbidden code or scale, and for what ``dtype`` cannot hold.

    >>> import tempfile, torch
    >>> from transformers import AutoModelForCausalLM, LlamaConfig
    >>> from workbench.api import load_packed, save_packed, to_ternary
    >>> model = AutoModelForCausalLM.from_config(LlamaConfig(
    ...     hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...     vocab_size=50))
    >>> report = to_ternary(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_packed(model, f"{folder}/packed", report.precisions, report.threshold)
    ...     loaded = load_packed(f"{folder}/packed", expect=report.threshold)
    >>> loaded(torch.tensor([[3, 1, 4]])).logits.shape
    torch.Size([1, 3, 50])
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    manifest.threshold.require(expect, str(folder))
    tensors = read_tensors(folder)
    model = _skeleton(folder, manifest, dtype)
    scales = {f"{name}.scale" for name in manifest.layers}
    found = {
        key: _cast(folder, key, value, dtype)
        if value.is_floating_point() and key not in scales
        else value
        for key, value in tensors.items()
    }
    shared = tuple(f"{name}." for name in manifest.later_of_ties())
    wanted = {k: v for k, v in model.state_dict().items() if not (shared and k.startswith(shared))}
    _require_same_tensors(folder, wanted, found)
    if problems := content_problems(manifest, tensors):
        raise _damaged(folder, problems[0])
    model.load_state_dict(found, strict=False, assign=True)
    for first, *others in manifest.tied:
        for other in others:
            _share(model.get_submodule(first), model.get_submodule(other))
    return model.eval()


def content_problems(manifest: Manifest, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the packed tensors themselves; each sentence starts with a name."""
    problems = []
    for name, entry in manifest.layers.items():
        if entry.precision == "high_precision" or name in manifest.later_of_ties():
            continue
        N, K = entry.out_features, entry.in_features
        if entry.precision == "ternary":
            kind, dtype, shape = "codes", torch.uint8, (N, -(-K // 4))
            scale_like = scale_shape(N, K, manifest.threshold.granularity)
        elif entry.precision == "int4":
            kind, dtype, shape = "int4", torch.uint8, (N, -(-K // 2))
            scale_like = (N, -(-K // INT4_GROUP))
        else:
            kind, dtype, shape = "int8", torch.int8, (N, K)
            scale_like = (N,)
        scale_dtype = torch.float16 if entry.precision == "int4" else torch.float32
        values, scale = tensors.get(f"{name}.{kind}"), tensors.get(f"{name}.scale")
        if values is None or scale is None:
            problems.append(f"{name}.{kind if values is None else 'scale'} is missing")
        elif (values.dtype, tuple(values.shape)) != (dtype, shape):
            problems.append(
                f"{name}.{kind} is {values.dtype} {list(values.shape)}, not {dtype} {list(shape)}"
            )
        elif kind == "codes" and (row := _row_with_code_3(values)) is not None:
            problems.append(f"{name}.codes holds the forbidden code 3 in row {row}")
        elif kind == "int8" and int(values.min()) < -127:
            problems.append(f"{name}.int8 holds -128, which is outside -127 to 127")
        elif scale.dtype != scale_dtype or tuple(scale.shape) != scale_like:
            problems.append(
                f"{name}.scale is {scale.dtype} {list(scale.shape)}, "
                f"not {scale_dtype} {list(scale_like)}"
            )
        elif entry.precision == "int4":  # a scale may be negative, or 0 for a group of zeros
            if not bool(scale.isfinite().all()):
                problems.append(f"{name}.scale holds a value that is not finite")
        elif not bool((scale.isfinite() & (scale > 0)).all()):
            problems.append(f"{name}.scale holds a value that is not finite and above 0")
    return problems


def _plan(
    modules: Mapping[str, nn.Module],
    precisions: Mapping[str, Precision],
    threshold: ThresholdVersion,
) -> Manifest:
    for name, precision in precisions.items():
        if name not in modules:
            raise ConfigError(f"precision of {name}: no such layer{did_you_mean(name, modules)}")
        if precision not in PRECISIONS:
            raise ConfigError(f"precision of {name}: {precision!r}", allowed=", ".join(PRECISIONS))
    layers = {}
    for name, module in modules.items():
        precision = precisions.get(name, "high_precision")
        _require_possible(name, module, precision, threshold)
        sub_norm = getattr(module, "norm", None) is not None
        layers[name] = LayerEntry(precision, *_shape(module), sub_norm)
    forms: set[Any] = {m.activations for m in modules.values() if hasattr(m, "activations")}
    if len(forms) > 1:
        raise ConfigError(
            f"layers with activations {sorted(forms)}", allowed="the same in all layers"
        )
    activations: Activations = forms.pop() if forms else "int8"
    return Manifest(threshold, activations, layers, _tied(modules, layers))


def _require_possible(
    name: str, module: nn.Module, precision: Precision, threshold: ThresholdVersion
) -> None:
    if isinstance(module, Packed):
        its = _precision_of(module)
        if precision != its:
            raise ConfigError(f"{name} is packed as {its} and cannot become {precision}")
        if isinstance(module, PackedTernaryLinear) and module.rotation != threshold.rotates:
            raise ConfigError(
                f"{name} is packed with rotation {module.rotation or 'none'}, and the folder's "
                f"threshold version is {threshold.id}",
                allowed="the rotation that its codes were made under",
            )
    elif precision in ("ternary", "int4"):
        if isinstance(module, nn.Embedding):
            raise ConfigError(f"{name} is an embedding", allowed="int8 or high_precision")
        own = getattr(module, "threshold", None)
        if precision == "ternary" and own is not None:
            own.require(threshold, name)
    if precision != "high_precision" and isinstance(module, nn.Linear):
        require_width(name, module)


def _precision_of(module: Packed) -> Precision:
    if isinstance(module, PackedTernaryLinear):
        return "ternary"
    return "int4" if isinstance(module, Int4Linear) else "int8"


def _tied(modules: Mapping[str, nn.Module], layers: Mapping[str, LayerEntry]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, module in modules.items():
        matrix = getattr(module, "weight", None)
        matrix = getattr(module, "int8", None) if matrix is None else matrix
        if matrix is not None:
            groups.setdefault(id(matrix), []).append(name)
    tied = [group for group in groups.values() if len(group) > 1]
    for group in tied:
        kinds = {layers[name].precision for name in group}
        if len(kinds) > 1 or kinds & {"ternary", "int4"}:
            each = ", ".join(f"{name} {layers[name].precision}" for name in group)
            raise ConfigError(
                f"modules that share one weight: {each}",
                allowed="one precision for all of them, int8 or high_precision",
                next_step="give their patterns in model.policy the same list",
            )
    return tied


def _skeleton(folder: Path, manifest: Manifest, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its packed layers, without memory for weights."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"config.json: {str(error).splitlines()[0]}") from error
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    modules = _packable(model)
    for name, entry in manifest.layers.items():
        if name not in modules or _shape(modules[name]) != (entry.out_features, entry.in_features):
            raise _damaged(
                folder,
                f"ternary.json has {name} [{entry.out_features}, {entry.in_features}], "
                "which the model of config.json has not",
            )
        empty = _empty(modules[name], entry, manifest, dtype)
        model.set_submodule(name, empty, strict=True)
    return model


def _empty(
    layer: nn.Module, entry: LayerEntry, manifest: Manifest, dtype: torch.dtype
) -> nn.Module:
    """What ``entry`` says in the place of ``layer``, its tensors on the device meta."""
    N, K = entry.out_features, entry.in_features
    with torch.device("meta"):
        if entry.precision == "int8" and isinstance(layer, nn.Embedding):
            return Int8Embedding(torch.empty((N, K), dtype=torch.int8), torch.empty(N), dtype)
        if isinstance(layer, nn.Embedding):
            return layer
        normed = NormedLinear(K, N, layer.bias is not None, sub_norm=entry.sub_norm, dtype=dtype)
        if entry.precision == "high_precision":
            return normed if entry.sub_norm else layer
        rest: dict[str, Any] = {
            "activations": manifest.activations,
            "bias": normed.bias,
            "norm": normed.norm,
        }
        if entry.precision == "int8":
            return Int8Linear(torch.empty((N, K), dtype=torch.int8), torch.empty(N), **rest)
        if entry.precision == "int4":
            return Int4Linear.empty((N, K), **rest)
        codes = torch.empty((N, -(-K // 4)), dtype=torch.uint8)
        scale = torch.empty(scale_shape(N, K, manifest.threshold.granularity))
        rest["rotation"] = manifest.threshold.rotates
        return PackedTernaryLinear(codes, scale, K, **rest)


def _require_same_tensors(
    folder: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    for says, names in (
        ("lacks", sorted(wanted.keys() - found.keys())),
        ("holds, beyond its model,", sorted(found.keys() - wanted.keys())),
    ):
        if names:
            raise _damaged(
                folder, f"{says} {number_of(len(names), 'tensor')}: {', '.join(names[:3])}"
            )
    for name, like in wanted.items():
        got = found[name]
        if got.shape != like.shape or got.dtype != like.dtype:
            raise _damaged(
                folder,
                f"{name} is {got.dtype} {list(got.shape)}, not {like.dtype} {list(like.shape)}",
            )


def _cast(folder: Path, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` as ``dtype``; float16 ends at 65,504, and a bias beyond would become infinite."""
    cast = value.to(dtype)
    if dtype == torch.float16 and not bool(cast.isfinite().all()):
        raise ConfigError(
            f"{folder}: {name} reaches {float(value.abs().max()):.3g}",
            allowed=f"at most {torch.finfo(dtype).max:.0f} in {dtype}",
            next_step="load the model with dtype torch.bfloat16 or torch.float32",
        )
    return cast


def _share(first: Any, other: Any) -> None:
    if isinstance(other, Packed):
        other.int8, other.scale = first.int8, first.scale
    else:
        other.weight = first.weight


def _row_with_code_3(codes: Tensor) -> int | None:
    both_bits = (codes & (codes >> 1)) & 0b01010101
    rows = both_bits.any(1).nonzero()
    return int(rows[0]) if len(rows) else None


def _packable(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, nn.Embedding, *get_args(Packed))
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _shape(module: Any) -> tuple[int, int]:
    if isinstance(module, nn.Embedding | Int8Embedding):
        return module.num_embeddings, module.embedding_dim
    return module.out_features, module.in_features


def _require_finite(name: str, module: nn.Module) -> None:
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ConfigError(
                f"{name}.{key} holds values that are not finite",
                next_step="take the last good checkpoint of the training",
            )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a packed folder. Raises ConfigError for a file that is missing or damaged."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, f"{WEIGHTS} cannot be read: {error}") from error


def _damaged(folder: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{folder}: {what}", next_step="the folder is damaged or incomplete; pack the model again"
    )
