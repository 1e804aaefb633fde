"""INT8 weights: exact products, look-ups, and what is refused. See check_products."""

import pytest
import torch
from ternary_kernels import PackedHalf, PackedInt8, PackedTernary, PackedTernary5, reference
from ternary_kernels.gpu import layout, quantize, to_device
from ternary_kernels.gpu.int8 import embed, linear_int8_rows
from ternary_kernels.gpu.matrices import HalfMatrix, Int8Matrix, place, stack, stackable

DEVICE = "cpu" if layout.INTERPRETED else "cuda"
SHAPES = [(1, 20, 36), (1, 17, 1100), (2, 17, 1), (5, 70, 300), (3, 17, 2048), (130, 17, 129)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_product_is_exact(shape):
    M, N, K = shape
    torch.manual_seed(M + N + K)
    packed = PackedInt8.from_float(torch.randn(N, K))
    x, bias = torch.randn(M, K) * 3, torch.randn(N)
    weight = place(packed, DEVICE, torch.float32)
    assert torch.equal(weight.values().cpu(), packed.values())
    y = linear_int8_rows(quantize(x.to(DEVICE)), weight, bias.to(DEVICE), dtype=torch.float32)
    assert torch.equal(y.cpu(), reference.linear(x, packed, bias))


def test_the_largest_values_do_not_overflow():
    packed = PackedInt8.from_codes(torch.full((16, 4096), -127, dtype=torch.int8), 1.0)
    weight = place(packed, DEVICE, torch.float32)
    for M in (1, 9):
        rows = quantize(torch.full((M, 4096), 5.0, device=DEVICE))
        y = linear_int8_rows(rows, weight, dtype=torch.float32).cpu()
        assert torch.equal(y, torch.full((M, 16), -127.0 * 127 * 4096) * torch.tensor(5.0 / 127))


def test_rows_of_a_table_are_looked_up():
    packed = PackedInt8.from_float(torch.randn(37, 60))
    table = place(packed, DEVICE, torch.float32)
    tokens = torch.tensor([36, 0, 5, 5], dtype=torch.int32, device=DEVICE)
    expected = packed.dequantize()[[36, 0, 5, 5]]
    assert torch.equal(embed(tokens, table).cpu(), expected)
    assert torch.equal(embed(tokens.long(), table).cpu(), expected)
    assert embed(tokens[:0], table).shape == (0, 60)


def test_stacked_matrices_hold_what_their_parts_hold():
    a, b = torch.randn(20, 40), torch.randn(7, 40)
    for kind, options in ((PackedInt8, ()), (PackedHalf, ()), (PackedTernary, ("row",))):
        parts = [place(kind.from_float(w, *options), DEVICE, torch.bfloat16) for w in (a, b)]
        both = stack(parts)
        assert both.shape == (27, 40) and stackable(*parts)
        if DEVICE == "cpu":
            expected = torch.cat([p.dequantize() for p in parts])
            assert torch.equal(both.dequantize(), expected)
    assert not stackable(parts[0], place(PackedHalf.from_float(a), DEVICE, torch.bfloat16))


def test_bad_input_is_named():
    weight = place(PackedInt8.from_float(torch.randn(24, 200)), DEVICE, torch.float32)
    assert isinstance(weight, Int8Matrix) and place(weight, DEVICE, torch.float32) is weight
    with pytest.raises(ValueError, match=r"quantised rows are .*int8 \[2, 256\]"):
        linear_int8_rows(quantize(torch.ones(2, 100, device=DEVICE)), weight)
    rows = quantize(torch.ones(2, 200, device=DEVICE))
    with pytest.raises(ValueError, match=r"bias is .*allowed: a contiguous float tensor \(24,\)"):
        linear_int8_rows(rows, weight, torch.ones(23, device=DEVICE))
    with pytest.raises(ValueError, match="no Triton kernel: pack it with PackedTernary"):
        place(PackedTernary5.from_float(torch.randn(24, 200)), DEVICE, torch.float32)
    with pytest.raises(ValueError, match="HalfMatrix; allowed: PackedTernary"):
        to_device(HalfMatrix((1, 1), torch.ones(1, 1), None, None), DEVICE)
    wide = torch.zeros(1, layout.MAX_K + 1, dtype=torch.int8)
    with pytest.raises(ValueError, match="Split the layer"):
        Int8Matrix.from_values(wide, torch.ones(1))
