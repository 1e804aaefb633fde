"""``workbench bench cpu``: how fast the kernels run here, and what bounds them.

One process, one shape, random weights. Every row is the median of five runs (prompts of a
model that needs more than ``PATIENCE_S`` for them: of fewer, and ``n`` says so). What is
compared takes turns (``cpu_turns``), llama.cpp with ours too. With peers everything ends within
``TIME_LIMIT_S``: the comparisons that the project is judged by come first, and what no longer
fits is named on standard error; ``--only`` measures it in a run of its own.

Decode reads every weight and the cache of keys and values once a token: its limit is the
bandwidth. Prefill multiplies: its limit is the INT8 dot-product peak (shown for integer
weights alone; half-precision weights multiply in float32).
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from ternary_kernels import backend, set_threads
from ternary_kernels.llama import LINEARS, LlamaConfig, LlamaModel, create

from workbench.bench import cpu_peers
from workbench.bench.cpu_prompts import prompt_rows
from workbench.bench.cpu_rows import HEADER, CpuRow, row
from workbench.bench.cpu_turns import REPEATS, Contender, Limits, Turns
from workbench.engine.packing import Weights
from workbench.engine.random_weights import denser, random_weights
from workbench.errors import ConfigError
from workbench.machine.cpu import cpu
from workbench.pilot.sections.readiness import Packing

PROMPT, OUTPUT, BATCH = 512, 64, 8
BATCHED = f"decode, batch {BATCH}"
PATIENCE_S = 20.0
TIME_LIMIT_S = 600.0
NEEDS_S = {
    "prompts": 120,
    "int4": 45,
    "int4_tables": 45,
    "int8": 55,
    "TQ1_0": 65,
    "Q4_0": 50,
    "Q8_0": 72,
    "ternary5": 50,
    "ternary3": 50,
}
"""What is measured after the comparisons, and what it takes on two cores of a server.
int4_tables: INT4 with embedding and head in INT4 too, as llama.cpp's Q4_0 has them; Q4_0 takes
turns with it, or with INT4, where both are asked for."""


def _shape(hidden: int, inter: int, layers: int, heads: int, kv: int, vocab: int) -> LlamaConfig:
    inv_freq = tuple((5e5 ** (-np.arange(0, 128, 2) / 128)).tolist())
    return LlamaConfig(hidden, inter, layers, heads, kv, 128, vocab, inv_freq)


SHAPES = {
    "llama-3.2-3b": _shape(3072, 8192, 28, 24, 8, 128256),
    "bitnet-2b4t": _shape(2560, 6912, 30, 20, 5, 128256),
    "tiny": _shape(256, 512, 2, 2, 1, 1000),
}


def bench_cpu(
    shape: str = "llama-3.2-3b",
    threads: int = 2,
    *,
    peers: bool = False,
    only: str | None = None,
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> list[CpuRow]:
    """Measure, and say each row as soon as it is there; all rows are returned.

    only: names of ``NEEDS_S`` with commas between: those alone, without the comparisons.
    """
    if shape not in SHAPES:
        raise ConfigError(f"shape {shape!r}", allowed=", ".join(SHAPES))
    most = cpu().logical_cores
    if not 1 <= threads <= most:
        raise ConfigError(
            f"threads {threads}", allowed=f"1 to {most}: this processor runs no more at once"
        )
    rest = _rest(only, peers)
    theirs = any(kind in cpu_peers.PEERS for kind in rest)
    missing = cpu_peers.missing_packages() if peers or theirs else []
    if missing:
        raise ConfigError(
            f"--{'peers' if peers else f'only {only}'} needs {', '.join(missing)}",
            allowed="the bench extra",
            next_step="pip install -e '.[bench]' (compiles llama.cpp), or ask for ours alone",
        )
    set_threads(threads)
    if not as_json:
        say(HEADER)
    rows = []
    for found in _all_rows(SHAPES[shape], threads, peers, rest, compare=only is None):
        rows.append(found)
        say(found.as_json() if as_json else found.as_text())
    return rows


def _rest(only: str | None, peers: bool) -> list[str]:
    """What is measured after the comparisons, in the order of NEEDS_S."""
    if only is None:
        return [kind for kind in NEEDS_S if peers or kind not in cpu_peers.PEERS]
    asked = {name.strip() for name in only.split(",")}
    if unknown := sorted(asked - NEEDS_S.keys()):
        raise ConfigError(
            f"--only {only}: unknown: {', '.join(unknown)}", allowed=", ".join(NEEDS_S)
        )
    return [kind for kind in NEEDS_S if kind in asked]


def _all_rows(
    config: LlamaConfig, threads: int, peers: bool, rest: list[str], compare: bool
) -> Iterator[CpuRow]:
    began, limits = time.monotonic(), Limits(threads)
    if compare:
        yield from _compared_rows(config, limits, peers)
    slower, patience_s = 1.7 if threads == 1 else 1, 0 if compare else 4 * PATIENCE_S
    beside_q4 = next((kind for kind in ("int4_tables", "int4") if kind in rest), None)
    against = "Q4_0" if beside_q4 and "Q4_0" in rest else None
    for kind in [kind for kind in rest if kind != against]:
        asked = [kind, against] if kind == beside_q4 and against else [kind]
        is_peer = kind in cpu_peers.PEERS
        needs_s = (sum(NEEDS_S[each] for each in asked) + is_peer * patience_s) * slower
        left_s = TIME_LIMIT_S - (time.monotonic() - began)
        if (peers or not compare) and left_s < needs_s:
            print(
                f"not measured: {','.join(asked)}, {max(0, left_s):.0f} s are left of ten minutes; "
                f"workbench bench cpu --threads {threads} --only {','.join(asked)}",
                file=sys.stderr,
            )
        elif is_peer:
            with _peer(config, kind, threads) as (prefill, decode):
                yield from Turns(limits, prefill, limit_s=patience_s).rows()
                yield from Turns(limits, decode).rows()
        else:
            yield from _own_rows(config, kind, limits, *asked[1:])
    what = (_engine(), "", threads)
    yield row("read bandwidth", *what, limits.bandwidths, "GB/s")
    if limits.peaks:
        yield row("INT8 peak", *what, limits.peaks, "GMAC/s")


def _own_rows(
    config: LlamaConfig, kind: str, limits: Limits, against: str | None = None
) -> Iterator[CpuRow]:
    if kind != "prompts":
        with _bench(config, kind, limits) as bench:
            yield from bench.rows(against)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(limits.threads)
    try:
        with _bench(config, "ternary", limits) as ternary, _bench(config, "bf16", limits) as bf16:
            yield from prompt_rows(limits, config, PROMPT, ternary.prefill, bf16.prefill)
    finally:
        torch.set_num_threads(before)


def _compared_rows(config: LlamaConfig, limits: Limits, peers: bool) -> Iterator[CpuRow]:
    """What the project is judged by: ternary and full precision, beside llama.cpp with peers."""
    with _bench(config, "ternary", limits) as ternary:
        yield from ternary.rows(against="TQ2_0" if peers else None)
        yield from ternary.batch_rows()
        with _bench(config, "bf16", limits) as bf16:
            yield from _half_precision_rows(ternary, bf16, against="F16" if peers else None)


def _half_precision_rows(
    ternary: ModelBench, bf16: ModelBench, against: str | None
) -> Iterator[CpuRow]:
    """The full-precision arm; ternary, bf16 and llama.cpp's ``against`` decode in turns."""
    with _peer(bf16.core.config, against, bf16.limits.threads) as theirs:
        yield from _compared(bf16.limits, bf16.prefill, *theirs[:1], limit_s=PATIENCE_S)
        turns = Turns(bf16.limits, ternary.decode, bf16.decode, *theirs[1:])
        yield turns.row(bf16.decode)
        yield turns.ratio("decode over bf16", ternary.decode, bf16.decode)
        for decode in theirs[1:]:
            yield turns.row(decode)
            yield turns.ratio(f"decode over {against}", bf16.decode, decode)
        yield bf16.resident()


