"""A whole training step of ``workbench bench gpu``: dense bf16 against ternary, the same model.

float32 master weights and AdamW states, bf16 autocast, activation checkpointing: what
``pilots/ab_3b.yaml`` trains with. The ternary arm is the workbench's own conversion, whose
layers take the fused path on a GPU; its weights are quantised once a step, as in training.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from workbench.bench.gpu_clock import GpuRow
from workbench.bench.gpu_engine import Metered, _add_rate, _free
from workbench.bench.gpu_sizes import Trained
from workbench.pilot.sections.model import Policy
from workbench.ternary import (
    ThresholdVersion,
    bit_linears,
    forget_quantised,
    set_reuse,
    to_ternary,
)
from workbench.ternary.fused import why_plain

if TYPE_CHECKING:
    from workbench.bench.gpu import Bench

BACKWARD_AND_RECOMPUTED = 4
"""Products of a step in units of the forward pass: forward, recomputed, and twice backward."""


def run_training(bench: Bench) -> None:
    """Rows qat_step (tokens/s) and qat_step memory (GB)."""
    sizes, best = bench.trained, None
    tokens = sizes.batch * sizes.sequence
    for precision in ("bf16", "int8 x ternary", "int8 x ternary, int8 gradients"):
        _free(bench)
        model = _model(sizes, bench.device)
        note = ""
        if precision != "bf16":
            to_ternary(model, Policy(), ThresholdVersion())
            set_reuse(model, True)
            for _, layer in bit_linears(model):
                layer.int8_gradients = precision.endswith("gradients")
            reason = why_plain(model)
            note = f"plain path: {reason}" if reason else ""
        step = _step(model, sizes, bench.device)
        with Metered(bench).session() as metered:
            row = GpuRow("qat_step", sizes.name, tokens, precision, None, None, None, "tokens/s")
            samples = metered.seconds(step, tokens, row, lambda: None)
            share = 2 * tokens * sizes.shape.linear_parameters
            bf16_ops = BACKWARD_AND_RECOMPUTED * share
            int8_ops = 0
            if precision != "bf16":  # forward and its repetition in INT8, or all of it
                int8_ops = bf16_ops if precision.endswith("gradients") else 2 * share
                bf16_ops -= int8_ops
            rate = _add_rate(
                bench, row, samples, tokens, int8_ops=int8_ops, bf16_ops=bf16_ops, against=best,
                note=note,
            )  # fmt: skip
            best = best or rate
        if bench.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 1e9
            bench.add(
                GpuRow("qat_step memory", sizes.name, tokens, precision, peak, peak, peak, "GB")
            )
        del model, step
        gc.collect()


def _model(sizes: Trained, device: str) -> PreTrainedModel:
    config = LlamaConfig(**sizes.shape.config_fields())
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)()
    return model


def _step(model: PreTrainedModel, sizes: Trained, device: str) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    shape = (sizes.batch, sizes.sequence)
    ids = torch.randint(0, sizes.shape.vocab, shape, device=device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        forget_quantised(model)

    return step
