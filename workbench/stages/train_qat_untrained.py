"""Arms of ``train_qat`` without training: a checkpoint as it came, INT8, INT4, ternary.

INT8 and INT4 are what teams take instead of training: of a checkpoint they are made before the
pilot trains anything, so that they are today's model in 8 and 4 bits; of a preset, which knows
nothing before its training, they are made of the trained baseline. So are post-training ternary
weights.
"""

from __future__ import annotations

import zlib

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.data.tokenizer import document_start, vocabulary_size
from workbench.model.build import build_model
from workbench.pilot.sections.model import Model
from workbench.stages.context import StageContext
from workbench.ternary import ThresholdVersion
from workbench.ternary.folder import replacing_folder
from workbench.ternary.packed import save_packed
from workbench.ternary.policy import Precision, require_ternary, resolve
from workbench.train.quality import document_losses
from workbench.train.quiet import quiet_transformers
from workbench.train.setup import TrainingSetup
from workbench.train.untrained import ternarize_untrained


def fresh_model(
    context: StageContext, section: Model, setup: TrainingSetup, arm: str
) -> PreTrainedModel:
    """The model both arms start from; the digest of its weights goes into the facts."""
    rows, length = vocabulary_size(setup.tokenizer), setup.sequence_length
    with quiet_transformers():
        model = build_model(
            section, rows, length, context.pilot.seed, setup.device, say=context.note
        )
    require_ternary(section.policy, model)  # a model of the Hub is seen here first
    if section.checkpoint is None:
        _take_special_tokens(model, setup.tokenizer)
    total = 0
    for parameter in model.parameters():
        total = zlib.crc32(parameter.detach().cpu().contiguous().numpy(), total)
    context.record.facts.setdefault("initial_weights_crc32", {})[arm] = total
    return model


def _take_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """What begins and ends a document, for whoever serves the model: a new one cannot know."""
    for config in filter(None, (model.config, model.generation_config)):
        if config.eos_token_id is None:
            config.bos_token_id = document_start(tokenizer)
            config.eos_token_id = tokenizer.eos_token_id


def save_as_it_came(
    context: StageContext, model: PreTrainedModel, setup: TrainingSetup
) -> pd.DataFrame:
    """The checkpoint, untrained, as an arm, in INT8 and in INT4; its losses on every excerpt."""
    save_model(context, model, "checkpoint", setup)
    save_rounded(context, model, setup)
    return document_losses(model, setup.tokenizer, setup.excerpts, setup.sequence_length)


def save_model(
    context: StageContext, model: PreTrainedModel, name: str, setup: TrainingSetup
) -> None:
    """A Hugging Face folder, as the artefact ``name``."""
    with quiet_transformers(), replacing_folder(context.folder / name) as partial:
        model.save_pretrained(partial)
        setup.tokenizer.save_pretrained(partial)
    context.record.artefacts[name] = name


def save_rounded(context: StageContext, model: PreTrainedModel, setup: TrainingSetup) -> None:
    """The model with INT8, and with INT4, in the place of all that the policy would make ternary
    or INT8: what can be had without training. Embedding and head are INT8 in both."""
    section = context.pilot.model
    threshold = ThresholdVersion.from_section(section.threshold)
    chosen = resolve(section.policy, model).precisions
    tables = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for arm in ("int8", "int4"):
        precisions: dict[str, Precision] = {}
        for name, precision in chosen.items():
            is_table = id(model.get_submodule(name)) in tables
            if precision != "high_precision":
                precision = "int8" if is_table else arm
            precisions[name] = precision
        save_packed(model, context.folder / arm, precisions, threshold, setup.tokenizer)
        context.record.artefacts[arm] = arm


def save_post_training(
    context: StageContext, model: PreTrainedModel, setup: TrainingSetup
) -> pd.DataFrame:
    """The model, which is changed, made ternary without training; its losses on every excerpt."""
    report = ternarize_untrained(model, context.pilot.model, setup, context.progress)
    folder = context.folder / "post_training"
    save_packed(model, folder, report.precisions, report.threshold, setup.tokenizer)
    context.record.artefacts["post_training"] = "post_training"
    return document_losses(model, setup.tokenizer, setup.excerpts, setup.sequence_length)
