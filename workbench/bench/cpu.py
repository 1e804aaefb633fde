"""``workbench bench cpu``: how fast the kernels run here, and what bounds them.

One process, one shape, random weights. Every row is the median of five runs (prompts of a
model that needs more than ``PATIENCE_S`` for them: of fewer, and ``n`` says so). A shared
machine changes within minutes: its read bandwidth and INT8 peak are measured right before and
after each row, which is held against the mean of the two, and llama.cpp's runs take turns with
ours where the two are compared, so that a ratio is one of neighbours.

Decode reads every weight and the cache of keys and values once a token: its limit is the
bandwidth. Prefill multiplies: its limit is the INT8 dot-product peak (shown for integer
weights alone; half-precision weights multiply in float32).
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from ternary_kernels import PackedTernary, PackedTernary5, backend, set_threads
from ternary_kernels.benchmarks import int8_peak_gmacs, read_bandwidth_gbps
from ternary_kernels.llama import LINEARS, LlamaConfig, LlamaModel, create

from workbench.bench import cpu_peers
from workbench.bench.cpu_rows import HEADER, Row, Work, rates, row
from workbench.engine.random_weights import random_weights
from workbench.errors import ConfigError

PROMPT, OUTPUT, REPEATS, BATCH = 512, 64, 5, 8
PATIENCE_S = 20.0
RIVALS = {"ternary": "TQ2_0", "bf16": "F16"}
"""Which of llama.cpp's types each of ours takes turns with."""
PRECISIONS = ("ternary", "bf16", "ternary5", "int8")
IN_BATCHES = ("ternary", "int8")
"""Eight prompts of bf16 weights alone would take two minutes."""
TIME_LIMIT_S = 600.0


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
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Measure, and say each row as soon as it is there; all rows are returned."""
    if shape not in SHAPES:
        raise ConfigError(f"shape {shape!r}", allowed=", ".join(SHAPES))
    if threads < 1:
        raise ConfigError(f"threads {threads}", allowed="1 or more")
    missing = cpu_peers.missing_packages() if peers else []
    if missing:
        raise ConfigError(
            f"--peers needs {', '.join(missing)}",
            allowed="the bench extra",
            next_step="pip install -e '.[bench]' (compiles llama.cpp), or leave --peers out",
        )
    set_threads(threads)
    if not as_json:
        say(HEADER)
    rows = []
    for found in _all_rows(SHAPES[shape], threads, peers):
        rows.append(found)
        say(found.as_json() if as_json else found.as_text())
    return rows


def _all_rows(config: LlamaConfig, threads: int, peers: bool) -> Iterator[Row]:
    began = time.monotonic()
    engine = " ".join(filter(None, (backend().name, backend().isa)))
    limits = Limits(threads)
    for precision in PRECISIONS:
        weights = _weights(config, precision)
        with create(config, weights, BATCH, PROMPT + OUTPUT) as core:
            del weights
            bench = ModelBench(core, engine, precision, threads, limits)
            yield from bench.rows()
            if peers and precision in RIVALS:
                yield from bench.rows_in_turns(RIVALS[precision])
    others = [kind for kind in cpu_peers.PEERS if kind not in RIVALS.values()] if peers else []
    for kind in others:
        if time.monotonic() - began < TIME_LIMIT_S - _longest_peer_s(threads):
            with _peer(config, kind, threads) as (peer, work):
                yield from _peer_rows(peer, work, kind, threads, limits)
        else:
            print(f"not measured: {kind}, the ten minutes are over", file=sys.stderr)
    yield row("read bandwidth", engine, "", threads, limits.bandwidths, "GB/s")
    yield row("INT8 peak", engine, "", threads, limits.peaks, "GMAC/s")


class Limits:
    """The machine's limits, measured around each row."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.bandwidths = [read_bandwidth_gbps(threads)]
        self.peaks = [int8_peak_gmacs(threads)]

    def around(self, measure: Callable[[], Row], work: Work) -> Row:
        """The row with the roofline of the measurements before and after it."""
        found = measure()
        self.bandwidths.append(read_bandwidth_gbps(self.threads))
        self.peaks.append(int8_peak_gmacs(self.threads))
        if work.bytes_per_token:
            limit = statistics.mean(self.bandwidths[-2:])
            used, text = work.bytes_per_token * found.value / 1e9, f"{limit:.1f} GB/s"
        elif work.macs_per_token:
            limit = statistics.mean(self.peaks[-2:])
            used, text = work.macs_per_token * found.value / 1e9, f"{limit:.0f} GMAC/s"
        else:
            return found
        return replace(found, roofline_pct=100 * used / limit, limit=text)


