"""``workbench bench gpu``: the Triton kernels against bf16 on this GPU, at most eight minutes.

Measured in one run, most wanted first: the ceilings (copied bytes, INT8 by ``torch._int_mm``,
bf16 by cuBLAS); then the parts

- ``product``: one row on the eight shapes of BitNet's published GPU table and on large layers;
  16, 64, 128 and 4096 rows. Each bf16 product is measured twice, cuBLAS and ``torch.compile``,
  and the faster is what the ternary rows are held against;
- ``engine``, ``capacity``, ``large``: whole models (:mod:`.gpu_engine`);
- ``training``: a whole training step (:mod:`.gpu_training`);
- ``between``, ``weights``, ``qat_layer``: the kernels between the products, what a training step
  does to its weights, one training layer.

``--only product,engine`` runs some of them, so that a long run can be cut into short calls; a
part that no longer fits into the time leaves a row that says so. Random data, fresh for each
case; every product's result is checked before it is timed.

Two rows a product: ``product`` takes activations that are already INT8 (they are quantised once
for several layers, fused with the norm), ``linear`` starts from bf16 and quantises itself.

``--rehearse`` runs the same lines with tiny shapes under Triton's interpreter on the CPU, to
know that they run: its rows say so in ``device``, and no file is written.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F

from workbench.bench.gpu_clock import Call, GraphClock, RehearsalClock, Row, median
from workbench.bench.gpu_sizes import EndToEnd, Trained
from workbench.errors import ConfigError, StageError, WorkbenchError, reason_of
from workbench.machine.gpu import driver_version, torch_gpu
from workbench.paths import PROJECT

TIME_LIMIT_S = 8 * 60
RESERVE_S = 30
REHEARSAL = "rehearsal: Triton interpreter on a CPU, no figure here means anything"
LARGEST_ERROR = 2**-7  # one unit in the last place of bf16: Triton's interpreter cuts results off
LARGEST_GRADIENT_ERROR = 0.03
PUBLISHED = (
    (2560, 2560), (3840, 2560), (13824, 2560), (2560, 6912),
    (3200, 3200), (4800, 3200), (3200, 10240), (20480, 3200),
)  # fmt: skip
BATCHES = (16, 64, 128)
LARGE = ((8192, 8192), (28672, 8192), (8192, 28672))
PARTS = {
    # name: seconds that it needs at least, compilation and making of models included
    "product": 0, "engine": 60, "training": 80, "capacity": 90, "large": 50, "between": 0,
    "weights": 0, "qat_layer": 0,
}  # fmt: skip

WHOLE = {
    "engine": "workbench.bench.gpu_engine", "training": "workbench.bench.gpu_training",
    "capacity": "workbench.bench.gpu_engine", "large": "workbench.bench.gpu_engine",
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What the parts take. Shapes are [N x K] of a weight."""

    one_row: tuple[tuple[int, int], ...] = PUBLISHED
    large: tuple[tuple[int, int], ...] = LARGE
    batches: tuple[int, ...] = BATCHES
    prompt_rows: int = 4096
    layer: tuple[int, int] = (8640, 3200)
    end_to_end: EndToEnd = field(default_factory=EndToEnd)
    trained: Trained = field(default_factory=Trained)

    @classmethod
    def tiny(cls) -> Work:
        """For the rehearsal."""
        shapes = ((16, 130),), ((32, 32), (16, 64))
        return cls(*shapes, (2,), 5, (32, 64), EndToEnd.tiny(), Trained.tiny())


def parts_of(only: str | None) -> tuple[str, ...]:
    """The names in a list with commas, in the order of PARTS; None: all."""
    if only is None:
        return tuple(PARTS)
    asked = {name.strip() for name in only.split(",")}
    if unknown := sorted(asked - PARTS.keys()):
        raise ConfigError(
            f"bench gpu --only {only}: unknown: {', '.join(unknown)}",
            allowed=", ".join(PARTS),
        )
    return tuple(name for name in PARTS if name in asked)


