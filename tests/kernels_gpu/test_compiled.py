"""Every kernel, in the configurations that real shapes select, compiled without a GPU.

Compiled for sm_90 (H100, H200) and sm_80 (A100); no variant may spill registers, and the tensor
cores and wide loads that the kernels are written for must be in the machine code.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET is set: nothing to compile", allow_module_level=True)

import ternary_kernels.gpu
from ternary_kernels import PackedTernary
from ternary_kernels.gpu import linear, linear_weight_only, pack_weights, quantize, quantize_gated
from ternary_kernels.gpu.ahead import _source, compile_for, recorded
from ternary_kernels.gpu.attention import StepRows, attend, padded, rope_append
from ternary_kernels.gpu.int8 import embed, linear_int8_rows
from ternary_kernels.gpu.matrices import Int8Matrix
from ternary_kernels.gpu.norm import add_half_rows
from ternary_kernels.gpu.pack import unpack_weights
from ternary_kernels.gpu.quantize import add_quantize, dequantize_rows, rms_norm_backward

# What a program may use on sm_86 and sm_89, which have least: 163 KB on sm_80, 227 KB on sm_90.
SHARED_LIMIT = 99 * 1024


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def weight_like(N, K, granularity):
    """A packed weight of the right shapes; its values are never looked at."""
    tiles = torch.empty(-(-N // 16), -(-K // 16), 16, 4, dtype=torch.uint8)
    shape = {"row": (N,), "group128": (N, -(-K // 128))}[granularity]
    return PackedTernary._build((N, K), tiles, torch.ones(shape))


def products(M, N, K, granularity, bias=None):
    weight, x = weight_like(N, K, granularity), torch.empty(M, K, dtype=torch.bfloat16)
    linear(x, weight, bias)
    if M in (16, 4096):
        linear_weight_only(x, weight, bias)


def compile_products(capability, cases):
    with recorded() as launches:
        for M, N, K, granularity, biased in cases:
            products(M, N, K, granularity, torch.empty(N) if biased else None)
    reports = compile_for(capability, launches)
    print(*reports, sep="\n")
    assert not [str(r) for r in reports if r.stack_bytes]
    assert not [str(r) for r in reports if r.shared_bytes > SHARED_LIMIT]
    integer, half = ("IGMMA", "HGMMA") if capability == 90 else ("IMMA", "HMMA")
    for r in reports:
        if r.kernel == "int8_kernel":
            assert r.instructions[integer] and r.instructions["LDGSTS"], str(r)
        if r.kernel == "half_kernel":
            assert r.instructions[half], str(r)
        if r.kernel == "gemv_kernel":
            assert r.instructions["IDP"] >= 32, str(r)  # dp4a


def test_the_main_products_for_sm_90():
    compile_products(90, [(M, 8192, 8192, "row", False) for M in (1, 64, 4096)])


@pytest.mark.slow
def test_the_instructions_of_a_weight_stay_under_the_time_of_its_bytes():
    """The table "Instructions counted" of docs/gpu.md: a loop that grows would miss a target."""
    with recorded() as launches:
        for M in (1, 16, 128):
            products(M, 8192, 8192, "row")
    weights = {"gemv_kernel": 128, "int8_kernel": 64}  # of a thread and trip
    reports = [r for r in compile_for(90, launches) if r.kernel in weights]
    each = {r.kernel: r.loop.total() / weights[r.kernel] for r in reports}
    print(*(f"{r.kernel}: {r.loop.total()} {r.loop}" for r in reports), sep="\n")
    assert len(reports) == 3
    assert 0.5 < each["gemv_kernel"] < 0.9 and 1 < each["int8_kernel"] < 1.85, each
    (gemv,) = (r for r in reports if r.kernel == "gemv_kernel")
    assert not gemv.loop["BAR"] and gemv.loop["IDP"] == 32  # nothing by way of shared memory
    assert gemv.registers <= 64  # four programs of eight warps a multiprocessor


@pytest.mark.slow
def test_the_main_products_for_sm_80():
    compile_products(80, [(1, 8192, 8192, "row", False), (128, 8192, 8192, "row", False)])


def test_another_number_of_rows_compiles_nothing():
    """A kind of tile is compiled once, whatever its rows are divisible by."""
    weight = weight_like(8192, 8192, "row")
    with recorded() as launches:
        for M in (65, 66, 80, 128):
            linear(torch.empty(M, 8192, dtype=torch.bfloat16), weight)
    keys = {launch.kernel.__name__: set() for launch in launches}
    for launch in launches:
        keys[launch.kernel.__name__].add(_source(launch).hash())
    assert len(keys) == 3 and all(len(of) == 1 for of in keys.values()), keys


def test_every_kernel_waits_before_it_touches_memory():
    """Or dependent launch (TERNARY_GPU_PDL) would let it read what is not written yet."""
    kernels = 0
    for path in Path(ternary_kernels.gpu.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                assert ast.unparse(body[0]) == "wait_for_inputs()", f"{path.name}: {node.name}"
                kernels += 1
    assert kernels >= 19


@pytest.mark.slow
def test_dependent_launch_compiles(tmp_path):
    code = """
