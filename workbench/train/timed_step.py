"""The time of one optimizer step, measured: of a whole model, or of a large one by its layers.

A step is what the trainer does: forward, backward, clipping, AdamW; in a ternary arm at strength 1,
with the quantised weights made anew. Token ids are random: no arithmetic depends on them.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from workbench.machine.heap import freed_memory_kept
from workbench.model.build import empty_model
from workbench.pilot.sections.model import Model
from workbench.ternary import ThresholdVersion, forget_quantised, set_reuse, to_ternary
from workbench.train.quiet import quiet_transformers
from workbench.wording.counts import number_of

SEED = 0
LARGEST_FLOPS = 2e11
"""Of a step that is timed: a second or two on two cores."""
FEWEST_TOKENS = 32
TIMED_STEPS = 2


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step of each arm, and how they were found."""

    full_precision_s: float
    ternary_s: float
    how: str


def step_time(
    model: Model,
    config: PretrainedConfig,
    batch: int,
    sequence: int,
    device: str,
    bf16: bool = False,
) -> StepTime:
    """A step of both arms of ``model`` with ``batch`` sequences of ``sequence`` tokens.

    config: of the model, in any size. bf16: computed in bfloat16, as by train.precision. One whose
    step would take long is timed with one and two of its layers and with fewer tokens, and the
    whole is extrapolated from those.
    """
    layers, tokens = config.num_hidden_layers, batch * sequence
    counts = (layers,)
    if _flops(model, config, layers, tokens) > LARGEST_FLOPS and layers > 2:
        counts = (1, 2)
    timed_batch, timed_sequence = batch, sequence
    while _flops(model, config, counts[-1], timed_batch * timed_sequence) > LARGEST_FLOPS:
        if timed_batch > 1:
            timed_batch = max(1, timed_batch // 2)
        elif timed_sequence > FEWEST_TOKENS:
            timed_sequence //= 2
        else:
            break
    seconds = {
        (arm, count): _seconds(
            model,
            config,
            count,
            timed_batch,
            timed_sequence,
            device,
            ternary=arm == "ternary",
            bf16=bf16,
        )
        for arm in ("full_precision", "ternary")
        for count in counts
    }
    more_tokens = tokens / (timed_batch * timed_sequence)

    def whole(arm: str) -> float:
        found = seconds[arm, counts[0]]
        if len(counts) > 1:
            found += (layers - 1) * max(0.0, seconds[arm, 2] - seconds[arm, 1])
        return found * more_tokens

    how = f"{TIMED_STEPS} steps timed here"
    if len(counts) > 1 or more_tokens > 1:
        of_layers = "1 and 2 layers" if len(counts) > 1 else "the model"
        how = (
            f"{of_layers} timed here with {number_of(timed_batch * timed_sequence, 'token')}, "
            "extrapolated"
        )
    return StepTime(whole("full_precision"), whole("ternary"), how)


class TimedModel:
    """One model and its optimizer."""

    def __init__(
        self,
        model: PreTrainedModel,
        batch: int,
        sequence: int,
        vocab: int,
        device: torch.device,
        bf16: bool = False,
    ) -> None:
        self.model, self.device, self.bf16 = model, device, bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        draw = torch.Generator().manual_seed(SEED)
        self.ids_BT = torch.randint(vocab, (batch, sequence), generator=draw).to(device)
        set_reuse(model, False)

    def seconds(self, steps: int) -> float:
        """The time of ``steps`` optimizer steps."""
        self._wait()
        began = time.perf_counter()
        for _ in range(steps):
            forget_quantised(self.model)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                read = self.model(input_ids=self.ids_BT, labels=self.ids_BT, use_cache=False)
            read.loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _seconds(
    model: Model,
    config: PretrainedConfig,
    layers: int,
    batch: int,
    sequence: int,
    device: str,
    *,
    ternary: bool,
    bf16: bool,
) -> float:
    """One step, the quicker of two after one that warms up."""
    with quiet_transformers():
        built = AutoModelForCausalLM.from_config(_with_layers(config, layers)).float().train()
    if ternary:
        threshold = ThresholdVersion.from_section(model.threshold)
        to_ternary(built, model.policy, threshold, model.activations, model.sub_norm)
    where = torch.device(device)
    timed = TimedModel(built.to(device), batch, sequence, config.vocab_size, where, bf16)
    with freed_memory_kept():  # as the trainer does
        timed.seconds(1)
        return min(timed.seconds(1) for _ in range(TIMED_STEPS))


def _flops(model: Model, config: PretrainedConfig, layers: int, tokens: int) -> float:
    """Of one step: six a parameter and token, the embedding's rows included as those of a head."""
    empty = empty_model(model, _with_layers(config, layers))
    return 6.0 * tokens * sum(p.numel() for p in empty.parameters())


def _with_layers(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    changed = copy.deepcopy(config)
    changed.num_hidden_layers = layers
    if getattr(changed, "layer_types", None):
        changed.layer_types = changed.layer_types[:layers]
    return changed
