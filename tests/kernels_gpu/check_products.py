"""The products against their references, bit for bit where the arithmetic allows it.

Run by test_interpreted.py under the interpreter; on a machine with a GPU also directly:
``python -m pytest tests/kernels_gpu/check_products.py``.
"""

import pytest
import torch
from ternary_kernels import PackedInt8, PackedTernary, reference
from ternary_kernels.gpu import gemm, layout, linear, linear_weight_only, quantize, to_device

DEVICE = "cpu" if layout.INTERPRETED else "cuda"
SHAPES = [  # M rows, N outputs, K inputs: edges of every tile, split and one-row launches
    (1, 20, 36),
    (1, 48, 128),
    (1, 33, 1100),
    (2, 20, 36),
    (2, 17, 1),
    (5, 70, 300),
    (3, 17, 2048),
    (17, 130, 640),
    (130, 17, 129),
]


def case(M, N, K, granularity, seed=0):
    generator = torch.Generator().manual_seed(seed + M * N + K)
    weight = PackedTernary.from_float(torch.randn(N, K, generator=generator), granularity)
    x = torch.randn(M, K, generator=generator) * 3
    bias = torch.randn(N, generator=generator)
    return x, weight, bias


@pytest.mark.parametrize("granularity", ["tensor", "row", "group128"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_product_is_exact(shape, granularity):
    x, weight, bias = case(*shape, granularity)
    y = linear(x.to(DEVICE), to_device(weight, DEVICE), bias.to(DEVICE)).cpu()
    expected = reference.linear(x, weight, bias)
    if granularity == "group128":  # float32 sums over the groups, in another order
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("granularity", ["row", "group128"])
@pytest.mark.parametrize("shape", [(1, 20, 36), (3, 17, 2048), (17, 66, 200)])
def test_weight_only_errs_no_more_than_plain_half_precision(shape, granularity, dtype):
    x, weight, bias = case(*shape, granularity)
    x, bias = x.to(dtype), bias.to(dtype)
    y = linear_weight_only(x.to(DEVICE), to_device(weight, DEVICE), bias.to(DEVICE)).cpu()
    exact = x.double() @ weight.dequantize().double().T + bias.double()
    plain = x @ weight.dequantize().to(dtype).T + bias
    assert (y.double() - exact).norm() <= 2 * (plain.double() - exact).norm()


@pytest.mark.parametrize("M", [1, 9])
def test_the_largest_activations_and_widths_do_not_overflow(M):
    K = 4096
    weight = PackedTernary.from_codes(torch.full((16, K), 2), 1.0)
    y = linear(torch.full((M, K), 5.0, device=DEVICE), to_device(weight, DEVICE))
    assert torch.equal(y.cpu(), torch.full((M, 16), 127.0 * K) * torch.tensor(5.0 / 127))


def test_rows_quantised_once_serve_two_layers_and_other_types():
    x, weight, _ = case(4, 24, 200, "row")
    other = PackedTernary.from_float(torch.randn(9, 200), "tensor")
    rows = quantize(x.to(DEVICE))
    for w in (weight, other):
        y = linear(rows, to_device(w, DEVICE), dtype=torch.float32)
        assert torch.equal(y.cpu(), reference.linear(x, w))
        assert linear(rows, to_device(w, DEVICE)).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 33, 1100), (3, 17, 2048)])
def test_the_same_bits_every_time(shape):
    x, weight, bias = case(*shape, "group128")
    weight = to_device(weight, DEVICE)
    first = linear(x.to(DEVICE), weight, bias.to(DEVICE))
    assert all(torch.equal(first, linear(x.to(DEVICE), weight, bias.to(DEVICE))) for _ in range(3))


def test_every_element_is_written(monkeypatch):
    x, weight, bias = case(5, 70, 1024, "row")
    taken = torch.Tensor.new_empty

    def filled_with_nan(self, *args, **kwargs):
        tensor = taken(self, *args, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 101)

    monkeypatch.setattr(torch.Tensor, "new_empty", filled_with_nan)
    y = linear(x.to(DEVICE), to_device(weight, DEVICE), bias.to(DEVICE)).cpu()
    monkeypatch.undo()
    assert torch.equal(y, reference.linear(x, weight, bias))


def test_inputs_that_are_not_contiguous_and_more_than_two_dimensions():
    x, weight, _ = case(6, 24, 200, "row")
    expected = reference.linear(x, weight)
    w = to_device(weight, DEVICE)
    assert torch.equal(linear(x.T.contiguous().T.to(DEVICE), w).cpu(), expected)
    wide = torch.cat([x, x], 1).to(DEVICE)[:, :200]
    assert not wide.is_contiguous() and torch.equal(linear(wide, w).cpu(), expected)
    assert torch.equal(linear(x.to(DEVICE).view(2, 3, 200), w).cpu(), expected.view(2, 3, 24))
    assert torch.equal(linear(x[0].to(DEVICE), w).cpu(), expected[0])


