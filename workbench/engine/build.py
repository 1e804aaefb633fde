"""From a folder or a model to an engine: our kernels where they fit, transformers elsewhere.

Each device has a :class:`~ternary_kernels.core.Core`: native code on a CPU, Triton kernels in CUDA
graphs on a GPU. What their architecture does not know runs through transformers, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypedDict

import torch
from ternary_kernels import PackedWeight, llama, set_threads
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from workbench.engine.architecture import NotForKernels, eos_tokens, kernel_config
from workbench.engine.engine import Engine
from workbench.engine.modules import ModelSource
from workbench.engine.random_weights import WeightKind, random_weights
from workbench.engine.transformers_core import TransformersCore
from workbench.engine.weights import EmbeddingKind, FolderSource, collect_weights
from workbench.errors import StageError, reason_of
from workbench.machine.cpu import measurement_threads
from workbench.machine.gpu import torch_gpu, torch_gpu_memory
from workbench.model.ends import generation_config, join_ends
from workbench.ternary.manifest import NAME as MANIFEST
from workbench.ternary.manifest import Manifest, read_json_object
from workbench.ternary.master import load_master
from workbench.ternary.packed import load_packed
from workbench.wording.counts import number_of

Weights = dict[str, PackedWeight | Tensor]
"""By the names of :mod:`ternary_kernels.llama`."""

LONGEST_CONTEXT = 4096
"""Taken when no context is asked for: some models were made for 131,072 tokens, whose cache
would be larger than the model."""


@dataclass(frozen=True)
class Setup:
    """How to run a model; see :meth:`Engine.load`."""

    slots: int = 1
    context: int | None = None
    threads: int = 0
    embeddings: EmbeddingKind = "auto"
    kv_dtype: str = "float16"
    device: Literal["cpu", "cuda"] = "cpu"
    cache_of: Engine | None = None


class SetupFields(TypedDict, total=False):
    """The fields of :class:`Setup` as keyword arguments."""

    slots: int
    context: int | None
    threads: int
    embeddings: EmbeddingKind
    kv_dtype: str
    device: Literal["cpu", "cuda"]
    cache_of: Engine | None


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
        return collect_weights(shape, config.model_type, tied, source, setup.embeddings)

    return _build(config, eos_tokens(config), weights, model, setup)


def from_model(model: nn.Module, setup: Setup) -> Engine:
    """See :meth:`Engine.from_model`."""

    def weights(shape: llama.LlamaConfig) -> Weights:
        config = model.config
        tied = config.tie_word_embeddings and not _has_own_head(model)
        source = ModelSource(model, _packs_on(setup))
        return collect_weights(shape, config.model_type, tied, source, setup.embeddings)

    ends = eos_tokens(model.config, getattr(model, "generation_config", None))
    return _build(model.config, ends, weights, lambda: model, setup)


def random_model(config: PretrainedConfig, kind: WeightKind, setup: Setup) -> Engine:
    """See :meth:`Engine.random`."""
    shape, setup = kernel_config(config), _with_context(config, setup)
    tied = config.tie_word_embeddings
    if setup.device == "cuda":
        _require_gpu()
        from ternary_kernels.gpu.llama import random_llama

        weights = random_llama(shape, kind, tied=tied, device="cuda")
        return _on_gpu(shape, weights, setup, frozenset())
    return _native(shape, random_weights(shape, kind, tied=tied), setup, frozenset())


def _native(
    shape: llama.LlamaConfig,
    weights: Weights,
    setup: Setup,
    eos: frozenset[int],
) -> Engine:
    set_threads(measurement_threads(setup.threads))
    core = llama.create(shape, weights, setup.slots, setup.context, setup.kv_dtype)
    return Engine(core, eos_tokens=eos)


def _require_gpu() -> None:
    """Raise StageError without a CUDA device, NotForKernels without Triton."""
    name, reason = torch_gpu()
    if name is None:
        raise StageError(
            f"an engine on cuda, but {reason}",
            allowed="cuda where torch can use a GPU; cpu",
            next_step="set readiness.device to auto or cpu (workbench serve: --device cpu)",
        )
    if find_spec("triton") is None:
        raise NotForKernels("Triton is not installed here")


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
    """Where ternary layers are packed: on the GPU that will multiply them; None: on the CPU."""
    return "cuda" if setup.device == "cuda" else None


def _on_gpu(
    shape: llama.LlamaConfig,
    weights: Weights,
    setup: Setup,
    eos: frozenset[int],
) -> Engine:
    from ternary_kernels.gpu.llama import LlamaGpu

    other = setup.cache_of.core if setup.cache_of else None
    with _fitting_the_gpu():
        core = LlamaGpu(
            shape, weights, setup.slots, setup.context, setup.kv_dtype,
            cache_of=other if isinstance(other, LlamaGpu) else None,
        )  # fmt: skip
    return Engine(core, eos_tokens=eos)


def _build(
    config: PretrainedConfig,
    eos: frozenset[int],
    weights: Callable[[llama.LlamaConfig], Weights],
    model: Callable[[], nn.Module],
    setup: Setup,
) -> Engine:
    setup = _with_context(config, setup)
    try:
        if setup.device == "cuda":
            _require_gpu()
        shape = kernel_config(config)
        with _fitting_the_gpu() if setup.device == "cuda" else nullcontext():
            packed = weights(shape)
    except NotForKernels as reason:
        return _through_transformers(model(), setup, eos, str(reason))
    make = _on_gpu if setup.device == "cuda" else _native
    return make(shape, packed, setup, eos)


def _has_own_head(model: nn.Module) -> bool:
    """Whether the head is another matrix than the embedding, whatever the configuration says."""
    modules = model.get_input_embeddings(), model.get_output_embeddings()
    embedding, head = (getattr(module, "weight", None) for module in modules)
    return embedding is not None and head is not None and embedding is not head


def _through_transformers(
    model: nn.Module, setup: Setup, eos: frozenset[int], reason: str
) -> Engine:
    torch.set_num_threads(measurement_threads(setup.threads))
    core = TransformersCore(model, setup.slots, setup.context, setup.device, reason)
    return Engine(core, eos_tokens=eos)


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