def bench_gpu(
    *,
    rehearse: bool = False,
    only: str | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Measure and say each row as a line of JSON; all rows are returned.

    only: parts, with commas between; None: all. out: the file that takes the lines too; by
    default docs/results/<device>-<date>.jsonl of the checkout, with the parts in its name where
    not all are run. Raises ConfigError without a CUDA device, StageError for a wrong result.
    """
    if rehearse:
        if out is not None:
            raise ConfigError(
                f"--rehearse with --out {out}",
                allowed="a rehearsal writes no file",
                next_step="leave --out away, or --rehearse on a machine with a GPU",
            )
        return _rehearsed(parts_of(only), say)
    parts = parts_of(only)
    name, reason = torch_gpu()
    if name is None:
        raise ConfigError(
            f"bench gpu: {reason}",
            allowed="a CUDA device and a torch built for it",
            next_step="run it on the GPU machine; --rehearse tries the code path here",
        )
    out = out or _default_file(name, only)
    if out.exists():
        raise ConfigError(
            f"bench gpu: {out} exists",
            allowed="a new file: results are kept",
            next_step="give another with --out, or move it away",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8") as file, tempfile.TemporaryDirectory() as cache:
        # A fresh cache: the first calls below must pay for their compilation.
        os.environ["TRITON_CACHE_DIR"] = cache

        def both(line: str) -> None:
            say(line)
            print(line, file=file, flush=True)

        return Bench(GraphClock(), "cuda", name, both, Work()).run(parts)


class Bench:
    """One run: the clock, the ceilings measured so far, and where rows go."""

    def __init__(
        self,
        clock: GraphClock | RehearsalClock,
        device: str,
        label: str,
        say: Callable[[str], None],
        work: Work,
    ) -> None:
        self.clock, self.device, self.label, self.say = clock, device, label, say
        self.work, self.end_to_end, self.trained = work, work.end_to_end, work.trained
        self.begin = time.monotonic()
        self.rows: list[Row] = []
        self.failed: list[str] = []
        self.calls_s: dict[str, list[float]] = {"first_call": [], "second_call": []}
        self.bytes_s = self.int8_ops_s = self.bf16_ops_s = 0.0

    def run(self, parts: tuple[str, ...]) -> list[Row]:
        self.say(json.dumps(self._environment()))
        self._ceilings(self.work.large[0])
        for part in parts:
            if part in WHOLE:
                # Whole models need transformers and pilots; kernels need torch and triton alone.
                run = getattr(importlib.import_module(WHOLE[part]), f"run_{part}")
                self._guarded(part, "", 0, PARTS[part], lambda run=run: run(self))
            else:
                getattr(self, f"_part_{part}")()
        if self.failed:
            raise StageError(
                f"bench gpu: {len(self.failed)} cases failed: {'; '.join(self.failed)}",
                allowed="every case measured; the rows of all others are kept",
                next_step="run python -m pytest tests/kernels_gpu on this machine and report it",
            )
        return self.rows

    def _part_product(self) -> None:
        work = self.work
        cases = [(N, K, 1) for N, K in (*work.one_row, *work.large)]
        cases += [(N, K, M) for M in (*work.batches, work.prompt_rows) for N, K in work.large[:2]]
        for case in cases:
            self._case("product", *case, self._product)
        for name, seconds in self.calls_s.items():
            if seconds:
                least, most = min(seconds), max(seconds)
                self._add(Row(name, "each shape once", 0, "ternary", most, least, most, "s"))

    def _part_between(self) -> None:
        for M in (1, self.work.prompt_rows):
            self._case("between products", *self.work.large[0], M, self._between)

    def _part_weights(self) -> None:
        self._case("weights", *self.work.large[0], 0, self._weights)

    def _part_qat_layer(self) -> None:
        self._case("qat_layer", *self.work.layer, 2 * self.work.prompt_rows, self._training)

    def _case(self, name: str, N: int, K: int, M: int, measure: Callable) -> None:
        self._guarded(name, f"{N}x{K}", M, 0, lambda: measure(N, K, M))

    def _guarded(
        self, name: str, shape: str, rows: int, needs_s: float, measure: Callable[[], None]
    ) -> None:
        """What does not fit into the time or the memory leaves a row that says so.

        So does what fails: the time on a device may be short, and the other cases go on.
        """
        note, left_s = "", TIME_LIMIT_S - RESERVE_S - (time.monotonic() - self.begin)
        if self.device == "cuda" and left_s < needs_s:
            note = (
                f"not measured: {max(0, left_s):.0f} s of the {TIME_LIMIT_S // 60} minutes were "
                f"left, it needs about {needs_s:.0f} s"
            )
        else:
            try:
                measure()
            except torch.OutOfMemoryError as error:
                note = f"not measured: out of device memory ({str(error).splitlines()[0]})"
            except MemoryError as error:
                note = f"not measured: {error}"
            except Exception as error:
                traceback.print_exc()
                note = f"failed: {reason_of(error)}"
                self.failed.append(" ".join(f"{name} {shape} {rows or ''}".split()))
        if note:
            self._add(Row(name, shape, rows, "", None, None, None, "", note=note))
        if self.device == "cuda":
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # the device is lost: every later row says so itself
                print(f"bench gpu: {error}", file=sys.stderr)

    def _product(self, N: int, K: int, M: int) -> None:
        from ternary_kernels.gpu import linear, linear_weight_only, quantize

        xs, weights = self._operands(N, K, M)
        both = list(zip(xs, weights, strict=True))
        for seconds in self.calls_s.values():
            seconds.append(self.clock.once(lambda: linear(*both[0])))
        rows = [quantize(x) for x in xs]
        self._check(weights[0], rows[0], M)
        dense = [self._normal(N, K) for _ in range(self.clock.copies(2 * N * K))]
        pairs = [(xs[i % len(xs)], w) for i, w in enumerate(dense)]
        torch._dynamo.reset()
        backend = "inductor" if self.device == "cuda" else "eager"
        compiled = torch.compile(lambda x, w: F.linear(x, w), dynamic=False, backend=backend)
        ops = 2 * M * N * K
        plain_bytes = 2 * (N * K + M * K + M * N)
        best = min(
            self._time("product", N, K, M, f"bf16 {kind}", calls, plain_bytes, bf16_ops=ops)
            for kind, calls in (
                ("cublas", [lambda x=x, w=w: F.linear(x, w) for x, w in pairs]),
                ("torch.compile", [lambda x=x, w=w: compiled(x, w) for x, w in pairs]),
            )
        )
        del dense, pairs
        packed = weights[0].nbytes
        int8_bytes = packed + M * (K + 4 + K // 32) + 2 * M * N
        self._time(
            "product", N, K, M, "int8 x ternary",
            [lambda r=r, w=w: linear(r, w) for r, w in zip(rows, weights, strict=True)],
            int8_bytes, int8_ops=ops, against=best,
        )  # fmt: skip
        self._time(
            "linear", N, K, M, "int8 x ternary",
            [lambda x=x, w=w: linear(x, w) for x, w in both],
            int8_bytes + 3 * M * K, int8_ops=ops, against=best,
        )  # fmt: skip
        if N == K:
            self._time(
                "linear", N, K, M, "bf16 x ternary",
                [lambda x=x, w=w: linear_weight_only(x, w) for x, w in both],
                packed + 2 * M * (N + K), bf16_ops=ops, against=best,
            )  # fmt: skip

    def _between(self, N: int, K: int, M: int) -> None:
        """What stands between the products: norm and gate, each with its quantisation."""
        from ternary_kernels.gpu import quantize, quantize_gated

        copies = self.clock.copies(3 * M * K)
        gain = self._normal(K)
        xs = [self._normal(M, K) for _ in range(copies)]
        self._time(
            "rms_norm+quantize", N, K, M, "int8",
            [lambda x=x: quantize(x, gain) for x in xs], 3 * M * K,
        )  # fmt: skip
        halves = [self._normal(M, 2 * K) for _ in range(copies)]
        for activation in ("silu", "relu2"):
            self._time(
                f"{activation}*up+quantize", N, K, M, "int8",
                [lambda x=x, a=activation: quantize_gated(x, a) for x in halves], 5 * M * K,
            )  # fmt: skip

    def _weights(self, N: int, K: int, M: int) -> None:
        """What a training step does to its weights: quantise and pack, unpack."""
        from ternary_kernels.gpu import pack_weights, unpack_weights

        copies = self.clock.copies(2 * N * K)
        masters = [self._normal(N, K) for _ in range(copies)]
        packed = [pack_weights(w) for w in masters]
        self._time(
            "quantize+pack", N, K, M, "ternary",
            [lambda w=w: pack_weights(w) for w in masters], 4 * N * K + N * K // 4,
        )  # fmt: skip
        self._time(
            "unpack", N, K, M, "bf16",
            [lambda w=w: unpack_weights(w) for w in packed], 2 * N * K + N * K // 4,
        )  # fmt: skip

    def _training(self, N: int, K: int, M: int) -> None:
        """Forward and backward of one layer; the weights' quantisation is once a step, apart."""
        from ternary_kernels.gpu import QATLinear

        x = self._normal(M, K).requires_grad_()
        dy = self._normal(M, N)
        like = {"bias": False, "device": self.device, "dtype": torch.bfloat16}
        plain, ternary = torch.nn.Linear(K, N, **like), QATLinear(K, N, **like)
        all_int8 = QATLinear(K, N, int8_gradients=True, **like)
        all_int8.load_state_dict(ternary.state_dict())
        for layer in (ternary, all_int8):
            layer.refresh()
        ops, nbytes = 2 * M * N * K, 2 * 3 * (M * K + M * N + N * K)

        def step(layer: torch.nn.Linear) -> Call:
            return lambda: torch.autograd.grad(layer(x), (x, layer.weight), dy)

        best = self._time("qat_layer", N, K, M, "bf16", [step(plain)], nbytes, bf16_ops=3 * ops)
        self._time(
            "qat_layer", N, K, M, "int8 x ternary", [step(ternary)], nbytes,
            int8_ops=ops, bf16_ops=2 * ops, against=best,
        )  # fmt: skip
        for got, wanted in zip(step(all_int8)(), step(ternary)(), strict=True):
            self._require_near(got, wanted, LARGEST_GRADIENT_ERROR, f"INT8 gradients of {N}x{K}")
        self._time(
            "qat_layer", N, K, M, "int8 x ternary, int8 gradients", [step(all_int8)], nbytes,
            int8_ops=3 * ops, against=best,
        )  # fmt: skip

    def _ceilings(self, shape: tuple[int, int]) -> None:
        """Copied bytes a second, INT8 and bf16 operations a second: this run's own limits."""
        size = max(shape)
        source = torch.empty(2 * shape[0] * shape[1] * 8, dtype=torch.uint8, device=self.device)
        source.random_(0, 256)
        target = torch.empty_like(source)
        self.bytes_s = self._ceiling(
            "copy", f"{source.nbytes} B", "bytes", lambda: target.copy_(source), 2 * source.nbytes
        )
        a, b = (
            torch.randint(-127, 128, (size, size), dtype=torch.int8, device=self.device)
            for _ in range(2)
        )
        ops, side = 2 * size**3, f"{size}x{size}"
        multiply = torch._int_mm
        self.int8_ops_s = self._ceiling("int_mm", side, "int8", lambda: multiply(a, b.T), ops)
        a, b = self._normal(size, size), self._normal(size, size)
        self.bf16_ops_s = self._ceiling("matmul", side, "bf16", lambda: F.linear(a, b), ops)

    def _ceiling(self, name: str, shape: str, precision: str, call: Call, amount: int) -> float:
        value, lo, hi = median([amount / s for s in self.clock.samples([call])])
        divisor, unit = (1e9, "GB/s") if name == "copy" else (1e12, "TOP/s")
        row = Row(name, shape, 0, precision, value / divisor, lo / divisor, hi / divisor, unit)
        self._add(row)
        return value

    def _time(
        self,
        name: str,
        N: int,
        K: int,
        M: int,
        precision: str,
        calls: list[Call],
        nbytes: int,
        *,
        int8_ops: int = 0,
        bf16_ops: int = 0,
        against: float | None = None,
    ) -> float:
        """Time the calls, add the row, return the median in seconds."""
        value, lo, hi = median(self.clock.samples(calls))
        floor = max(nbytes / self.bytes_s, int8_ops / self.int8_ops_s + bf16_ops / self.bf16_ops_s)
        self._add(
            Row(
                name,
                f"{N}x{K}",
                M,
                precision,
                value * 1e6,
                lo * 1e6,
                hi * 1e6,
                "us",
                ratio_bf16=None if against is None else against / value,
                roofline_pct=100 * floor / value,
            )
        )
        return value

    def _check(self, weight, rows, M: int) -> None:
        """The product against float32 on the same quantised rows and unpacked weights."""
        from ternary_kernels.gpu import linear, unpack_weights
        from ternary_kernels.gpu.quantize import dequantize_rows

        K = weight.shape[1]
        x = dequantize_rows(rows.q, rows.undo, K, torch.float32)
        expected = x @ unpack_weights(weight, torch.float32).T
        what = f"{M} rows times {weight.shape}"
        self._require_near(linear(rows, weight), expected, LARGEST_ERROR, what)

    def _require_near(
        self, got: torch.Tensor, wanted: torch.Tensor, allowed: float, what: str
    ) -> None:
        error = float((got.float() - wanted.float()).norm() / wanted.float().norm())
        if not error <= allowed:
            raise StageError(
                f"bench gpu: {what}: relative error {error:.3g}",
                allowed=f"at most {allowed:g}",
                next_step="run python -m pytest tests/kernels_gpu on this machine and report it",
            )

    def _operands(self, N: int, K: int, M: int) -> tuple[list[torch.Tensor], list]:
        from ternary_kernels.gpu import pack_codes

        copies = self.clock.copies(N * K // 4)
        xs = [self._normal(M, K) for _ in range(copies)]
        weights = [
            pack_codes(
                torch.randint(0, 3, (N, K), dtype=torch.uint8, device=self.device), 1 / K**0.5
            )
            for _ in range(copies)
        ]
        return xs, weights

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def _add(self, row: Row) -> None:
        row = row.on(self.label)
        self.rows.append(row)
        self.say(row.as_json())

    def _environment(self) -> dict[str, str]:
        import triton

        return {
            "record": "environment",
            "device": self.label,
            "driver": driver_version() or "",
            "torch": torch.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def _rehearsed(parts: tuple[str, ...], say: Callable[[str], None]) -> list[Row]:
    """Rehearse in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    from ternary_kernels.gpu.layout import interpreter_problem

    if problem := interpreter_problem():
        raise ConfigError(
            f"bench gpu --rehearse: {problem}",
            next_step="without --rehearse kernels are compiled, and any of these versions will do",
        )
    command = [sys.executable, "-m", "workbench.bench.gpu", "--rehearse", "--only", ",".join(parts)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise StageError(
            f"bench gpu --rehearse: the rehearsal ended with code {done.returncode}",
            next_step="its own message stands above",
        )
    rows = []
    for line in done.stdout.splitlines():
        say(line)
        fields = json.loads(line)
        if "record" not in fields:
            rows.append(Row(**fields))
    return rows


def rehearse_here(parts: tuple[str, ...], say: Callable[[str], None]) -> list[Row]:
    """The rehearsal itself, inside a process that has TRITON_INTERPRET=1: every time the same."""
    torch.manual_seed(0)
    return Bench(RehearsalClock(), "cpu", REHEARSAL, say, Work.tiny()).run(parts)


def _default_file(device: str, only: str | None) -> Path:
    words = (device, datetime.date.today().isoformat(), *([] if only is None else parts_of(only)))
    name = re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
    return PROJECT / "docs" / "results" / f"{name}.jsonl"


def main() -> None:
    """``python -m workbench.bench.gpu [--rehearse] [--only PARTS] [--out FILE]``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU, no file")
    parser.add_argument("--only", help=f"parts, with commas between: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="where the JSON lines go")
    chosen = parser.parse_args()
    try:
        if chosen.rehearse and os.environ.get("TRITON_INTERPRET") == "1":
            rehearse_here(parts_of(chosen.only), print)
        else:
            bench_gpu(rehearse=chosen.rehearse, only=chosen.only, out=chosen.out)
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
