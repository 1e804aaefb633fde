"""``train``: a full-precision baseline and a ternary model at equal tokens."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from workbench.pilot.sections.base import Count, Positive, Section, Share
from workbench.wording.counts import number_of

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
"""Of a moving average."""


class SubNormWarmup(Section):
    """Before phase 1, where ``model.sub_norm`` goes into a ``model.checkpoint``: full precision.
    The new norms are untrained and spoil what the checkpoint knows; here all weights adapt to them
    before anything becomes ternary. A model from scratch has no such phase."""

    share: Share = Field(0.1, description="of all steps")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, in this phase")
    lr_factor: Positive = Field(1.0, description="times ternary_lr")


class Warmup(Section):
    """Phase 1 of the ternary arm: full precision (threshold strength 0)."""

    share: Share = Field(0.5, description="of all steps")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's, 1/step at learning rate 1")
    lr_factor: Positive = Field(1.0, description="times ternary_lr")


class ThresholdOn(Section):
    """Phase 2 of the ternary arm: the threshold's strength goes from 0 to 1."""

    share: Share = Field(0.1, description="of all steps")
    ramp: Literal["linear", "exponential", "sigmoid", "none"] = Field(
        "linear", description="shape of the way from 0 to 1; none: 1 from the first step on"
    )
    weight_decay: float = Field(0.1, ge=0, description="AdamW's, in this phase")
    lr_factor: Positive = Field(1.0, description="times ternary_lr")
    quantised_lr_factor: Positive = Field(1.0, description="extra factor for quantised weights")


class Finetune(Section):
    """Phase 3 of the ternary arm: strength 1, master weights still learn; the remaining steps."""

    weight_decay: float = Field(0.0, ge=0, description="AdamW's, in this phase")
    lr_factor: Positive = Field(1.0, description="times ternary_lr")
    quantised_lr_factor: Positive = Field(1.0, description="extra factor for quantised weights")


class SecondStage(Section):
    """The BitNet recipe's second half of the ternary arm, across its phases: a lower peak rate and
    no weight decay (published: 1.2e-3, then 8e-4 from half of the steps on)."""

    lr: Positive | None = Field(
        None, description="peak learning rate from from_share on; null: one stage only"
    )
    from_share: Share = Field(0.5, description="of all steps, where it begins")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, instead of the phase's")


class Distillation(Section):
    """The ternary arm also learns from a full-precision teacher, in all its phases: it minimises
    (1 - alpha) * loss + alpha * temperature^2 * KL(teacher, arm) + attention_weight * relations.
    The teacher's forward passes are part of the arm's time, and are reported beside it."""

    teacher: Literal["none", "full_precision", "checkpoint"] = Field(
        "none",
        description="the trained full-precision arm of this run, or model.checkpoint as it is",
    )
    alpha: Share = Field(0.5, description="share of the teacher's word in the objective")
    temperature: Positive = Field(1.0, description="both distributions are softened by it")
    attention_weight: float = Field(
        0.0, ge=0, description="of the attention relations (Q-Q, K-K, V-V) of one layer; 0: none"
    )
    attention_layer: int = Field(-1, description="that layer, from 0; negative: from the last")


class Guard(Section):
    """Limits of a healthy training, watched in both arms, and what is done when one is passed.
    What happened stands in the stage's notes and in its table ``guard``."""

    action: Literal["off", "warn", "lower_rate", "stop"] = Field(
        "warn",
        description="lower_rate goes on at a lower learning rate; stop keeps the last checkpoint",
    )
    loss_spike: float = Field(2.0, gt=1, description="a step's loss over the median of the window")
    window: Count = Field(50, description="steps of that median, and the least between two spikes")
    flip_rate: Share = Field(
        0.6,
        description="of a layer's codes, since the evaluation before, with the threshold fully on: "
        "codes drawn anew at random differ by two thirds, a healthy layer's by two fifths where "
        "evaluations are thousands of steps apart",
    )
    one_value_share: Share = Field(
        0.95, description="of a layer's codes being the same: a dead layer; threshold fully on"
    )
    rate_factor: Share = Field(0.5, description="of lower_rate: times the rate so far, each time")
    least_factor: Share = Field(0.1, description="of lower_rate: the rate never falls below this")


