"""Where the ternary arm of a checkpoint starts from: codes that make up for each other's errors.

The checkpoint's weights, rounded one by one, are no longer the checkpoint: most of a short training
goes into finding the way back. :mod:`workbench.ternary.blockwise` rounds them so that what one
rounding spoils the others undo, on the first sequences of the training text, and the training goes
on from there, ternary from its first step.
"""

from __future__ import annotations

import time
from pathlib import Path

import safetensors.torch
import torch
from transformers import PreTrainedModel

from workbench.files import replacing
from workbench.records.events import Progress
from workbench.ternary.blockwise import compensate
from workbench.ternary.convert import bit_linears
from workbench.train.setup import TrainingSetup
from workbench.wording.counts import number_of

START = "compensated_start.safetensors"
AT_ONCE = 8
"""Sequences of a calibration batch."""


def start_compensated(
    model: PreTrainedModel, setup: TrainingSetup, folder: Path, progress: Progress
) -> None:
    """Change the master weights of ``model`` in place, where ``train.compensated_start`` asks for
    it. ``folder`` keeps them: an attempt that goes on, and the next rate of a sweep, load them.
    """
    sequences = setup.train.compensated_start.sequences
    if not sequences:
        return
    layers = {name: layer for name, layer in bit_linears(model) if layer.weight.requires_grad}
    if not layers:  # a frozen base, which adapters correct
        return
    kept = folder / START
    if kept.exists():
        for name, weight in safetensors.torch.load_file(kept, device=str(model.device)).items():
            with torch.no_grad():
                layers[name].weight.copy_(weight)
            layers[name].forget()
        return
    compensated_by(model, setup, "compensated start", progress)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(kept) as partial:
        weights = {name: layer.weight.detach() for name, layer in layers.items()}
        safetensors.torch.save_file(weights, partial)


def compensated_by(
    model: PreTrainedModel, setup: TrainingSetup, what: str, progress: Progress
) -> None:
    """Change the master weights of the ternary layers of ``model`` in place, calibrated on
    ``train.compensated_start.sequences`` sequences, and say how long ``what`` took."""
    began = time.perf_counter()
    ids_BT = setup.first_sequences(setup.train.compensated_start.sequences).to(model.device)

    def say(done: int, of: int) -> None:
        progress.step(what, done, of, "blocks")

    dtype = torch.bfloat16
    with torch.autocast(model.device.type, dtype, enabled=setup.train.precision == "bfloat16"):
        outside = compensate(model, ids_BT.split(AT_ONCE), say)
    layers = len(bit_linears(model)) - len(outside)
    progress.note(
        f"{what}: {number_of(layers, 'layer')} calibrated on "
        f"{number_of(len(ids_BT), 'sequence')} "
        f"({number_of(ids_BT.numel(), 'token', form=',')}), {time.perf_counter() - began:,.0f} s"
        + (f"; outside the blocks, as they were: {', '.join(outside)}" if outside else "")
    )
