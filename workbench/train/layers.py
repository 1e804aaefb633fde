"""What the ternary layers are like at an evaluation and at the end of a pass over the corpus.

For each layer: the shares of -1, 0 and +1; the flip rate, which is the share of weights whose
code is another than at the evaluation before; its scale, and how far that has drifted since the
evaluation before and since the first; how far the master weights lie from the nearest threshold on
average (a small distance and a high flip rate together are weights that swing); and the norm of
the last step's gradient. Histograms of the master weights are in units of the layer's scale, so
the thresholds lie at the same places in every layer and at every time; of the ternary weights
there are three bars.

The codes and scales of the last evaluation belong to the state of a training: they go into its
checkpoints, or a resumed training would have no flip rate to report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from workbench.ternary.quantize import rotated_weight, spread, threshold_in_scales
from workbench.train.whole import whole_layers

FILE = "last_look.safetensors"
CODES, SCALES = ".codes", ".scales"
BINS, REACH = 40, 4.0
"""Bins of a master histogram over [-REACH, REACH] scales; the outer bins take what is beyond."""

LayerRows = list[dict[str, Any]]


class LayerStatistics:
    """Remembers the codes of the last evaluation, and the mean scales of the last and the first."""

    def __init__(self) -> None:
        self._codes: dict[str, torch.Tensor] = {}
        self._scales: dict[str, torch.Tensor] = {}

    def measure(
        self, model: torch.nn.Module, step: int, epoch: float, gradients: dict[str, float]
    ) -> tuple[LayerRows, LayerRows]:
        """Rows of ``layers`` (what compares with an evaluation before is None at the first) and of
        ``histograms``. gradients: norms by parameter name."""
        layers: LayerRows = []
        histograms: LayerRows = []
        for name, layer, master in whole_layers(model):
            codes, scale = layer.ternarized(master)
            weight = rotated_weight(master, layer.threshold)
            in_scales = weight / spread(scale, weight.shape[1])
            edge = threshold_in_scales(weight, layer.threshold, scale)
            counts = [(codes == code).sum() for code in (-1, 0, 1)]
            distance = (in_scales.abs() - edge).abs().mean()
            minus, zero, plus, mean_scale, distance = (
                torch.stack([*counts, scale.mean(), distance]).double().tolist()
            )
            row = {"step": step, "layer": name}
            layers.append(
                row
                | {"epoch": epoch}
                | {
                    f"share_{state}": count / codes.numel()
                    for state, count in (("minus", minus), ("zero", zero), ("plus", plus))
                }
                | {"flip_rate": self._flips(name, codes.cpu()), "scale": mean_scale}
                | self._drift(name, mean_scale)
                | {"threshold_distance": distance, "grad_norm": gradients.get(f"{name}.weight")}
            )
            bins = torch.histc(in_scales.clamp_(-REACH, REACH), BINS, -REACH, REACH)
            width = 2 * REACH / BINS
            histograms += [
                row
                | {"kind": "master", "left": -REACH + i * width, "right": -REACH + (i + 1) * width}
                | {"count": int(count)}
                for i, count in enumerate(bins.tolist())
            ]
            histograms += [
                row
                | {"kind": "ternary", "left": code - 0.5, "right": code + 0.5}
                | {"count": int(count)}
                for code, count in ((-1, minus), (0, zero), (1, plus))
            ]
        return layers, histograms

    def _flips(self, name: str, codes: torch.Tensor) -> float | None:
        last = self._codes.get(name)
        self._codes[name] = codes
        return None if last is None else float((codes != last).float().mean())

    def _drift(self, name: str, scale: float) -> dict[str, float | None]:
        """Relative changes of the mean scale since the last evaluation and since the first."""
        first, last = self._scales.get(name, torch.tensor([scale, scale], dtype=torch.float64))
        is_first = name not in self._scales
        self._scales[name] = torch.tensor([first, scale], dtype=torch.float64)
        return {
            "scale_drift": None if is_first else scale / float(last) - 1,
            "scale_drift_total": None if is_first else scale / float(first) - 1,
        }

    def save(self, folder: Path) -> None:
        codes = {f"{name}{CODES}": value for name, value in self._codes.items()}
        scales = {f"{name}{SCALES}": value for name, value in self._scales.items()}
        safetensors.torch.save_file(codes | scales, folder / FILE)

    def load(self, folder: Path) -> None:
        for name, value in safetensors.torch.load_file(folder / FILE).items():
            kept = self._codes if name.endswith(CODES) else self._scales
            kept[name.removesuffix(CODES).removesuffix(SCALES)] = value
