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
from dataclasses import dataclass, replace
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
BATCHED = f"decode, batch {BATCH}"
PATIENCE_S = 20.0
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
    began, limits = time.monotonic(), Limits(threads)
    with _bench(config, "ternary", threads, limits) as ternary:
        yield from ternary.rows()
        if peers:
            yield from _against(ternary, "TQ2_0", 4 * PATIENCE_S)
        with _bench(config, "bf16", threads, limits) as bf16:
            yield bf16.row("prefill 512", PATIENCE_S)
            pair = ternary.contender("decode"), bf16.contender("decode")
            yield from limits.in_turns(*pair, tell=pair[1], name="decode over bf16")
            yield bf16.resident()
            if peers:
                yield from _against(bf16, "F16", PATIENCE_S)
    for precision in ("ternary5", "int8"):
        with _bench(config, precision, threads, limits) as bench:
            yield from bench.rows()
    for kind in ("Q4_0", "Q8_0", "TQ1_0") if peers else ():
        if time.monotonic() - began < TIME_LIMIT_S - _longest_peer_s(threads):
            with _peer(config, kind, threads) as (prefill, decode):
                yield row(prefill.name, *prefill.what, rates(prefill.run, 1), "tokens/s")
                yield limits.around(decode)
        else:
            print(f"not measured: {kind}, the ten minutes are over", file=sys.stderr)
    what = (_engine(), "", threads)
    yield row("read bandwidth", *what, limits.bandwidths, "GB/s")
    yield row("INT8 peak", *what, limits.peaks, "GMAC/s")


@dataclass(frozen=True)
class Contender:
    """Something that is timed. what: engine, precision, threads. run: returns its tokens."""

    name: str
    what: tuple[str, str, int]
    run: Callable[[], int]
    work: Work


