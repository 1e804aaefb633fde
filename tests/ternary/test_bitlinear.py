"""The training layer: strength, gradients, bias, kept weights, and no wait for the device."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.ternary import BitLinear, ThresholdVersion, quantize
from workbench.ternary.quantize import quantize_activations, quantize_weight


def layer_of(**choices) -> tuple[torch.nn.Linear, BitLinear]:
    torch.manual_seed(1)
    linear = torch.nn.Linear(130, 24)
    threshold = choices.pop("threshold", ThresholdVersion())
    return linear, BitLinear.from_linear(linear, threshold, **choices)


def test_strength_leads_from_the_precise_layer_to_the_ternary_one() -> None:
    linear, layer = layer_of()
    x = torch.randn(3, 130)
    values, factor = quantize_activations(x)
    q_x, q_w = values / factor, quantize_weight(linear.weight, ThresholdVersion())
    layer.strength = 0.0
    assert torch.equal(layer(x), linear(x))
    layer.strength = 1.0
    assert torch.equal(layer(x), F.linear(q_x, q_w, linear.bias))
    layer.strength = 0.25
    blended = F.linear(
        x + 0.25 * (q_x - x), linear.weight + 0.25 * (q_w - linear.weight), linear.bias
    )
    torch.testing.assert_close(layer(x), blended, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="0 to 1"):
        layer.strength = 1.5


def test_the_bias_is_added_after_the_scale() -> None:
    linear, layer = layer_of()
    torch.nn.init.zeros_(linear.weight)
    x = torch.randn(2, 130)
    assert torch.equal(layer(x), linear.bias.expand(2, -1))


def test_unquantised_activations_and_a_norm_before() -> None:
    linear, layer = layer_of(activations="none", sub_norm=True)
    torch.nn.init.normal_(layer.norm.weight)
    x = torch.randn(3, 130)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * layer.norm.weight
    weight = quantize_weight(linear.weight, ThresholdVersion())
    torch.testing.assert_close(layer(x), F.linear(normed, weight, linear.bias))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_gradient_of_the_master_weights_is_that_of_the_quantised_ones(strength) -> None:
    _, layer = layer_of(activations="none")
    layer.strength = strength
    x = torch.randn(6, 130, requires_grad=True)
    upstream = torch.randn(6, 24)
    layer(x).backward(upstream)
    torch.testing.assert_close(layer.weight.grad, upstream.T @ x.detach())
    torch.testing.assert_close(x.grad, upstream @ layer.effective_weight().detach())


def test_the_parameters_are_the_linear_layers_own() -> None:
    linear, layer = layer_of()
    assert layer.weight is linear.weight and layer.bias is linear.bias
    assert set(layer.state_dict()) == {"weight", "bias"}


def calls_of_quantise(layer: BitLinear) -> list[int]:
    count = [0]
    original = layer._quantise

    def counted() -> torch.Tensor:
        count[0] += 1
        return original()

    layer._quantise = counted
    return count


def test_quantised_weights_are_kept_only_where_nothing_can_change_unseen() -> None:
    _, layer = layer_of()
    count, x = calls_of_quantise(layer), torch.randn(2, 130)
    layer.train()
    layer(x), layer(x)
    assert count == [2], "in training each pass quantises, unless asked otherwise"
    layer.reuse = True
    layer(x), layer(x)
    assert count == [3]
    layer.weight.data.mul_(2.0)  # no version counter sees this
    layer.forget()
    expected = quantize_weight(layer.weight, layer.threshold)
    assert torch.equal(layer.effective_weight(), expected)
    with torch.no_grad():
        layer.weight.mul_(2.0)  # the version counter does see this
    assert torch.equal(layer.effective_weight(), 2 * expected)
    layer.strength = 0.5
    assert not torch.equal(layer.effective_weight(), 2 * expected)


def test_evaluation_keeps_weights_until_the_mode_is_switched() -> None:
    _, layer = layer_of()
    layer.eval()
    count, x = calls_of_quantise(layer), torch.randn(2, 130)
    layer(x), layer(x)
    assert count == [1]
    layer.weight.data.mul_(3.0)
    layer.train().eval()
    assert torch.equal(layer.effective_weight(), quantize_weight(layer.weight, layer.threshold))


def test_what_inference_mode_kept_does_not_break_a_later_gradient() -> None:
    _, layer = layer_of()
    layer.eval()
    with torch.inference_mode():
        layer(torch.randn(2, 130))
    layer(torch.randn(2, 130, requires_grad=True)).sum().backward()
    assert layer.weight.grad is not None


def test_accumulated_gradients_are_the_same_with_kept_weights() -> None:
    batches = torch.randn(3, 4, 130)
    grads = []
    for reuse in (False, True):
        _, layer = layer_of()
        layer.train()
        layer.reuse = reuse
        for x in batches:
            layer(x).square().sum().backward()
        grads.append(layer.weight.grad)
    assert torch.equal(*grads)


class RefuseHostSync(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function), "a value was read back to the host"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", ["absmean", "absmedian", "twn", "learned"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_step_never_waits_for_the_device(rule: str, strength: float) -> None:
    _, layer = layer_of(threshold=ThresholdVersion(rule, "row"))
    layer.strength = strength
    with RefuseHostSync():
        layer(torch.randn(2, 130)).sum().backward()


def test_a_learned_scale_starts_from_the_weights_the_warm_up_left() -> None:
    linear, layer = layer_of(threshold=ThresholdVersion("learned", "row"))
    layer.strength = 0.0
    layer.train()(torch.randn(2, 130)).sum().backward()
    linear.weight.data.mul_(5.0)
    layer.strength = 1.0
    layer.eval()(torch.randn(2, 130))
    assert not layer.alpha.any(), "an evaluation starts nothing"
    layer.train()(torch.randn(2, 130)).sum().backward()
    torch.testing.assert_close(layer.alpha.detach(), linear.weight.detach().abs().amax(1))
    assert layer.alpha.grad.abs().sum() > 0
    linear.weight.data.mul_(5.0)
    resumed = BitLinear.from_linear(torch.nn.Linear(130, 24), layer.threshold)
    resumed.load_state_dict(layer.state_dict())
    resumed.train()(torch.randn(2, 130))
    assert torch.equal(resumed.alpha, layer.alpha), "a resumed training goes on from its alpha"


def test_bfloat16_stays_bfloat16() -> None:
    linear = torch.nn.Linear(64, 8).to(torch.bfloat16)
    layer = BitLinear.from_linear(linear, ThresholdVersion())
    for strength in (0.0, 0.5, 1.0):
        layer.strength = strength
        assert layer(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_layers_that_read_one_tensor_quantise_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew when it was written to, at another strength, or under another gradient mode."""
    made = []
    real = quantize.fake_quantize_activations
    monkeypatch.setattr(
        quantize, "fake_quantize_activations", lambda *a: made.append(1) or real(*a)
    )
    (_, one), (_, other) = layer_of(), layer_of()
    x = torch.randn(3, 130)
    first = one(x)
    assert torch.equal(other(x), first) and len(made) == 1
    x.mul_(2.0)
    assert not torch.equal(one(x), first) and len(made) == 2
    other.strength = 0.5
    other(x)
    assert len(made) == 3
    with torch.no_grad():
        other(x)
        assert len(made) == 4
    one(x.clone())
    assert len(made) == 5
    with torch.inference_mode():
        inside = torch.randn(3, 130)
        one(inside)
        inside.mul_(2.0)  # counts no version
        one(inside)
    assert len(made) == 7


def test_shared_activations_give_the_gradients_of_separate_ones() -> None:
    (_, one), (_, other) = layer_of(), layer_of()
    gradients = []
    for copy in (lambda x: x, lambda x: x * 1.0):
        x = torch.randn(5, 130, generator=torch.Generator().manual_seed(2), requires_grad=True)
        y = x * 1.0
        (one(y).sin().sum() + other(copy(y)).cos().sum()).backward()
        gradients.append([x.grad, one.weight.grad, other.weight.grad])
        one.weight.grad = other.weight.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
