"""How long each stage of a pilot takes, counted from what the stage does.

Everything is a number of times that a model is trained for a step, reads a token or writes one:
the trainings with their judging, the sweep of rates and the hybrid's own training; the layers'
sensitivity; the arms' quality, the own prompts and tasks, which every arm answers. A step is timed
here (:mod:`workbench.train.timed_step`); a token is read in a third of its part of a step and
written in the time that memory takes to deliver the weights. A session that ends by a budget takes
half of it to twice, one of few blocks as many blocks. Each stage is a span: (least, most) seconds;
on a busy machine the most, because each session first waits for quiet.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from workbench.data.own_prompts import read_prompts
from workbench.data.own_tasks import read_task
from workbench.machine.cpu import measurement_threads
from workbench.measure.bandwidth import (
    bandwidth_buffer,
    gpu_read_bandwidth_gbps,
    read_bandwidth_gbps,
)
from workbench.pilot.spec import Pilot
from workbench.records.terminal import clock
from workbench.train.rate_sweep import sweep_steps, why_no_sweep
from workbench.train.timed_step import StepTime
from workbench.wording.counts import number_of

LeastMost = tuple[float, float]
"""Seconds (least, most)."""

FIXED_S = 10.0
"""Of a stage beside what is counted: imports, tables and figures."""
FORWARD_SHARE = 1 / 3
"""Of a training step: the backward pass takes twice a forward pass."""
COMPENSATED_PASSES = 8
"""Over the calibration text, of a compensated start: each block is run four times, and the rounding
takes as long again."""
PACK_S = 5e-8
"""A parameter and saved arm: rounding, packing, writing."""
LOAD_S = 4.0
"""An arm of stage 3: loaded here, loaded by the server, and asked what load it takes."""
WAY_S = 3.0
"""Of a way back, the restart of the hybrid included."""
USUAL_PROMPT = 128
"""Tokens, where the load tells: before it is read."""
SERVER_S = 10.0
"""A server with both arms: started, and asked what load they take."""
TURN_S = 0.05
"""Of an arm's turn beside its tokens."""
LAYER_S = 50e-6
"""Of writing a token, a layer, beside the reading of its weights."""
BUFFER_MIB, READS = 256, 3
"""Of the memory's speed."""
BYTES_A_TOKEN = 3
"""Of prompts and questions: before there is a tokenizer, and more tokens rather than fewer."""
PACKED_BYTES = {"int8": 1.1, "int4": 0.65, "ternary": 0.4, "post_training": 0.4, "speculative": 2.4}
"""A parameter of an arm in memory, embeddings in INT8; every other arm is bf16."""
BF16_BYTES = 2.0
LINEARS_OF_A_BLOCK = 7
ENDED_BY_BUDGET = 6
"""Blocks; a session of fewer is over before its budget can end it."""


@dataclass(frozen=True)
class Speeds:
    """tokens: of a batch whose step was timed. decode_s: of a token that full precision writes."""

    step: StepTime
    tokens: int
    decode_s: float

    @property
    def read_s(self) -> float:
        """Of a token that a model reads."""
        return FORWARD_SHARE * self.step.full_precision_s / self.tokens


@dataclass(frozen=True)
class OwnAsked:
    """What every arm is asked in the team's own terms; tokens estimated from the texts' bytes."""

    prompts: int
    prompt_tokens: float
    answer_tokens: int
    questions: int
    question_tokens: float

    def __str__(self) -> str:
        parts = []
        if self.prompts:
            parts.append(
                f"{number_of(self.prompts, 'own prompt')}, up to "
                f"{number_of(self.answer_tokens, 'token', form=',')}"
            )
        if self.questions:
            parts.append(f"{number_of(self.questions, 'question')} of tasks")
        return ", ".join(parts)


def arm_bytes(arm: str, parameters: int) -> float:
    """Of an arm's weights in memory."""
    return PACKED_BYTES.get(arm, BF16_BYTES) * parameters


def asked_in_own_terms(pilot: Pilot) -> OwnAsked:
    """Of the files of ``prompts`` and ``tasks``. Raises ConfigError for one that is wrong."""
    prompts = read_prompts(pilot.prompts)
    rows = [row for task in pilot.tasks.values() for row in read_task(task)]
    read = sum(_size(row.asked) + _size(text) for row in rows for text in row.continuations)
    return OwnAsked(
        prompts=len(prompts),
        prompt_tokens=sum(_size(own.text) for own in prompts) / BYTES_A_TOKEN,
        answer_tokens=sum(own.max_tokens or pilot.prompts.max_tokens for own in prompts),
        questions=len(rows),
        question_tokens=read / BYTES_A_TOKEN,
    )