import torch
from ternary_kernels.gpu import quantize
from ternary_kernels.gpu.ahead import _source, compile_for, recorded
with recorded() as launches:
    quantize(torch.empty(1, 3200, dtype=torch.bfloat16))
assert launches[0].options["launch_pdl"]
print(compile_for(90, launches)[0].instructions)
"""
    environment = os.environ | {"TERNARY_GPU_PDL": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "ACQBULK" in done.stdout and "PREEXIT" in done.stdout, done.stdout


def engine_launches(M, heads, kv_heads, head_dim, context=2048):
    """One step of M rows between the products: cache, attention, residual sums, tables."""
    cache = tuple(
        torch.empty(4, kv_heads, context, padded(head_dim), dtype=torch.float16) for _ in range(2)
    )
    ints, tables = torch.empty(M, dtype=torch.int32), torch.empty(context, head_dim // 2)
    tiles = torch.empty(2, 16, dtype=torch.int32) if M > 8 else None
    rows = StepRows(ints, ints, ints, tiles)
    wide = torch.empty(M, (heads + 2 * kv_heads) * head_dim, dtype=torch.bfloat16)
    q = rope_append(wide, rows, (tables, tables), cache, None, 1e-5)
    attend(q, rows, cache, 0)
    x, gain = torch.empty(M, 3200), torch.empty(3200)
    quantised, _ = add_quantize(x, x.bfloat16(), gain)
    add_half_rows(x, x.bfloat16(), gain, 1e-5, torch.bfloat16)
    table = Int8Matrix((4096, 3200), torch.empty(4096, 3200, dtype=torch.int8), *[gain[:1]] * 2)
    table.scale = torch.empty(4096)
    linear_int8_rows(quantised, table, dtype=torch.float32)
    embed(ints, table)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("M", "heads"), [(1, (32, 32, 100)), (1, (64, 8, 128)), (512, (64, 8, 128))], ids=str
)
def test_the_engine_between_its_products_for_sm_90(M, heads):
    with recorded() as launches:
        engine_launches(M, *heads)
    reports = compile_for(90, launches)
    print(*reports, sep="\n")
    assert {r.kernel for r in reports} >= {
        "rope_append_kernel", "tile_kernel" if M > 8 else "decode_kernel", "half_rows_kernel",
        "int8_gemm_kernel" if M > 1 else "int8_gemv_kernel", "embed_kernel",
    }  # fmt: skip
    assert not [str(r) for r in reports if r.stack_bytes]
    assert not [str(r) for r in reports if r.shared_bytes > SHARED_LIMIT]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90, 80])
def test_group_scales_and_odd_shapes(capability):
    cases = [(M, 8192, 8192, "group128", False) for M in (1, 16, 64, 4096)]
    cases += [(1, 3200, 8640, "row", True), (16, 3201, 8700, "row", True)]
    compile_products(capability, cases)


@pytest.mark.slow
def test_the_rest_for_sm_90():
    x = torch.empty(4096, 3200, dtype=torch.bfloat16)
    gain = torch.empty(3200, dtype=torch.bfloat16)
    with recorded() as launches:
        rows = quantize(x, gain)
        quantize(torch.empty(1, 20480, dtype=torch.bfloat16))
        for activation in ("silu", "relu2"):
            quantize_gated(
                torch.empty(1, 2 * 8640, dtype=torch.bfloat16), activation, gain.new_empty(8640)
            )
        dequantize_rows(rows.q, rows.x_scale, 3200, torch.bfloat16)
        rms_norm_backward(x, x, gain, torch.empty(4096))
        for granularity in ("tensor", "row", "group128"):
            packed = pack_weights(torch.empty(8640, 3200), granularity)
            unpack_weights(packed)
        pack_weights(gain.new_empty(8640, 3200))
    reports = compile_for(90, launches)
    print(*reports, sep="\n")
    assert {r.kernel for r in reports} >= {
        "quantize_rows_kernel", "dequantize_rows_kernel", "rms_norm_dx_kernel",
        "rms_norm_dw_kernel", "abs_sums_kernel", "pack_kernel", "unpack_kernel",
    }  # fmt: skip
    assert not [str(r) for r in reports if r.stack_bytes]
