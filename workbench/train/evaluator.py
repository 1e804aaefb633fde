"""What is evaluated during training: held-out loss and, for the ternary arm, its layers.

The ternary arm is evaluated twice: as it will be used (``ternary``, strength 1) and by its
master weights (``master``, strength 0). While the threshold ramps up neither is the model
that was just trained; together they show what the threshold costs and how it is repaid.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from workbench.ternary import set_strength
from workbench.train.layers import LayerRows, LayerStatistics
from workbench.train.quality import bits_per_byte, document_losses
from workbench.train.telemetry import Telemetry
from workbench.train.whole import whole_layers

STRENGTH_OF = {"ternary": 1.0, "master": 0.0}


@dataclass
class Evaluator:
    """Called after some steps; adds rows to ``evaluations``, ``layers`` and ``histograms``.

    excerpts: columns id, source, text. context: tokens of a window.
    weights: the kinds of weights to evaluate, of ``STRENGTH_OF``.
    layers: None for the arm without ternary layers.
    """

    tokenizer: PreTrainedTokenizerBase
    excerpts: pd.DataFrame
    context: int
    telemetry: Telemetry
    weights: tuple[str, ...]
    layers: LayerStatistics | None = None

    def __call__(
        self, model: torch.nn.Module, step: int, epoch: float, gradients: dict[str, float]
    ) -> LayerRows:
        """epoch: passes over the corpus so far. gradients: norms by parameter name.

        Returns the rows of ``layers``.
        """
        for weights in self.weights:
            losses = self.losses(model, weights)
            row = {
                "step": step,
                "epoch": epoch,
                "weights": weights,
                "loss": float(losses["nats"].sum() / losses["tokens"].sum()),
                "bits_per_byte": bits_per_byte(losses),
            }
            self.telemetry.add("evaluations", [row])
        layers: LayerRows = []
        if self.layers:
            training = model.training
            model.eval()  # measuring in training mode would start learned scales before their time
            layers, histograms = self.layers.measure(model, step, epoch, gradients)
            model.train(training)
            self.telemetry.add("layers", layers)
            self.telemetry.add("histograms", histograms)
        return layers

    def join(self, model: torch.nn.Module) -> None:
        """The part of another process in a call on the first one, where the model lies in shards:
        the same forward passes and gathers, nothing recorded."""
        for weights in self.weights:
            self.losses(model, weights)
        if self.layers:
            for _ in whole_layers(model):
                pass

    def losses(self, model: torch.nn.Module, weights: str) -> pd.DataFrame:
        """The loss of each excerpt; the model is left at the strength of ``weights``."""
        set_strength(model, STRENGTH_OF[weights])
        return document_losses(model, self.tokenizer, self.excerpts, self.context)