def decode_s(pilot: Pilot, config: PretrainedConfig, parameters: int, device: str) -> float:
    """Of a token in full precision: the weights, read as fast as this machine reads them, and
    what each layer takes beside that."""
    if device == "cuda":
        gbps, _ = gpu_read_bandwidth_gbps(BUFFER_MIB, READS)
    else:
        threads = measurement_threads(pilot.readiness.threads)
        gbps, _ = read_bandwidth_gbps(threads, bandwidth_buffer(BUFFER_MIB), READS)
    return BF16_BYTES * parameters / (max(gbps) * 1e9) + LAYER_S * config.num_hidden_layers


def stage_times(
    pilot: Pilot, config: PretrainedConfig, parameters: int, speeds: Speeds, asked: OwnAsked
) -> dict[str, LeastMost]:
    """Seconds (least, most) of each stage, in their order.

    config, parameters: of the model that is trained, or compared with a ready one.
    """
    deploy, waiting = pilot.deploy_rollback, _wait_s(pilot)
    training = training_s(pilot, parameters, speeds)
    plan = _hybrid_s(pilot, config, parameters, speeds)
    # What is served stays up for the ways back; a search of the queue has a time of its own.
    back = min(deploy.drill.budget_s, WAY_S * len(deploy.drill.ways)) + deploy.tuning.budget_s
    served = SERVER_S + deploy.duration_s
    return {
        "readiness": _readiness_s(pilot),
        "profile_load": (FIXED_S / 5, FIXED_S),
        "train_qat": (training, 1.5 * training + FIXED_S),
        "measure_ab": _measure_s(pilot, parameters, speeds, asked),
        "hybrid_plan": (plan / 2, 2 * plan + FIXED_S),
        "deploy_rollback": (served + back / 2, served + 2 * back + waiting + FIXED_S),
        "report": (1.0, FIXED_S),
    }


def _wait_s(pilot: Pilot) -> float:
    """Of one session, for a quiet machine, at most."""
    quiet = pilot.readiness.quiet
    return quiet.wait_s if quiet.action == "wait" else 0.0


def _readiness_s(pilot: Pilot) -> LeastMost:
    probe = pilot.readiness.probe
    if not probe.enabled:
        return FIXED_S / 2, FIXED_S
    # Its shape is chosen so that the time holds so many blocks; fewer take that share of it.
    whole = probe.budget_s * min(1.0, probe.repetitions / ENDED_BY_BUDGET)
    return FIXED_S / 2, FIXED_S + whole + _wait_s(pilot)


def training_s(pilot: Pilot, parameters: int, speeds: Speeds) -> float:
    """Both arms' training with every seed, the sweep before it, and the arms that need none."""
    train, model = pilot.train, pilot.model
    judged = train.eval_sequences * pilot.data.sequence_length * speeds.read_s
    own = model.checkpoint is not None and model.ternary is None
    saved = ["int8", "int4", "post_training", *(["checkpoint"] if own else [])]
    untrained = 2 * judged if own else judged  # the checkpoint as it came; post-training
    if model.ternary is not None:
        # Full precision as it came and the ready model, in the place of the trained arms.
        return 3 * judged + (len(saved) + 2) * PACK_S * parameters
    both = _arm_s(pilot, speeds, "full_precision") + _arm_s(pilot, speeds, "ternary")
    sweep = 0.0
    if why_no_sweep(train) is None and train.rate_sweep.rates:
        tried = sweep_steps(train) * train.share[1] * _step_s(pilot, speeds, "ternary")
        held = train.rate_sweep.sequences * pilot.data.sequence_length * speeds.read_s
        sweep = len(train.rate_sweep.rates) * (tried + held)
    packing = (len(saved) + 3) * PACK_S * parameters  # both trained arms, and the masters
    return train.seeds * both + sweep + untrained + packing


def told(pilot: Pilot, speeds: Speeds, asked: OwnAsked) -> dict[str, str]:
    """What the times of stages are made of, for a person."""
    ab, step = pilot.measure_ab, speeds.step
    arms = f"{number_of(len(ab.own_arms), 'arm')}"
    found = {"measure_ab": f"{arms}; {asked}" if str(asked) else arms}
    if pilot.model.ternary is not None:
        return found | {"train_qat": "nothing is trained: model.ternary"}
    each = f"{step.full_precision_s + step.ternary_s:.2g} s a step of both arms, {step.how}"
    if pilot.train.seeds > 1:
        each += f"; {number_of(pilot.train.seeds, 'seed')}"
    if why_no_sweep(pilot.train) is None and (rates := pilot.train.rate_sweep.rates):
        each += f"; {number_of(len(rates), 'rate')} tried before"
    found["train_qat"] = each
    if trains_a_hybrid(pilot):
        again = clock(_arm_s(pilot, speeds, "ternary"))
        found["hybrid_plan"] = f"with a training of the hybrid, about {again}"
    return found