@pytest.mark.parametrize("M", [1, 5])
def test_misaligned_views_give_the_same_bits(M):
    """Tensors that begin at an odd byte or element: right, if slower."""
    x, weight, bias = case(M, 24, 200, "row")
    expected = reference.linear(x.bfloat16().float(), weight, bias)
    w = to_device(weight, DEVICE)
    w.tiles = shifted(w.tiles)
    w.row_scales = shifted(w.row_scales)
    y = linear(shifted(x.bfloat16().to(DEVICE)), w, shifted(bias.to(DEVICE)), dtype=torch.float32)
    assert torch.equal(y.cpu(), expected)


def shifted(tensor):
    """The same contiguous tensor, one element behind the beginning of its memory."""
    return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)


def test_rows_further_apart_than_2_to_the_31_elements():
    """The memory between the rows is reserved and never touched."""
    x, weight, _ = case(2, 24, 200, "row")
    far = torch.empty(2**31 + 256, dtype=torch.bfloat16, device=DEVICE)
    wide = far.as_strided((2, 200), (2**31, 1))
    wide.copy_(x)
    y = linear(wide, to_device(weight, DEVICE), dtype=torch.float32)
    assert torch.equal(y.cpu(), reference.linear(x.bfloat16().float(), weight))


def test_an_empty_batch_gives_an_empty_result():
    _, weight, bias = case(1, 24, 200, "row")
    w = to_device(weight, DEVICE)
    assert linear(torch.empty(0, 200, device=DEVICE), w, bias.to(DEVICE)).shape == (0, 24)
    empty = torch.empty(2, 0, 200, device=DEVICE, dtype=torch.bfloat16)
    assert linear_weight_only(empty, w).shape == (2, 0, 24)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_with_nan_or_inf_spoils_itself_alone(bad):
    x, weight, _ = case(3, 24, 200, "row")
    x[1, 77] = bad
    y = linear(x.to(DEVICE), to_device(weight, DEVICE)).cpu()
    assert y[1].isnan().all() and torch.equal(y[[0, 2]], reference.linear(x, weight)[[0, 2]])


def test_bad_input_is_named():
    x, weight, bias = case(3, 24, 200, "row")
    x, w = x.to(DEVICE), to_device(weight, DEVICE)
    with pytest.raises(ValueError, match=r"allowed for this weight: \[\.\.\., 200\]"):
        linear(x[:, :199], w)
    with pytest.raises(ValueError, match=r"dtype torch\.int64; allowed: bfloat16"):
        linear(x.long(), w)
    with pytest.raises(ValueError, match=r"bias is .*allowed: a contiguous float tensor"):
        linear(x, w, bias[:5].to(DEVICE))
    with pytest.raises(ValueError, match="PackedInt8; allowed: PackedTernary"):
        linear(x, PackedInt8.from_float(torch.randn(24, 200)))
    with pytest.raises(ValueError, match="allowed for unquantised activations"):
        linear_weight_only(x, w)
    with pytest.raises(ValueError, match=r"tiles are .*allowed: contiguous uint8"):
        torch.ops.ternary_gpu.linear_half(x.bfloat16(), w.tiles[:1], w.row_scales, None, 24)
    if DEVICE == "cuda":
        with pytest.raises(ValueError, match="lies on cpu"):
            linear(x, weight)


def test_the_split_of_k_keeps_its_promises():
    for M in (2, 5, 16, 33, 64, 65, 128, 129, 4096):
        for N in (16, 3200, 20480):
            for K in (1, 128, 3200, 131072):
                G = -(-K // 128)
                BM, BN, splits, _, _ = gemm.plan(M, N, G, torch.device("cpu"), False)
                assert 1 <= splits <= 16 and (splits == 1 or G // splits >= 4)
                assert splits == 1 or splits * M * (16 if M <= 32 else 8) <= G * 32
                assert M > 128 or BM >= M
                assert BN % 16 == 0


def test_small_batches_of_large_layers_use_the_whole_chip():
    """132 multiprocessors of an H200, as plan() takes them where there is no GPU to ask."""
    for M in (16, 64, 128):
        for N, K in ((8192, 8192), (28672, 8192), (8192, 28672)):
            _, BN, splits, _, _ = gemm.plan(M, N, K // 128, torch.device("cpu"), False)
            assert BN == 128 and N // BN * splits >= 128, (M, N, K)
