"""The stability guard: declared limits, watched as the training goes, and what is done at one.

- *loss spike*: a step's loss is above ``loss_spike`` times the median of the ``window`` steps
  before it; after one, the next ``window`` steps cannot be another.
- *flip storm*: more than ``flip_rate`` of a layer's codes changed since the evaluation before.
- *dead layer*: one of -1, 0, +1 has more than ``one_value_share`` of a layer's codes. A lower rate
  brings no layer back, so this is told when a layer dies and not at every evaluation after that.

The last two are checked at the evaluations at which the threshold is fully on. What the guard did
is a table of the training's telemetry, and its state (the factor on the learning rate, the last
spike, the dead layers) is read from the telemetry: rows of a step are there before the step's
checkpoint, so a resumed training brakes at the same steps by the same factor.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.errors import StageError
from workbench.pilot.sections.train import Guard
from workbench.records.events import Progress
from workbench.train.checkpoints import last_whole
from workbench.train.telemetry import Telemetry
from workbench.wording.counts import number_of

TABLE = "guard"
NAMED = 3
"""Layers that a message names; the rest are counted."""


class StabilityGuard:
    """Watches one arm. checkpoints: their folder, named when the training is stopped."""

    def __init__(
        self,
        section: Guard,
        arm: str,
        telemetry: Telemetry,
        progress: Progress,
        checkpoints: Path,
    ) -> None:
        self.section, self.arm, self.telemetry = section, arm, telemetry
        self.progress, self.checkpoints = progress, checkpoints
        losses = telemetry.frame("loss")
        recent = losses["loss"].tail(section.window) if len(losses) else []
        self._losses = deque(recent, maxlen=section.window)
        done = telemetry.frame(TABLE)
        self.factor = float(done["factor"].iloc[-1]) if len(done) else 1.0
        spikes = done.loc[done["limit"] == "loss_spike", "step"] if len(done) else []
        self._last_spike = int(spikes.iloc[-1]) if len(spikes) else -section.window
        last = _last_evaluation_at_full_strength(telemetry)
        self._dead = _over(section.one_value_share, _largest_shares(last)).keys()

    def after_step(self, row: dict[str, Any]) -> None:
        """A row of the table ``loss``; raises StageError where the action is to stop."""
        step, loss = row["step"], row["loss"]
        is_full = len(self._losses) == self.section.window
        median = statistics.median(self._losses) if is_full else loss
        self._losses.append(loss)
        limit = self.section.loss_spike
        if loss > limit * median and step - self._last_spike >= self.section.window:
            self._last_spike = step
            self._act(
                step,
                "loss_spike",
                f"the loss is {loss:.3f}, {loss / median:.2f} times the median {median:.3f} of the "
                f"{number_of(self.section.window, 'step')} before (limit {limit:g})",
                loss / median,
            )

    def after_evaluation(self, step: int, layers: list[dict[str, Any]]) -> None:
        """Rows of the table ``layers`` of one evaluation at full strength."""
        section, total = self.section, len(layers)
        flips = {row["layer"]: row["flip_rate"] or 0.0 for row in layers}
        storms = _over(section.flip_rate, flips)
        self._check(step, "flip_rate", storms, total, "codes changed since the last evaluation")
        dead = _over(section.one_value_share, _largest_shares(layers))
        died = {layer: share for layer, share in dead.items() if layer not in self._dead}
        self._dead = dead.keys()
        self._check(step, "one_value_share", died, total, "codes are one value")

    def _check(self, step: int, limit: str, over: dict[str, float], total: int, what: str) -> None:
        """over: the layers beyond the limit, of ``total``."""
        if over:
            named = ", ".join(f"{layer} {over[layer]:.0%}" for layer in list(over)[:NAMED])
            rest = ", ..." if len(over) > NAMED else ""
            allowed = getattr(self.section, limit)
            text = (
                f"{what} in {len(over)} of {number_of(total, 'layer')}: {named}{rest} (limit "
                f"{allowed:.0%})"
            )
            self._act(step, limit, text, max(over.values()))

    def _act(self, step: int, limit: str, text: str, value: float) -> None:
        section = self.section
        message = f"{self.arm}, step {step}: {text}"
        if section.action == "stop":
            kept = last_whole(self.checkpoints)
            raise StageError(
                f"the guard stopped {message}",
                allowed=f"train.guard.{limit} {getattr(section, limit):g}",
                next_step="lower train.lr or train.ternary_lr or lengthen train.threshold.share; "
                "or raise the limit, or set train.guard.action to lower_rate or warn. "
                f"Kept: {kept[0] if kept else 'nothing, no checkpoint was due yet'}",
            )
        if section.action == "lower_rate":
            lowered = max(section.least_factor, self.factor * section.rate_factor)
            change = f"is {lowered:g} times the schedule's from here on"
            if lowered == self.factor:
                change = f"stays at its least, {lowered:g} times the schedule's"
            message += f"; the learning rate {change}"
            self.factor = lowered
        row = {"step": step, "limit": limit, "value": value, "factor": self.factor, "text": message}
        self.telemetry.add(TABLE, [row])
        self.progress.warning(message)


def _over(limit: float, values: dict[str, float]) -> dict[str, float]:
    return {layer: value for layer, value in values.items() if value > limit}


def _largest_shares(layers: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Of the three codes, by layer."""
    states = ("minus", "zero", "plus")
    return {row["layer"]: max(row[f"share_{state}"] for state in states) for row in layers}


def _last_evaluation_at_full_strength(telemetry: Telemetry) -> list[dict[str, Any]]:
    """Rows of the table ``layers``; none where there was no such evaluation."""
    steps, layers = telemetry.frame("loss"), telemetry.frame("layers")
    if steps.empty or layers.empty:
        return []
    layers = layers[layers["step"].isin(steps.loc[steps["strength"] == 1.0, "step"])]
    return layers[layers["step"] == layers["step"].max()].to_dict("records")
