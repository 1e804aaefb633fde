"""The weights of a Llama-type model in the kernels' packing, from a folder's files.

Files are read tensor by tensor, packed and forgotten, so that loading needs the packed model
and one layer of the file at a time, never both whole. Linear layers keep the precision they
are stored in: two-bit codes, INT8, INT4, or half precision (float32 is rounded to bf16).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from ternary_kernels import PackedHalf, PackedInt4, PackedInt8, PackedTernary, PackedWeight
from ternary_kernels.llama import TOGETHER, LlamaConfig
from torch import Tensor
from transformers import PretrainedConfig

from workbench.engine.architecture import (
    FAMILY_NORMS,
    LINEARS,
    NORMS,
    NotForKernels,
    refuse_norm_inside,
    require_int8_activations,
)
from workbench.engine.bitnet_checkpoint import BitnetCheckpoint
from workbench.engine.device import from_portable
from workbench.engine.packing import AS_STORED, Weights, pack
from workbench.errors import StageError
from workbench.pilot.sections.readiness import Packing
from workbench.ternary.manifest import Manifest, read_json_object
from workbench.ternary.token_counts import token_counts

BIG_TABLE = 1 << 24
"""Weights from which on ``auto`` makes an embedding or a head INT8: 32 MiB in bf16."""


class Source(Protocol):
    """Where weights come from, by the names of the Hugging Face model."""

    def linear(self, module: str, shape: tuple[int, int], *, as_int8: bool = False) -> PackedWeight:
        """The packed matrix [N, K] of a linear layer or an embedding.

        as_int8: make INT8 of a matrix that is kept in half or full precision.
        """
        ...

    def vector(self, name: str) -> Tensor | None:
        """A bias or the weight of a norm; None where the model has none."""
        ...

    def token_counts(self, vocabulary: int) -> np.ndarray | None:
        """How often each token stands in the model's training text; None where nobody knows."""
        ...


def collect_weights(
    config: LlamaConfig, family: str, tied: bool, source: Source, packing: Packing = AS_STORED
) -> Weights:
    """All weights of the model under the names of :mod:`ternary_kernels.llama`.

    family: the model type of the Hugging Face configuration. tied: the head is the embedding.
    """
    weights: Weights = {}
    norms = NORMS | FAMILY_NORMS.get(family, {})
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        for name, module in LINEARS.items():
            weights[ours + name] = source.linear(theirs + module, config.linear_shape(name))
            bias = source.vector(f"{theirs}{module}.bias")
            if bias is not None:
                weights[f"{ours}{name}.bias"] = bias
        _require_one_rotation(weights, ours)
        for name, module in norms.items():
            weights[ours + name] = _required(source, f"{theirs}{module}.weight")
    weights["norm"] = _required(source, "model.norm.weight")
    ternary = any(isinstance(w, PackedTernary) for w in weights.values())
    vocabulary = (config.vocab_size, config.hidden_size)
    for name, module in (("embed", "model.embed_tokens"), ("head", "lm_head")):
        if not (name == "head" and tied):
            big = config.vocab_size * config.hidden_size >= BIG_TABLE
            as_int8 = packing.tables == "auto" and ternary and big
            weights[name] = source.linear(module, vocabulary, as_int8=as_int8)
    return pack(weights, packing, source.token_counts(config.vocab_size))


def _require_one_rotation(weights: Weights, layer: str) -> None:
    """Raise NotForKernels where a hybrid mixes rotated layers and others behind one input."""
    for group in TOGETHER:
        found = {getattr(weights[layer + name], "rotation", 1) for name in group}
        if len(found) > 1:
            raise NotForKernels(
                f"{layer}{', '.join(group)} read one input, which some of them want rotated"
            )