def _step_s(pilot: Pilot, speeds: Speeds, arm: str) -> float:
    step = speeds.step
    if arm == "full_precision":
        return step.full_precision_s
    taught = pilot.train.distillation.teacher != "none"
    return step.ternary_s + (FORWARD_SHARE * step.full_precision_s if taught else 0.0)


def _arm_s(pilot: Pilot, speeds: Speeds, arm: str) -> float:
    """One training, judged on its way and once more when it is done, and what is calibrated for it:
    its start or, of the full-precision arm, its post-training weights."""
    train = pilot.train
    sequences = (train.evaluations + 1) * train.eval_sequences
    sequences += COMPENSATED_PASSES * train.compensated_start.sequences
    read = sequences * pilot.data.sequence_length
    steps = train.steps * train.share[1]
    return steps * _step_s(pilot, speeds, arm) + read * speeds.read_s


def _measure_s(pilot: Pilot, parameters: int, speeds: Speeds, asked: OwnAsked) -> LeastMost:
    ab, length = pilot.measure_ab, pilot.data.sequence_length
    arms = ab.own_arms
    block = _block_s(pilot, speeds)
    session = ab.budget_s
    if ab.blocks < ENDED_BY_BUDGET:
        session = min(session, ab.blocks * block)
    budget = session + (ab.load.budget_s if ab.load.blocks else 0.0)
    waiting = _wait_s(pilot) * (2 if ab.load.blocks else 1)
    # A prompt is read to be answered, and once more with the reference's answer behind it.
    read = ab.quality_documents * length + asked.question_tokens
    read += 2 * asked.prompt_tokens + asked.answer_tokens
    reading = len(arms) * read * speeds.read_s
    writing = asked.answer_tokens * speeds.decode_s
    # With the kernels an arm writes as much faster as it is smaller; without, as fast as bf16.
    quick = writing * sum(arm_bytes(ab.model_of(arm), 1) for arm in arms) / BF16_BYTES
    loading = len(arms) * (LOAD_S + 2 * PACK_S * parameters)
    return (
        budget / 2 + reading / 4 + quick + loading / 2,  # the engine reads quicker than a training
        reading + 2 * (budget + len(arms) * writing) + loading + waiting + FIXED_S,
    )


def _block_s(pilot: Pilot, speeds: Speeds) -> float:
    """Of a block of the session: every arm, and the baseline again, takes a turn in each class."""
    ab = pilot.measure_ab
    sizes = [1] * len(ab.interactive_output_tokens) + ab.batch_sizes
    steps = sum(ab.interactive_output_tokens) + len(ab.batch_sizes) * ab.batch_output_tokens
    prompt = ab.prompt_tokens or min(USUAL_PROMPT, pilot.data.sequence_length)
    reading = sum(sizes) * prompt * speeds.read_s
    return ab.turns_of_a_block * TURN_S + (len(ab.own_arms) + 1) * (
        reading + steps * speeds.decode_s
    )


def _hybrid_s(pilot: Pilot, config: PretrainedConfig, parameters: int, speeds: Speeds) -> float:
    section, blocks = pilot.hybrid_plan, config.num_hidden_layers
    units = blocks if section.granularity == "block" else LINEARS_OF_A_BLOCK * blocks
    once = section.sequences * pilot.data.sequence_length * speeds.read_s
    judged = units * (len(section.precisions) - 1) * once
    if trains_a_hybrid(pilot):
        return judged + _arm_s(pilot, speeds, "ternary") + 3 * PACK_S * parameters
    bases = 1 if pilot.model.ternary is not None else 2  # a ready model is taken as it is
    return bases * judged + PACK_S * parameters


def trains_a_hybrid(pilot: Pilot) -> bool:
    """Whether the plan comes first and one more training has it in place."""
    if pilot.model.ternary is not None:
        return False
    if pilot.hybrid_plan.when is None:
        return pilot.model.checkpoint is not None
    return pilot.hybrid_plan.when == "before_training"


def _size(text: str) -> int:
    return len(text.encode())