class RateSweep(Section):
    """Before the ternary arm is trained, a short training at each of a few rates, all from the same
    weights and on the same batches; the rate with the lowest loss on training text that none of
    them has learned from becomes ``ternary_lr``. Table ``rate_sweep``; the notes say what it took.
    """

    rates: list[Positive] = Field([], description="peak learning rates to try; none: no sweep")
    share: Share = Field(0.05, description="of train.steps, the length of each short training")
    sequences: Count = Field(16, description="training sequences that are set aside to judge by")


class TrainingLaunch(Section):
    """Processes that train together, each with an equal part of every step; what is learned does
    not depend on them, so a run goes on with another launch. The old key train.processes is read
    as launch.processes."""

    processes: Count = Field(1, description="of each node: one a GPU, or on the CPU")
    nodes: Count = Field(
        1,
        description="machines that share the run's folder; above 1 the same command runs on each, "
        "with MASTER_ADDR, MASTER_PORT and NODE_RANK in its environment",
    )
    strategy: Literal["ddp", "fsdp", "hsdp"] = Field(
        "ddp",
        description="ddp: every process holds the whole model; fsdp: weights, gradients and the "
        "optimizer's state are sharded over all processes; hsdp: over those of a node, and every "
        "node has a copy",
    )

    @property
    def together(self) -> int:
        """Processes of all nodes."""
        return self.processes * self.nodes

    @property
    def is_sharded(self) -> bool:
        return self.strategy != "ddp"

    @property
    def is_single(self) -> bool:
        """Trained in the process that runs the stage, without others beside it."""
        return self.together == 1 and not self.is_sharded

    @property
    def shards(self) -> int:
        """Processes that a weight is spread over."""
        return {"ddp": 1, "fsdp": self.together, "hsdp": self.processes}[self.strategy]

    def __str__(self) -> str:
        nodes = f" on each of {number_of(self.nodes, 'node')}" if self.nodes > 1 else ""
        kind = f", {self.strategy}" if self.is_sharded else ""
        return f"{number_of(self.processes, 'process')}{nodes}{kind}"

    @model_validator(mode="after")
    def hsdp_has_two_dimensions(self) -> TrainingLaunch:
        if self.strategy == "hsdp" and (self.nodes == 1 or self.processes == 1):
            raise ValueError(
                f"strategy hsdp shards within a node and repeats over nodes: processes "
                f"{self.processes} and nodes {self.nodes} must both be above 1; "
                f"allowed here: {'fsdp' if self.nodes == 1 else 'ddp or fsdp'}"
            )
        return self


class CompensatedStart(Section):
    """Where the ternary arm of a checkpoint starts: its weights are rounded block by block so that
    what one rounding spoils the others undo, measured on the first sequences of the training text
    (GPTQ's order), and the threshold is fully on from the first step."""

    sequences: int = Field(
        0, ge=0, description="training sequences to calibrate on; 0: the checkpoint's own weights"
    )


