"""The end-to-end rows of ``workbench bench gpu``: whole models in the engine that serves them.

- ``engine``: the 3B shape, decode at batch 1 and a 512-token prompt, ternary against bf16 in the
  same engine with the same graphs; beside them the yardstick (:mod:`.gpu_yardstick`), a bf16
  decode step under ``torch.compile`` in a CUDA graph of its own, so that the engine's bf16 arm
  is known to be no straw man.
- ``capacity``: throughput at equal memory, a 30B shape: each arm takes as many conversations as
  fit beside its weights, prompts and outputs included in the time.
- ``large``: a 70B shape, ternary, on one GPU: decode at batch 1, 32 and the largest that fits.

Weights are random, every one drawn (speed does not depend on what they are). Tokens are chosen
on the device. Seconds are the host's around work that ends in a wait for the device. Each timed
call is also a window of the GPU's own energy counter where NVML answers: J a token of the GPU
board alone, with idle power before and after in the row's note.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LlamaConfig

from workbench.bench.gpu_clock import GpuRow, median
from workbench.engine.architecture import kernel_config
from workbench.measure.meters import EnergySession, MissingMeter, find_meters
from workbench.model.presets import Shape
from workbench.pilot.sections.meters import Meters
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from workbench.bench.gpu import Bench

SHORTEST_WINDOW_S = 1.5
"""NVML renews its counter every 0.1 s; a window needs ten renewals."""
IDLE_S = 2.0
RESERVE_BYTES = 3e9
"""Left beside weights and cache: activations of a prefill step, logits, graphs."""
ARMS = {"half": "bf16", "ternary": "int8 x ternary"}


class Metered:
    """Times calls and, where there is a meter, keeps them as windows of energy.

    Energies are asked for when the block has ended, after the idle time behind it.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._windows: list[tuple[GpuRow, float, float, int]] = []

    @contextmanager
    def session(self) -> Iterator[Metered]:
        if self.bench.device == "cuda":
            found, missing = find_meters(Meters(sources=["nvml"]))
        else:
            found, missing = [], [MissingMeter("nvml", "a rehearsal computes on no GPU")]
        with EnergySession(found, missing, idle_s=IDLE_S) as energies:
            self._energies = energies
            energies.rest()
            yield self
            energies.rest()
            for row, begin_s, end_s, tokens in self._windows:
                self._add_energy(row, energies.energy(begin_s, end_s), tokens)
        self._windows.clear()

    def seconds(
        self, call: Callable[[], object], tokens: int, row: GpuRow, before: Callable[[], object]
    ) -> list[float]:
        """Seconds of each repetition of ``call``, warm, ``before`` each outside the time."""
        clock, samples = self.bench.clock, []
        before()
        call()
        before()
        begin_s, calls = self._energies.now(), 0
        while True:
            samples.append(clock.once(call))
            calls += 1
            now_s = self._energies.now()
            long_enough = not self._energies.meters or now_s - begin_s > SHORTEST_WINDOW_S
            if calls >= self.bench.end_to_end.repeats and long_enough:
                break
            before()
        self._windows.append((row, begin_s, now_s, calls * tokens))
        return samples

    def _add_energy(self, row: GpuRow, energy: Any, tokens: int) -> None:
        value, note = None, f"not measured: {energy.reason}: {energy.text}"
        if energy.energy_j is not None:
            idle = [energy.idle_before_w, energy.idle_after_w]
            before, after = ("?" if w is None else f"{w:.1f} W" for w in idle)
            value = energy.energy_j / tokens
            note = f"GPU board only, gross; idle {before} before, {after} after"
        about = (f"{row.name} energy", row.shape, row.rows, row.precision)
        self.bench.add(GpuRow(*about, value, value, value, "J/token", note=note))