class Limits:
    """The machine's limits, measured around each row."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.bandwidths = [read_bandwidth_gbps(threads)]
        self.peaks = [int8_peak_gmacs(threads)]

    def around(self, it: Contender, limit_s: float = math.inf) -> Row:
        """Its row, with the roofline of the measurements before and after it."""
        return self._told(it, rates(it.run, REPEATS, limit_s))

    def in_turns(
        self,
        one: Contender,
        other: Contender,
        *,
        tell: Contender,
        name: str,
        limit_s: float = math.inf,
    ) -> Iterator[Row]:
        """The row of ``tell``, and by how much ``one`` is the faster of the two: the median of
        the ratios of neighbouring runs, and how near ``one`` came to its own limit in them."""
        began = time.monotonic()
        found: list[tuple[float, float]] = []
        while len(found) < REPEATS and (not found or time.monotonic() - began < limit_s):
            found.append((rates(one.run, 1)[0], rates(other.run, 1)[0]))
        yield self._told(tell, [pair[tell is other] for pair in found])
        ratio = row(name, *one.what, [ours / theirs for ours, theirs in found], "x")
        yield self._held(ratio, one.work, statistics.median(ours for ours, _ in found))

    def _told(self, it: Contender, values: list[float]) -> Row:
        found = row(it.name, *it.what, values, "tokens/s")
        self.bandwidths.append(read_bandwidth_gbps(self.threads))
        self.peaks.append(int8_peak_gmacs(self.threads))
        return self._held(found, it.work, found.value)

    def _held(self, found: Row, work: Work, tokens_per_s: float) -> Row:
        """The row beside what the limits around it allow for this work."""
        if work.bytes_per_token:
            limit = statistics.mean(self.bandwidths[-2:])
            used, text = work.bytes_per_token * tokens_per_s / 1e9, f"{limit:.1f} GB/s"
        elif work.macs_per_token:
            limit = statistics.mean(self.peaks[-2:])
            used, text = work.macs_per_token * tokens_per_s / 1e9, f"{limit:.0f} GMAC/s"
        else:
            return found
        return replace(found, roofline_pct=100 * used / limit, limit=text)


class ModelBench:
    """The rows of one precision of our own model."""

    def __init__(self, core: LlamaModel, precision: str, limits: Limits) -> None:
        self.core, self.precision, self.limits = core, precision, limits
        self.what = (_engine(), precision, limits.threads)
        c = core.config
        macs = float(sum(np.prod(c.linear_shape(n)) for n in LINEARS) * c.num_layers)

        def read_bytes(sequences: int, steps: int) -> float:
            """A token's share of the weights, and its keys and values at the mean depth."""
            depth = (PROMPT + steps / 2) / core.context
            return core.weight_bytes / sequences + core.kv_bytes / core.slots * depth

        self._contenders = {
            it.name: it
            for it in (
                # Half-precision weights multiply in float32: the INT8 peak is no limit of theirs.
                self._contender(
                    "prefill 512",
                    self._prefill,
                    Work(macs_per_token=0.0 if precision == "bf16" else macs),
                ),
                self._contender("decode", self._decode, Work(read_bytes(1, OUTPUT))),
                self._contender(BATCHED, self._decode_batch, Work(read_bytes(BATCH, OUTPUT // 4))),
            )
        }
        core.forward([7], [0], [0], True)  # warm: buffers made, weights mapped

    def rows(self) -> Iterator[Row]:
        yield self.row("prefill 512", PATIENCE_S)
        yield self.row("decode")
        if (
            self.precision == "ternary"
        ):  # filling eight slots takes the others half a minute and more
            for slot in range(1, BATCH):
                self._prefill(slot)
            pair = self.contender(BATCHED), self.contender("decode")
            yield from self.limits.in_turns(*pair, tell=pair[0], name=f"{BATCHED} over 1")
            yield row("time outside kernels", *self.what, self._overhead(), "%")
            self._prefill()
        yield self.resident()

    def row(self, name: str, limit_s: float = math.inf) -> Row:
        return self.limits.around(self.contender(name), limit_s)

    def resident(self) -> Row:
        return row("weights resident", *self.what, [self.core.weight_bytes / 1e9], "GB")

    def contender(self, name: str) -> Contender:
        """This model's ``prefill 512``, ``decode``, or decoding in batches."""
        return self._contenders[name]

    def _contender(self, name: str, run: Callable[[], int], work: Work) -> Contender:
        return Contender(name, self.what, run, work)

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
def _bench(
    config: LlamaConfig, precision: str, threads: int, limits: Limits
) -> Iterator[ModelBench]:
    with create(config, _weights(config, precision), BATCH, PROMPT + OUTPUT) as core:
        yield ModelBench(core, precision, limits)


@contextmanager
def _peer(config: LlamaConfig, kind: str, threads: int) -> Iterator[tuple[Contender, Contender]]:
    """llama.cpp's ``prefill 512`` and ``decode`` over a file of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{kind}.gguf"
        cpu_peers.write_file(path, config, kind)
        # Every weight once a token, and fp16 keys and values.
        kv = 4.0 * config.num_layers * config.num_kv_heads * config.head_dim
        work = Work(bytes_per_token=path.stat().st_size + kv * (PROMPT + OUTPUT / 2))
        what = ("llama.cpp", kind, threads)
        with cpu_peers.Peer(path, threads, PROMPT, OUTPUT) as peer:
            yield (
                Contender("prefill 512", what, peer.prefill, Work()),
                Contender("decode", what, peer.decode, work),
            )


def _against(bench: ModelBench, kind: str, patience_s: float) -> Iterator[Row]:
    """llama.cpp's rows of ``kind``, and by how much ours are faster."""
    with _peer(bench.core.config, kind, bench.limits.threads) as peer:
        for theirs, limit_s in zip(peer, (patience_s, math.inf), strict=True):
            name = f"{theirs.name} over {kind}"
            ours = bench.contender(theirs.name)
            yield from bench.limits.in_turns(ours, theirs, tell=theirs, name=name, limit_s=limit_s)


def _engine() -> str:
    return " ".join(filter(None, (backend().name, backend().isa)))


def _longest_peer_s(threads: int) -> float:
    """What the slowest of the other peers takes on two cores of a server, file included."""
    return 75.0 if threads > 1 else 110.0
