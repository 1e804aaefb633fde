"""What the processes of a sharded training send each other: counted where FSDP2 hands it over.

``gathered_bytes`` are what this process received of the other ones' weights, ``reduced_bytes`` what
it sent them of its gradients, both by the size of the tensors; how a library moves them over wires
(rings, trees) is its own affair. The exchange between copies of a model (``hsdp``) is not in them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import (
    DefaultAllGather,
    DefaultReduceScatter,
)
from torch.nn import Module


class Traffic:
    """Of the step under way."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.gathered_bytes, self.reduced_bytes = 0, 0

    def count(self, model: Module) -> None:
        """From now on, of every unit of ``model`` that is sharded."""
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(_CountedGather(self))
                module.set_custom_reduce_scatter(_CountedReduction(self))


class _CountedGather(DefaultAllGather):
    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: ProcessGroup,
        *rest: Any,
        **named: Any,
    ) -> Any:
        self.traffic.gathered_bytes += output_tensor.nbytes - input_tensor.nbytes
        return super().__call__(output_tensor, input_tensor, group, *rest, **named)


class _CountedReduction(DefaultReduceScatter):
    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: ProcessGroup,
        *rest: Any,
        **named: Any,
    ) -> Any:
        self.traffic.reduced_bytes += input_tensor.nbytes - output_tensor.nbytes
        return super().__call__(output_tensor, input_tensor, group, *rest, **named)