def run_engine(bench: Bench) -> None:
    """Rows decode, prefill and engine_first_call of the decode shape."""
    from workbench.bench.gpu_yardstick import compiled_step

    sizes = bench.end_to_end
    (name, shape), prompt = sizes.decode, sizes.prompt
    context = prompt + sizes.output + 1
    best: dict[str, float] = {}
    with Metered(bench).session() as metered:
        row = GpuRow("decode", name, 1, "bf16 torch.compile", None, None, None, "tokens/s")
        step = compiled_step(shape, prompt, sizes.output, bench.device)
        samples = metered.seconds(step, sizes.output, row, lambda: None)
        nbytes = _decode_bytes(2 * shape.parameters, shape, prompt, sizes.output, 1)
        best["yardstick"] = _add_rate(bench, row, samples, sizes.output, nbytes=nbytes)
        del step
        _free(bench)
        for kind, precision in ARMS.items():
            core = _core(bench, shape, kind, 1, context)
            tokens = _prompt(shape, prompt)
            rows = [0] * prompt, np.arange(prompt), np.arange(prompt) == prompt - 1

            def prefill(core=core, tokens=tokens, rows=rows) -> None:
                core.forward(tokens, *rows)

            first_s = bench.clock.once(prefill)
            row = GpuRow("prefill", name, prompt, precision, None, None, None, "tokens/s")
            samples = metered.seconds(prefill, prompt, row, lambda core=core: core.reset(0))
            ops = 2 * prompt * shape.linear_parameters
            at = {"int8_ops": ops} if kind == "ternary" else {"bf16_ops": ops}
            against = best.get("prefill")
            best["prefill"] = _add_rate(bench, row, samples, prompt, against=against, **at)

            def decode(core=core) -> None:
                core.decode_greedy([0], [1], sizes.output)

            def rewind(core=core) -> None:
                core.filled[0] = prompt

            first_s = max(first_s, bench.clock.once(decode))
            row = GpuRow("decode", name, 1, precision, None, None, None, "tokens/s")
            rewind()
            samples = metered.seconds(decode, sizes.output, row, rewind)
            nbytes = _decode_bytes(core.weight_bytes, shape, prompt, sizes.output, 1)
            against = best["yardstick"] if kind == "half" else best["half"]
            best[kind] = _add_rate(
                bench, row, samples, sizes.output, nbytes=nbytes, against=against
            )
            bench.add(
                GpuRow("engine_first_call", name, 0, precision, first_s, first_s, first_s, "s")
            )
            _say_notes(bench, core, "decode", name)
            core.close()
            del core, prefill, decode, rewind
            _free(bench)


def run_capacity(bench: Bench) -> None:
    """Rows throughput and largest_batch: both arms held to the same memory."""
    sizes = bench.end_to_end
    (name, shape), prompt, output = sizes.capacity, sizes.prompt, sizes.capacity_output
    context, best = prompt + output + 1, None
    for kind, precision in ARMS.items():
        weights, config = _weights(bench, shape, kind)
        size = sum(w.nbytes for w in weights.values())
        slots = _largest(
            bench, config, size, context, min(sizes.memory_bytes, _device_bytes(bench))
        )
        if slots < 1:
            note = f"not measured: weights of {size / 1e9:.1f} GB leave no room for one sequence"
            bench.add(
                GpuRow("throughput", name, 0, precision, None, None, None, "tokens/s", note=note)
            )
            _free(bench)
            continue
        core = _from_weights(bench, config, weights, slots, context)
        del weights

        def whole(core=core, slots=slots) -> None:
            _prefill_all(core, _prompt(shape, prompt), slots)
            core.decode_greedy(list(range(slots)), [1] * slots, output)
            core.filled[:] = 0

        with Metered(bench).session() as metered:
            row = GpuRow("throughput", name, slots, precision, None, None, None, "tokens/s")
            _prefill_all(core, _prompt(shape, prompt), slots)  # compiles and captures
            core.decode_greedy(list(range(slots)), [1] * slots, 1)
            core.filled[:] = 0
            _forget_peak(bench)  # of making the model, whose parts were stacked
            # One whole pass: at these lengths it lasts seconds, and its tokens repeat the step.
            begin_s = metered._energies.now()
            seconds = [bench.clock.once(whole)]
            metered._windows.append((row, begin_s, metered._energies.now(), slots * output))
            peak = _peak_bytes(bench)
            best = _add_rate(
                bench, row, seconds, slots * output, against=best,
                note=f"one pass of {prompt} prompt and {number_of(output, 'output token')} each; "
                f"output tokens counted; at most {peak / 1e9:.1f} GB held of "
                f"{sizes.memory_bytes / 1e9:.0f}",
            )  # fmt: skip
        _say_notes(bench, core, "throughput", name)
        core.close()
        del core, whole
        _free(bench)


def run_large(bench: Bench) -> None:
    """Rows decode of the largest shape, ternary, at several batches."""
    sizes = bench.end_to_end
    (name, shape), prompt, output = sizes.large, sizes.prompt, sizes.output
    context = prompt + output + 1
    weights, config = _weights(bench, shape, "ternary")
    size = sum(w.nbytes for w in weights.values())
    slots = _largest(bench, config, size, context, _device_bytes(bench))
    core = _from_weights(bench, config, weights, max(1, slots), context)
    del weights
    core.fill_randomly()
    with Metered(bench).session() as metered:
        for batch in sorted({min(b, core.slots) for b in (*sizes.batches, core.slots)}):
            chosen = list(range(batch))

            def decode(chosen=chosen) -> None:
                core.decode_greedy(chosen, [1] * len(chosen), output)

            def rewind() -> None:
                core.filled[:] = prompt

            row = GpuRow("decode", name, batch, ARMS["ternary"], None, None, None, "tokens/s")
            samples = metered.seconds(decode, batch * output, row, rewind)
            nbytes = _decode_bytes(core.weight_bytes, shape, prompt, output, batch)
            _add_rate(bench, row, samples, batch * output, nbytes=nbytes, steps=output)
    _say_notes(bench, core, "decode", name)
    core.close()
    _free(bench)


