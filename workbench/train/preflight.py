"""What is known to stand in the way of a training before anything is read or computed.

The pilot's own sections refuse what is wrong by itself; here is what only other parts can tell:
packages, GPUs, the checkpoint, the tokenizer, the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from workbench.data.chat import chat_tokens, no_template
from workbench.data.corpus import require_documents
from workbench.data.document import Document
from workbench.data.hub import PREFIX, require_datasets
from workbench.data.tokenizer import load_tokenizer, tokenizer_name, vocabulary_size
from workbench.errors import ConfigError
from workbench.machine.device import DeviceName, choose_device
from workbench.machine.gpu import free_gpu_memory, torch_gpu_memory
from workbench.model.build import empty_model, preset_config, refuse_overrides
from workbench.model.checkpoint import checkpoint_config, require_fit
from workbench.pilot.spec import Pilot
from workbench.ternary import ThresholdVersion
from workbench.ternary.fused import plain_reason
from workbench.ternary.master import require_plain_master
from workbench.ternary.policy import require_ternary
from workbench.train.memory_plan import require_memory
from workbench.train.processes import require_devices
from workbench.train.quiet import quiet_transformers
from workbench.train.trackers import require_trackers
from workbench.train.trainer import require_optimizer


def require_trainable(pilot: Pilot) -> None:
    """Raises ConfigError for what cannot be trained."""
    data, device = pilot.data, choose_device(pilot.readiness.device).name
    require_optimizer(pilot.train.optimizer)
    require_trackers(pilot.train.trackers)
    require_devices(pilot.train, device)
    _require_teacher(pilot)
    _require_int8_gradients(pilot, device)
    _require_phases_fit(pilot)
    _require_compensated_start_fits(pilot)
    _require_shards_fit(pilot)
    for part in data.parts:
        if part.corpus.startswith(PREFIX):
            require_datasets(part.corpus)
    first = require_documents(data)
    with quiet_transformers():
        _require_model(pilot)
        _require_conversations(pilot, first)


def plan_memory(pilot: Pilot, device: DeviceName, say: Callable[[str], None]) -> None:
    """StageError unless both arms fit the GPU that will train them; ``say`` is told the plan."""
    if device == "cpu":
        return
    if pilot.model.checkpoint is None:
        config = preset_config(pilot.model, _vocabulary(pilot), pilot.data.sequence_length)
    else:
        config = checkpoint_config(pilot.model.checkpoint, ask_hub=True)
    length, free_bytes = pilot.data.sequence_length, _free_on_each(pilot)
    require_memory(config, pilot.model, pilot.train, length, free_bytes, say)


def idle_gpus(pilot: Pilot, device: DeviceName) -> str | None:
    """A note where there are more GPUs than the training uses."""
    visible, used = torch.cuda.device_count(), pilot.train.launch.processes
    if device == "cpu" or visible <= used:
        return None
    return (
        f"{visible} GPUs are visible and the training uses {used}: train.launch.processes says how "
        "many, each with an equal part of every step; the step itself stays as it is"
    )


def has_new_norms(pilot: Pilot) -> bool:
    """The ternary arm begins with untrained norms in pretrained layers; see the schedule."""
    return pilot.model.sub_norm and pilot.model.checkpoint is not None


def _require_teacher(pilot: Pilot) -> None:
    distillation = pilot.train.distillation
    if distillation.teacher == "checkpoint" and pilot.model.checkpoint is None:
        raise ConfigError(
            "train.distillation.teacher: checkpoint, but model.checkpoint is null",
            allowed="none, full_precision, or a model.checkpoint",
            next_step="name the checkpoint, or take full_precision, the arm trained in this run",
        )
    if distillation.teacher == "none" and distillation.attention_weight > 0:
        raise ConfigError(
            "train.distillation.attention_weight: "
            f"{distillation.attention_weight:g}, but there is no teacher",
            allowed="0 without a teacher",
            next_step="set train.distillation.teacher to full_precision or checkpoint",
        )


def _require_int8_gradients(pilot: Pilot, device: DeviceName) -> None:
    model = pilot.model
    rotation = 0 if model.threshold.rotation == "none" else model.threshold.rotation
    reason = plain_reason(model.threshold.rule, model.activations, device, rotation)
    if pilot.train.int8_gradients and reason:
        raise ConfigError(
            f"train.int8_gradients: true, but {reason}",
            allowed="a CUDA device, model.threshold.rule absmean without a rotation, "
            "model.activations int8",
            next_step="set train.int8_gradients to false, or train on a GPU machine",
        )


def _require_compensated_start_fits(pilot: Pilot) -> None:
    model, sequences = pilot.model, pilot.train.compensated_start.sequences
    rule = model.threshold.rule
    against = [
        (model.checkpoint is None, "model.checkpoint is null", "a checkpoint"),
        (rule != "absmean", f"model.threshold.rule is {rule}", "absmean"),
        (model.sub_norm, "model.sub_norm is true", "false: new norms have to learn first"),
    ]
    for is_so, what, allowed in against:
        if sequences and is_so:
            raise ConfigError(
                f"train.compensated_start.sequences: {sequences}, but {what}",
                allowed=allowed,
                next_step="set train.compensated_start.sequences to 0",
            )


def _require_shards_fit(pilot: Pilot) -> None:
    launch, rule = pilot.train.launch, pilot.model.threshold.rule
    if launch.is_sharded and rule == "learned":
        raise ConfigError(
            f"train.launch.strategy: {launch.strategy}, but model.threshold.rule is learned",
            allowed="absmean, absmedian or twn: a learned scale starts in the middle of a step, "
            "from the whole weight, where no shard is written to",
            next_step="set train.launch.strategy to ddp, or choose another rule",
        )


def _require_phases_fit(pilot: Pilot) -> None:
    train = pilot.train
    shares = [train.sub_norm_warmup.share, train.warmup.share, train.threshold.share]
    if has_new_norms(pilot) and sum(shares) > 1:
        raise ConfigError(
            f"model.sub_norm in a checkpoint: train.sub_norm_warmup.share {shares[0]:g}, "
            f"warmup.share {shares[1]:g} and threshold.share {shares[2]:g} exceed 1 together",
            next_step="lower one of them",
        )


def _require_conversations(pilot: Pilot, first: list[Document]) -> None:
    """The corpus begins with conversations that the tokenizer's template can write."""
    conversations = [document for document in first if document.messages]
    name = tokenizer_name(pilot.data, pilot.model.checkpoint)
    if not conversations or (name and name.startswith(PREFIX)):
        return  # what lies on the Hub is seen when it is loaded
    if name is None:
        raise no_template(f"corpus {pilot.data.described}")
    tokenizer = load_tokenizer(name)
    for document in conversations:
        chat_tokens(tokenizer, document.messages, f"conversation {document.id}")


