"""A model's ternary layers given compensated weights, one block after the other.

Each block is run alone on what the blocks before it, ternary already, give it; its layers are
calibrated in the order in which they are used, those that read the same input together, so that
each makes up for the errors before it as far as it can. What has to be in memory beside the model
are the hidden states of the calibration text and the second moments of a few layers' inputs.

Shapes: B sequences, T tokens, K inputs of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from workbench.errors import ConfigError
from workbench.ternary.bitlinear import BitLinear
from workbench.ternary.compensation import compensated_codes, master_weights
from workbench.ternary.convert import bit_linears, set_strength
from workbench.ternary.quantize import rotate, rotated_weight


class BlockInput(NamedTuple):
    """What a block is called with for one batch: the hidden states come first or by name."""

    hidden: Tensor
    others: tuple[Any, ...]
    named: dict[str, Any]


@torch.no_grad()
def compensate(
    model: nn.Module, batches: Sequence[Tensor], say: Callable[[int, int], None] | None = None
) -> list[str]:
    """Change, in place, the master weights of the ternary layers in the model's blocks.

    batches: token ids [B, T] of calibration text on the model's device. say: is told (blocks done,
    of how many). The strength of every ternary layer is 1 afterwards; biases, norms and all other
    parameters stay. Returns the layers outside the blocks, which stay as they were.

    Raises ConfigError for a model without blocks and one whose blocks cannot be run alone.
    """
    blocks, prefix = _blocks(model)
    was_training = model.training
    model.eval()
    set_strength(model, 0.0)
    try:
        calls = _calls_of_blocks(model, blocks, batches)
        hidden = [call.hidden for call in calls[0]]
        for place, block in enumerate(blocks):
            own = [call._replace(hidden=h) for call, h in zip(calls[place], hidden, strict=True)]
            for layers in _in_order_of_use(block, own[0]):
                _calibrate(block, layers, own)
            hidden = [_first(_run(block, call)) for call in own]
            if say:
                say(place + 1, len(blocks))
    finally:
        model.train(was_training)
        set_strength(model, 1.0)
    return [name for name, _ in bit_linears(model) if not name.startswith(prefix)]


def _blocks(model: nn.Module) -> tuple[nn.ModuleList, str]:
    """The list of blocks that holds most of the ternary layers, and what their names begin with."""
    layers = [name for name, _ in bit_linears(model)]
    found = {
        f"{name}.": module for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not re.search(r"\.\d+(\.|$)", name)
    }  # fmt: skip
    held = {prefix: sum(name.startswith(prefix) for name in layers) for prefix in found}
    prefix = max(held, key=lambda each: held[each], default="")
    if not held.get(prefix):
        raise ConfigError(
            f"{type(model).__name__} has no list of blocks with ternary layers",
            next_step="set train.compensated_start.sequences to 0",
        )
    return found[prefix], prefix


class _Reached(Exception):
    """The layer that was waited for has its input: the rest of the pass is not needed."""


def _calls_of_blocks(
    model: nn.Module, blocks: nn.ModuleList, batches: Sequence[Tensor]
) -> list[list[BlockInput]]:
    """By block and batch, what the model calls its blocks with. Masks and positions of all blocks
    are mostly the same tensors; of the hidden states the first block's alone are kept."""
    calls: list[list[BlockInput]] = [[] for _ in blocks]

    def watch(place: int):
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            hidden = args[0] if args else named.pop("hidden_states")
            kept = hidden if place == 0 else hidden.new_empty(0)
            calls[place].append(BlockInput(kept, args[1:], named))

        return hook

    hooks = [
        block.register_forward_pre_hook(watch(place), with_kwargs=True)
        for place, block in enumerate(blocks)
    ]
    try:
        for ids_BT in batches:
            model(ids_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if any(len(own) != len(batches) for own in calls):
        raise ConfigError(
            f"{type(model).__name__} does not use each of its blocks once a pass",
            next_step="set train.compensated_start.sequences to 0",
        )
    return calls


def _run(block: nn.Module, call: BlockInput) -> Any:
    return block(call.hidden, *call.others, **call.named)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _in_order_of_use(block: nn.Module, call: BlockInput) -> list[list[list[BitLinear]]]:
    """Groups of layers to calibrate together, the first used first; within a group the layers that
    read one tensor lie together. Experts of one kind are one group, whoever is asked first."""
    readers: dict[tuple[int, tuple[int, ...]], list[BitLinear]] = {}
    kind_of: dict[tuple[int, tuple[int, ...]], str] = {}
    kept: list[Tensor] = []  # so that no other tensor takes its address
    layers = bit_linears(block)
    unused = {id(layer) for _, layer in layers}

    def watch(name: str):
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, BitLinear)
            kept.append(inputs[0])
            key = (inputs[0].data_ptr(), tuple(inputs[0].shape))
            readers.setdefault(key, []).append(layer)
            kind_of.setdefault(key, re.sub(r"\d+", "*", name))
            unused.discard(id(layer))

        return hook

    with _hooks([(layer, watch(name)) for name, layer in layers]):
        _run(block, call)
    groups: dict[str, list[list[BitLinear]]] = {}
    for key, sharing in readers.items():
        groups.setdefault(kind_of[key], []).append(sharing)
    for name, layer in layers:
        if id(layer) in unused:  # an expert whom another batch may ask
            groups.setdefault(re.sub(r"\d+", "*", name), []).append([layer])
    return list(groups.values())


def _calibrate(
    block: nn.Module, sharing: list[list[BitLinear]], calls: Sequence[BlockInput]
) -> None:
    """Give the layers weights whose codes make up for each other on the inputs of ``calls``."""
    moments = {id(same[0]): _no_moments(same[0]) for same in sharing}
    waiting = len(sharing)

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, BitLinear)
        with torch.autocast(inputs[0].device.type, enabled=False):
            x_MK = layer.norm(inputs[0]) if layer.norm is not None else inputs[0]
            x_MK = rotate(x_MK.float(), layer.threshold.rotates).flatten(0, -2)
            moments[id(layer)].addmm_(x_MK.T, x_MK)
        if waiting == 1:
            raise _Reached

    with _hooks([(same[0], hook) for same in sharing]):
        for call in calls:
            with suppress(_Reached):
                _run(block, call)
    for same in sharing:
        for layer in same:
            with torch.autocast(layer.weight.device.type, enabled=False):
                _set_weight(layer, moments[id(same[0])])


def _no_moments(layer: BitLinear) -> Tensor:
    K = layer.in_features
    return torch.zeros(K, K, device=layer.weight.device)


def _set_weight(layer: BitLinear, moments_KK: Tensor) -> None:
    threshold = layer.threshold
    weight_NK = rotated_weight(layer.weight, threshold)
    codes, scale, near = compensated_codes(weight_NK, moments_KK, threshold.granularity)
    master = master_weights(codes, scale, near, threshold)
    layer.weight.copy_(rotate(master, threshold.rotates))
    layer.forget()
    layer.strength = 1.0


@contextmanager
def _hooks(watched: list[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    hooks = [layer.register_forward_pre_hook(hook) for layer, hook in watched]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
