"""What the ternary layers look like at an evaluation.

For each layer the shares of -1, 0 and +1, its scale, and the flip rate: the share of weights
whose code is another than at the evaluation before. Histograms of the master weights are in
units of the layer's scale, so the thresholds lie at the same places in every layer and at
every time; of the ternary weights there are three bars.

The codes of the last evaluation belong to the state of a training: they go into its
checkpoints, or a resumed training would have no flip rate to report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from workbench.ternary import bit_linears
from workbench.ternary.quantize import spread

FILE = "last_codes.safetensors"
BINS, REACH = 40, 4.0
"""Bins of a master histogram over [-REACH, REACH] scales; the outer bins take what is beyond."""

Rows = list[dict[str, Any]]


class LayerWatch:
    """Remembers the codes of the last look."""

    def __init__(self) -> None:
        self._last: dict[str, torch.Tensor] = {}

    def look(self, model: torch.nn.Module, step: int) -> tuple[Rows, Rows]:
        """Rows of ``layers`` (flip_rate is None at the first look) and of ``histograms``."""
        layers: Rows = []
        histograms: Rows = []
        for name, layer in bit_linears(model):
            codes, scale = layer.ternarized()
            minus, zero, plus = (float((codes == code).float().mean()) for code in (-1, 0, 1))
            codes = codes.cpu()
            last = self._last.get(name)
            flips = None if last is None else float((codes != last).float().mean())
            self._last[name] = codes
            row = {"step": step, "layer": name}
            layers.append(
                row
                | {"share_minus": minus, "share_zero": zero, "share_plus": plus}
                | {"flip_rate": flips, "scale": float(scale.mean())}
            )
            in_scales = layer.weight.detach().float() / spread(scale, layer.weight.shape[1])
            counts = torch.histc(in_scales.clamp_(-REACH, REACH), BINS, -REACH, REACH)
            width = 2 * REACH / BINS
            histograms += [
                row
                | {"kind": "master", "left": -REACH + i * width, "right": -REACH + (i + 1) * width}
                | {"count": int(count)}
                for i, count in enumerate(counts.tolist())
            ]
            histograms += [
                row
                | {"kind": "ternary", "left": code - 0.5, "right": code + 0.5}
                | {"count": round(share * codes.numel())}
                for code, share in ((-1, minus), (0, zero), (1, plus))
            ]
        return layers, histograms

    def save(self, folder: Path) -> None:
        safetensors.torch.save_file(self._last, folder / FILE)

    def load(self, folder: Path) -> None:
        self._last = safetensors.torch.load_file(folder / FILE)
