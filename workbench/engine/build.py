"""From a folder or a model to an engine: our kernels where they fit, transformers elsewhere.

Each device has a :class:`~ternary_kernels.core.Core`: native code on a CPU, Triton kernels in CUDA
graphs on a GPU. What their architecture does not know runs through transformers, and says so.
A core that is asked for by its name (:mod:`.cores`) computes every model or refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict

import torch
from ternary_kernels import llama
from ternary_kernels.core import Blueprint, BuildCore, Core
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from workbench.engine.architecture import NotForKernels, eos_tokens, kernel_config
from workbench.engine.cores import AUTO, OF_DEVICE, OF_PACKINGS, core_builder, through_transformers
from workbench.engine.engine import Engine
from workbench.engine.modules import ModelSource
from workbench.engine.packing import AS_STORED, Weights
from workbench.engine.random_weights import WeightKind, random_weights
from workbench.engine.weights import FolderSource, collect_weights
from workbench.errors import StageError, reason_of
from workbench.machine.cpu import measurement_threads
from workbench.machine.gpu import torch_gpu, torch_gpu_memory
from workbench.model.ends import generation_config, join_ends
from workbench.pilot.sections.readiness import Packing
from workbench.ternary.manifest import NAME as MANIFEST
from workbench.ternary.manifest import Manifest, read_json_object
from workbench.ternary.master import load_master
from workbench.ternary.packed import load_packed
from workbench.wording.counts import number_of

LONGEST_CONTEXT = 4096
"""Taken when no context is asked for: some models were made for 131,072 tokens, whose cache
would be larger than the model."""


@dataclass(frozen=True)
class Setup:
    """How to run a model; see :meth:`Engine.load`."""

    slots: int = 1
    context: int | None = None
    threads: int = 0
    packing: Packing = AS_STORED
    kv_dtype: str = "float16"
    device: Literal["cpu", "cuda"] = "cpu"
    cache_of: Engine | None = None
    core: str = AUTO


class SetupFields(TypedDict, total=False):
    """The fields of :class:`Setup` as keyword arguments."""

    slots: int
    context: int | None
    threads: int
    packing: Packing
    kv_dtype: str
    device: Literal["cpu", "cuda"]
    cache_of: Engine | None
    core: str


def from_folder(folder: Path, setup: Setup) -> Engine:
    """See :meth:`Engine.load`."""
    config = read_config(folder)
    layout = folder / MANIFEST
    if layout.exists() and read_json_object(layout).get("kind") == "master":
        return from_model(load_master(folder), setup)
    manifest = Manifest.read(folder) if layout.exists() else None

    def model() -> nn.Module:
        # Full precision is bf16 where the hardware multiplies it, and float32 is a safe
        # fallback on a CPU, where bf16 may be emulated.
        dtype = torch.float32 if setup.device == "cpu" else torch.bfloat16
        if manifest:
            return load_packed(folder, dtype=dtype)
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False
        )

    def weights(shape: llama.LlamaConfig) -> Weights:
        source = FolderSource(folder, config, manifest, _packs_on(setup))
        tied = config.tie_word_embeddings and not source.has_own_head()
        return collect_weights(shape, config.model_type, tied, source, _packing(setup))

    return _build(config, eos_tokens(config), weights, model, setup)


def from_model(model: nn.Module, setup: Setup) -> Engine:
    """See :meth:`Engine.from_model`."""

    def weights(shape: llama.LlamaConfig) -> Weights:
        config = model.config
        tied = config.tie_word_embeddings and not _has_own_head(model)
        source = ModelSource(model, _packs_on(setup))
        return collect_weights(shape, config.model_type, tied, source, _packing(setup))

    ends = eos_tokens(model.config, getattr(model, "generation_config", None))
    return _build(model.config, ends, weights, lambda: model, setup)


def random_model(config: PretrainedConfig, kind: WeightKind, setup: Setup) -> Engine:
    """See :meth:`Engine.random`."""
    setup, tied = _with_context(config, setup), config.tie_word_embeddings

    def weights(shape: llama.LlamaConfig) -> Weights:
        if _packs_on(setup) is None:
            return random_weights(shape, kind, tied=tied, packing=_packing(setup))
        from ternary_kernels.gpu.llama import random_llama

        return random_llama(shape, kind, tied=tied, device="cuda")

    def model() -> nn.Module:
        raise NotForKernels("random weights are packed matrices, no model of transformers")

    return Engine(_core(core_builder(_core_name(setup)), config, weights, model, setup))


def _core_name(setup: Setup) -> str:
    return OF_DEVICE[setup.device] if setup.core == AUTO else setup.core


def _core(
    build: BuildCore,
    config: PretrainedConfig,
    weights: Callable[[llama.LlamaConfig], Weights],
    model: Callable[[], nn.Module],
    setup: Setup,
) -> Core:
    """The core over this model. Raises NotForKernels where it does not know the model."""

    def packed() -> tuple[llama.LlamaConfig, Weights]:
        shape = kernel_config(config)
        return shape, weights(shape)

    assert setup.context is not None
    plan = Blueprint(
        packed,
        model,
        setup.slots,
        setup.context,
        measurement_threads(setup.threads),
        setup.kv_dtype,
        setup.device,
        setup.cache_of.core if setup.cache_of else None,
    )
    if setup.device == "cpu":
        return build(plan)
    _require_gpu()
    with _fitting_the_gpu():
        return build(plan)


def _require_gpu() -> None:
    """Raise StageError without a CUDA device."""
    name, reason = torch_gpu()
    if name is None:
        raise StageError(
            f"an engine on cuda, but {reason}",
            allowed="cuda where torch can use a GPU; cpu",
            next_step="set readiness.device to auto or cpu (workbench serve: --device cpu)",
        )


@contextmanager
def _fitting_the_gpu() -> Iterator[None]:
    """Raise StageError with what to lower where the device's memory runs out."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        free, total = torch_gpu_memory()
        raise StageError(
            f"the model does not fit the GPU: {str(error).splitlines()[0]}",
            allowed=f"what is free now: {free / 1e9:.1f} of {total / 1e9:.1f} GB",
            next_step="fewer sequences at a time (measure_ab.batch_sizes, deploy_rollback.slots) "
            "or a shorter context take less; so does an arm less",
        ) from error


