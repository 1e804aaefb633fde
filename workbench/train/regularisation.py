"""Adaptive regularisation of weights that are ternary: against drift, where there is drift.

Master weights that hover about a threshold change their code with every step, and what the network
has learned with one code is lost with the other. After each optimizer step at rate lr, and apart
from it as AdamW's decay is, the weights of a layer move by

    l2:    W <- W - lr * mu * W
    pull:  W <- W - lr * mu * (W - Q(W))         towards the ternary point they stand for
    mu   = strength * lambda * min(4, (f / 0.01) * (0.25 / d))

f is the share of the layer's codes that changed within the last ten steps, d the mean distance of
its weights from the nearest threshold in scales, lambda the threshold's own strength. 0.25 is the
distance of weights spread evenly from 0 to one scale; a layer of that distance whose codes change
by a hundredth in ten steps has mu = strength, one whose codes rest has none. Field reports ask for
an L2 term or a pull; the formula is this project's own.

The last codes and each mu belong to the state of a training and go into its checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from workbench.ternary.bitlinear import BitLinear
from workbench.ternary.quantize import (
    quantize_weight,
    rotate,
    rotated_weight,
    spread,
    threshold_in_scales,
)
from workbench.train.telemetry import Telemetry

EVERY = 10
"""Steps between two looks at the codes."""
USUAL_FLIPS, USUAL_DISTANCE, MOST = 0.01, 0.25, 4.0
LEAST_DISTANCE = 1e-3
FILE = "regularisation.safetensors"
CODES, FACTOR = ".codes", ".factor"

Kind = Literal["l2", "pull"]


class Regularisation:
    """layers: by name. strength: mu of a layer of usual flips and distance.
    telemetry: gets a row of table ``regularisation`` at each look: step, strength (mean mu of the
    layers), least, most, flips, distance (means)."""

    def __init__(
        self,
        kind: Kind,
        strength: float,
        layers: list[tuple[str, BitLinear]],
        telemetry: Telemetry | None = None,
    ) -> None:
        self.kind, self.strength, self.layers, self.telemetry = kind, strength, layers, telemetry
        self._codes: dict[str, torch.Tensor] = {}
        self.factors: dict[str, torch.Tensor] = {}
        """mu / (strength * lambda) of each layer, without dimension; on the layer's device."""

    @torch.no_grad()
    def apply(self, lr: float) -> None:
        """Move the weights; after an optimizer step at rate ``lr``."""
        for name, layer in self.layers:
            if layer.strength == 0.0 or (factor := self.factors.get(name)) is None:
                continue
            rate = lr * self.strength * layer.strength * factor
            if self.kind == "l2":
                layer.weight.mul_(1.0 - rate)
            else:
                point = rotate(quantize_weight(layer.weight, layer.threshold, layer.alpha),
                               layer.threshold.rotates)  # fmt: skip
                layer.weight.lerp_(point, rate.to(point.dtype))

    @torch.no_grad()
    def look(self, step: int) -> None:
        """Compare the codes with those of the look before; the first one finds no flips."""
        flips, distances = [], []
        for name, layer in self.layers:
            codes, scale = layer.ternarized()
            weight = rotated_weight(layer.weight, layer.threshold)
            edge = threshold_in_scales(weight, layer.threshold, scale)
            distance = ((weight / spread(scale, weight.shape[1])).abs() - edge).abs().mean()
            last = self._codes.get(name)
            moved = torch.zeros_like(distance) if last is None else (codes != last).float().mean()
            self._codes[name] = codes
            near = USUAL_DISTANCE / distance.clamp(min=LEAST_DISTANCE)
            self.factors[name] = (moved / USUAL_FLIPS * near).clamp(max=MOST)
            flips.append(moved)
            distances.append(distance)
        if self.telemetry:
            factors = torch.stack(list(self.factors.values()))
            mean, least, most, moved, distance = torch.stack(
                [factors.mean(), factors.min(), factors.max(),
                 torch.stack(flips).mean(), torch.stack(distances).mean()]
            ).double().tolist()  # fmt: skip
            row = {"strength": mean, "least": least, "most": most}
            row = {name: self.strength * value for name, value in row.items()}
            self.telemetry.add(
                "regularisation", [{"step": step, **row, "flips": moved, "distance": distance}]
            )

    def save(self, folder: Path) -> None:
        """Into a checkpoint's folder."""
        state = {f"{name}{CODES}": codes.cpu() for name, codes in self._codes.items()}
        state |= {f"{name}{FACTOR}": factor.cpu() for name, factor in self.factors.items()}
        safetensors.torch.save_file(state, folder / FILE)

    def load(self, folder: Path) -> None:
        """What :meth:`save` kept; raises FileNotFoundError for a checkpoint without it."""
        devices = {name: layer.weight.device for name, layer in self.layers}
        for name, value in safetensors.torch.load_file(folder / FILE).items():
            layer = name.removesuffix(CODES).removesuffix(FACTOR)
            kept = self._codes if name.endswith(CODES) else self.factors
            kept[layer] = value.to(devices[layer])


class RegularisationCallback(TrainerCallback):
    """Applies it after each optimizer step, and looks at the codes every :data:`EVERY` steps."""

    def __init__(self, regularisation: Regularisation) -> None:
        self.regularisation = regularisation

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        groups = parts["optimizer"].param_groups
        lr = next((group["lr"] for group in groups if group.get("quantised")), 0.0)
        self.regularisation.apply(lr)
        if (state.global_step + 1) % EVERY == 0:
            self.regularisation.look(state.global_step + 1)
