"""The phases as pure functions of the step.

Strength, learning rate and weight decay of any step follow from the pilot alone, so nothing
about the schedule has to be saved: a training that goes on at step s asks for step s.

The ternary arm goes through ``warmup`` (strength 0), ``threshold`` (strength from 0 to 1) and
``finetune`` (strength 1). Norms put into a pretrained checkpoint have a phase before these,
``sub_norm`` (strength 0). Across the phases may lie a second stage with a peak rate and a weight
decay of its own. The baseline has one phase, ``full_precision``: a recipe made for ternary weights
would handicap it.

Ramps, with t from 0 to 1 over the phase: linear t; exponential (e^(kt) - 1)/(e^k - 1), late;
sigmoid, a logistic curve of slope k stretched to end exactly at 0 and 1; none, 1 at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from workbench.pilot.sections.train import Finetune, SubNormWarmup, ThresholdOn, Train, Warmup

TrainedArm = Literal["full_precision", "ternary"]
EXPONENTIAL_K = 5.0
SIGMOID_K = 10.0


@dataclass(frozen=True)
class StepSettings:
    """What holds during one optimizer step.

    strength: share of the quantised weight in the forward pass, 0 to 1.
    lr, quantised_lr: learning rates of precise and of quantised parameters.
    """

    phase: str
    strength: float
    lr: float
    quantised_lr: float
    weight_decay: float


class Schedule:
    """The plan of one arm; steps count from 0. new_norms: the arm begins with phase sub_norm."""

    def __init__(self, train: Train, arm: TrainedArm, new_norms: bool = False) -> None:
        self.train, self.arm = train, arm
        self.sub_norm_end = round(train.sub_norm_warmup.share * train.steps) if new_norms else 0
        self.warmup_end = self.sub_norm_end + round(train.warmup.share * train.steps)
        end = self.warmup_end + round(train.threshold.share * train.steps)
        self.threshold_end = min(end, train.steps)  # rounded up twice, it would lie beyond
        ternary_lr = train.ternary_lr or train.lr
        self.peak_lr = ternary_lr if arm == "ternary" else train.lr
        self.second_from: float = math.inf
        if arm == "ternary" and train.second_stage.lr is not None:
            self.second_from = round(train.second_stage.from_share * train.steps)

    def at(self, step: int) -> StepSettings:
        train, peak = self.train, self.peak_lr
        if self.arm == "full_precision":
            lr = peak * self.shape(step)
            return StepSettings("full_precision", 0.0, lr, lr, train.weight_decay)
        name, phase, strength = self._phase(step)
        decay = phase.weight_decay
        if step >= self.second_from:
            peak, decay = train.second_stage.lr, train.second_stage.weight_decay
        lr = peak * self.shape(step) * phase.lr_factor
        return StepSettings(
            name, strength, lr, lr * getattr(phase, "quantised_lr_factor", 1.0), decay
        )

    def _phase(
        self, step: int
    ) -> tuple[str, SubNormWarmup | Warmup | ThresholdOn | Finetune, float]:
        """The name, the section and the strength of the phase in which the step lies."""
        train = self.train
        if step < self.sub_norm_end:
            return "sub_norm", train.sub_norm_warmup, 0.0
        if step < self.warmup_end:
            return "warmup", train.warmup, 0.0
        if step < self.threshold_end:
            return "threshold", train.threshold, self._ramp(step)
        return "finetune", train.finetune, 1.0

    def shape(self, step: int) -> float:
        """Learning rate over its peak: a linear start, then the declared way down.

        The first step of the start and the last step of all are above zero.
        """
        train = self.train
        start = round(train.lr_warmup_share * train.steps)
        if step < start:
            return (step + 1) / start
        way = (step - start) / max(1, train.steps - start)
        if train.lr_schedule == "constant":
            return 1.0
        down = 1 - way if train.lr_schedule == "linear" else (1 + math.cos(math.pi * way)) / 2
        return train.lr_final_factor + (1 - train.lr_final_factor) * down

    def _ramp(self, step: int) -> float:
        """Strength in phase 2; its last step has strength 1."""
        t = (step - self.warmup_end + 1) / (self.threshold_end - self.warmup_end)
        match self.train.threshold.ramp:
            case "linear":
                return t
            case "exponential":
                return math.expm1(EXPONENTIAL_K * t) / math.expm1(EXPONENTIAL_K)
            case "sigmoid":
                half = math.tanh(SIGMOID_K / 4)  # the logistic curve, as a tanh around t = 1/2
                return (1 + math.tanh(SIGMOID_K * (t - 0.5) / 2) / half) / 2
        return 1.0

    @property
    def evaluation_steps(self) -> list[int]:
        """Numbers of finished steps after which the arm is judged; the last is the end."""
        steps, count = self.train.steps, min(self.train.evaluations, self.train.steps)
        return [round(steps * (index + 1) / count) for index in range(count)]


def epoch_steps(steps: int, batch: int, per_pass: int, most: int) -> list[int]:
    """Numbers of finished steps with which a pass over the corpus ends; at most ``most`` of them.

    batch: sequences a step. per_pass: sequences of the corpus. Of many passes every n-th counts.
    """
    passes = steps * batch // per_pass
    every = max(1, math.ceil(passes / most))
    return [math.ceil(turn * per_pass / batch) for turn in range(every, passes + 1, every)]