def _packs_on(setup: Setup) -> str | None:
    """Where ternary layers are packed: on the GPU that will multiply them; None: on the CPU, as
    cores of other packages take them."""
    return "cuda" if setup.device == "cuda" and _core_name(setup) == "triton" else None


def _packing(setup: Setup) -> Packing:
    """As asked where the CPU's kernels compute; other cores take weights as they are stored."""
    return setup.packing if _core_name(setup) in OF_PACKINGS else AS_STORED


def _build(
    config: PretrainedConfig,
    eos: frozenset[int],
    weights: Callable[[llama.LlamaConfig], Weights],
    model: Callable[[], nn.Module],
    setup: Setup,
) -> Engine:
    setup, name = _with_context(config, setup), _core_name(setup)
    try:
        core = _core(core_builder(name), config, weights, model, setup)
    except ValueError as reason:
        if setup.core != AUTO:
            raise StageError(
                f"core {name} does not run this model: {reason}",
                allowed="a model that it knows; auto takes transformers where the kernels do not",
                next_step="set readiness.core to auto, or to transformers",
            ) from reason
        if not isinstance(reason, NotForKernels):
            raise
        through = partial(through_transformers, reason=str(reason))
        core = _core(through, config, weights, model, setup)
    return Engine(core, eos_tokens=eos)


def _has_own_head(model: nn.Module) -> bool:
    """Whether the head is another matrix than the embedding, whatever the configuration says."""
    modules = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, head = (getattr(module, "weight", None) for module in modules)
    return embedding is not None and head is not None and embedding is not head


def _with_context(config: PretrainedConfig, setup: Setup) -> Setup:
    longest = getattr(config, "max_position_embeddings", None) or LONGEST_CONTEXT
    context = min(longest, LONGEST_CONTEXT) if setup.context is None else setup.context
    if context > longest:
        raise StageError(
            f"a context of {number_of(context, 'token')}",
            allowed=f"at most {longest}: the model was made for that many positions",
            next_step="ask for fewer prompt and output tokens, or train with a longer context",
        )
    return Setup(**{**vars(setup), "context": context})


def read_config(folder: Path) -> PretrainedConfig:
    """Of a model folder, the end tokens of its generation_config.json joined in. Raises StageError
    for one that has none or cannot be used."""
    if not (folder / "config.json").is_file():
        raise StageError(
            f"{folder} has no config.json",
            allowed="a packed model folder or a Hugging Face model folder",
            next_step="give the folder that the training or hybrid stage wrote",
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"{folder}/config.json cannot be used: {reason_of(error)}",
            allowed="the configuration of a transformers causal language model",
            next_step="make the model folder again",
        ) from error
    join_ends(config, generation_config(folder))
    return config