def _add_rate(
    bench: Bench,
    row: GpuRow,
    samples: Sequence[float],
    tokens: int,
    *,
    nbytes: float = 0.0,
    int8_ops: float = 0.0,
    bf16_ops: float = 0.0,
    steps: int = 0,
    against: float | None = None,
    note: str = "",
) -> float:
    """Add the row as tokens a second; returns them. nbytes: of one step; steps: in a sample."""
    value, lo, hi = median([tokens / s for s in samples])
    floor_s = nbytes / bench.bytes_s * (steps or tokens)
    floor_s = max(floor_s, int8_ops / bench.int8_ops_s + bf16_ops / bench.bf16_ops_s)
    bench.add(
        GpuRow(
            row.name, row.shape, row.rows, row.precision, value, lo, hi, row.unit,
            ratio_bf16=None if against is None else value / against,
            roofline_pct=100 * floor_s * value / tokens if floor_s else None,
            note=note,
        )
    )  # fmt: skip
    return value


def _decode_bytes(weights: float, shape: Shape, prompt: int, output: int, batch: int) -> float:
    """Bytes that one decode step must read: the weights without the rows of the embedding that
    no token asks for, and the cache of each sequence up to the middle of its output."""
    looked_up = 0 if shape.tied else shape.vocabulary_parameters / 2
    per_weight = weights / shape.parameters
    table_bytes = looked_up * (2 if per_weight > 1.5 else 1)
    return weights - table_bytes + batch * (prompt + output / 2) * shape.kv_bytes_per_token()


def _weights(bench: Bench, shape: Shape, kind: str) -> tuple[dict, Any]:
    from ternary_kernels.gpu.llama import random_llama

    config = kernel_config(LlamaConfig(**shape.config_fields()))
    return random_llama(config, kind, tied=shape.tied, device=bench.device), config


def _core(bench: Bench, shape: Shape, kind: str, slots: int, context: int) -> Any:
    weights, config = _weights(bench, shape, kind)
    return _from_weights(bench, config, weights, slots, context)


def _from_weights(bench: Bench, config: Any, weights: dict, slots: int, context: int) -> Any:
    from ternary_kernels.gpu.llama import LlamaGpu

    return LlamaGpu(
        config, weights, slots, context, device=bench.device, capture=bench.device == "cuda"
    )


def _largest(bench: Bench, config: Any, weights: float, context: int, limit: float) -> int:
    """Sequences whose cache fits beside the weights."""
    from ternary_kernels.gpu.attention import padded

    each = 4 * config.num_layers * config.num_kv_heads * padded(config.head_dim) * context
    reserve = RESERVE_BYTES if bench.device == "cuda" else 0
    return int(min(bench.end_to_end.most_slots, (limit - weights - reserve) // each))


def _device_bytes(bench: Bench) -> float:
    """What this process may hold: free on the device, and what the allocator has already."""
    if bench.device != "cuda":
        return bench.end_to_end.memory_bytes
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()


def _peak_bytes(bench: Bench) -> float:
    return torch.cuda.max_memory_reserved() if bench.device == "cuda" else 0.0


def _forget_peak(bench: Bench) -> None:
    if bench.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _prefill_all(core: Any, prompt: list[int], slots: int) -> None:
    """The prompt into every slot, as many slots in a step as its rows hold."""
    length = len(prompt)
    at_once = max(1, core.prefill_rows // length)
    for begin in range(0, slots, at_once):
        some = range(begin, min(begin + at_once, slots))
        core.forward(
            np.tile(prompt, len(some)),
            np.repeat(np.array(some), length),
            np.tile(np.arange(length), len(some)),
            False,
        )


def _prompt(shape: Shape, length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, shape.vocab, length).tolist()


def _say_notes(bench: Bench, core: Any, name: str, shape: str) -> None:
    for note in core.notes:
        bench.add(GpuRow(f"{name} note", shape, 0, "", None, None, None, "", note=note))


def _free(bench: Bench) -> None:
    gc.collect()
    if bench.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
