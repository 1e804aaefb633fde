"""Arms of ``train_qat`` without training: a checkpoint as it came, INT8, post-training ternary.

INT8 is what teams take instead of training: of a checkpoint it is made before the pilot trains
anything, so that it is today's model in INT8; of a preset, which knows nothing before its
training, it is the trained baseline.
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
from workbench.ternary.policy import require_ternary, resolve
from workbench.ternary.post_training import CALIBRATION_SEQUENCES, ternarize_post_training
from workbench.train.quality import document_losses
from workbench.train.quiet import quiet_transformers
from workbench.train.setup import TrainingSetup


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
    """The checkpoint, untrained, as an arm, and its INT8 form; its losses on every excerpt."""
    save_model(context, model, "checkpoint", setup)
    save_int8(context, model, setup)
    return document_losses(model, setup.tokenizer, setup.excerpts, setup.sequence_length)


def save_model(
    context: StageContext, model: PreTrainedModel, name: str, setup: TrainingSetup
) -> None:
    """A Hugging Face folder, as the artefact ``name``."""
    with quiet_transformers(), replacing_folder(context.folder / name) as partial:
        model.save_pretrained(partial)
        setup.tokenizer.save_pretrained(partial)
    context.record.artefacts[name] = name


def save_int8(context: StageContext, model: PreTrainedModel, setup: TrainingSetup) -> None:
    """The model with INT8 in the place of all that the policy would make ternary or INT8: what
    can be had without training."""
    section = context.pilot.model
    precisions = {
        name: precision if precision == "high_precision" else "int8"
        for name, precision in resolve(section.policy, model).precisions.items()
    }
    threshold = ThresholdVersion.from_section(section.threshold)
    save_packed(model, context.folder / "int8", precisions, threshold, setup.tokenizer)
    context.record.artefacts["int8"] = "int8"


def save_post_training(
    context: StageContext, model: PreTrainedModel, setup: TrainingSetup
) -> pd.DataFrame:
    """The model, which is changed, made ternary without training; its losses on every excerpt."""
    section = context.pilot.model
    ids_BT = setup.first_sequences(CALIBRATION_SEQUENCES)
    report = ternarize_post_training(
        model,
        section.policy,
        activations=section.activations,
        calibration=ids_BT.to(model.device).split(4),
    )
    folder = context.folder / "post_training"
    save_packed(model, folder, report.precisions, report.threshold, setup.tokenizer)
    context.record.artefacts["post_training"] = "post_training"
    return document_losses(model, setup.tokenizer, setup.excerpts, setup.sequence_length)