class ModelBench:
    """The rows of one precision of our own model."""

    def __init__(
        self, core: LlamaModel, engine: str, precision: str, threads: int, limits: Limits
    ) -> None:
        self.core, self.precision, self.threads, self.limits = core, precision, threads, limits
        self.what = (engine, precision, threads)
        c = core.config
        macs = float(sum(np.prod(c.linear_shape(n)) for n in LINEARS) * c.num_layers)
        self.prefill_work = Work(macs_per_token=macs if precision != "bf16" else 0.0)
        # The mean depth of the tokens generated; a slot's keys and values up to there are read.
        slot_bytes = core.kv_bytes / core.slots
        self.kv_bytes = slot_bytes * (PROMPT + OUTPUT / 2) / core.context
        self.decode_work = Work(bytes_per_token=core.weight_bytes + self.kv_bytes)

    def rows(self) -> Iterator[Row]:
        self._prefill()
        yield self._row("prefill 512", self._prefill, self.prefill_work, PATIENCE_S)
        yield self._row("decode", self._decode, self.decode_work)
        if self.precision in IN_BATCHES:
            share = self.core.weight_bytes / BATCH + self.kv_bytes
            for slot in range(1, BATCH):
                self._prefill(slot)
            work = Work(bytes_per_token=share)
            yield self._row(f"decode, batch {BATCH}", self._decode_batch, work)
        if self.precision == "ternary":
            yield row("time outside kernels", *self.what, self._overhead(), "%")
        yield row("weights resident", *self.what, [self.core.weight_bytes / 1e9], "GB")

    def rows_in_turns(self, kind: str) -> Iterator[Row]:
        """llama.cpp's rows of ``kind``, and by how much ours are faster: the median of the
        ratios of neighbouring runs."""
        with _peer(self.core.config, kind, self.threads) as (peer, work):
            patience_s = 4 * PATIENCE_S if self.precision == "ternary" else PATIENCE_S
            for name, ours, theirs, its_work, limit_s in (
                ("prefill 512", self._prefill, peer.prefill, Work(), patience_s),
                ("decode", self._decode, peer.decode, work, math.inf),
            ):
                ratios: list[float] = []

                def measure(name=name, ours=ours, theirs=theirs, limit_s=limit_s, ratios=ratios):
                    found, began = [], time.monotonic()
                    while len(found) < REPEATS and (not found or _within(began, limit_s)):
                        (own,) = rates(ours, 1)
                        found.append(theirs())
                        ratios.append(own / found[-1])
                    return row(name, "llama.cpp", kind, self.threads, found, "tokens/s")

                yield self.limits.around(measure, its_work)
                yield row(f"{name} over {kind}", *self.what, ratios, "x")

    def _row(self, name: str, run: Callable[[], int], work: Work, limit_s: float = math.inf) -> Row:
        def measure() -> Row:
            return row(name, *self.what, rates(run, REPEATS, limit_s), "tokens/s")

        return self.limits.around(measure, work)

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

        engine, inside, native = Engine(self.core, backend=""), [0.0], self.core._forward

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


def _weights(config: LlamaConfig, precision: str) -> dict:
    if precision != "ternary5":
        return random_weights(config, "half" if precision == "bf16" else precision, tied=True)
    weights = random_weights(config, "ternary", tied=True)
    for name, weight in weights.items():
        if isinstance(weight, PackedTernary):
            weights[name] = _base_3(weight)
    return weights


def _base_3(weight: PackedTernary) -> PackedTernary5:
    """The first 16 rows packed again and repeated: a benchmark needs the bytes, not the rows."""
    from ternary_kernels.memory import in_huge_pages

    N, K = weight.shape
    drawn = PackedTernary.from_state(
        {"tiles": weight.tiles[:1], "shape": np.array((16, K)), "scale": weight.scale}
    )
    tiles = PackedTernary5.from_codes(drawn.codes(), weight.scale).tiles
    tiles = in_huge_pages(tiles.expand(-(-N // 16), *tiles.shape[1:]))
    state = {"tiles": tiles, "shape": np.array((N, K)), "scale": weight.scale}
    return PackedTernary5.from_state(state)


@contextmanager
def _peer(config: LlamaConfig, kind: str, threads: int) -> Iterator[tuple[cpu_peers.Peer, Work]]:
    """llama.cpp over a file of random weights, and the work of a decoded token."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{kind}.gguf"
        cpu_peers.write_file(path, config, kind)
        # Every weight once a token, and fp16 keys and values.
        kv = 4.0 * config.num_layers * config.num_kv_heads * config.head_dim
        work = Work(bytes_per_token=path.stat().st_size + kv * (PROMPT + OUTPUT / 2))
        with cpu_peers.Peer(path, threads, PROMPT, OUTPUT) as peer:
            yield peer, work


def _peer_rows(
    peer: cpu_peers.Peer, work: Work, kind: str, threads: int, limits: Limits
) -> Iterator[Row]:
    """A type that none of ours takes turns with: one prompt, which decoding needs anyway."""
    what = ("llama.cpp", kind, threads)
    yield row("prefill 512", *what, [peer.prefill()], "tokens/s")

    def measure() -> Row:
        return row("decode", *what, [peer.decode() for _ in range(REPEATS)], "tokens/s")

    yield limits.around(measure, work)


def _longest_peer_s(threads: int) -> float:
    """What the slowest of the other peers takes on two cores of a server, file included."""
    return 75.0 if threads > 1 else 110.0


def _within(began: float, limit_s: float) -> bool:
    return time.monotonic() - began < limit_s
