"""The GPU benchmark: refused without a GPU, and its whole path rehearsed on the interpreter."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from ternary_kernels.gpu.layout import interpreter_problem

from workbench.bench import gpu_kernels
from workbench.bench.gpu import REHEARSAL, Bench, Work, bench_gpu, parts_of
from workbench.bench.gpu_clock import GpuRow, RehearsalClock, median
from workbench.errors import ConfigError, StageError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"bench gpu: torch.*\n.*CUDA device.*\n.*--rehearse"):
        bench_gpu(out=tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_refuses_a_file(tmp_path):
    with pytest.raises(ConfigError, match="writes no file"):
        bench_gpu(rehearse=True, out=tmp_path / "rows.jsonl")


interpreted = pytest.mark.skipif(bool(interpreter_problem()), reason=str(interpreter_problem()))


def test_a_rehearsal_that_the_versions_rule_out_is_refused(monkeypatch):
    monkeypatch.setattr("triton.__version__", "3.6.0")
    monkeypatch.setattr("numpy.__version__", "2.5.2")
    with pytest.raises(ConfigError, match=r"Triton 3\.6\.0 cannot .*numpy 2\.5\.2.*\n.*without"):
        bench_gpu(rehearse=True)
    monkeypatch.setattr("triton.__version__", "3.10.0+git")
    assert interpreter_problem() is None


@pytest.mark.slow
@interpreted
def test_the_rehearsal_runs_every_case():
    lines: list[str] = []
    kernels = "product,between,weights,qat_layer"
    rows = bench_gpu(rehearse=True, only=kernels, say=lines.append)
    assert len(lines) == len(rows) + 1  # the environment comes first
    assert {row.device for row in rows} == {REHEARSAL}
    assert {row.name for row in rows} >= {
        "copy", "int_mm", "matmul", "product", "linear", "rms_norm+quantize", "silu*up+quantize",
        "relu2*up+quantize", "quantize+pack", "unpack", "qat_layer", "first_call", "second_call",
    }  # fmt: skip
    assert all(row.value > 0 and not row.note for row in rows)
    for row in rows:
        assert (row.ratio_bf16 is not None) == ("x ternary" in row.precision), row


def test_parts_are_named_and_ordered():
    assert parts_of("large, product") == ("product", "large")
    with pytest.raises(ConfigError, match=r"unknown: speed\n.*product, engine"):
        parts_of("speed")


def test_a_case_that_fails_costs_the_others_nothing(monkeypatch):
    """Time on a device may be given once: all other rows are written, and then it is said."""

    def broken(bench, N, K, M):
        raise RuntimeError("an illegal memory access was encountered\nmore")

    monkeypatch.setattr(gpu_kernels, "_between", broken)
    monkeypatch.setattr(Bench, "_ceilings", lambda self, shape: None)
    monkeypatch.setattr(
        gpu_kernels,
        "_weights",
        lambda bench, *at: bench.add(GpuRow("unpack", "", 0, "", 1.0, 1.0, 1.0, "us")),
    )
    bench = Bench(RehearsalClock(), "cpu", "rehearsal", lambda line: None, Work.tiny())
    with pytest.raises(StageError, match=r"2 cases failed: between products 32x32 1; between"):
        bench.run(("between", "weights"))
    assert [row.name for row in bench.rows] == ["between products"] * 2 + ["unpack"]
    assert "illegal memory access" in bench.rows[0].note and bench.rows[0].value is None


def test_the_kernels_need_neither_pilots_nor_a_server():
    """A GPU machine without a network has torch and triton, and may lack the rest."""
    code = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "ruamel", "starlette", "transformers", "zstandard"}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from workbench.bench.gpu_clock import RehearsalClock
from workbench.bench.gpu import Bench, Work
import workbench.bench.gpu_kernels
bench = Bench(RehearsalClock(), "cpu", "rehearsal", print, Work.tiny())
bench._ceilings = lambda shape: None
print(len(bench.run(())))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@interpreted
def test_every_whole_model_is_rehearsed_and_metered():
    rows = bench_gpu(rehearse=True, only="engine,capacity,large,training", say=lambda line: None)
    by = {(row.name, row.precision): row for row in rows}
    for name in ("decode", "prefill", "throughput", "qat_step"):
        assert by[name, "int8 x ternary"].ratio_bf16 or name == "decode"
        assert by[name, "bf16"].unit == "tokens/s" and (f"{name} energy", "bf16") in by
    assert by["decode", "bf16"].ratio_bf16 and by["decode", "bf16 torch.compile"].value > 0
    assert by["engine_first_call", "bf16"].unit == "s"
    for row in rows:
        assert (row.value is None) == row.note.startswith("not measured: no_meter"), row
    assert sum(row.name == "decode" and row.precision == "int8 x ternary" for row in rows) == 3


def test_the_median_is_bounded_by_order_statistics():
    value, lo, hi = median([float(n) for n in range(25)])
    assert value == 12 and (lo, hi) == (7, 17)
    assert median([2.0, 4.0]) == (3.0, 2.0, 4.0)