class Train(Section):
    """Both arms see the same batches in the same order: ``steps`` x ``batch_size`` x
    ``gradient_accumulation`` sequences.

    The defaults suit up to a few million parameters and steps of about 1,000 tokens
    (docs/studies.md and docs/log.md say what was tried). Steps of 100,000 tokens and more want
    betas [0.9, 0.95].
    """

    steps: Count = Field(2400, description="optimizer steps of each arm")
    batch_size: Count = Field(4, description="sequences of a batch")
    gradient_accumulation: Count = Field(
        1,
        description="batches whose gradients make one step: batch_size x gradient_accumulation "
        "sequences, however many processes share them",
    )
    seeds: int = Field(
        1,
        ge=1,
        le=20,
        description="trainings of both arms, with the pilot's seed and those after it: how far the "
        "luck of a seed moves the quality gap; later stages take the models of the first",
    )
    launch: TrainingLaunch = TrainingLaunch()
    lr: Positive = Field(2e-3, description="peak learning rate of the full-precision arm")
    ternary_lr: Positive | None = Field(None, description="of the ternary arm; null: same as lr")
    lr_warmup_share: Share = Field(0.1, description="of all steps, linear from 0")
    lr_schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="from the peak to lr_final_factor"
    )
    lr_final_factor: Share = Field(0.0, description="last learning rate as a share of the peak")
    weight_decay: float = Field(0.1, ge=0, description="of the full-precision arm, throughout")
    betas: list[Decay] = Field([0.9, 0.995], min_length=2, max_length=2, description="of Adam")
    grad_clip: Positive = Field(1.0, description="largest norm of the whole gradient")
    compensated_start: CompensatedStart = CompensatedStart()
    sub_norm_warmup: SubNormWarmup = SubNormWarmup()
    warmup: Warmup = Warmup()
    threshold: ThresholdOn = ThresholdOn()
    finetune: Finetune = Finetune()
    second_stage: SecondStage = SecondStage()
    rate_sweep: RateSweep = RateSweep()
    regularisation: Literal["none", "l2", "pull"] = Field(
        "none",
        description="after each step of the ternary arm, quantised weights move towards zero (l2) "
        "or towards the nearest ternary point (pull), more where codes flip near thresholds",
    )
    regularisation_strength: Positive = Field(
        0.1, description="of it, 1/step at learning rate 1, in a layer of usual flips and distance"
    )
    distillation: Distillation = Distillation()
    guard: Guard = Guard()
    evaluations: Count = Field(
        6,
        description="evaluations of each arm, evenly spread; "
        "at most as many more, where a pass over the corpus ends",
    )
    eval_sequences: Count = Field(32, description="held-out sequences of each evaluation")
    save_every: Count = Field(200, description="steps between checkpoints")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the computation")
    gradient_checkpointing: bool = Field(False, description="less memory, a third more work")
    compile: bool = Field(False, description="train under torch.compile")
    int8_gradients: bool = Field(
        False,
        description="gradient products of the ternary arm in INT8 too, on a CUDA device; "
        "their errors are measured before and after the training",
    )
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        [], description="installed ones that get the loss curves too, each arm as a run"
    )
    optimizer: str = Field("adamw_torch", description="a transformers.Trainer optimizer name")

    @model_validator(mode="after")
    def phases_fit(self) -> Train:
        if self.warmup.share + self.threshold.share > 1:
            raise ValueError("warmup.share and threshold.share must not exceed 1 together")
        return self

    @model_validator(mode="after")
    def compensated_start_is_ternary(self) -> Train:
        if self.compensated_start.sequences and self.warmup.share + self.threshold.share > 0:
            raise ValueError(
                f"compensated_start is ternary from the first step on: warmup.share "
                f"{self.warmup.share:g} and threshold.share {self.threshold.share:g} must be 0; "
                "or set compensated_start.sequences to 0"
            )
        return self

    @property
    def share(self) -> tuple[int, int]:
        """(sequences of a batch, batches a step) of each process: whole batches are shared out as
        far as they go, then the sequences of each."""
        turns = math.gcd(self.gradient_accumulation, self.launch.together)
        return self.batch_size * turns // self.launch.together, self.gradient_accumulation // turns

    @model_validator(mode="after")
    def processes_divide_a_step(self) -> Train:
        sequences, together = self.batch_size * self.gradient_accumulation, self.launch.together
        if sequences % together:
            raise ValueError(
                f"launch of {self.launch}: {number_of(together, 'process')} cannot share a step's "
                f"{number_of(sequences, 'sequence')} (batch_size x gradient_accumulation) equally"
            )
        return self

    @model_validator(mode="after")
    def shards_can_be_trained(self) -> Train:
        if not self.launch.is_sharded:
            return self
        against = {
            "regularisation": (self.regularisation, "none"),
            "compile": (self.compile, False),
            "int8_gradients": (self.int8_gradients, False),
        }
        for field, (value, allowed) in against.items():
            if value != allowed:
                raise ValueError(
                    f"{field}: got {value}, which needs whole weights, and launch.strategy "
                    f"{self.launch.strategy} has shards of them; allowed with it: {allowed}, "
                    "or launch.strategy ddp"
                )
        return self

    @model_validator(mode="after")
    def relations_can_be_seen(self) -> Train:
        if self.compile and self.distillation.attention_weight > 0:
            raise ValueError(
                "compile hides the states that distillation.attention_weight compares; "
                "set one of them to its default"
            )
        return self
