"""The quantisers against NumPy written out cell by cell, and against transformers' own layers."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from ternary_kernels import PackedInt8, PackedTernary
from ternary_kernels.quantizers import quantize_int8

from workbench.ternary import BitLinear
from workbench.ternary.packed_layers import PackedTernaryLinear
from workbench.ternary.quantize import (
    fake_quantize_activations,
    learned_weight,
    quantize_activations,
    quantize_weight,
    round_to,
    scale_shape,
    spread,
    starting_alpha,
    ternarize,
    threshold_in_scales,
)
from workbench.ternary.threshold import ThresholdVersion

with warnings.catch_warnings():
    # Its decorators load the compiler of torch, which warns of its own TorchScript.
    warnings.simplefilter("ignore", DeprecationWarning)
    from transformers.integrations import bitnet

RULES = ("absmean", "absmedian", "twn", "learned")
GRANULARITIES = ("tensor", "row", "group128")
RULES_AND_GRANULARITIES = list(itertools.product(RULES, GRANULARITIES))
SHAPES = [(1, 1), (3, 5), (7, 128), (5, 300)]


def cells(shape: tuple[int, int], granularity: str) -> list[tuple[slice, slice]]:
    N, K = shape
    if granularity == "tensor":
        return [(slice(0, N), slice(0, K))]
    width = K if granularity == "row" else 128
    return [(slice(n, n + 1), slice(k, k + width)) for n in range(N) for k in range(0, K, width)]


def naive(w: np.ndarray, threshold: ThresholdVersion) -> tuple[np.ndarray, np.ndarray]:
    codes, values = np.zeros(w.shape), np.zeros(w.shape)
    for cell in cells(w.shape, threshold.granularity):
        part, size = w[cell], np.abs(w[cell])
        if threshold.rule == "twn":
            code = np.sign(part) * (size > threshold.ratio * size.mean())
            scale = size[code != 0].mean() if code.any() else threshold.eps
        else:
            scale = {
                "absmean": size.mean(),
                "absmedian": np.sort(size, axis=None)[(size.size - 1) // 2],
                "learned": size.max() / 1.5,
            }[threshold.rule]
            scale = max(scale, threshold.eps)
            code = np.clip(np.round(part / scale), -1, 1)
        codes[cell], values[cell] = code, code * scale
    return codes, values


@pytest.mark.parametrize(("rule", "granularity"), RULES_AND_GRANULARITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_values_are_those_written_out(rule, granularity, shape) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    threshold = ThresholdVersion(rule, granularity)
    alpha = starting_alpha(w, threshold) if rule == "learned" else None
    codes, scale = ternarize(w, threshold, alpha)
    expected_codes, expected_values = naive(w.double().numpy(), threshold)
    assert codes.dtype == torch.int8
    assert tuple(scale.shape) == scale_shape(*shape, granularity)
    np.testing.assert_array_equal(codes.numpy(), expected_codes)
    values = codes * spread(scale, shape[1])
    np.testing.assert_allclose(values.numpy(), expected_values, rtol=1e-6)
    torch.testing.assert_close(quantize_weight(w, threshold, alpha), values, rtol=0, atol=0)
    edge = threshold_in_scales(w, threshold, scale)
    assert (((w / spread(scale, shape[1])).abs() > edge) == (codes != 0)).all()


def test_the_three_roundings_differ_exactly_at_the_half() -> None:
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5, 0.49, -0.51])
    assert round_to(x, "half_even").tolist() == [-2, 0, 0, 2, 2, 0, -1]
    assert round_to(x, "half_up").tolist() == [-1, 0, 1, 2, 3, 0, -1]
    assert round_to(x, "half_away").tolist() == [-2, -1, 1, 2, 3, 0, -1]
    w = torch.tensor([[1.0, -1.0, 0.5, -0.5, 2.0, -1.0]])  # mean magnitude 1
    codes = {r: ternarize(w, ThresholdVersion(rounding=r))[0][0].tolist() for r in
             ("half_even", "half_up", "half_away")}  # fmt: skip
    assert codes["half_even"] == [1, -1, 0, 0, 1, -1]
    assert codes["half_up"] == [1, -1, 1, 0, 1, -1]
    assert codes["half_away"] == [1, -1, 1, -1, 1, -1]


@pytest.mark.parametrize(("rule", "granularity"), RULES_AND_GRANULARITIES)
def test_weights_of_zero_give_zero_and_a_usable_scale(rule, granularity) -> None:
    threshold = ThresholdVersion(rule, granularity)
    w = torch.zeros(4, 130)
    alpha = starting_alpha(w, threshold) if rule == "learned" else None
    codes, scale = ternarize(w, threshold, alpha)
    assert not codes.any()
    assert (scale > 0).all() and scale.isfinite().all()


def test_activations_come_back_within_half_a_step_of_each_token() -> None:
    x = torch.randn(3, 7, 33) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    values, factor = quantize_activations(x)
    assert values.abs().amax(-1).eq(127).all() and values.eq(values.round()).all()
    assert ((values / factor - x).abs() <= 0.5001 / factor).all()
    zeros, factor = quantize_activations(torch.zeros(2, 4))
    assert not zeros.any() and factor.isfinite().all()


def test_int8_rows_come_back_within_half_a_step() -> None:
    w = torch.randn(9, 65) * torch.logspace(-4, 4, 9)[:, None]
    w[3] = 0
    values, scale = quantize_int8(w)
    assert values.dtype == torch.int8 and int(values.min()) >= -127
    assert ((values.float() * scale[:, None] - w).abs() <= 0.5001 * scale[:, None]).all()


def test_the_gradient_goes_straight_through() -> None:
    x = torch.randn(4, 9, requires_grad=True)
    upstream = torch.randn(4, 9)
    fake_quantize_activations(x).backward(upstream)
    torch.testing.assert_close(x.grad, upstream, rtol=0, atol=0)


def test_learned_gradients_are_those_of_lsq() -> None:
    threshold = ThresholdVersion("learned", "row")
    w = torch.tensor([[0.2, -0.9, 3.0, 0.4]], requires_grad=True)
    alpha = torch.tensor([1.5], requires_grad=True)
    upstream = torch.tensor([[1.0, 2.0, 3.0, 5.0]])
    out = learned_weight(w, alpha, threshold)
    assert out.tolist() == [[0.0, -1.0, 1.0, 0.0]]
    out.backward(upstream)
    # w/alpha = 0.13, -0.6, clipped, 0.27; codes/1.5 = 0, -2/3, 2/3, 0
    per_weight = torch.tensor([0 - 0.2 / 1.5, -2 / 3 + 0.6, 2 / 3, 0 - 0.4 / 1.5])
    expected = float((per_weight * upstream[0]).sum()) / math.sqrt(4)
    assert float(alpha.grad) == pytest.approx(expected, rel=1e-5)
    assert w.grad.tolist() == [[1.0, 2.0, 0.0, 5.0]]


def half_ulp_of_bf16(y: torch.Tensor) -> torch.Tensor:
    """Half a unit in the last place of bf16 (8 significant bits) at the size of ``y``."""
    _, exponent = torch.frexp(y.float())
    return torch.ldexp(torch.ones_like(y), exponent - 8) / 2


@pytest.fixture
def eager():
    """transformers compiles its quantisers; their formulas are what is compared here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numerics_are_those_of_transformers_online_layer(eager, bias, dtype) -> None:
    torch.manual_seed(5)
    theirs = bitnet.AutoBitLinear(96, 60, bias=bias, dtype=dtype, online_quant=True)
    ours = BitLinear.from_linear(theirs, ThresholdVersion())
    x = torch.randn(4, 11, 96, dtype=dtype)
    expected, got = theirs(x).float(), ours(x).float()
    assert ((expected - got).abs() <= half_ulp_of_bf16(expected)).all()


