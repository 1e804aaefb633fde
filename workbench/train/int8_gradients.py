"""``train.int8_gradients``: the switch, and the check of what it costs in quality.

The fused kernels round dy to INT8 for the gradient products, one scale a token or an output
(:mod:`ternary_kernels.gpu.qat`). How far that moves a gradient depends on the model and its data,
so it is measured on them: the gradients of the same sequences both ways, at full strength. An
error is |g8 - g| / |g|, g the gradient of a layer's master weights with products in the type of
the training.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from workbench.ternary import bit_linears, set_strength

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

LARGEST_ERROR = 0.05
"""Above this error of the whole gradient, the stage advises against the option."""


def set_int8_gradients(model: PreTrainedModel, on: bool) -> None:
    """In every ternary layer; layers on the plain path take no notice."""
    for _, layer in bit_linears(model):
        layer.int8_gradients = on


def gradient_errors(
    model: PreTrainedModel, ids_BT: Tensor, autocast: torch.dtype | None = None
) -> pd.DataFrame:
    """A row for each ternary layer, and one for ``all layers`` together: columns layer, error.

    ids_BT: token ids [sequences, tokens], on the model's device. autocast: the type that the
    training multiplies in, None for the weights' own. Needs memory for two gradients of the
    ternary layers. The strength is 1 afterwards; all else is left as it was, ``.grad`` too.
    """
    layers = {name: layer.weight for name, layer in bit_linears(model)}
    set_strength(model, 1.0)

    def gradients(int8: bool) -> tuple[Tensor, ...]:
        set_int8_gradients(model, int8)
        with torch.autocast(ids_BT.device.type, autocast, enabled=autocast is not None):
            loss = model(input_ids=ids_BT, labels=ids_BT).loss
        return torch.autograd.grad(loss, list(layers.values()))

    with _training(model):
        pairs = list(zip(gradients(False), gradients(True), strict=True))
    moved = torch.stack([(rounded - exact).float().norm() for exact, rounded in pairs])
    size = torch.stack([exact.float().norm() for exact, _ in pairs])
    errors = torch.cat([moved / size, (moved.norm() / size.norm())[None]])
    return pd.DataFrame({"layer": [*layers, "all layers"], "error": errors.cpu().double().numpy()})


@contextmanager
def _training(model: PreTrainedModel) -> Iterator[None]:
    """In training mode, and back to what was."""
    before = model.training, [layer.int8_gradients for _, layer in bit_linears(model)]
    model.train()
    try:
        yield
    finally:
        model.train(before[0])
        for (_, layer), int8 in zip(bit_linears(model), before[1], strict=True):
            layer.int8_gradients = int8