def _compared(
    limits: Limits, *contenders: Contender, limit_s: float = math.inf
) -> Iterator[CpuRow]:
    """A row each, and by how much the first is faster than each of the others."""
    turns = Turns(limits, *contenders, limit_s=limit_s)
    yield from turns.rows()
    ours, *others = contenders
    for other in others:
        yield turns.ratio(f"{ours.name} over {other.what[1]}", ours, other)


class ModelBench:
    """The rows of one precision of our own model."""

    def __init__(self, core: LlamaModel, precision: str, limits: Limits) -> None:
        self.core, self.precision, self.limits = core, precision, limits
        self.what = (_engine(precision), precision, limits.threads)
        c = core.config
        macs = float(sum(np.prod(c.linear_shape(n)) for n in LINEARS) * c.num_layers)

        def read_bytes(sequences: int, steps: int) -> float:
            """A token's share of the weights, and its keys and values at the mean depth."""
            depth = (PROMPT + steps / 2) / core.context
            return core.weight_bytes / sequences + core.kv_bytes / core.slots * depth

        # Half-precision weights multiply in float32 or bf16: the INT8 peak is no limit of theirs.
        macs = 0.0 if precision == "bf16" else macs
        self.prefill = Contender("prefill 512", self.what, self._prefill, macs_per_token=macs)
        self.decode = Contender("decode", self.what, self._decode, read_bytes(1, OUTPUT))
        self.decode_batch = Contender(
            BATCHED, self.what, self._decode_batch, read_bytes(BATCH, OUTPUT // 4)
        )
        core.forward([7], [0], [0], True)  # warm: buffers made, weights mapped

    def rows(self, against: str | None = None) -> Iterator[CpuRow]:
        """Prefill, decode and memory, beside llama.cpp's type ``against`` where one is named."""
        with _peer(self.core.config, against, self.limits.threads) as theirs:
            patience_s = 4 * PATIENCE_S if against else PATIENCE_S
            yield from _compared(self.limits, self.prefill, *theirs[:1], limit_s=patience_s)
            yield from _compared(self.limits, self.decode, *theirs[1:])
        yield self.resident()

    def batch_rows(self) -> Iterator[CpuRow]:
        """A batch beside one sequence, and what the engine around the kernels takes."""
        for slot in range(1, BATCH):
            self._prefill(slot)
        turns = Turns(self.limits, self.decode_batch, self.decode)
        yield turns.row(self.decode_batch)
        yield turns.ratio(f"{BATCHED} over 1", self.decode_batch, self.decode)
        yield row("time outside kernels", *self.what, self._overhead(), "%")
        self._prefill()

    def resident(self) -> CpuRow:
        return row("weights resident", *self.what, [self.core.weight_bytes / 1e9], "GB")

    def _prefill(self, slot: int = 0) -> int:
        self.core.reset(slot)
        last = np.arange(PROMPT) == PROMPT - 1
        self.core.forward(np.arange(PROMPT) % 1000, np.full(PROMPT, slot), np.arange(PROMPT), last)
        return PROMPT

    def _decode(self) -> int:
        for position in range(PROMPT, PROMPT + OUTPUT):
            self.core.forward([7], [0], [position], True)
        return OUTPUT

    def _decode_batch(self) -> int:
        steps = OUTPUT // 4
        for position in range(PROMPT, PROMPT + steps):
            self.core.forward([7] * BATCH, range(BATCH), [position] * BATCH, True)
        return steps * BATCH

    def _overhead(self) -> list[float]:
        """Per cent of a greedy generation that passes outside the native call."""
        from workbench.engine.engine import Engine
        from workbench.engine.request import GenerationRequest

        engine, inside, native = Engine(self.core), [0.0], self.core._forward

        def timed(*rows: np.ndarray) -> np.ndarray:
            begin = time.perf_counter()
            logits = native(*rows)
            inside[0] += time.perf_counter() - begin
            return logits

        request = GenerationRequest((7,), OUTPUT, ignore_eos=True)
        self.core.reset(0)
        self.core._forward, found = timed, []
        try:
            for _ in range(REPEATS):
                inside[0] = 0.0
                begin = time.perf_counter()
                engine.generate(request)
                found.append(100 * (1 - inside[0] / (time.perf_counter() - begin)))
        finally:
            del self.core._forward
        return found


def _weights(config: LlamaConfig, precision: str) -> Weights:
    if precision == "ternary5":
        return denser(random_weights(config, "ternary", tied=True), "base3")
    if precision == "ternary3":
        return denser(random_weights(config, "ternary", tied=True), "triples")
    if precision == "int4_tables":
        return random_weights(config, "int4", tied=True, packing=Packing(tables="int4"))
    return random_weights(config, "half" if precision == "bf16" else precision, tied=True)


@contextmanager
def _bench(config: LlamaConfig, precision: str, limits: Limits) -> Iterator[ModelBench]:
    with create(config, _weights(config, precision), BATCH, PROMPT + OUTPUT) as core:
        yield ModelBench(core, precision, limits)


@contextmanager
def _peer(config: LlamaConfig, kind: str | None, threads: int) -> Iterator[tuple[Contender, ...]]:
    """llama.cpp's ``prefill 512`` and ``decode`` over a file of random weights; none without a
    ``kind``."""
    if kind is None:
        yield ()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{kind}.gguf"
        cpu_peers.write_file(path, config, kind)
        # Every weight once a token, and fp16 keys and values.
        kv = 4.0 * config.num_layers * config.num_kv_heads * config.head_dim
        read_bytes = path.stat().st_size + kv * (PROMPT + OUTPUT / 2)
        what = ("llama.cpp", kind, threads)
        with cpu_peers.Peer(path, threads, PROMPT, OUTPUT) as peer:
            yield (
                Contender("prefill 512", what, peer.prefill),
                Contender("decode", what, peer.decode, read_bytes),
            )


def _engine(precision: str = "") -> str:
    """What computes; of a precision: with the unit that multiplies its prompts."""
    computes = backend()
    kernels = " ".join(filter(None, (computes.name, computes.vectors)))
    if not (precision and computes.tile_rows):
        return kernels
    return f"{kernels} + {computes.isa}_{'bf16' if precision == 'bf16' else 'int8'}"
