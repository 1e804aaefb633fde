"""How fast a core is beside ``native``, in turns: what ``workbench core check`` ends with.

Random weights of a preset's shape in every precision, loaded into both cores and timed one after
the other, so that a ratio is one of neighbouring runs. Decode stands beside the read bandwidth that
was measured around each run, which bounds it: a core whose share is small loses its time elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Literal

from workbench.bench.cpu_rows import HEADER, CpuRow, row
from workbench.bench.cpu_turns import Contender, Limits, Turns
from workbench.engine.engine import Engine
from workbench.engine.random_weights import WeightKind
from workbench.errors import StageError
from workbench.machine.cpu import measurement_threads
from workbench.model.build import preset_config
from workbench.model.presets import PRESETS
from workbench.pilot.sections.model import Model

PROMPT, OUTPUT, BATCH = 128, 16, 8
KINDS: tuple[WeightKind, ...] = ("ternary", "int4", "int8", "half")
OURS = {"cpu": "native", "cuda": "triton"}


def bench_core(
    name: str,
    shape: str = "small-25m",
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int = 0,
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> list[CpuRow]:
    """Measure, and say each row as soon as it is there; all rows are returned.

    A precision that the core refuses is named on standard error with its reason.
    """
    if not as_json:
        say(HEADER)
    rows = []
    for found in _rows(name, shape, device, measurement_threads(threads)):
        rows.append(found)
        say(found.as_json() if as_json else found.as_text())
    return rows


def _rows(name: str, shape: str, device: Literal["cpu", "cuda"], threads: int) -> Iterator[CpuRow]:
    limits = Limits(threads)
    config = preset_config(Model(preset=shape), PRESETS[shape].vocab, PROMPT + OUTPUT)
    names = (name, OURS[device]) if name != OURS[device] else (name,)
    for kind in KINDS:
        with ExitStack() as open_engines:
            load = partial(
                Engine.random, config, kind, slots=BATCH, context=PROMPT + OUTPUT,
                threads=threads, device=device,
            )  # fmt: skip
            try:
                engines = {core: open_engines.enter_context(load(core=core)) for core in names}
            except (StageError, ValueError) as error:
                print(f"not measured: {kind}: {error}", file=sys.stderr)
                continue
            yield from _of_kind(engines, kind, limits)


def _of_kind(engines: dict[str, Engine], kind: WeightKind, limits: Limits) -> Iterator[CpuRow]:
    on_cpu = all("cuda" not in engine.backend for engine in engines.values())
    work = {
        f"prefill {PROMPT}": (_prefill, 0),
        "decode": (partial(_decode, slots=1), 1),
        f"decode, batch {BATCH}": (partial(_decode, slots=BATCH), BATCH),
    }
    for what, (run, sequences) in work.items():
        contenders = [
            Contender(
                what,
                (core, kind, limits.threads),
                partial(run, engine),
                engine.weight_bytes / sequences if sequences and on_cpu else 0.0,
            )
            for core, engine in engines.items()
        ]
        for contender in contenders:
            contender.run()  # warm
        turns = Turns(limits, *contenders)
        yield from turns.rows()
        for other in contenders[1:]:
            yield turns.ratio(f"{what} over {other.what[0]}", contenders[0], other)
    for core, engine in engines.items():
        size_gb = [engine.weight_bytes / 1e9]
        yield row("weights resident", core, kind, limits.threads, size_gb, "GB")


def _prefill(engine: Engine) -> int:
    engine.release(0)
    engine.prefill(0, [7] * PROMPT)
    return PROMPT


def _decode(engine: Engine, slots: int) -> int:
    """From a prompt that is already there, in each slot; the cache is cut back before."""
    for slot in range(slots):
        if engine.core.filled[slot] < PROMPT:
            engine.release(slot)
            engine.prefill(slot, [7] * PROMPT)
        if engine.core.truncates:
            engine.core.truncate(slot, PROMPT)
    engine.decode_greedy(list(range(slots)), [7] * slots, OUTPUT)
    return OUTPUT * slots
