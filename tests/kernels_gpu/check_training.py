"""The training layer: values, gradients, compilation, checkpointing. See check_products."""

import pytest
import torch
from ternary_kernels import reference
from ternary_kernels.gpu import (
    QATLinear,
    keep_fresh,
    layout,
    pack_weights,
    qat_linear,
    unpack_weights,
)
from torch.utils.checkpoint import checkpoint

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


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
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


def layer(**options):
    torch.manual_seed(9)
    return QATLinear(60, 24, device=DEVICE, **options)


def test_weights_are_quantised_once_a_step_and_follow_the_optimizer():
    model = torch.nn.Sequential(layer(sub_norm=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    keep_fresh(model, optimizer)
    x = torch.randn(5, 60, device=DEVICE)
    address, before = model[0].tiles.data_ptr(), model[0].tiles.clone()
    for _ in range(2):
        model(x).square().mean().backward()
    assert torch.equal(model[0].tiles, before)
    optimizer.step()
    fresh = pack_weights(model[0].weight)
    assert torch.equal(model[0].tiles, fresh.tiles) and not torch.equal(fresh.tiles, before)
    assert model[0].tiles.data_ptr() == address  # what a CUDA graph has captured stays valid


def test_loading_and_moving_keep_the_quantised_weights_true():
    ours, other = layer(), QATLinear(60, 24, device=DEVICE)
    with pytest.raises(RuntimeError, match="Call keep_fresh"):
        ours(torch.ones(2, 60, device=DEVICE))
    ours.refresh()
    assert set(ours.state_dict()) == {"weight", "bias"}
    ours.load_state_dict(other.state_dict())
    assert torch.equal(ours.tiles, pack_weights(other.weight).tiles)
    ours.to(torch.bfloat16)
    assert ours.row_scales.dtype == torch.float32
    assert ours(torch.ones(2, 60, device=DEVICE, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert ours.weight.grad is None


def test_checkpointed_and_compiled_give_the_same_gradients():
    model = layer(sub_norm=True)
    model.refresh()
    x = torch.randn(5, 60, device=DEVICE, requires_grad=True)

    def gradients(run):
        for leaf in (x, *model.parameters()):
            leaf.grad = None
        run(x).square().sum().backward()
        return [leaf.grad.clone() for leaf in (x, *model.parameters())]

    plain = gradients(model)
    again = gradients(lambda x: checkpoint(model, x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    backend = "aot_eager" if layout.INTERPRETED else "inductor"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for a, b in zip(plain, gradients(compiled), strict=True):
        torch.testing.assert_close(a, b)


def test_a_low_precision_layer_over_full_precision_master_weights():
    model = layer(sub_norm=True, granularity="row")
    model.refresh()
    x = torch.randn(5, 60, device=DEVICE, dtype=torch.bfloat16)
    y = model(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and model.weight.grad.dtype == torch.float32
    assert model.norm_weight.grad.isfinite().all() and model.bias.grad.isfinite().all()


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
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
        assert error > 0 or (name != "weight" and granularity == "group")


def test_training_with_int8_gradients_reaches_the_same_loss():
    torch.manual_seed(11)
    x, wanted = torch.randn(16, 60, device=DEVICE), torch.randn(16, 24, device=DEVICE)
    losses = {}
    for int8 in (False, True):
        model = layer(int8_gradients=int8)
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
        keep_fresh(model, optimizer)
        for _ in range(6):
            loss = (model(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[int8] = float(loss.detach())
    assert losses[True] == pytest.approx(losses[False], rel=0.05)


def test_bad_shapes_are_named():
    model = layer()
    model.refresh()
    with pytest.raises(ValueError, match=r"allowed: \[\.\.\., K\] and \[N, K\]"):
        model(torch.ones(2, 59, device=DEVICE))
    with pytest.raises(ValueError, match="granularity 'column'"):
        layer(granularity="column")
