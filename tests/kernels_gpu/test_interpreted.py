"""Run the kernel suite (check_*.py) in processes of its own.

Triton reads TRITON_INTERPRET when a kernel is decorated and keeps to it, so the suite must not
share a process with tests that compile. Without a GPU it runs under the interpreter on the CPU;
with one also as compiled code, which is the same files without the variable. The interpreter
takes minutes for all of it: the quick suite runs the files of QUICK, the slow one every file.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from ternary_kernels.gpu.layout import interpreter_problem

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = sorted(HERE.glob("check_*.py"))
QUICK = [HERE / "check_quantize.py", HERE / "check_pack.py"]
interpreted = pytest.mark.skipif(bool(interpreter_problem()), reason=str(interpreter_problem()))


def run_suite(tmp_path: Path, files: list[Path] = FILES, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@interpreted
def test_the_quick_part_under_the_interpreter(tmp_path):
    output = run_suite(tmp_path, QUICK, TRITON_INTERPRET="1")
    assert "passed" in output and "skipped" not in output


@pytest.mark.slow
@pytest.mark.timeout(900)  # four minutes of two quiet cores
@interpreted
def test_all_of_it_under_the_interpreter(tmp_path):
    output = run_suite(tmp_path, TRITON_INTERPRET="1")
    assert "passed" in output and "skipped" not in output


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: interpreter only")
def test_compiled_on_the_gpu(tmp_path):
    assert "passed" in run_suite(tmp_path)