def _require_model(pilot: Pilot) -> None:
    """There is such a model, the text fits it, and it has layers to make ternary.

    Seen without its weights, so in no time; what lies on the Hub is seen when it is loaded.
    """
    data, model = pilot.data, pilot.model
    if model.checkpoint is None:
        config = preset_config(model, _vocabulary(pilot), data.sequence_length)
    elif model.checkpoint.startswith(PREFIX):
        refuse_overrides(model)
        if data.tokenizer:
            load_tokenizer(data.tokenizer)
        return
    else:
        refuse_overrides(model)
        threshold = ThresholdVersion.from_section(model.threshold)
        require_plain_master(Path(model.checkpoint), threshold)
        config = checkpoint_config(model.checkpoint)
        require_fit(
            config,
            _vocabulary(pilot),
            data.sequence_length,
            model.checkpoint,
            trained_tokenizer=tokenizer_name(data, model.checkpoint) is None,
        )
    require_ternary(model.policy, empty_model(model, config))


def _vocabulary(pilot: Pilot) -> int:
    """Rows that an embedding needs; of a tokenizer that is yet to be trained, at most."""
    name = tokenizer_name(pilot.data, pilot.model.checkpoint)
    return vocabulary_size(load_tokenizer(name)) if name else pilot.data.vocab_size


def _free_on_each(pilot: Pilot) -> int:
    """Free bytes of the fullest GPU that will train."""
    free = torch_gpu_memory()[0]
    if pilot.train.launch.processes == 1:
        return free
    return min(free, *free_gpu_memory()[: pilot.train.launch.processes])