@pytest.mark.parametrize("bias", [False, True])
def test_numerics_are_those_of_transformers_packed_layer(eager, bias) -> None:
    torch.manual_seed(6)
    linear = torch.nn.Linear(96, 60, bias=bias)
    codes, scale = ternarize(linear.weight, ThresholdVersion())
    theirs = bitnet.BitLinear(96, 60, bias=bias, dtype=torch.float32)
    theirs.weight.copy_(bitnet.pack_weights(codes.float()))
    theirs.weight_scale.copy_(1.0 / scale)  # this class divides by it
    if bias:
        theirs.bias.copy_(linear.bias.detach())
    ours = PackedTernaryLinear.from_values(codes, scale, bias=linear.bias)
    x = torch.randn(5, 96)
    expected, got = theirs(x), ours(x)
    # Where the sum all but cancels, the float32 products themselves are only this exact.
    floor = 1e-6 * expected.abs().max()
    assert ((expected - got).abs() <= half_ulp_of_bf16(expected).clamp(min=floor)).all()
    trained = BitLinear.from_linear(linear, ThresholdVersion())(x)
    assert ((expected - trained).abs() <= half_ulp_of_bf16(expected).clamp(min=floor)).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (37, 128), (64, 1000)], ids=str)
def test_training_and_kernels_quantise_weights_alike(shape: tuple[int, int]) -> None:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in (("tensor", "tensor"), ("row", "row"), ("group128", "group128")):
        codes, scale = ternarize(w, ThresholdVersion(granularity=ours))
        packed = PackedTernary.from_float(w, theirs)
        assert torch.equal(packed.codes().to(torch.int8) - 1, codes)
        assert torch.equal(packed.scale.flatten(), scale.flatten())
    values, scale = quantize_int8(w)
    packed = PackedInt8.from_float(w)
    assert torch.equal(packed.values(), values) and torch.equal(packed.scale, scale)
