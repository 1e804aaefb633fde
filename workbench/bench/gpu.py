"""``workbench bench gpu``: the Triton kernels against bf16 on this GPU, at most eight minutes.

Measured in one run, most wanted first: the ceilings (copied bytes, INT8 by ``torch._int_mm``,
bf16 by cuBLAS); then the parts

- ``product``: one row on the eight shapes of BitNet's published GPU table and on large layers;
  16, 64, 128 and 4096 rows. Each bf16 product is measured twice, cuBLAS and ``torch.compile``,
  and the faster is what the ternary rows are held against;
- ``engine``, ``capacity``, ``large``: whole models (:mod:`.gpu_engine`);
- ``training``: a whole training step (:mod:`.gpu_training`);
- ``between``, ``weights``, ``qat_layer``: the kernels between the products, what a training step
  does to its weights, one training layer (:mod:`.gpu_kernels`, as are the products).

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
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from workbench.bench.gpu_clock import Call, GpuRow, GraphClock, RehearsalClock, median
from workbench.bench.gpu_sizes import EndToEnd, Trained
from workbench.child import child, how_it_ended
from workbench.errors import ConfigError, StageError, WorkbenchError, reason_of
from workbench.machine.gpu import driver_version, torch_gpu
from workbench.paths import PROJECT
from workbench.wording.counts import number_of

TIME_LIMIT_S = 8 * 60
RESERVE_S = 30
REHEARSAL = "rehearsal: Triton interpreter on a CPU, no figure here means anything"
PUBLISHED = (
    (2560, 2560), (3840, 2560), (13824, 2560), (2560, 6912),
    (3200, 3200), (4800, 3200), (3200, 10240), (20480, 3200),
)  # fmt: skip
BATCHES = (16, 64, 128)
LARGE = ((8192, 8192), (28672, 8192), (8192, 28672))
KERNELS, ENGINE, TRAINING = (
    f"workbench.bench.{name}" for name in ("gpu_kernels", "gpu_engine", "gpu_training")
)
PARTS = {
    # name: where it is, seconds that it needs at least, compilation and making of models included;
    # 0: it looks at the time before each of its cases
    "product": (KERNELS, 0), "engine": (ENGINE, 60), "training": (TRAINING, 80),
    "capacity": (ENGINE, 90), "large": (ENGINE, 50), "between": (KERNELS, 0),
    "weights": (KERNELS, 0), "qat_layer": (KERNELS, 0),
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
) -> list[GpuRow]:
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
        self.rows: list[GpuRow] = []
        self.failed: list[str] = []
        self.calls_s: dict[str, list[float]] = {"first_call": [], "second_call": []}
        self.bytes_s = self.int8_ops_s = self.bf16_ops_s = 0.0

    def run(self, parts: tuple[str, ...]) -> list[GpuRow]:
        self.say(json.dumps(self._environment()))
        self._ceilings(self.work.large[0])
        for part in parts:
            where, needs_s = PARTS[part]
            # Whole models need transformers and pilots; kernels need torch and triton alone.
            measure = partial(getattr(importlib.import_module(where), f"run_{part}"), self)
            if needs_s:
                self._guarded(part, "", 0, needs_s, measure)
            else:
                measure()
        if self.failed:
            raise StageError(
                f"bench gpu: {number_of(len(self.failed), 'case')} failed: "
                f"{'; '.join(self.failed)}",
                allowed="every case measured; the rows of all others are kept",
                next_step="run python -m pytest tests/kernels_gpu on this machine and report it",
            )
        return self.rows

    def case(self, name: str, N: int, K: int, M: int, measure: Callable) -> None:
        """Measure one shape, ``measure(N, K, M)``; see :meth:`_guarded`."""
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
            self.add(GpuRow(name, shape, rows, "", None, None, None, "", note=note))
        if self.device == "cuda":
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:  # the device is lost: every later row says so itself
                print(f"bench gpu: {error}", file=sys.stderr)

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
        a, b = self.normal(size, size), self.normal(size, size)
        self.bf16_ops_s = self._ceiling("matmul", side, "bf16", lambda: F.linear(a, b), ops)

    def _ceiling(self, name: str, shape: str, precision: str, call: Call, amount: int) -> float:
        value, lo, hi = median([amount / s for s in self.clock.samples([call])])
        divisor, unit = (1e9, "GB/s") if name == "copy" else (1e12, "TOP/s")
        row = GpuRow(name, shape, 0, precision, value / divisor, lo / divisor, hi / divisor, unit)
        self.add(row)
        return value

    def timed(
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
        self.add(
            GpuRow(
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

    def require_near(
        self, got: torch.Tensor, wanted: torch.Tensor, allowed: float, what: str
    ) -> None:
        error = float((got.float() - wanted.float()).norm() / wanted.float().norm())
        if not error <= allowed:
            raise StageError(
                f"bench gpu: {what}: relative error {error:.3g}",
                allowed=f"at most {allowed:g}",
                next_step="run python -m pytest tests/kernels_gpu on this machine and report it",
            )

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.bfloat16)

    def add(self, row: GpuRow) -> None:
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


def _rehearsed(parts: tuple[str, ...], say: Callable[[str], None]) -> list[GpuRow]:
    """Rehearse in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    from ternary_kernels.gpu.layout import interpreter_problem

    if problem := interpreter_problem():
        raise ConfigError(
            f"bench gpu --rehearse: {problem}",
            next_step="without --rehearse kernels are compiled, and any of these versions will do",
        )
    rows = []
    with child(
        "workbench.bench.gpu", "--rehearse", "--only", ",".join(parts),
        log=None, environment={"TRITON_INTERPRET": "1"}, answers=True,
    ) as rehearsal:  # fmt: skip
        for line in rehearsal.stdout:
            say(line.rstrip("\n"))
            fields = json.loads(line)
            if "record" not in fields:
                rows.append(GpuRow(**fields))
        if code := rehearsal.wait():
            raise StageError(
                f"bench gpu --rehearse: the rehearsal {how_it_ended(code)}",
                next_step="its own message stands above",
            )
    return rows


def rehearse_here(parts: tuple[str, ...], say: Callable[[str], None]) -> list[GpuRow]:
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
