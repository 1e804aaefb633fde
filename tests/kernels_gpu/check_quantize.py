"""Quantisation of activations, with norm and gate, and RMSNorm's gradients. See check_products."""

import pytest
import torch
from ternary_kernels import reference
from ternary_kernels.gpu import layout, quantize, quantize_gated
from ternary_kernels.gpu.quantize import dequantize_rows, rms_norm_backward
from ternary_kernels.quantizers import rotate

DEVICE = "cpu" if layout.INTERPRETED else "cuda"
SHAPES = [(1, 1), (3, 60), (2, 128), (5, 300), (2, 8320)]


def natural_order(q, K):
    at = torch.arange(q.shape[1])
    inside = at % 128
    position = at - inside + (inside // 4) % 4 * 32 + inside // 16 * 4 + inside % 4
    return q[:, position][:, :K]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantisation_is_the_references_bit_for_bit(shape, dtype):
    torch.manual_seed(1)
    x = (torch.randn(shape) * 2).to(dtype)
    x[0] = 0
    q, x_scale, sums = (t.cpu() for t in quantize(x.to(DEVICE)))
    expected, factor = reference.quantize_activations(x.float())
    assert torch.equal(natural_order(q, shape[1]), expected)
    assert torch.equal(x_scale, factor)
    assert torch.equal(sums, q.int().unflatten(1, (-1, 128)).sum(2, dtype=torch.int32))
    assert (q.int().sum(1) == expected.int().sum(1)).all()  # the padding is zero


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_and_quantisation_in_one(shape):
    torch.manual_seed(2)
    x, weight = torch.randn(shape) * 2, torch.randn(shape[1])
    rows = quantize(x.to(DEVICE), weight.to(DEVICE), eps=1e-5)
    normed = reference.rms_norm(x, weight, 1e-5)
    expected, factor = reference.quantize_activations(normed)
    torch.testing.assert_close(rows.x_scale.cpu(), factor, rtol=1e-5, atol=0)
    difference = natural_order(rows.q.cpu(), shape[1]).int() - expected.int()
    assert difference.abs().max() <= 1  # a rounding at a tie, and rarely
    assert (difference != 0).float().mean() < 1e-3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinity, in the interpreter's numpy
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("shape", "rotation"), [((3, 60), 128), ((2, 576), 512), ((2, 1536), 1024)]
)
def test_rotation_and_quantisation_in_one(shape, rotation, normed):
    torch.manual_seed(5)
    x, weight = torch.randn(shape) * 2, torch.rand(shape[1]) + 0.5 if normed else None
    rows = quantize(
        x.to(DEVICE), None if weight is None else weight.to(DEVICE), 1e-5, rotation=rotation
    )
    row = reference.rms_norm(x, weight, 1e-5) if normed else x
    expected, factor = reference.quantize_activations(rotate(row, rotation))
    q = natural_order(rows.q.cpu(), shape[1])
    if normed:  # the sum of squares may round differently
        torch.testing.assert_close(rows.x_scale.cpu(), factor, rtol=1e-5, atol=0)
        assert ((q.int() - expected.int()).abs() > 0).float().mean() < 2e-3
    else:  # the same pairs are added
        assert torch.equal(q, expected) and torch.equal(rows.x_scale.cpu(), factor)
    sums = rows.q.cpu().int().unflatten(1, (-1, 128)).sum(2, dtype=torch.int32)
    assert torch.equal(rows.sums.cpu(), sums)
    x[1, 0] = float("inf")
    scales = quantize(x.to(DEVICE), rotation=rotation).x_scale
    assert scales[1].isnan() and not scales[0].isnan()


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_gate_times_up_and_quantisation_in_one(activation, normed):
    torch.manual_seed(3)
    gate_up = torch.randn(2, 3, 2 * 300) * 2
    weight = torch.rand(300) + 0.5 if normed else None
    gate, up = gate_up.flatten(0, 1).chunk(2, dim=1)
    hidden = reference.activate(gate, activation) * up
    if normed:
        hidden = reference.rms_norm(hidden, weight, 1e-5)
    expected, factor = reference.quantize_activations(hidden)
    rows = quantize_gated(
        gate_up.to(DEVICE), activation, None if weight is None else weight.to(DEVICE)
    )
    torch.testing.assert_close(rows.x_scale.cpu(), factor, rtol=1e-5, atol=0)
    difference = natural_order(rows.q.cpu(), 300).int() - expected.int()
    assert difference.abs().max() <= 1 and (difference != 0).float().mean() < 2e-3


def test_dequantisation_restores_the_natural_order():
    x = torch.randn(4, 300)
    rows = quantize(x.to(DEVICE))
    back = dequantize_rows(rows.q, rows.x_scale, 300, torch.float32).cpu()
    values, x_scale = reference.quantize_activations(x)
    assert torch.equal(back, values.float() * x_scale[:, None])


@pytest.mark.parametrize("shape", [(1, 1), (3, 60), (70, 130), (2, 8320)], ids=str)
def test_norm_gradients(shape):
    torch.manual_seed(4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[1], dtype=torch.float64, requires_grad=True)
    dy = torch.randn(shape, dtype=torch.float64)
    reference.rms_norm(x, weight, 1e-5).backward(dy)
    rstd = torch.rsqrt(x.detach().square().mean(1) + 1e-5)
    args = (t.detach().float().to(DEVICE) for t in (dy, x, weight, rstd))
    dx, dw = rms_norm_backward(*args)
    scale = (dy * weight.detach()).norm() * rstd.max()  # what the two terms of dx measure
    assert (dx.cpu() - x.grad).norm() <= 1e-6 * scale
    assert (dw.cpu() - weight.grad).norm() <= 1e-5 * weight.grad.norm()


def test_empty_and_bad_input():
    assert quantize(torch.empty(0, 60, device=DEVICE)).q.shape == (0, 128)
    with pytest.raises(ValueError, match=r"norm_weight is .*allowed: a contiguous float tensor"):
        quantize(torch.ones(2, 60, device=DEVICE), torch.ones(59, device=DEVICE))
    with pytest.raises(ValueError, match="activation 'gelu'; allowed"):
        quantize_gated(torch.ones(2, 60, device=DEVICE), "gelu")
    with pytest.raises(ValueError, match=r"gate then up"):
        quantize_gated(torch.ones(2, 61, device=DEVICE), "silu")
