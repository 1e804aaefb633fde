"""Whether a simulated replica answers as a real one: ``workbench bench replica``.

A network with random weights is served by the engine's own scheduler, one of them and then two with
each request given to the one with the fewest outstanding. Blocks take turns: in one the steps are
timed under the load, in the next the requests are; the costs of steps fitted to the former foretell
the latter, whose arrivals the simulation is given and whose times it is not. What a client or a
server in front adds is not in it.

Rows ``replica p99`` and the like: simulated over measured, with both, p50, p90 and p99 of the time
to the first token and to the last.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.engine.scheduler import Scheduler, SubmittedRequest
from workbench.machine.provenance import provenance
from workbench.model.build import preset_config
from workbench.pilot.sections.model import Model
from workbench.planner.costs import QUANTILES
from workbench.planner.simulation import Answered, Arrivals, StepCosts, simulate
from workbench.wording.counts import number_of

SLOTS, CONTEXT, VOCABULARY = 4, 512, 4096
PROMPTS, OUTPUTS = (16, 240), (8, 96)
"""Tokens of a request, drawn evenly."""
BUSY = 0.6
TRIED_S = 3.0
"""Of the first block, from which the rate is found."""
SEED = 17


@dataclass(frozen=True)
class TimedStep:
    """One step as it was: rows that decode, prompt tokens, seconds to the beginning of the next."""

    decoding: int
    prompt_tokens: int
    seconds: float


class TimedSteps:
    """An engine's steps, timed from the beginning of one to that of the next where one follows at
    once: what the scheduler does between them is a part of each."""

    AT_ONCE_S = 2e-3

    def __init__(self, engine: Engine) -> None:
        self.steps: list[TimedStep] = []
        self._step = engine.step
        self._begun: tuple[float, float, int, int] | None = None
        self._reading: set[int] = set()
        """Slots that have read a part of their prompt."""
        engine.step = self._timed  # type: ignore[method-assign]

    def _timed(self, tokens: Any, slots: Any, want: Any) -> Any:
        began = time.perf_counter()
        self._close(began)
        counts = np.bincount(slots)
        first = {slot for slot, wanted in zip(slots, want, strict=True) if wanted}
        decoding = sum(bool(counts[slot] == 1) for slot in first - self._reading)
        self._reading = (self._reading | set(slots)) - first
        logits = self._step(tokens, slots, want)
        self._begun = (began, time.perf_counter(), decoding, len(tokens) - decoding)
        return logits

    def _close(self, now: float) -> None:
        if self._begun:
            began, ended, decoding, prompt = self._begun
            end = now if now - ended < self.AT_ONCE_S else ended
            self.steps.append(TimedStep(decoding, prompt, end - began))
        self._begun = None


def fitted_steps(steps: list[TimedStep], slots: int) -> StepCosts:
    """A line through the steps by least squares: of a step, a row that decodes, a prompt token."""
    features = np.array([[1.0, step.decoding, step.prompt_tokens] for step in steps])
    seconds = np.array([step.seconds for step in steps])
    (base, row, prompt), *_ = np.linalg.lstsq(features, seconds, rcond=None)
    row, prompt, base = max(row, 0.0), max(prompt, 0.0), max(base, 0.0)
    return StepCosts((1.0, float(slots)), (base + row, base + slots * row), prompt, base)


def arrivals_at(rate_per_s: float, duration_s: float, seed: int) -> Arrivals:
    draw = np.random.default_rng(seed)
    count = max(8, round(rate_per_s * duration_s))
    return Arrivals(
        np.cumsum(draw.exponential(1.0 / rate_per_s, count)),
        draw.integers(*PROMPTS, count),
        draw.integers(*OUTPUTS, count),
    )


def serve(schedulers: list[Scheduler], load: Arrivals) -> Answered:
    """The requests at their times, each to the scheduler with the fewest outstanding."""
    began, submitted = time.monotonic(), []
    for start_s, prompt, output in zip(load.start_s, load.prompt, load.output, strict=True):
        if (left_s := began + start_s - time.monotonic()) > 0:
            time.sleep(left_s)
        chosen = min(schedulers, key=lambda one: one.running + one.waiting)
        tokens = tuple(np.random.default_rng(len(submitted)).integers(6, VOCABULARY, int(prompt)))
        request = GenerationRequest(
            tuple(map(int, tokens)), max_tokens=int(output), ignore_eos=True
        )
        submitted.append(chosen.submit(request))
    return _answered(submitted)


def _answered(submitted: list[SubmittedRequest]) -> Answered:
    for one in submitted:
        one.wait()
    times = ("submitted_s", "first_token_s", "last_token_s")
    start, first, last = (np.array([getattr(one, of) for one in submitted]) for of in times)
    output = np.array([len(one.tokens) for one in submitted])
    return Answered(start, output, first, last, float("nan"), float(last.max() - start[0]))


def rate_for(costs: StepCosts, replicas: int, busy: float) -> float:
    """The rate at which the simulated replicas are so busy."""
    low, high = 0.0, replicas * SLOTS / (OUTPUTS[0] * costs.step_s(1, 0))
    for _ in range(20):
        middle = (low + high) / 2
        load = arrivals_at(middle, 800 / middle, SEED)
        found = simulate(load, costs, slots=SLOTS, chunk=64, replicas=replicas)
        over = found.busy_s / (replicas * found.span_s) > busy
        low, high = (low, middle) if over else (middle, high)
    return low


def bench_replica(
    preset: str, replicas: int, *, blocks: int = 6, block_s: float = 12.0, out: Path | None = None
) -> list[dict[str, Any]]:
    """Rows for one number of replicas; printed as JSON lines."""
    config = preset_config(Model(preset=preset), VOCABULARY, CONTEXT)
    with ExitStack() as open_things:
        engines = [
            open_things.enter_context(
                Engine.random(config, "ternary", slots=SLOTS, context=CONTEXT, threads=1)
            )
            for _ in range(replicas)
        ]
        timed = [TimedSteps(engine) for engine in engines]
        schedulers = [open_things.enter_context(Scheduler(engine)) for engine in engines]
        chunk = schedulers[0].prefill_chunk
        serve(schedulers, arrivals_at(10.0, TRIED_S, SEED))
        rate = rate_for(_all_steps(timed), replicas, BUSY)
        for one in timed:
            one.steps.clear()
        measured, loads = [], []
        for block in range(blocks):
            load = arrivals_at(rate, block_s, SEED + 1 + block)
            kept = [len(one.steps) for one in timed]
            found = serve(schedulers, load)
            if block % 2:  # its requests count, its steps do not
                for one, length in zip(timed, kept, strict=True):
                    del one.steps[length:]
                measured.append(found)
                loads.append(Arrivals(found.start_s - found.start_s[0], load.prompt, load.output))
        costs = _all_steps(timed)
    simulated = [
        simulate(load, costs, slots=SLOTS, chunk=chunk, replicas=replicas) for load in loads
    ]
    rows = []
    for latency in ("ttft_s", "e2e_s"):
        real, made = (
            np.concatenate([getattr(one, latency) for one in of]) for of in (measured, simulated)
        )
        for quantile in QUANTILES:
            want, got = float(np.quantile(real, quantile)), float(np.quantile(made, quantile))
            rows.append({
                "name": f"replica {latency.removesuffix('_s')} p{100 * quantile:g}",
                "of": f"{preset}, {number_of(replicas, 'replica')}, {SLOTS} slots, "
                f"{rate:.3g} requests/s",
                "value": round(got / want, 4), "unit": "x",
                "simulated_ms": round(1e3 * got, 3), "measured_ms": round(1e3 * want, 3),
                "requests": len(real), "blocks": len(measured),
                **provenance("cpu"), "date": time.strftime("%Y-%m-%d"),
            })  # fmt: skip
    for row in rows:
        print(json.dumps(row))
    if out:
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def _all_steps(timed: list[TimedSteps]) -> StepCosts:
    return fitted_steps([step for one in timed for step in one.steps], SLOTS)
