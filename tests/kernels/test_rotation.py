"""The rotation within the quantisation of activations equals the reference on every set."""

from __future__ import annotations

import numpy as np
import pytest
import ternary_kernels as tk
import torch
from ternary_kernels import reference
from ternary_kernels.llama import LINEARS, LlamaConfig, LlamaNative, LlamaReference
from ternary_kernels.quantizers import absmean, rotate

needs_native = pytest.mark.skipif(not tk.available_isas(), reason="no native library")


@pytest.fixture(params=tk.available_isas() or [None])
def isa(request):
    if request.param is None:
        pytest.skip("no native library")
    before = tk.backend().isa
    tk.force_isa(request.param)
    yield request.param
    tk.force_isa(before)


@pytest.mark.parametrize(
    ("K", "rotation"), [(2, 128), (60, 128), (63, 128), (576, 512), (1536, 128), (1536, 1024)]
)
def test_codes_and_scales_are_the_references_to_the_bit(isa, K: int, rotation: int) -> None:
    g = torch.Generator().manual_seed(K + rotation)
    x = torch.randn(5, K, generator=g) * torch.rand(K, generator=g) * 30
    q, x_scale = tk.quantize(x, rotation=rotation)
    expected, expected_scale = reference.quantize_activations(rotate(x, rotation))
    assert torch.equal(q, expected) and torch.equal(x_scale, expected_scale)
    norm = torch.rand(K, generator=g) + 0.5
    q, x_scale = tk.quantize(x, norm, 1e-5, rotation)
    turned = rotate(reference.rms_norm(x, norm, 1e-5), rotation)
    assert float((q * x_scale[:, None] - turned).abs().max()) <= float(x_scale.max()) * 0.501


def rotated(N: int, K: int, granularity: str, rotation: int, seed: int = 0):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed)) * K**-0.5
    codes, scale = absmean(rotate(weight, rotation), granularity)
    return tk.PackedTernary.from_codes((codes + 1).to(torch.uint8), scale).rotated(rotation), weight


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
def test_a_rotated_product_is_that_of_the_reference(isa, rows: int, granularity: str) -> None:
    packed, weight = rotated(48, 576, granularity, 512)
    x = torch.randn(rows, 576, generator=torch.Generator().manual_seed(1))
    got, expected = tk.linear(x, packed), reference.linear(x, packed)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    exact = x @ packed.dequantize().T
    assert float((got - exact).norm() / exact.norm()) < 0.03, "INT8 activations alone are between"
    assert float((packed.dequantize() - weight).norm() / weight.norm()) < 0.6


def test_rotation_stays_with_the_weight_and_mixtures_are_refused() -> None:
    packed, _ = rotated(16, 96, "row", 128)
    assert packed.rotation == 32
    again = tk.PackedTernary.from_state(packed.state())
    assert again.rotation == 32 and torch.equal(again.dequantize(), packed.dequantize())
    plain, x = tk.PackedInt8.from_float(torch.randn(16, 96)), torch.randn(2, 96)
    with pytest.raises(ValueError, match="rotations"):
        tk.linears(x, [packed, plain])
    with pytest.raises(ValueError, match="rotations"):
        tk.gated(x, packed, plain)


@needs_native
def test_the_model_rotates_as_the_reference_does() -> None:
    D, sizes = 16, {"hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "vocab_size": 50}
    config = LlamaConfig(
        **sizes, num_heads=4, num_kv_heads=2, head_dim=D,
        inv_freq=tuple((10000.0 ** (-np.arange(0, D, 2) / D)).tolist()),
    )  # fmt: skip
    table = torch.randn(50, 64, generator=torch.Generator().manual_seed(2))
    weights = {"embed": tk.PackedInt8.from_float(table), "norm": torch.ones(64)}
    for i in range(2):
        layer = f"layers.{i}."
        for j, name in enumerate(LINEARS):
            N, K = config.linear_shape(name)
            weights[layer + name] = rotated(N, K, "row", 128, seed=7 * i + j)[0]
        weights |= {layer + "attn_norm": torch.ones(64), layer + "ffn_norm": torch.ones(64)}
    with (
        LlamaNative(config, weights, 1, 32) as native,
        LlamaReference(config, weights, 1, 32) as ref,
    ):
        for tokens, start in ((np.arange(9), 0), (np.array([3]), 9)):
            rows = (tokens, np.zeros(len(tokens)), start + np.arange(len(tokens)), True)
            got, expected = native.forward(*rows), ref.forward(*rows)
            assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 1e-3
    weights["layers.1.v"] = tk.PackedInt8.from_float(torch.randn(*config.linear_shape("v")))
    with pytest.raises(ValueError, match="rotations"):
        LlamaNative(config, weights, 1, 32)
