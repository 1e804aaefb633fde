"""The product that trains: values and gradients. See check_products; the layer: check_bitlinear."""

import pytest
import torch
from ternary_kernels import reference
from ternary_kernels.gpu import layout, pack_weights, qat_linear, unpack_weights

DEVICE = "cpu" if layout.INTERPRETED else "cuda"


def straight_through(x, weight, bias, norm_weight, granularity):
    """The layer in plain PyTorch: fake quantisation with detached rounding errors."""
    if norm_weight is not None:
        x = reference.rms_norm(x, norm_weight, 1e-5)
    q, x_scale = reference.quantize_activations(x.detach().reshape(-1, x.shape[-1]).float())
    used = (q.float() * x_scale[:, None]).reshape(x.shape)
    dense = pack_weights(weight.detach().to(DEVICE), granularity)
    ternary = unpack_weights(dense, torch.float32).cpu()
    return torch.nn.functional.linear(
        x + (used - x).detach(), weight + (ternary - weight).detach(), bias
    )


@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("shape", [(1, 20, 36), (2, 5, 33, 300)], ids=str)
def test_values_and_gradients(shape, normed, granularity):
    torch.manual_seed(8)
    *rows, N, K = shape
    leaves = {
        "x": torch.randn(*rows, K),
        "weight": torch.randn(N, K),
        "bias": torch.randn(N),
        "norm_weight": torch.rand(K) + 0.5 if normed else None,
    }
    plain = {k: v if v is None else v.clone().requires_grad_() for k, v in leaves.items()}
    ours = {k: v if v is None else v.to(DEVICE).requires_grad_() for k, v in leaves.items()}
    packed = pack_weights(ours["weight"], granularity)
    expected = straight_through(*plain.values(), granularity)
    y = qat_linear(
        ours["x"], ours["weight"], ours["bias"], packed.tiles, packed.row_scales,
        norm_weight=ours["norm_weight"],
    )  # fmt: skip
    dy = torch.randn_like(expected)
    expected.backward(dy)
    y.backward(dy.to(DEVICE))
    # After a norm a value at a tie may round the other way: one step of 127.
    tolerance = 1e-2 if normed else 1e-5
    assert (y.detach().cpu() - expected.detach()).norm() <= tolerance * expected.detach().norm()
    for name, leaf in plain.items():
        if leaf is not None:
            error = (ours[name].grad.cpu() - leaf.grad).norm() / leaf.grad.norm()
            assert error < tolerance, name


@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
def test_gradients_in_int8_stay_near(granularity):
    """The quality check of the option: 127 steps for the largest value of a token or output."""
    torch.manual_seed(10)
    x, weight, norm = torch.randn(40, 300), torch.randn(33, 300), torch.rand(300) + 0.5
    dy = torch.randn(40, 33)
    packed = pack_weights(weight.to(DEVICE), granularity)
    grads = {}
    for int8 in (False, True):
        leaves = [t.clone().to(DEVICE).requires_grad_() for t in (x, weight, norm)]
        y = qat_linear(
            leaves[0], leaves[1], None, packed.tiles, packed.row_scales,
            norm_weight=leaves[2], int8_gradients=int8,
        )  # fmt: skip
        y.backward(dy.to(DEVICE))
        grads[int8] = [leaf.grad.cpu() for leaf in leaves]
    for name, exact, rounded in zip(("x", "weight", "norm"), *grads.values(), strict=True):
        error = float((rounded - exact).norm() / exact.norm())
        assert error < 0.02, (name, error)
        assert error > 0 or (name != "weight" and granularity == "group128")


def test_bad_shapes_are_named():
    weight = torch.randn(24, 60, device=DEVICE)
    packed = pack_weights(weight)
    with pytest.raises(ValueError, match=r"allowed: \[\.\.\., K\] and \[N, K\]"):
        qat_linear(torch.ones(2, 59, device=DEVICE), weight, None, packed.tiles, packed.row_scales)
