"""Single kernels: products against the best bf16 product, what stands between them, a QAT layer.

The bytes and operations given to the clock are those counted in docs/gpu.md. Needs torch and
Triton alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from workbench.bench.gpu_clock import Call, GpuRow

if TYPE_CHECKING:
    from workbench.bench.gpu import Bench

LARGEST_ERROR = 2**-7  # one unit in the last place of bf16: Triton's interpreter cuts results off
LARGEST_GRADIENT_ERROR = 0.03


def run_product(bench: Bench) -> None:
    work = bench.work
    cases = [(N, K, 1) for N, K in (*work.one_row, *work.large)]
    cases += [(N, K, M) for M in (*work.batches, work.prompt_rows) for N, K in work.large[:2]]
    for case in cases:
        bench.case("product", *case, partial(_product, bench))
    for name, seconds in bench.calls_s.items():
        if seconds:
            least, most = min(seconds), max(seconds)
            bench.add(GpuRow(name, "each shape once", 0, "ternary", most, least, most, "s"))


def run_between(bench: Bench) -> None:
    for M in (1, bench.work.prompt_rows):
        bench.case("between products", *bench.work.large[0], M, partial(_between, bench))


def run_weights(bench: Bench) -> None:
    bench.case("weights", *bench.work.large[0], 0, partial(_weights, bench))


def run_qat_layer(bench: Bench) -> None:
    bench.case(
        "qat_layer", *bench.work.layer, 2 * bench.work.prompt_rows, partial(_qat_layer, bench)
    )


def _product(bench: Bench, N: int, K: int, M: int) -> None:
    from ternary_kernels.gpu import linear, linear_weight_only, quantize

    xs, weights = _operands(bench, N, K, M)
    both = list(zip(xs, weights, strict=True))
    for seconds in bench.calls_s.values():
        seconds.append(bench.clock.once(lambda: linear(*both[0])))
    rows = [quantize(x) for x in xs]
    _check(bench, weights[0], rows[0], M)
    dense = [bench.normal(N, K) for _ in range(bench.clock.copies(2 * N * K))]
    pairs = [(xs[i % len(xs)], w) for i, w in enumerate(dense)]
    torch._dynamo.reset()
    backend = "inductor" if bench.device == "cuda" else "eager"
    compiled = torch.compile(lambda x, w: F.linear(x, w), dynamic=False, backend=backend)
    ops = 2 * M * N * K
    plain_bytes = 2 * (N * K + M * K + M * N)
    best = min(
        bench.timed("product", N, K, M, f"bf16 {kind}", calls, plain_bytes, bf16_ops=ops)
        for kind, calls in (
            ("cublas", [lambda x=x, w=w: F.linear(x, w) for x, w in pairs]),
            ("torch.compile", [lambda x=x, w=w: compiled(x, w) for x, w in pairs]),
        )
    )
    del dense, pairs
    packed = weights[0].nbytes
    int8_bytes = packed + M * (K + 4 + K // 32) + 2 * M * N
    bench.timed(
        "product", N, K, M, "int8 x ternary",
        [lambda r=r, w=w: linear(r, w) for r, w in zip(rows, weights, strict=True)],
        int8_bytes, int8_ops=ops, against=best,
    )  # fmt: skip
    bench.timed(
        "linear", N, K, M, "int8 x ternary",
        [lambda x=x, w=w: linear(x, w) for x, w in both],
        int8_bytes + 3 * M * K, int8_ops=ops, against=best,
    )  # fmt: skip
    if N == K:
        bench.timed(
            "linear", N, K, M, "bf16 x ternary",
            [lambda x=x, w=w: linear_weight_only(x, w) for x, w in both],
            packed + 2 * M * (N + K), bf16_ops=ops, against=best,
        )  # fmt: skip


def _between(bench: Bench, N: int, K: int, M: int) -> None:
    """What stands between the products: norm and gate, each with its quantisation."""
    from ternary_kernels.gpu import quantize, quantize_gated

    copies = bench.clock.copies(3 * M * K)
    gain = bench.normal(K)
    xs = [bench.normal(M, K) for _ in range(copies)]
    bench.timed(
        "rms_norm+quantize", N, K, M, "int8",
        [lambda x=x: quantize(x, gain) for x in xs], 3 * M * K,
    )  # fmt: skip
    halves = [bench.normal(M, 2 * K) for _ in range(copies)]
    for activation in ("silu", "relu2"):
        bench.timed(
            f"{activation}*up+quantize", N, K, M, "int8",
            [lambda x=x, a=activation: quantize_gated(x, a) for x in halves], 5 * M * K,
        )  # fmt: skip


def _weights(bench: Bench, N: int, K: int, M: int) -> None:
    """What a training step does to its weights: quantise and pack, unpack."""
    from ternary_kernels.gpu import pack_weights, unpack_weights

    copies = bench.clock.copies(2 * N * K)
    masters = [bench.normal(N, K) for _ in range(copies)]
    packed = [pack_weights(w) for w in masters]
    bench.timed(
        "quantize+pack", N, K, M, "ternary",
        [lambda w=w: pack_weights(w) for w in masters], 4 * N * K + N * K // 4,
    )  # fmt: skip
    bench.timed(
        "unpack", N, K, M, "bf16",
        [lambda w=w: unpack_weights(w) for w in packed], 2 * N * K + N * K // 4,
    )  # fmt: skip


def _qat_layer(bench: Bench, N: int, K: int, M: int) -> None:
    """Forward and backward of the layer that a pilot trains; the weights' quantisation, once a
    step, is a row of its own."""
    from workbench.ternary import BitLinear, ThresholdVersion

    x = bench.normal(M, K).requires_grad_()
    dy = bench.normal(M, N)
    like = {"bias": False, "device": bench.device, "dtype": torch.bfloat16}
    plain = torch.nn.Linear(K, N, **like)
    ternary, all_int8 = (BitLinear(K, N, threshold=ThresholdVersion(), **like) for _ in range(2))
    all_int8.load_state_dict(ternary.state_dict())
    all_int8.int8_gradients = True
    for layer in (ternary, all_int8):
        layer.reuse = True  # packed by the first call, which is not timed
    ops, nbytes = 2 * M * N * K, 2 * 3 * (M * K + M * N + N * K)

    def step(layer: torch.nn.Linear) -> Call:
        return lambda: torch.autograd.grad(layer(x), (x, layer.weight), dy)

    best = bench.timed("qat_layer", N, K, M, "bf16", [step(plain)], nbytes, bf16_ops=3 * ops)
    bench.timed(
        "qat_layer", N, K, M, "int8 x ternary", [step(ternary)], nbytes,
        int8_ops=ops, bf16_ops=2 * ops, against=best,
    )  # fmt: skip
    for got, wanted in zip(step(all_int8)(), step(ternary)(), strict=True):
        bench.require_near(got, wanted, LARGEST_GRADIENT_ERROR, f"INT8 gradients of {N}x{K}")
    bench.timed(
        "qat_layer", N, K, M, "int8 x ternary, int8 gradients", [step(all_int8)], nbytes,
        int8_ops=3 * ops, against=best,
    )  # fmt: skip


def _check(bench: Bench, weight, rows, M: int) -> None:
    """The product against float32 on the same quantised rows and unpacked weights."""
    from ternary_kernels.gpu import linear, unpack_weights
    from ternary_kernels.gpu.quantize import dequantize_rows

    K = weight.shape[1]
    x = dequantize_rows(rows.q, rows.x_scale, K, torch.float32)
    expected = x @ unpack_weights(weight, torch.float32).T
    what = f"{M} rows times {weight.shape}"
    bench.require_near(linear(rows, weight), expected, LARGEST_ERROR, what)


def _operands(bench: Bench, N: int, K: int, M: int) -> tuple[list[torch.Tensor], list]:
    from ternary_kernels.gpu import pack_codes

    copies = bench.clock.copies(N * K // 4)
    xs = [bench.normal(M, K) for _ in range(copies)]
    weights = [
        pack_codes(torch.randint(0, 3, (N, K), dtype=torch.uint8, device=bench.device), 1 / K**0.5)
        for _ in range(copies)
    ]
    return xs, weights