class FolderSource:
    """Reads a packed model folder or a Hugging Face folder with safetensors files."""

    def __init__(
        self,
        folder: Path,
        config: PretrainedConfig,
        manifest: Manifest | None = None,
        device: str | None = None,
    ) -> None:
        """manifest: of a packed folder. device: where the GPU's kernels pack its ternary layers;
        None: packed on the CPU. Raises StageError when a file is missing, damaged or
        truncated, NotForKernels when the packed layers compute what the kernels do not."""
        if manifest:
            _require_kernel_layers(manifest)
        self._folder, self._device = folder, device
        self._rotation = manifest.threshold.rotates if manifest else 0
        self._files = {
            name: file for path in _weight_files(folder) for file, names in [_open(path)]
            for name in names
        }  # fmt: skip
        quantization = getattr(config, "quantization_config", None)
        self._bitnet = BitnetCheckpoint.of(quantization, folder)

    def linear(self, module: str, shape: tuple[int, int], *, as_int8: bool = False) -> PackedWeight:
        K = shape[1]
        if f"{module}.codes" in self._files:
            codes, scale = self._tensor(f"{module}.codes"), self._tensor(f"{module}.scale")
            device, turns = self._device, self._rotation
            return self._packed(
                module, lambda: from_portable(codes, K, scale, device, turns), shape
            )
        if f"{module}.int8" in self._files:
            values, scale = self._tensor(f"{module}.int8"), self._tensor(f"{module}.scale")
            return self._packed(module, lambda: PackedInt8.from_codes(values, scale), shape)
        if f"{module}.int4" in self._files:
            codes, scale = self._tensor(f"{module}.int4"), self._tensor(f"{module}.scale")
            return self._packed(module, lambda: PackedInt4.from_portable(codes, K, scale), shape)
        weight = self._tensor(f"{module}.weight")
        if self._bitnet and self._bitnet.converts(module):
            scale = self._tensor_or_none(f"{module}.weight_scale")
            return self._packed(module, lambda: self._bitnet.pack(module, weight, scale), shape)
        kind = PackedInt8 if as_int8 else PackedHalf
        return self._packed(module, lambda: kind.from_float(weight), shape)

    def vector(self, name: str) -> Tensor | None:
        tensor = self._tensor_or_none(name)
        return None if tensor is None else tensor.float()

    def token_counts(self, vocabulary: int) -> np.ndarray | None:
        return token_counts(self._folder, vocabulary)

    def has_own_head(self) -> bool:
        """Whether the files hold a head that is not the embedding, as if it were not tied.

        ``transformers`` keeps such matrices apart whatever config.json says, and so do we.
        """
        names = ("model.embed_tokens.weight", "lm_head.weight")
        embedding, head = (self._tensor_or_none(name) for name in names)
        return embedding is not None and head is not None and not torch.equal(embedding, head)

    def _packed(
        self, module: str, pack: Callable[[], PackedWeight], shape: tuple[int, int]
    ) -> PackedWeight:
        try:
            packed = pack()
        except ValueError as error:
            raise StageError(
                f"{self._folder}: {module}: {error}",
                next_step="make the model folder again; the stage that wrote it can be run again",
            ) from error
        if packed.shape != shape:
            raise StageError(
                f"{self._folder}: {module} is {list(packed.shape)}",
                allowed=f"{list(shape)}, as config.json says",
                next_step="make the model folder again; its files do not belong together",
            )
        return packed

    def _tensor(self, name: str) -> Tensor:
        tensor = self._tensor_or_none(name)
        if tensor is None:
            raise StageError(
                f"{self._folder} has no tensor {name}",
                allowed="every tensor that the model of its config.json needs",
                next_step="make the model folder again, or copy all of its files",
            )
        return tensor

    def _tensor_or_none(self, name: str) -> Tensor | None:
        if name not in self._files:
            return None
        try:
            return self._files[name].get_tensor(name)
        except SafetensorError as error:
            raise _damaged(self._folder, error) from error


def _require_kernel_layers(manifest: Manifest) -> None:
    for name, entry in manifest.layers.items():
        if entry.sub_norm:
            refuse_norm_inside(name)
        if entry.precision != "high_precision":
            require_int8_activations(manifest.activations, name)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return sorted({folder / name for name in read_json_object(index)["weight_map"].values()})
    return [folder / "model.safetensors"]


def _open(path: Path) -> tuple[Any, list[str]]:
    try:
        file = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    return file, list(file.keys())


def _damaged(path: Path, error: object) -> StageError:
    return StageError(
        f"{path} cannot be read: {error}",
        allowed="a whole file; this one is missing, truncated or of another format",
        next_step="run the stage that made it again, or copy the folder again",
    )


def _required(source: Source, name: str) -> Tensor:
    vector = source.vector(name)
    if vector is None:
        raise StageError(
            f"the model has no tensor {name}",
            allowed="every tensor that the model of its config.json needs",
            next_step="make the model folder again, or copy all of its files",
        )
    return vector
