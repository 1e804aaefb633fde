"""Faults of an engine, on order: how a drill learns what a broken arm costs.

They sit where real ones would show, in the step that every answer comes from. Only an arm that
was started for a drill takes such orders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from workbench.engine.engine import Engine

FAULTS = ("none", "crash", "nan", "slow_start", "slow_steps")
_Step = Callable[[Sequence[int], Sequence[int], Sequence[bool] | bool], np.ndarray]


def inject(engine: Engine, fault: str, seconds: float = 0.0) -> None:
    """From now on each step of ``engine`` fails so.

    crash: an error that nobody foresaw. nan: logits that are no numbers. slow_steps: each
    ``seconds`` later; slow_start: those alone that begin an answer. none: as before.
    Raises ValueError for another one.
    """
    step = type(engine).step

    def crash(*given: object) -> np.ndarray:
        raise LookupError("a fault that a drill ordered")

    def nan(tokens: Sequence[int], slots: Sequence[int], want: Sequence[bool] | bool) -> np.ndarray:
        return np.full_like(step(engine, tokens, slots, want), np.nan)

    def slow_start(
        tokens: Sequence[int], slots: Sequence[int], want: Sequence[bool] | bool
    ) -> np.ndarray:
        if any(engine.core.filled[slot] == 0 for slot in slots):
            time.sleep(seconds)
        return step(engine, tokens, slots, want)

    def slow_steps(
        tokens: Sequence[int], slots: Sequence[int], want: Sequence[bool] | bool
    ) -> np.ndarray:
        time.sleep(seconds)
        return step(engine, tokens, slots, want)

    faults: dict[str, _Step] = {
        "crash": crash, "nan": nan, "slow_start": slow_start, "slow_steps": slow_steps
    }  # fmt: skip
    if fault not in FAULTS:
        raise ValueError(f"fault {fault!r}; allowed: {', '.join(FAULTS)}")
    engine.__dict__.pop("step", None)
    if fault != "none":
        engine.__dict__["step"] = faults[fault]
