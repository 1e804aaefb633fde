"""Packing, unpacking and quantisation of weights on the device. See check_products."""

import pytest
import torch
from ternary_kernels import PackedTernary
from ternary_kernels.gpu import layout, pack_codes, pack_weights, unpack_codes, unpack_weights

DEVICE = "cpu" if layout.INTERPRETED else "cuda"
SHAPES = [(1, 1), (17, 60), (16, 128), (33, 300)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_on_the_device_as_on_the_cpu(shape, granularity, dtype):
    torch.manual_seed(5)
    weight = torch.randn(shape).to(dtype)
    expected = PackedTernary.from_float(weight, granularity)
    packed = pack_weights(weight.to(DEVICE), granularity)
    assert torch.equal(packed.tiles.cpu(), expected.tiles)
    torch.testing.assert_close(packed.scale.cpu(), expected.scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(packed.row_scales.cpu(), expected.row_scales, rtol=1e-6, atol=0)
    assert torch.equal(unpack_codes(packed).cpu(), expected.codes())
    dense = unpack_weights(packed, torch.float32).cpu()
    torch.testing.assert_close(dense, expected.dequantize(), rtol=1e-6, atol=0)


def test_codes_go_through_unchanged():
    codes = torch.randint(0, 3, (33, 300), generator=torch.Generator().manual_seed(6))
    packed = pack_codes(codes.to(DEVICE), 0.25)
    assert torch.equal(packed.tiles.cpu(), PackedTernary.from_codes(codes, 0.25).tiles)
    with pytest.raises(ValueError, match="codes span 0 to 3"):
        pack_codes(torch.tensor([[0, 3]], device=DEVICE), 1.0)


@pytest.mark.parametrize(
    ("rounding", "levels"),
    [
        ("half_even", [0, 0, 0, 1, -1]),
        ("half_up", [1, 0, 0, 1, -1]),
        ("half_away", [1, -1, 0, 1, -1]),
    ],
)
def test_the_three_roundings_of_one_half(rounding, levels):
    weight = torch.tensor([[0.5, -0.5, 0.49, 0.51, -1e30]])
    packed = pack_weights(weight.to(DEVICE), rounding=rounding, inverse=torch.ones(1))
    assert (unpack_codes(packed).cpu().int() - 1).tolist() == [levels]


def test_another_rule_by_its_inverse():
    weight = torch.randn(20, 300, generator=torch.Generator().manual_seed(7))
    threshold = 0.75 * weight.abs().mean(1)  # TWN: sign(w) above the threshold
    packed = pack_weights(weight.to(DEVICE), inverse=0.5 / threshold)
    expected = torch.where(weight.abs() > threshold[:, None], weight.sign(), 0.0)
    assert torch.equal(unpack_codes(packed).cpu().float() - 1, expected)


def test_bad_input_is_named():
    weight = torch.ones(4, 8, device=DEVICE)
    with pytest.raises(ValueError, match="granularity 'column'; allowed"):
        pack_weights(weight, "column")
    with pytest.raises(ValueError, match="rounding 'up'; allowed"):
        pack_weights(weight, rounding="up")
    with pytest.raises(ValueError, match="inverse has shape"):
        pack_weights(weight, inverse=torch.ones(3))
    with pytest.raises(ValueError, match="N, K >= 1"):
        pack_weights(weight[:0])
    with pytest.raises(ValueError, match=r"dtype torch\.int64; allowed: bfloat16"):
        pack_weights(weight.long())
