"""Which units multiply, and when a comparison of arms is not fair in them."""

from __future__ import annotations

import pytest
import ternary_kernels as tk
import torch

from workbench.engine.engine import Engine
from workbench.engine.units import backends, uneven_units

TILED = [isa for isa in tk.available_isas() if isa in ("amx", "tile_model")]


@pytest.fixture
def forced():
    before = tk.backend().isa
    yield tk.force_isa
    tk.force_isa(before)


@pytest.mark.parametrize("isa", TILED)
def test_each_precision_has_its_unit(forced, isa):
    forced(isa)
    w = torch.randn(32, 32)
    unit = tk.backend().unit
    for cls in (tk.PackedTernary, tk.PackedTernary3, tk.PackedTernary5, tk.PackedInt8):
        assert unit(cls.from_float(w)) == f"{isa}_int8"
    assert unit(tk.PackedHalf.from_float(w, torch.bfloat16)) == f"{isa}_bf16"
    assert unit(tk.PackedHalf.from_float(w, torch.float16)) == "vectors"
    forced("plain")
    assert tk.backend().unit(tk.PackedTernary.from_float(w)) == "vectors"


def test_only_unlike_units_are_unfair():
    assert not uneven_units({"full_precision": ["amx_bf16"], "ternary": ["amx_int8"]})
    assert not uneven_units({"full_precision": ["vectors"], "ternary": ["vectors"]})
    assert not uneven_units({"full_precision": [], "ternary": []})
    assert not uneven_units({"full_precision": ["vectors"], "ternary_in_another_core": []})
    told = uneven_units({"full_precision": ["vectors"], "ternary": ["amx_int8"]})
    assert "full_precision: vectors; ternary: amx_int8" in told
    assert uneven_units({"full_precision": ["amx_bf16"], "hybrid": ["amx_bf16", "vectors"]})


@pytest.mark.parametrize("isa", TILED)
def test_an_arm_names_its_kernels(forced, isa):
    from transformers import LlamaConfig

    forced(isa)
    tiny = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    arms = {
        arm: Engine.random(tiny, precision, context=32)
        for arm, precision in (("full_precision", "half"), ("ternary", "ternary"))
    }
    vectors = tk.backend().vectors
    assert (arms["full_precision"].units, arms["ternary"].units) == (
        (f"{isa}_bf16",),
        (f"{isa}_int8",),
    )
    assert f"native {vectors} + {isa}_bf16, " in arms["full_precision"].backend
    assert f"native {vectors} + {isa}_int8, " in arms["ternary"].backend
    assert backends(arms).startswith("full_precision: ternary_kernels native")
    for engine in arms.values():
        engine.close()
