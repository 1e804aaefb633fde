"""Whole tensors of a model whose weights may lie in shards on several processes.

Nothing is gathered where they do not. Where they do, every process has to come along.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workbench.ternary import bit_linears
from workbench.ternary.bitlinear import BitLinear


def is_sharded(model: torch.nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered where it lies in shards: every process has to call this then."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def whole_layers(model: torch.nn.Module) -> Iterator[tuple[str, BitLinear, Tensor]]:
    """(name, layer, whole master weight) of the ternary layers, one gathered at a time; see
    :func:`whole`."""
    for name, layer in bit_linears(model):
        yield name, layer, whole(layer.weight.detach())
