"""The engine's logits against those of ``transformers``, for every family of models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ternary_kernels import PackedTernary
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoXConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from workbench.engine.architecture import NotForKernels, kernel_config
from workbench.engine.engine import Engine
from workbench.pilot.sections.model import Policy
from workbench.pilot.sections.readiness import Packing
from workbench.ternary import ThresholdVersion, to_ternary

SHAPE = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": {"tie_word_embeddings": True},
    "llama3-rope": {
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "bitnet": {"hidden_act": "relu2"},
}  # fmt: skip
TOKENS = np.random.default_rng(3).integers(0, 101, 19).tolist()


def make_config(family: str) -> PretrainedConfig:
    kind = "llama" if family in ("llama3-rope", "yarn") else family
    return AutoConfig.for_model(kind, **SHAPE, **FAMILIES[family])


def make_model(family: str) -> PreTrainedModel:
    """Random weights that bf16 can hold, so that nothing is rounded on the way; norms and
    biases are drawn as well, because ones and zeros would hide a mistake."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(family), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                centre = 1.0 if "norm" in name else 0.0
                parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(4.0)
            parameter.copy_(parameter.bfloat16().float())
    return model


def error(got: np.ndarray, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    wanted = wanted.detach().float()
    return float((torch.from_numpy(got) - wanted).norm() / wanted.norm())


def rounding(engine: Engine) -> float:
    """The error that half-precision weights may have: tiles round the activations to bf16."""
    return 1e-2 if any(unit.endswith("bf16") for unit in engine.units) else 1e-3


@torch.no_grad()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    return model(torch.tensor([TOKENS])).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_full_precision_logits(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    model.save_pretrained(tmp_path)
    wanted = logits_of(model)
    for engine in (
        Engine.load(tmp_path, slots=2, kv_dtype="float32"),
        Engine.from_model(model, slots=2, kv_dtype="float32"),
    ):
        with engine:
            assert "ternary_kernels" in engine.backend
            assert error(engine.logits(TOKENS), wanted) < rounding(engine)
            engine.prefill(1, TOKENS[:11], chunk=4)
            steps = [engine.decode([1], [token])[0] for token in TOKENS[11:]]
            assert error(np.stack(steps), wanted[11:]) < 1e-3


@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "bitnet"])
def test_ternary_codes_and_logits(family: str, granularity: str) -> None:
    """The codes are those of training; what is left are roundings of the activations, which
    differ where the order of a sum differs."""
    model = make_model(family)
    to_ternary(model, Policy(), ThresholdVersion(granularity=granularity))
    with Engine.from_model(model, kv_dtype="float32") as engine:
        for i, layer in enumerate(model.model.layers):
            packed = engine.core.weights[f"layers.{i}.down"]
            assert isinstance(packed, PackedTernary)
            codes, scale = layer.mlp.down_proj.ternarized()
            assert torch.equal(packed.codes().to(torch.int8) - 1, codes)
            assert torch.equal(packed.scale.flatten(), scale.flatten())
        assert error(engine.logits(TOKENS), logits_of(model)) < 2e-2


def test_slots_do_not_see_each_other() -> None:
    """Three conversations in one step give what each gives alone."""
    model = make_model("llama")
    parts = [TOKENS[:5], TOKENS[5:12], TOKENS[12:]]
    with Engine.from_model(model, slots=3, kv_dtype="float32") as engine:
        alone = [engine.logits(part) for part in parts]
        tokens = [token for part in parts for token in part]
        slots = [slot for slot, part in enumerate(parts) for _ in part]
        together = engine.step(tokens, slots, True)
        # Together they are enough rows for a tile unit, alone they are not.
        bound = 1e-5 if rounding(engine) < 1e-2 else 5e-2
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-4, atol=bound)


@pytest.mark.parametrize(("tables", "bound"), [("int8", 0.03), ("mixed", 0.2), ("int4", 0.2)])
def test_tables_are_packed_as_asked_beside_layers_that_are_ternary(tables, bound) -> None:
    model = make_model("qwen2")
    to_ternary(model)
    with (
        Engine.from_model(model, packing=Packing(tables=tables)) as small,
        Engine.from_model(model, packing=Packing(tables="half")) as large,
    ):
        assert {small.core.weights[name].kind for name in ("embed", "head")} == {tables}
        assert small.weight_bytes < large.weight_bytes
        wanted = torch.from_numpy(large.logits(TOKENS))
        assert error(small.logits(TOKENS), wanted) < bound


def test_full_precision_keeps_its_tables_whatever_is_asked() -> None:
    model = make_model("qwen2")
    with Engine.from_model(model, packing=Packing(tables="int4", ternary="base3")) as engine:
        assert {engine.core.weights[name].kind for name in ("embed", "head")} == {"half"}


@pytest.mark.parametrize(
    ("packing", "dense_kind"), [("base3", "ternary5"), ("triples", "ternary3")]
)
@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
def test_denser_packings_give_the_same_integers_where_scales_allow_them(
    granularity, packing, dense_kind
) -> None:
    config = make_config("llama")
    config.intermediate_size = 256  # two groups of 128
    model = AutoModelForCausalLM.from_config(config).eval()
    to_ternary(model, threshold=ThresholdVersion(granularity=granularity))
    with (
        Engine.from_model(model, packing=Packing(ternary=packing)) as dense,
        Engine.from_model(model) as plain,
    ):
        kind = "ternary" if granularity == "group128" else dense_kind
        assert dense.core.weights["layers.1.down"].kind == kind
        np.testing.assert_array_equal(dense.logits(TOKENS), plain.logits(TOKENS))


def test_other_architectures_run_through_transformers() -> None:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=101, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with Engine.from_model(model, slots=2) as engine:
        assert engine.notes == [
            "runs through transformers on cpu, not through the kernels: model type 'gpt_neox' is "
            "none of llama, mistral, qwen2, qwen3, bitnet"
        ]
        assert error(engine.logits(TOKENS), logits_of(model)) < 1e-5
        engine.prefill(1, TOKENS[:4], chunk=3)
        engine.prefill(0, TOKENS[:8])
        rest = engine.step(TOKENS[4:9], [1] * 5, [False, True, False, True, True])
        assert error(rest, logits_of(model)[[5, 7, 8]]) < 1e-5
        engine.release(0)
        assert engine.kv_bytes > 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "RoPE"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused(change: dict, reason: str) -> None:
    with pytest.raises(NotForKernels, match=reason):
        kernel_config(AutoConfig.for_model("llama", **SHAPE, **change))


def test_layers_that_differ_in_attention_are_refused() -> None:
    config = AutoConfig.for_model(
        "qwen3", **SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1
    )
    with pytest.raises(NotForKernels, match="differ in attention"):
        kernel_config(config)


def test_unquantised_activations_run_through_transformers() -> None:
    model = make_model("llama")
    to_ternary(model, Policy(), ThresholdVersion(), activations="none")
    with Engine.from_model(model) as engine:
        assert "leaves its activations as they are" in engine.notes[0]
        assert error(engine.logits(TOKENS), logits_of(model)) < 1e-5
