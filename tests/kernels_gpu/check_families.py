"""The GPU's engine core against ``transformers`` for every family it takes. See check_products.

The core is made as the engine makes it, from a model in memory; only the device differs.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from ternary_kernels import PackedTernary
from ternary_kernels.gpu import layout
from ternary_kernels.gpu.llama import LlamaGpu
from ternary_kernels.gpu.pack import unpack_codes
from ternary_kernels.llama import LlamaReference
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.engine.architecture import kernel_config
from workbench.engine.engine import Engine
from workbench.engine.modules import ModelSource
from workbench.engine.request import GenerationRequest
from workbench.engine.scheduler import Scheduler
from workbench.engine.transformers_core import TransformersCore
from workbench.engine.weights import collect_weights
from workbench.errors import StageError
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.packed import save_packed

DEVICE = "cpu" if layout.INTERPRETED else "cuda"
SHAPE = {
    "vocab_size": 53, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
}  # fmt: skip
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 3},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "bitnet": {"hidden_act": "relu2"},
}
TOKENS = np.random.default_rng(3).integers(0, 53, 7)


def make_model(family):
    """Random weights that bf16 can hold; norms and biases are drawn as well."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(("norm" in name) + 0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(4.0)
            parameter.copy_(parameter.bfloat16().float())
    return model


def core_of(model, kind, **options):
    config = model.config
    shape = kernel_config(config)
    weights = collect_weights(
        shape, config.model_type, config.tie_word_embeddings, ModelSource(model)
    )
    return kind(shape, weights, 1, 16, "float32", **options)


def logits(core):
    """A prompt of five tokens, then two decoded: [7, V]."""
    prompt = core.forward(TOKENS[:5], [0] * 5, np.arange(5), True)
    rest = [core.forward([TOKENS[i]], [0], [i], True) for i in (5, 6)]
    return np.concatenate([prompt, *rest])


def error(got, wanted):
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_precision_logits_are_those_of_transformers(family):
    model = make_model(family)
    with torch.no_grad():
        wanted = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    core = core_of(model, LlamaGpu, device=DEVICE, dtype=torch.float32, capture=DEVICE == "cuda")
    assert error(logits(core), wanted) < 1e-3


@pytest.mark.parametrize(("family", "granularity"), [("llama", "tensor"), ("bitnet", "group128")])
def test_ternary_codes_and_logits_are_those_of_the_cpu(family, granularity):
    model = make_model(family)
    to_ternary(model, Policy(), ThresholdVersion(granularity=granularity))
    core = core_of(model, LlamaGpu, device=DEVICE, dtype=torch.float32, capture=DEVICE == "cuda")
    for layer, module in zip(core._layers, model.model.layers, strict=True):
        ((packed, _),) = layer.down.parts
        codes, _ = module.mlp.down_proj.ternarized()
        assert torch.equal(unpack_codes(packed).cpu().to(torch.int8) - 1, codes.cpu())
    assert error(logits(core), logits(core_of(model, LlamaReference))) < 2e-2


class OnThisDevice(LlamaGpu):
    """What the engine builds for a GPU, where the tests run."""

    def __init__(self, *args, **options):
        options |= {"device": DEVICE, "dtype": torch.float32, "capture": DEVICE == "cuda"}
        super().__init__(*args, **options)


@pytest.fixture
def gpu_engines(monkeypatch):
    monkeypatch.setattr("ternary_kernels.gpu.llama.LlamaGpu", OnThisDevice)
    monkeypatch.setattr("workbench.engine.build.torch_gpu", lambda: ("a GPU", ""))
    monkeypatch.setattr(
        "workbench.engine.build._packs_on",
        lambda setup: DEVICE if setup.device == "cuda" else None,
    )


