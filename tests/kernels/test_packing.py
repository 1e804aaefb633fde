"""Each packing restores what went in, and says clearly what it does not take."""

from __future__ import annotations

import pytest
import ternary_kernels as tk
import torch
from ternary_kernels import packing

SHAPES = [(1, 1), (17, 33), (16, 16), (5, 300), (130, 21)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cls", [tk.PackedTernary, tk.PackedTernary3, tk.PackedTernary5])
def test_ternary_round_trip(cls, shape):
    codes = torch.randint(0, 3, shape, dtype=torch.uint8)
    weight = cls.from_codes(codes, torch.rand(shape[0]))
    assert torch.equal(weight.codes(), codes)
    again = cls.from_portable(packing.pack_portable(weight.codes()), shape[1], weight.scale)
    assert torch.equal(again.tiles, weight.tiles)
    restored = cls.from_state(weight.state())
    assert torch.equal(restored.dequantize(), weight.dequantize())
    assert weight.nbytes == weight.tiles.nbytes + weight.row_scales.nbytes


def test_every_base_3_byte_unpacks():
    codes = torch.cartesian_prod(*[torch.arange(3)] * 5)  # all 243 bytes
    # Digit p of a byte is element 4 * p + b of its block of 20: put every byte at b = 0.
    rows = torch.ones((243, 20), dtype=torch.int64)
    rows[:, ::4] = codes
    weight = tk.PackedTernary5.from_codes(rows, 1.0)
    q = torch.eye(20, dtype=torch.int8)
    for isa in tk.available_isas():
        tk.force_isa(isa)
        assert torch.equal(tk.linear_int(q, weight).T, (rows - 1).int()), isa
    if tk.available_isas():
        tk.force_isa(tk.available_isas()[0])


def test_every_triple_is_looked_up_and_unpacked():
    codes = torch.cartesian_prod(*[torch.arange(3)] * 3)  # all 27 codes
    for place in range(16):  # of a block of 48: each field of its words, and the top bits
        rows = torch.randint(0, 3, (27, 48))
        rows[:, 3 * place : 3 * place + 3] = codes
        weight = tk.PackedTernary3.from_codes(rows, 1.0)
        assert torch.equal(weight.codes(), rows)
        for isa in tk.available_isas():
            tk.force_isa(isa)
            for count in (1, 13):  # few rows look sums up, more meet unpacked codes
                q = torch.zeros(count, 48, dtype=torch.int8)
                q[:, 3 * place : 3 * place + 3] = torch.tensor([1, 10, 100])
                expected = ((rows - 1) @ q[0].long()).int()
                assert torch.equal(tk.linear_int(q, weight), expected.expand(count, -1)), isa
    if tk.available_isas():
        tk.force_isa(tk.available_isas()[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_round_trip(shape):
    values = torch.randint(-8, 8, shape).to(torch.int8)
    weight = tk.PackedInt4.from_codes(values, torch.randn(shape[0], -(-shape[1] // 32)))
    assert torch.equal(weight.values(), values) and weight.granularity == "group32"
    again = tk.PackedInt4.from_portable(packing.pack_portable4(values), shape[1], weight.scale)
    assert torch.equal(again.tiles, weight.tiles)
    restored = tk.PackedInt4.from_state(weight.state())
    assert torch.equal(restored.dequantize(), weight.dequantize())
    assert torch.equal(restored.row_scales, weight.row_scales)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_and_half_round_trip(shape):
    values = torch.randint(-127, 128, shape).to(torch.int8)
    weight = tk.PackedInt8.from_codes(values, torch.rand(shape[0]))
    assert torch.equal(weight.values(), values)
    assert torch.equal(tk.PackedInt8.from_state(weight.state()).values(), values)
    for dtype in (torch.bfloat16, torch.float16):
        floats = torch.randn(shape).to(dtype)
        half = tk.PackedHalf.from_float(floats)
        assert torch.equal(half.dequantize(), floats.float())


def test_absmean_quantisation_follows_bitnet():
    w = torch.randn(40, 300)
    inverse = 1.0 / w.abs().mean().clamp(min=1e-5)
    expected = (w * inverse).round().clamp(-1, 1) / inverse
    torch.testing.assert_close(tk.PackedTernary.from_float(w).dequantize(), expected)
    row = tk.PackedTernary.from_float(w, "row")
    group = tk.PackedTernary.from_float(w, "group128")
    assert (row.granularity, group.granularity) == ("row", "group128")
    assert group.scale.shape == (40, 3)
    torch.testing.assert_close(group.scale[:, 2], w[:, 256:].abs().mean(1))


def test_bits_a_weight():
    w = torch.randn(1600, 1600)
    two, three = tk.PackedTernary.from_float(w), tk.PackedTernary5.from_float(w)
    assert two.tiles.nbytes * 8 == 2 * w.numel()
    assert three.tiles.nbytes * 8 == 1.6 * w.numel()
    w = torch.randn(1600, 1632)  # whole blocks of 48
    assert tk.PackedTernary3.from_float(w).tiles.nbytes * 8 * 3 == 5 * w.numel()
    assert tk.PackedInt4.from_float(w).nbytes * 8 == 4.5 * w.numel()
    assert tk.PackedInt8.from_float(w).tiles.nbytes == w.numel()
    assert tk.PackedHalf.from_float(w).tiles.nbytes == 2 * w.numel()


def test_the_forbidden_code_is_refused():
    packed = packing.pack_portable(torch.randint(0, 3, (4, 9)))
    packed[2, 1] |= 0b1100
    with pytest.raises(ValueError, match=r"row 2 holds the forbidden code 3"):
        tk.PackedTernary.from_portable(packed, 9, 1.0)
    with pytest.raises(ValueError, match=r"allowed: 0, 1, 2"):
        tk.PackedTernary.from_codes(torch.tensor([[0, 3]]), 1.0)


def test_truncated_and_wrong_data_are_refused():
    packed = packing.pack_portable(torch.randint(0, 3, (4, 9)))
    with pytest.raises(ValueError, match="truncated or K is wrong"):
        tk.PackedTernary.from_portable(packed[:, :-1], 9, 1.0)
    state = tk.PackedTernary.from_codes(torch.randint(0, 3, (40, 90)), 1.0).state()
    state["tiles"] = state["tiles"][:-1]
    with pytest.raises(ValueError, match="truncated or belongs to another shape"):
        tk.PackedTernary.from_state(state)
    with pytest.raises(ValueError, match="scale has shape"):
        tk.PackedTernary.from_codes(torch.ones(4, 9, dtype=torch.int64), torch.rand(5))
    with pytest.raises(ValueError, match="scale holds NaN"):
        tk.PackedTernary.from_codes(torch.ones(4, 9, dtype=torch.int64), float("nan"))
    with pytest.raises(ValueError, match="weight holds NaN or Inf"):
        tk.PackedTernary.from_float(torch.tensor([[1.0, float("nan")]]))
    int4 = packing.pack_portable4(torch.zeros(4, 9, dtype=torch.int8))
    with pytest.raises(ValueError, match="truncated or K is wrong"):
        packing.unpack_portable4(int4[:, :-1], 9)
    with pytest.raises(ValueError, match="allowed: -8 to 7"):
        tk.PackedInt4.from_codes(torch.full((4, 9), 8, dtype=torch.int8), torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"allowed for INT4 \[4, 9\]: \[4, 1\]"):
        tk.PackedInt4.from_codes(torch.zeros(4, 9, dtype=torch.int8), torch.ones(4))
    with pytest.raises(ValueError, match="not finite in float16"):
        tk.PackedInt4.from_codes(torch.zeros(4, 9, dtype=torch.int8), torch.full((4, 1), 1e6))
    with pytest.raises(ValueError, match="symmetric"):
        tk.PackedInt8.from_codes(torch.tensor([[-128]], dtype=torch.int8), 1.0)
    for cls in (tk.PackedTernary3, tk.PackedTernary5):
        with pytest.raises(ValueError, match=f"{cls.__name__} .* one a tensor or a row"):
            cls.from_float(torch.randn(4, 300), "group128")
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        tk.PackedHalf.from_float(torch.tensor([[1e6]]), torch.float16)


def test_a_mixed_table_keeps_frequent_rows_in_int8_and_the_others_in_int4():
    table = torch.randn(70, 36)
    frequent = torch.tensor([69, 3, 17])
    mixed = tk.PackedMixed.from_float(table, frequent)
    exact, coarse = (cls.from_float(table).dequantize() for cls in (tk.PackedInt8, tk.PackedInt4))
    rare = torch.tensor([token for token in range(70) if token not in frequent.tolist()])
    assert torch.equal(mixed.dequantize()[frequent], exact[frequent])
    assert torch.equal(mixed.dequantize()[rare], coarse[rare])
    assert mixed.shape == (70, 36)
    assert mixed.nbytes == mixed.first.nbytes + mixed.second.nbytes + 4 * 70
    of_int8 = tk.PackedMixed.from_int8(tk.PackedInt8.from_float(table), frequent)
    assert torch.equal(of_int8.first.tiles, mixed.first.tiles)
    assert torch.equal(
        of_int8.dequantize()[rare], tk.PackedInt4.from_float(exact[rare]).dequantize()
    )
    turned = tk.PackedMixed.from_float(table, frequent, 512)
    assert turned.rotation == 4, "the largest power of two that divides 36"
    assert float((turned.dequantize() - table).abs().max()) < 0.5
    assert not torch.equal(turned.dequantize(), mixed.dequantize())
    for wrong in (torch.arange(70), torch.tensor([], dtype=torch.long), torch.tensor([2, 2])):
        with pytest.raises(ValueError, match="frequent tokens of 70; allowed: 1 to 69"):
            tk.PackedMixed.from_float(table, wrong)
