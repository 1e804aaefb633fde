"""The Hadamard rotation of a threshold version: exact where nothing is rounded, and never lost."""

from __future__ import annotations

import pytest
import torch
from ternary_kernels.quantizers import activation_codes, rotate, rotation_block
from torch import nn

from workbench.errors import ConfigError
from workbench.ternary import BitLinear, ThresholdVersion
from workbench.ternary.bitlinear import precise_twin
from workbench.ternary.packed_layers import PackedTernaryLinear, pack_layer
from workbench.ternary.quantize import fake_quantize_activations, quantize_weight, ternarize

TURNED = ThresholdVersion(granularity="row", rotation=512)


def hadamard(block: int) -> torch.Tensor:
    """Sylvester's matrix over sqrt(block), by its definition: (-1)^popcount(i & j)."""
    signs = [[1 - 2 * (bin(i & j).count("1") % 2) for j in range(block)] for i in range(block)]
    return torch.tensor(signs, dtype=torch.float64) / block**0.5


@pytest.mark.parametrize(
    ("width", "rotation", "block"),
    [
        (576, 128, 64),
        (576, 1024, 64),
        (1536, 1024, 512),
        (1536, 128, 128),
        (100, 128, 4),
        (63, 128, 1),
    ],
)
def test_rotation_is_the_matrix_on_each_block(width: int, rotation: int, block: int) -> None:
    assert rotation_block(width, rotation) == block
    x = torch.randn(3, width)
    turned = rotate(x, rotation)
    exact = (x.double().view(3, -1, block) @ hadamard(block)).view(3, width)
    torch.testing.assert_close(turned.double(), exact, rtol=0, atol=2e-6)
    torch.testing.assert_close(rotate(turned, rotation), x, rtol=0, atol=2e-6)
    assert torch.equal(rotate(x, 0), x)


def test_unrounded_nothing_changes() -> None:
    linear = nn.Linear(192, 24)
    layer = BitLinear.from_linear(linear, TURNED)
    layer.strength = 0.0
    value = torch.randn(5, 192)
    assert torch.equal(layer(value), linear(value)), "at strength 0 nothing is turned"
    weight = rotate(linear.weight, 512)
    torch.testing.assert_close(rotate(value, 512) @ weight.T + linear.bias, linear(value))


def test_gradients_come_back_in_the_models_own_basis() -> None:
    layer = BitLinear(192, 24, threshold=TURNED)
    x, upstream = torch.randn(5, 192, requires_grad=True), torch.randn(5, 24)
    layer(x).backward(upstream)
    codes = quantize_weight(layer.weight, TURNED)
    torch.testing.assert_close(x.grad, rotate(upstream @ codes, 512), rtol=1e-4, atol=1e-5)
    q, absmax = (part.detach() for part in activation_codes(rotate(x, 512)))
    torch.testing.assert_close(
        layer.weight.grad, rotate(upstream.T @ (q * absmax / 127), 512), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
@pytest.mark.parametrize("activations", ["int8", "none"])
def test_packed_layer_computes_what_the_trained_one_does(granularity, activations) -> None:
    threshold = ThresholdVersion(granularity=granularity, rotation=256)
    layer = BitLinear(576, 40, threshold=threshold, activations=activations).eval()
    packed = pack_layer(layer, "ternary", ThresholdVersion(), activations)
    assert isinstance(packed, PackedTernaryLinear)
    x = torch.randn(7, 576)
    torch.testing.assert_close(packed(x), layer(x), rtol=1e-4, atol=1e-5)
    plain = precise_twin(layer)
    assert torch.equal(plain.weight, layer.weight), "the master weights are in the model's basis"
    error = (packed.dequantize() - layer.weight).norm() / layer.weight.norm()
    assert error < 0.6, "what the codes stand for is a matrix of the layer's own input"


def test_outliers_cost_less_when_they_are_spread() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 512)
    x[:, 7] *= 100  # one channel of large activations, as pretrained models have them
    turned = rotate(x, 512)
    errors = [(fake_quantize_activations(each) - each).norm() for each in (x, turned)]
    assert errors[1] < 0.2 * errors[0]


def test_version_names_the_rotation_and_refuses_another() -> None:
    assert str(TURNED) == "absmean/row/half_even/eps1e-5/rot512"
    again = ThresholdVersion.from_json(TURNED.to_json(), "here")
    assert again == TURNED
    with pytest.raises(ConfigError, match="rot512"):
        TURNED.require(ThresholdVersion(granularity="row"), "there")
    codes, scale = ternarize(torch.randn(8, 64), TURNED)
    assert codes.shape == (8, 64) and scale.shape == (8,)