def test_the_whole_engine_runs_on_the_core(gpu_engines):
    model = make_model("llama")
    greedy = [GenerationRequest(tuple(TOKENS[:n].tolist()), 2, ignore_eos=True) for n in (5, 3)]
    with (
        Engine.from_model(model, slots=2, kv_dtype="float32") as cpu,
        Engine.from_model(model, slots=2, kv_dtype="float32", device="cuda") as gpu,
        Engine.from_model(
            model, slots=2, kv_dtype="float32", device="cuda", cache_of=gpu
        ) as sharing,
    ):
        assert gpu.backend.startswith("ternary_kernels.gpu on ") and gpu.notes == []
        assert ("CUDA graphs" in gpu.backend) == (DEVICE == "cuda")
        assert gpu.kv_bytes > 0 == sharing.kv_bytes
        expected = [cpu.generate(request).tokens for request in greedy]
        assert gpu.generate(greedy[0]).tokens == sharing.generate(greedy[0]).tokens == expected[0]
        first = [int(gpu.prefill(slot, r.prompt_tokens).argmax()) for slot, r in enumerate(greedy)]
        rest = gpu.decode_greedy([0, 1], first, 1)
        assert [[a, b] for a, b in zip(first, rest[0].tolist(), strict=True)] == expected
        for slot in (0, 1):
            gpu.release(slot)
        with Scheduler(gpu) as scheduler:  # both decode and prefill in one step
            handles = [scheduler.submit(request) for request in greedy]
            assert all(handle.wait(60) for handle in handles)
        assert [handle.tokens for handle in handles] == expected


@pytest.fixture
def folder(tmp_path):
    model = make_model("llama")
    report = to_ternary(model, Policy(), ThresholdVersion())
    model.to(torch.bfloat16)
    save_packed(model, tmp_path / "packed", report.precisions, ThresholdVersion())
    return tmp_path / "packed"


def test_a_folder_is_packed_on_the_device(gpu_engines, folder, monkeypatch):
    request = GenerationRequest(tuple(TOKENS.tolist()), 3, ignore_eos=True)
    with Engine.load(folder, kv_dtype="float32") as cpu:
        expected = cpu.generate(request).tokens
        tiles = cpu.core.weights["layers.0.down"].tiles

    def on_the_host(*args):
        raise AssertionError("packed on the host")

    monkeypatch.setattr(PackedTernary, "from_codes", on_the_host)
    with Engine.load(folder, kv_dtype="float32", device="cuda") as gpu:
        ((down, _),) = gpu.core._layers[0].down.parts
        assert torch.equal(down.tiles.cpu(), tiles)
        assert gpu.generate(request).tokens == expected


def test_a_damaged_folder_is_refused_on_the_device_too(gpu_engines, folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.codes"][5, 3] = 0b11
    save_file(tensors, file)
    with pytest.raises(StageError, match="up_proj: row 5 holds the forbidden code 3"):
        Engine.load(folder, device="cuda")


def test_memory_that_runs_out_while_packing_is_said(gpu_engines, folder, monkeypatch):
    def refuse(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr("ternary_kernels.gpu.pack.pack", refuse)
    monkeypatch.setattr("workbench.engine.build.torch_gpu_memory", lambda: (int(5e9), int(8e9)))
    with pytest.raises(StageError, match=r"does not fit the GPU.*2 GiB.*\n.*5\.0 of 8\.0 GB"):
        Engine.load(folder, device="cuda")


def test_a_gpu_too_small_is_said_with_what_to_lower(gpu_engines, monkeypatch):
    def refuse(*args):
        raise MemoryError("no memory for a KV cache of 9.00 GB; lower slots or context")

    monkeypatch.setattr(OnThisDevice, "_make_cache", refuse)
    monkeypatch.setattr("workbench.engine.build.torch_gpu_memory", lambda: (int(5e9), int(8e9)))
    with pytest.raises(StageError, match=r"KV cache of 9\.00 GB.*\n.*5\.0 of 8\.0 GB.*\n.*batch"):
        Engine.from_model(make_model("llama"), device="cuda")


def test_what_the_kernels_do_not_know_runs_through_transformers(gpu_engines, monkeypatch):
    monkeypatch.setattr(TransformersCore, "__init__", lambda self, model, *rest: made.append(rest))
    monkeypatch.setattr(TransformersCore, "slots", 1, raising=False)
    monkeypatch.setattr(TransformersCore, "context", 8, raising=False)
    model = make_model("llama")
    monkeypatch.setattr(TransformersCore, "config", model.config, raising=False)
    made = []
    to_ternary(model, Policy(), ThresholdVersion(), activations="none")
    Engine.from_model(model, device="cuda")
    *_, device, reason = made[0]
    assert device == "cuda" and "leaves its activations as they are" in reason
