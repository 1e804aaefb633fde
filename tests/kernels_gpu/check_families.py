"""The GPU's engine core against ``transformers`` for every family it takes. See check_products.

The core is made as the engine makes it, from a model in memory; only the device differs.
"""

import numpy as np
import pytest
import torch
from ternary_kernels.gpu import layout
from ternary_kernels.gpu.llama import LlamaGpu
from ternary_kernels.gpu.pack import unpack_codes
from ternary_kernels.llama import LlamaReference
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.engine.architecture import kernel_config
from workbench.engine.modules import ModelSource
from workbench.engine.weights import collect_weights
from workbench.pilot.sections.model import Policy
from workbench.ternary import ThresholdVersion, to_ternary

DEVICE = "cpu" if layout.INTERPRETED else "cuda"
SHAPE = {
    "vocab_size": 53, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
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
