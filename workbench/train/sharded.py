"""A model whose weights lie in shards on several processes: FSDP2, ``torch``'s ``fully_shard``.

Each decoder layer is a unit: its weights are gathered when it computes, forward and backward, and
given up afterwards; gradients are summed onto their shards, and the optimizer moves these. What a
ternary layer needs of it:

- Its scale is a mean over the whole matrix, and codes near a threshold depend on its last bit. A
  ternary layer quantises inside its forward pass, where FSDP2 has just gathered the whole matrix
  in float32, by the same function as without shards, so the codes are the same bits. No process
  computes a scale of its own shard.
- FSDP2's mixed precision would round the weights to bf16 before they are gathered, and the scale
  with them. So it is off, and autocast rounds what is multiplied, as it does without shards.
- What is kept between the micro-batches of a step (:func:`~workbench.ternary.set_reuse`) would be
  the whole matrices again, so nothing is kept.
- Gradients are reduced after each micro-batch: held back until the last one they would be whole.

Checkpoints are ``torch.distributed.checkpoint``'s (DCP): each process writes its shards, and any
other number of processes reads them. Random numbers are not among them: nothing draws any while a
model without dropout trains, and another number of processes would draw others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed import DeviceMesh, init_device_mesh
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from workbench.errors import ConfigError
from workbench.paths import shown
from workbench.pilot.sections.train import TrainingLaunch

SHARDS = "shards"
SCHEDULER = "scheduler.pt"


def mesh_of(launch: TrainingLaunch, device: str) -> DeviceMesh:
    """All processes in one row; of ``hsdp`` a row a node, and every row has all of the model."""
    if launch.strategy == "hsdp":
        shape = (launch.nodes, launch.processes)
        return init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device, (launch.together,), mesh_dim_names=("shard",))


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Spread the parameters of ``model`` over ``mesh``, in place; the same whole model on every
    process before.

    Raises ConfigError for a model of which it is not known what its layers are.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(
            f"train.launch.strategy: {type(model).__name__} does not say what its layers are",
            allowed="models of transformers with _no_split_modules",
            next_step="set train.launch.strategy to ddp",
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # The Trainer is told that placement and gradients are seen to, and wraps nothing.
    model._is_distributed_loading_by_transformers = True


def save_shards(
    model: PreTrainedModel, optimizer: Optimizer, scheduler: LRScheduler, folder: Path
) -> None:
    """The state of a training, by all processes together; the scheduler's by the first."""
    states = get_state_dict(model, optimizer)
    dcp.save(dict(zip(("model", "optimizer"), states, strict=True)), checkpoint_id=folder / SHARDS)
    if torch.distributed.get_rank() == 0:
        torch.save(scheduler.state_dict(), folder / SCHEDULER)


def load_shards(
    model: PreTrainedModel, optimizer: Optimizer, scheduler: LRScheduler, folder: Path
) -> None:
    """What :func:`save_shards` wrote, on whatever number of processes."""
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.load(states, checkpoint_id=folder / SHARDS)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=states["model"],
        optim_state_dict=states["optimizer"],
    )
    scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))


class LoadShards(TrainerCallback):
    """Goes on from a checkpoint of shards, once the optimizer is there."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        load_shards(
            parts["model"], bare(parts["optimizer"]), parts["lr_scheduler"], self.checkpoint
        )


def bare(optimizer: Any) -> Optimizer:
    """Without what ``accelerate`` puts around it."""
    found: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found


def whole_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """All weights on the CPU of the first process, tied ones once, as safetensors takes them; an
    empty mapping on the others, which have to call this too."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    names = {id(value): name for name, value in model.state_dict(keep_vars=True).items()}
    return {name: state[name].contiguous() for name in names.values() if name in state}


def require_same_strategy(checkpoint: Path, launch: TrainingLaunch) -> None:
    """ConfigError where a checkpoint was written by the other kind of launch."""
    has_shards = (checkpoint / SHARDS).exists()
    if has_shards == launch.is_sharded:
        return
    kind = "fsdp or hsdp" if has_shards else "ddp"
    raise ConfigError(
        f"train.launch.strategy: {launch.strategy}, but this training has a checkpoint of {kind}: "
        f"{shown(checkpoint)}",
        allowed=f"{kind}, on any number of processes",
        next_step=f"set train.launch.strategy to {kind.split()[0]}, or start the stage again with "
        "--force",
    )
