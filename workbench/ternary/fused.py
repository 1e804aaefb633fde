"""When a ternary layer trains on the fused GPU kernels, and why it does not elsewhere.

The kernels (:mod:`ternary_kernels.gpu.qat`) compute what :class:`~.bitlinear.BitLinear` does at
strength 1 under rule ``absmean``: RMSNorm, INT8 rounding and the product on INT8 tensor cores
from packed weights. Other rules, unquantised activations and the ramp of the threshold take the
plain path in PyTorch: the same results up to rounding, about half as fast. The sums behind a
scale are added in another order on the two paths, so a scale may differ in its last bit.
"""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from workbench.ternary.bitlinear import BitLinear


def why_plain(model: nn.Module) -> str | None:
    """Why the ternary layers of ``model`` train on the plain path; None where they are fused."""
    from workbench.ternary.convert import bit_linears

    reasons = {layer_reason(layer) for _, layer in bit_linears(model)}
    return "; ".join(sorted(filter(None, reasons))) or None


def layer_reason(layer: BitLinear) -> str | None:
    """Why one layer takes the plain path at strength 1."""
    threshold = layer.threshold
    device = layer.weight.device.type
    return plain_reason(threshold.rule, layer.activations, device, threshold.rotates)


def plain_reason(rule: str, activations: str, device: str, rotation: int = 0) -> str | None:
    """Why layers of this kind take the plain path on ``device``, 'cuda' or 'cpu'."""
    if rotation:
        return "a rotation (model.threshold.rotation) has no fused training kernel"
    if rule != "absmean":
        return f"threshold rule {rule} has no fused kernel, only absmean has"
    if activations != "int8":
        return "unquantised activations (model.activations: none) have no fused kernel"
    if device != "cuda" and not (device == "cpu" and _interpreted()):
        return f"fused kernels are for CUDA devices, the model lies on {device}"
    return None if _has_triton() else "Triton is not installed here"


def pack(layer: BitLinear) -> tuple[Tensor, Tensor]:
    """The layer's weights, quantised and packed on their device: tiles and scales."""
    from ternary_kernels.gpu import pack_weights

    threshold = layer.threshold
    packed = pack_weights(
        layer.weight.detach(),
        threshold.granularity,
        rounding=threshold.rounding,
        eps=threshold.eps,
    )
    return packed.tiles, packed.row_scales


def forward(layer: BitLinear, x: Tensor, packed: tuple[Tensor, Tensor], eps: float) -> Tensor:
    """y [..., N] of x [..., K], norm included, with gradients; see the module's text."""
    from ternary_kernels.gpu.qat import qat_linear

    if torch.is_autocast_enabled(x.device.type):  # as autocast does for a linear layer
        x = x.to(torch.get_autocast_dtype(x.device.type))
    norm_weight = None if layer.norm is None else layer.norm.weight
    return qat_linear(
        x, layer.weight, layer.bias, *packed, norm_weight=norm_weight, eps=eps,
        int8_gradients=layer.int8_gradients,
    )  # fmt: skip


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None
