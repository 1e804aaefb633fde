"""The weights of a model in memory, replaced layers included, in the kernels' packing."""

from __future__ import annotations

import torch
from ternary_kernels import PackedHalf, PackedInt4, PackedInt8, PackedWeight
from torch import Tensor, nn

from workbench.engine.architecture import (
    NotForKernels,
    refuse_norm_inside,
    require_int8_activations,
)
from workbench.engine.device import from_codes, from_portable
from workbench.ternary import BitLinear
from workbench.ternary.packed_layers import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    PackedTernaryLinear,
)


class ModelSource:
    """Reads a ``transformers`` model module by module; see :class:`~.weights.Source`.

    device: where the GPU's kernels pack ternary layers; None: packed on the CPU.
    """

    def __init__(self, model: nn.Module, device: str | None = None) -> None:
        self._model, self._device = model, device

    @torch.no_grad()
    def linear(self, module: str, shape: tuple[int, int], *, as_int8: bool = False) -> PackedWeight:
        layer = self._model.get_submodule(module)
        if getattr(layer, "norm", None) is not None:
            refuse_norm_inside(module)
        if isinstance(layer, BitLinear) and layer.strength > 0:
            if layer.strength < 1:
                raise NotForKernels(f"{module} is between precise and ternary")
            require_int8_activations(layer.activations, module)
            codes, scale = layer.ternarized()
            return from_codes(codes + 1, scale, self._device, layer.threshold.rotates)
        if isinstance(layer, PackedTernaryLinear):
            require_int8_activations(layer.activations, module)
            return from_portable(
                layer.codes, layer.in_features, layer.scale, self._device, layer.rotation
            )
        if isinstance(layer, Int8Linear):
            require_int8_activations(layer.activations, module)
            return PackedInt8.from_codes(layer.int8.cpu(), layer.scale)
        if isinstance(layer, Int4Linear):
            require_int8_activations(layer.activations, module)
            return PackedInt4.from_portable(layer.int4.cpu(), layer.in_features, layer.scale)
        if isinstance(layer, Int8Embedding):
            return PackedInt8.from_codes(layer.int8.cpu(), layer.scale)
        if not isinstance(layer, nn.Linear | nn.Embedding):
            raise NotForKernels(f"{module} is a {type(layer).__name__}")
        kind = PackedInt8 if as_int8 else PackedHalf
        return kind.from_float(layer.weight.detach().cpu())

    def token_counts(self, vocabulary: int) -> None:
        return None

    def vector(self, name: str) -> Tensor | None:
        module, _, attribute = name.rpartition(".")
        try:
            value = getattr(self._model.get_submodule(module), attribute, None)
        except AttributeError:
            return None
        return None if value is None else value.detach().float()
