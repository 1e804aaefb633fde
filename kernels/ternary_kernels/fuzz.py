"""Random shapes and values under AddressSanitizer and UBSan.

``python -m ternary_kernels.fuzz [--seconds 60] [--seed 0]``: builds the library with both
sanitizers, starts itself again with the sanitizer's runtime loaded first, and compares every
operation with the reference on every instruction set until the time is over. Any report of a
sanitizer, or a difference, ends it with a failure and the seed that repeats it.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

_CHILD = "TERNARY_KERNELS_FUZZ_CHILD"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if os.environ.get(_CHILD):
        return _fuzz(options.seconds, options.seed)
    return _start_child()


def _start_child() -> int:
    from . import build

    try:
        library = build.build(sanitize=True)
        runtime = _sanitizer_runtime(build.find_compiler())
    except build.BuildError as error:
        print(error, file=sys.stderr)
        return 3
    preload = "DYLD_INSERT_LIBRARIES" if sys.platform == "darwin" else "LD_PRELOAD"
    environment = os.environ | {
        _CHILD: "1",
        preload: runtime,
        "TERNARY_KERNELS_LIBRARY": str(library),
        # Python and torch keep memory until the end: not the leaks that are looked for.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    command = [sys.executable, "-m", "ternary_kernels.fuzz", *sys.argv[1:]]
    return subprocess.run(command, env=environment).returncode


def _sanitizer_runtime(compiler: list[str]) -> str:
    machine = os.uname().machine
    for name in (
        "libasan.so",
        f"libclang_rt.asan-{machine}.so",
        "libclang_rt.asan_osx_dynamic.dylib",
    ):
        found = subprocess.run(
            [*compiler, f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        if found != name and Path(found).exists():
            return str(Path(found).resolve())
    from .build import BuildError

    raise BuildError(f"{compiler[0]} has no AddressSanitizer runtime; install libasan or use g++")


def _fuzz(seconds: float, seed: int) -> int:
    import torch

    from . import native

    torch.set_num_threads(1)
    rng, rounds = random.Random(seed), 0
    checks = (_check_linear, _check_gated, _check_model)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = rng.getrandbits(32)
        native.force_isa(rng.choice(native.available_isas()))
        native.set_threads(rng.choice((1, 2, 3)))
        torch.manual_seed(state)
        case = random.Random(state)
        check = case.choice(checks)
        if not check(case):
            print(
                f"differs: {check.__name__} on {native.backend().isa}, state {state}, seed {seed}"
            )
            return 4
        rounds += 1
    print(f"{rounds} rounds on {', '.join(native.available_isas())}: no difference, no report")
    return 0


def _size(case: random.Random) -> int:
    return case.choice((1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, case.randint(1, 600)))


def _weight(case: random.Random, N: int, K: int):
    import torch

    from . import weights

    kinds = ("tensor", "row", "group128", "base3", "triples", "int8", "int4", "bf16", "fp16")
    kind = case.choice(kinds)
    if kind in ("bf16", "fp16"):
        dtype = torch.bfloat16 if kind == "bf16" else torch.float16
        return weights.PackedHalf.from_float(torch.randn(N, K), dtype)
    if kind == "int8":
        return weights.PackedInt8.from_codes(torch.randint(-127, 128, (N, K)).to(torch.int8), 1.0)
    if kind == "int4":
        values = torch.randint(-8, 8, (N, K)).to(torch.int8)
        return weights.PackedInt4.from_codes(values, torch.randn(N, -(-K // 32)))
    codes = torch.randint(0, 3, (N, K))
    if kind in ("base3", "triples"):
        cls = weights.PackedTernary5 if kind == "base3" else weights.PackedTernary3
        return cls.from_codes(codes, torch.rand(N))
    shape = {"tensor": (1,), "row": (N,), "group128": (N, -(-K // 128))}[kind]
    return weights.PackedTernary.from_codes(codes, torch.rand(shape))


def _table(case: random.Random, V: int, H: int):
    """An embedding, or a head."""
    import torch

    from .mixed import PackedMixed

    if V > 1 and case.random() < 0.4:
        frequent = torch.randperm(V)[: case.randint(1, V - 1)]
        return PackedMixed.from_float(torch.randn(V, H), frequent, case.choice((0, 128, 512)))
    while (table := _weight(case, V, H)).kind not in ("int4", "int8", "half"):
        pass
    _rotate_alike(case, table)
    return table


def _rotate_alike(case: random.Random, *together) -> None:
    """Those that read one input: all of them, or none. Half-precision ones cannot be."""
    rotation = case.choice((0, 0, 128, 512))
    if all(weight.kind != "half" for weight in together):
        for weight in together:
            weight.rotated(rotation)


def _on_tiles(weight, M: int) -> bool:
    from . import native

    computes = native.backend()
    return 0 < computes.tile_rows <= M and computes.unit(weight) != "vectors"


def _values(case: random.Random, M: int, K: int):
    import torch

    x = torch.randn(M, K) * 10.0 ** case.randint(-8, 8)
    trouble = case.choice((None,) * 6 + (float("nan"), float("inf"), -float("inf")))
    if trouble is not None:
        x[case.randrange(M), case.randrange(K)] = trouble
    return x


def _check_linear(case: random.Random) -> bool:
    import torch

    from . import ops, reference

    M, N, K = case.choice((1, 2, 3, 7, 12, 13, 40)), _size(case), _size(case)
    weight, x = _weight(case, N, K), _values(case, M, K)
    _rotate_alike(case, weight)
    bias = torch.randn(N) if case.random() < 0.5 else None
    try:
        y = ops.linear(x, weight, bias)
    except ValueError:
        return not bool(x.isfinite().all())
    expected = reference.linear(x, weight, bias)
    if weight.kind == "half" and _on_tiles(weight, M):
        # Activations in bf16: each product is off by at most a 256th.
        bound = x.abs().float() @ weight.dequantize().abs().T / 256
        return bool(((y - expected).abs() <= bound + 1e-4 * expected.abs() + 1e-30).all())
    if weight.kind == "half":
        return torch.allclose(y, expected, rtol=1e-3, atol=float(x.abs().max()) * K**0.5 * 1e-4)
    return torch.equal(y, expected)


def _check_gated(case: random.Random) -> bool:
    import torch

    from . import ops, reference

    M, N, K = case.choice((1, 5, 12, 30)), _size(case), _size(case)
    gate, up, x = _weight(case, N, K), _weight(case, N, K), torch.randn(M, K)
    _rotate_alike(case, gate, up)
    activation = case.choice(("silu", "relu2"))
    y = ops.gated(x, gate, up, activation)
    expected = reference.activate(reference.linear(x, gate), activation) * reference.linear(x, up)
    if any(w.kind == "half" and _on_tiles(w, M) for w in (gate, up)):
        scale = float(expected.abs().max())
        return torch.allclose(y, expected, rtol=5e-2, atol=5e-2 * (1 + scale))
    return torch.allclose(y, expected, rtol=1e-3, atol=1e-3 * (1 + float(expected.abs().max())))


def _check_model(case: random.Random) -> bool:
    import numpy as np
    import torch

    from . import native
    from .llama import LINEARS, LlamaConfig, LlamaNative
    from .llama.config import TOGETHER
    from .weights import PackedWeight

    kv_heads, group, D = case.randint(1, 3), case.choice((1, 3, 5, 13)), 2 * case.randint(1, 24)
    H, inter, V, context = _size(case), _size(case), _size(case), case.randint(1, 70)
    config = LlamaConfig(H, inter, 2, kv_heads * group, kv_heads, D, V, (0.1,) * (D // 2))
    weights = {"embed": _table(case, V, H), "norm": torch.ones(H)}
    if case.random() < 0.3:
        weights["head"] = _table(case, V, H)
    for i in range(2):
        for name in LINEARS:
            weights[f"layers.{i}.{name}"] = _weight(case, *config.linear_shape(name))
        for group in (*TOGETHER, ("o",), ("down",)):
            _rotate_alike(case, *(weights[f"layers.{i}.{name}"] for name in group))
        weights[f"layers.{i}.attn_norm"] = weights[f"layers.{i}.ffn_norm"] = torch.ones(H)
    kv = case.choice(("float32", "float16", "bfloat16"))
    # On tiles half weights round activations to bf16, and nothing bounds what a random network
    # makes of it: such a model is compared with as many rows as go through the tiles too.
    packed = [w for w in weights.values() if isinstance(w, PackedWeight)]
    rounds = any(w.kind == "half" and _on_tiles(w, context) for w in packed)
    few = native.backend().tile_rows if rounds else 1
    with LlamaNative(config, weights, 2, context, kv) as core:
        tokens = np.array([case.randrange(V) for _ in range(context)])
        try:
            whole = core.forward(tokens, np.zeros(context), np.arange(context), True)
            part = core.forward(tokens[:few], np.ones(few), np.arange(few), True)
        except ValueError:  # random weights may overflow a narrow cache
            return kv != "float32"
    scale = float(np.abs(whole).max()) + 1e-6
    return bool(np.isfinite(whole).all()) and float(np.abs(whole[:few] - part).max()) <= 0.2 * scale


if __name__ == "__main__":
    sys.exit(main())
