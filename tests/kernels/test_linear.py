"""Native linear layers equal the PyTorch reference bit for bit, on every instruction set."""

from __future__ import annotations

import pytest
import ternary_kernels as tk
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ternary_kernels import reference

UGLY = [
    (1, 1, 1),
    (2, 1, 17),
    (1, 17, 1),
    (3, 33, 15),
    (5, 16, 129),
    (7, 100, 300),
    (12, 31, 1023),
    (13, 47, 128),
    (29, 65, 2049),
    (1, 4999, 61),
    (4, 3, 5000),
    (40, 97, 257),
    (16, 16, 64),
    (33, 50, 63),
    (48, 33, 700),
]
TILED = [isa for isa in tk.available_isas() if isa in ("amx", "tile_model")]
KINDS = ("tensor", "row", "group128", "base3", "triples", "int8", "int4")
DENSER = {"base3": tk.PackedTernary5, "triples": tk.PackedTernary3}


@pytest.fixture(params=tk.available_isas())
def isa(request):
    before = tk.backend().isa
    tk.force_isa(request.param)
    yield request.param
    tk.force_isa(before)


def exact_weight(kind: str, N: int, K: int, seed: int) -> tk.PackedWeight:
    g = torch.Generator().manual_seed(seed)
    if kind == "int8":
        values = torch.randint(-127, 128, (N, K), generator=g).to(torch.int8)
        return tk.PackedInt8.from_codes(values, torch.rand(N, generator=g))
    if kind == "int4":
        values = torch.randint(-8, 8, (N, K), generator=g).to(torch.int8)
        return tk.PackedInt4.from_codes(values, torch.randn(N, -(-K // 32), generator=g))
    codes = torch.randint(0, 3, (N, K), generator=g)
    shape = {"tensor": (1,), "group128": (N, -(-K // 128))}.get(kind, (N,))
    cls = DENSER.get(kind, tk.PackedTernary)
    return cls.from_codes(codes, torch.rand(shape, generator=g) + 0.1)


def assert_equal(M: int, N: int, K: int, kind: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed + 1)
    weight = exact_weight(kind, N, K, seed)
    q = torch.randint(-128, 128, (M, K), generator=g).to(torch.int8)
    if kind != "int4":
        assert torch.equal(tk.linear_int(q, weight), reference.linear_int(q, weight))
    x, bias = torch.randn(M, K, generator=g) * 5, torch.randn(N, generator=g)
    assert torch.equal(tk.linear(x, weight, bias), reference.linear(x, weight, bias))


@pytest.mark.parametrize("kind", KINDS)
def test_ugly_shapes(isa, kind):
    for seed, (M, N, K) in enumerate(UGLY):
        assert_equal(M, N, K, kind, seed)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    M=st.integers(1, 40),
    N=st.integers(1, 5000),
    K=st.integers(1, 5000),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
)
def test_random_shapes(isa, M, N, K, kind, seed):
    # The product is capped so that the slowest instruction set stays within the suite's time.
    N = min(N, max(1, 3_000_000 // (M * K)))
    assert_equal(M, N, K, kind, seed)


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize("value", [-128, 127])
def test_no_overflow_at_the_extremes(isa, code, value):
    K = 100_001
    q = torch.full((max(1, tk.backend().tile_rows), K), value, dtype=torch.int8)
    codes = torch.full((17, K), code)
    for cls in (tk.PackedTernary, tk.PackedTernary3, tk.PackedTernary5):
        out = tk.linear_int(q, cls.from_codes(codes, 1.0))
        assert bool((out == (code - 1) * value * K).all())
    int8 = tk.PackedInt8.from_codes(((codes - 1) * 127).to(torch.int8), 1.0)
    assert bool((tk.linear_int(q, int8) == (code - 1) * 127 * value * K).all())


def test_int4_does_not_overflow_at_the_extremes(isa):
    """A group's sum of 32 products of 15 and 128: the most that AVX2's parts of 16 bits meet."""
    for value in (-128, 127):
        for code in (-8, 7):
            M = max(2, tk.backend().tile_rows)
            weight = tk.PackedInt4.from_codes(
                torch.full((17, 70), code, dtype=torch.int8), torch.ones(17, 3)
            )
            x = torch.full((M, 70), float(value))
            assert torch.equal(tk.linear(x, weight), reference.linear(x, weight))


def test_int4_has_no_single_integer_sum():
    with pytest.raises(ValueError, match="PackedInt4; allowed: ternary and INT8"):
        tk.linear_int(torch.zeros(1, 40, dtype=torch.int8), exact_weight("int4", 3, 40, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights(isa, dtype):
    g = torch.Generator().manual_seed(0)
    for M, N, K in UGLY:
        weight = tk.PackedHalf.from_float(torch.randn(N, K, generator=g), dtype)
        x = torch.randn(M, K, generator=g)
        exact = x.double() @ weight.dequantize().double().T
        y = tk.linear(x, weight).double()
        if tk.backend().unit(weight) != "vectors" and tk.backend().tile_rows <= M:
            # The unit rounds activations to bf16: no worse than twice what torch's bf16 does.
            plain = torch.nn.functional.linear(x.to(dtype), weight.dequantize().to(dtype)).double()
            assert float((y - exact).norm()) <= 2 * float((plain - exact).norm())
            continue
        bound = (x.abs().double() @ weight.dequantize().abs().double().T) * 2**-20
        assert bool(((y - exact).abs() <= bound + 1e-30).all())


@pytest.mark.parametrize("isa", TILED, indirect=True)
@pytest.mark.parametrize("kind", [*KINDS, "bf16", "fp16"])
def test_the_tile_unit_starts_where_it_says(isa, kind):
    """Rows below, at and above the batch from which tiles multiply, all in the same bits where
    integers are summed; bf16 as the reference has it from rounded activations."""
    rows = tk.backend().tile_rows
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2 * rows + 1, 333, generator=g)
    if kind in ("bf16", "fp16"):
        dtype = torch.bfloat16 if kind == "bf16" else torch.float16
        weight = tk.PackedHalf.from_float(torch.randn(50, 333, generator=g), dtype)
        assert (tk.backend().unit(weight) == "vectors") == (kind == "fp16")
        rounded = x.to(dtype).float() if kind == "bf16" else x
        for M in (rows - 1, rows, 2 * rows + 1):
            fed = x if rows > M else rounded
            expected = reference.linear(fed[:M], weight)
            torch.testing.assert_close(tk.linear(x[:M], weight), expected, rtol=1e-4, atol=1e-4)
        return
    weight = exact_weight(kind, 50, 333, 3)
    for M in (rows - 1, rows, 2 * rows + 1):
        assert torch.equal(tk.linear(x[:M], weight), reference.linear(x[:M], weight))


@pytest.mark.skipif("amx" not in TILED, reason="this processor has no AMX, or its system no tiles")
def test_the_model_of_the_tile_instructions_is_right():
    """The hardware's bf16 sums to the bit: what the model says holds where only it runs."""
    weight, x = tk.PackedHalf.from_float(torch.randn(70, 1000)), torch.randn(50, 1000)
    before, results = tk.backend().isa, []
    for isa in ("amx", "tile_model"):
        tk.force_isa(isa)
        results.append(tk.linear(x, weight))
    tk.force_isa(before)
    assert torch.equal(*results)


def test_results_do_not_depend_on_the_number_of_threads():
    weight, x = exact_weight("row", 1000, 777, 0), torch.randn(40, 777)
    before, results = tk.backend().threads, []
    for threads in (1, 2, 5):
        tk.set_threads(threads)
        results.append(tk.linear(x, weight))
    tk.set_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


def test_activations_are_quantised_as_bitnet_does(isa):
    x = torch.tensor([[0.5, 1.5, 2.5, -127.0], [0.0, 0.0, 0.0, 0.0]])
    q, x_scale = tk.quantize(x)
    assert q.tolist() == [[0, 2, 2, -127], [0, 0, 0, 0]]  # ties to even
    assert torch.equal(x_scale, torch.tensor([1.0, 1e-5 / 127.0]))


def test_norm_is_fused_with_quantisation(isa):
    g = torch.Generator().manual_seed(0)
    for K in (1, 15, 16, 100, 1000):
        x, norm = torch.randn(5, K, generator=g), torch.rand(K, generator=g) + 0.5
        q, x_scale = tk.quantize(x, norm, 1e-5)
        expected = reference.rms_norm(x, norm, 1e-5)
        # The sum of squares may round differently: at most one code up or down.
        assert float((q * x_scale[:, None] - expected).abs().max()) <= float(x_scale.max()) * 0.501


@pytest.mark.parametrize("activation", ["silu", "relu2"])
@pytest.mark.parametrize(
    "kinds",
    [
        ("row", "row"),
        ("row", "int8"),
        ("group128", "tensor"),
        ("int8", "base3"),
        ("triples", "triples"),
        ("triples", "row"),
        ("int4", "int4"),
        ("int4", "int8"),
    ],
)
def test_gated_pair(isa, activation, kinds):
    for M, N, K in UGLY:
        gate, up = (exact_weight(kind, N, K, seed) for seed, kind in enumerate(kinds))
        x = torch.randn(M, K, generator=torch.Generator().manual_seed(M))
        expected = reference.activate(reference.linear(x, gate), activation)
        expected *= reference.linear(x, up)
        torch.testing.assert_close(
            tk.gated(x, gate, up, activation), expected, rtol=2e-6, atol=1e-6
        )


def test_several_weights_share_one_activation(isa):
    weights = [exact_weight("row", 48, 100, 0), exact_weight("int4", 17, 100, 1)]
    half = tk.PackedHalf.from_float(torch.randn(5, 100))
    x, biases = torch.randn(3, 100), [torch.randn(48), None, torch.randn(5)]
    outs = tk.linears(x, [*weights, half], biases)
    for out, weight, bias in zip(outs[:2], weights, biases[:2], strict=True):
        assert torch.equal(out, reference.linear(x, weight, bias))
    torch.testing.assert_close(outs[2], reference.linear(x, half, biases[2]))


def test_inputs_of_any_type_and_stride():
    weight = exact_weight("row", 20, 64, 0)
    x = torch.randn(64, 6)
    assert torch.equal(tk.linear(x.T, weight), reference.linear(x.T, weight))
    bf16 = torch.randn(2, 3, 64).to(torch.bfloat16)
    out = tk.linear(bf16, weight)
    assert out.shape == (2, 3, 20)
    assert torch.equal(out.flatten(0, 1), reference.linear(bf16.flatten(0, 1), weight))
    assert tk.linear(torch.empty(0, 64), weight).shape == (0, 20)
