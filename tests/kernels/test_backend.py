"""Choosing what computes: instruction sets, threads, forks, machines without a compiler."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys

import pytest
import ternary_kernels as tk
import torch
from ternary_kernels import build, native

needs_native = pytest.mark.skipif(not tk.available_isas(), reason="no native library")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_torch_can_be_forced_and_is_announced_once():
    done = run_python(
        "import torch, ternary_kernels as tk\n"
        "w = tk.PackedTernary.from_float(torch.randn(8, 8))\n"
        "tk.linear(torch.randn(2, 8), w); tk.linear(torch.randn(2, 8), w); print(tk.backend())",
        TERNARY_KERNELS_BACKEND="torch",
    )
    assert "name='torch'" in done.stdout and "reason='TERNARY_KERNELS_BACKEND=torch'" in done.stdout
    assert done.stderr.count("native kernels are not used") == 1


def test_without_a_compiler_torch_computes(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from ternary_kernels import build\n"
        "build.OUTPUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else '.') / 'none'\n"
        "import ternary_kernels as tk; print(tk.backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "name='torch'" in done.stdout and "CXX=no-such-compiler is not there" in done.stdout


@needs_native
def test_the_environment_forces_an_instruction_set():
    code = "import ternary_kernels as tk; print(tk.backend().isa)"
    assert run_python(code, TERNARY_KERNELS_ISA="plain").stdout.strip() == "plain"
    refused = run_python(code, TERNARY_KERNELS_ISA="mmx")
    assert refused.returncode != 0 and "'mmx' is not available" in refused.stderr


@needs_native
def test_a_forked_child_computes():
    code = (
        "import os, torch, ternary_kernels as tk\n"
        "w = tk.PackedTernary.from_float(torch.randn(300, 300)); x = torch.randn(3, 300)\n"
        "tk.set_threads(3); y = tk.linear(x, w)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    ok = torch.equal(tk.linear(x, w), y); tk.set_threads(2)\n"
        "    os._exit(0 if ok and torch.equal(tk.linear(x, w), y) else 1)\n"
        "print(os.waitpid(pid, 0)[1], torch.equal(tk.linear(x, w), y))"
    )
    assert run_python(code).stdout.strip() == "0 True"


@needs_native
def test_python_threads_may_call_at_once():
    from concurrent.futures import ThreadPoolExecutor

    weight = tk.PackedTernary.from_float(torch.randn(200, 300))
    inputs = [torch.randn(m + 1, 300) for m in range(16)]
    expected = [tk.linear(x, weight) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: tk.linear(x, weight), inputs))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="'sse9' is not available"):
        tk.force_isa("sse9")
    with pytest.raises(ValueError, match="threads = 0"):
        tk.set_threads(0)


def test_the_library_is_named_after_its_sources():
    plain, sanitized = build.library_path(), build.library_path(sanitize=True)
    assert plain != sanitized and plain.parent == build.OUTPUT


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 8, dtype=torch.int32), "x is torch.int32"),
        (torch.ones(2, 7), r"x has shape \(2, 7\)"),
        (torch.tensor([[1.0] * 8, [float("nan")] * 8]), "row 1, hold NaN"),
        (torch.full((1, 8), float("inf")), "row 0, hold NaN"),
    ],
)
@pytest.mark.parametrize("make", [tk.PackedTernary.from_float, tk.PackedHalf.from_float])
def test_bad_activations_are_refused(x, message, make):
    with pytest.raises(ValueError, match=message):
        tk.linear(x, make(torch.randn(5, 8)))


def test_bad_arguments_are_refused():
    weight = tk.PackedTernary.from_float(torch.randn(5, 8))
    with pytest.raises(ValueError, match=r"bias is torch\.float32"):
        tk.linear(torch.randn(1, 8), weight, torch.randn(4))
    with pytest.raises(ValueError, match="one K"):
        tk.linears(torch.randn(1, 8), [weight, tk.PackedTernary.from_float(torch.randn(5, 9))])
    with pytest.raises(ValueError, match="one shape"):
        tk.gated(torch.randn(1, 8), weight, tk.PackedTernary.from_float(torch.randn(6, 8)))
    with pytest.raises(ValueError, match=r"q is torch\.float32"):
        tk.linear_int(torch.randn(1, 8), weight)


@needs_native
@pytest.mark.parametrize(
    ("mirror", "fields", "named"),
    [
        ("Weight", lambda own: (own[1], own[0], *own[2:]), "Weight.kind 4 4"),  # swapped
        ("Layer", lambda own: own[:-1], "TkLayer.ffn_sub_norm"),  # one forgotten
        ("Llama", lambda own: (*own, ("more", ctypes.c_int32)), "TkLlama.more"),  # one too many
        ("Llama", lambda own: (("hidden", ctypes.c_int64), *own[1:]), "TkLlama.hidden 0 8"),
    ],
)
def test_a_wrong_mirror_of_a_struct_is_refused(monkeypatch, mirror, fields, named):
    own = getattr(native, mirror)
    wrong = type(mirror, (ctypes.Structure,), {"_fields_": fields(own._fields_)})
    names = {"Weight": "Weight", "Layer": "TkLayer", "Llama": "TkLlama"}
    monkeypatch.setitem(native._MIRRORS, names[mirror], wrong)
    with pytest.raises(native.LayoutError, match=re.escape(named)):
        native._load()


@pytest.mark.skipif("amx" not in tk.available_isas(), reason="no AMX on this machine")
def test_a_refused_tile_unit_is_said_and_vectors_compute():
    """The system refuses tiles to a process one of whose signal stacks could not hold them."""
    code = (
        "import ctypes, torch\n"
        "class Stack(ctypes.Structure):\n"
        "    _fields_ = [('at', ctypes.c_void_p), ('flags', ctypes.c_int),\n"
        "        ('size', ctypes.c_size_t)]\n"
        "memory = ctypes.create_string_buffer(4096)\n"
        "stack = Stack(ctypes.addressof(memory), 0, 4096)\n"
        "assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0\n"
        "import ternary_kernels as tk\n"
        "from transformers import LlamaConfig\n"
        "from workbench.engine.engine import Engine\n"
        "tiny = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32,\n"
        "    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)\n"
        "engine = Engine.random(tiny, 'ternary', context=32)\n"
        "print(tk.backend().isa, engine.units, engine.notes)"
    )
    done = run_python(code)
    assert done.stdout.startswith("avx512vbmi ('vectors',)"), done.stdout + done.stderr
    assert "tile unit (AMX) is not used: a thread's alternative signal stack" in done.stdout
