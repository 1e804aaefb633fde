"""``model.ternary``: a ready ternary model in the place of the trained one; nothing is trained.

The full-precision arm is ``model.checkpoint`` as it came, beside it what can be had of it without
training (INT8, post-training ternary), and the ternary arm is the ready model, its codes as they
are. Later stages find the artefacts that a training leaves, but for the master weights.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.data.tokenizer import encode, load_tokenizer, tokenizer_name, vocabulary_size
from workbench.engine.ready_ternary import HUB, load_ready_ternary, local_path, ready_config
from workbench.errors import ConfigError, StageError
from workbench.model.checkpoint import require_fit
from workbench.pilot.sections.data import Data
from workbench.pilot.spec import Pilot
from workbench.stages.context import StageContext
from workbench.stages.train_qat_record import record_quality, record_ternary_share
from workbench.stages.train_qat_untrained import (
    fresh_model,
    save_model,
    save_post_training,
    save_rounded,
)
from workbench.ternary.packed import load_packed, save_packed
from workbench.train.quality import bits_per_byte, document_losses
from workbench.train.quiet import quiet_transformers
from workbench.train.setup import TrainingSetup

CHANCE = 8.0
"""Bits per byte of who knows nothing of the text; above it a model does worse than that."""


def require_ready(pilot: Pilot) -> None:
    """Raises ConfigError or StageError for a ready model that is none, or has nothing to be
    compared with; its weights are not read."""
    model = pilot.model
    if model.ternary is None:
        return
    if model.checkpoint is None:
        raise ConfigError(
            f"model.ternary {model.ternary} without model.checkpoint",
            allowed="beside the full-precision model that it is compared with",
            next_step="name that as model.checkpoint: the model it was made from, or what it is "
            "to take the place of",
        )
    if HUB in (model.checkpoint[:3], model.ternary[:3]):
        return  # seen when they are fetched
    name = tokenizer_name(pilot.data, model.checkpoint)
    if name is None:
        raise ConfigError(
            f"model.checkpoint {model.checkpoint} has no tokenizer, and a ready ternary model "
            "knows the tokens it was trained with alone",
            next_step="set data.tokenizer to the models' own tokenizer",
        )
    with quiet_transformers():
        config = ready_config(Path(model.ternary)).get_text_config()
        rows = vocabulary_size(load_tokenizer(name))
    require_fit(config, rows, pilot.data.sequence_length, model.ternary)


def take_in_ready(context: StageContext, setup: TrainingSetup) -> None:
    """Fill the artefacts and figures of ``train_qat`` without a training."""
    section, record = context.pilot.model, context.record
    context.note(f"nothing is trained: the ternary arm is {section.ternary}, taken as it is")
    path = local_path(str(section.ternary))
    losses: dict[str, pd.DataFrame] = {}
    model = fresh_model(context, section, setup, "full_precision")
    save_model(context, model, "full_precision", setup)
    save_rounded(context, model, setup)
    losses["full_precision"] = _losses(model, setup)
    losses["post_training"] = save_post_training(context, model, setup)
    del model
    _require_same_tokens(path, setup.tokenizer, setup.excerpts)
    with quiet_transformers():
        ready = load_ready_ternary(path, context.note)
        save_packed(
            ready.model, context.folder / "ternary", ready.precisions, ready.threshold,
            setup.tokenizer,
        )  # fmt: skip
    record.artefacts["ternary"] = "ternary"
    record.facts["ready_ternary"] = {"path": str(section.ternary), "format": ready.format}
    record.facts["conversion"] = {
        "threshold": ready.threshold.id,
        "ternary_layers": sum(its == "ternary" for its in ready.precisions.values()),
        "ternary_parameters": ready.ternary_parameters,
        "body_parameters": ready.body_parameters,
    }
    record_ternary_share(context, ready.ternary_parameters, ready.body_parameters)
    del ready
    with quiet_transformers():
        losses["ternary"] = _losses(load_packed(record.artefact("ternary")), setup)
    if (found := bits_per_byte(losses["ternary"])) > CHANCE:
        context.note(
            f"{path} has {found:.1f} bits per byte on the held-out text, more than chance "
            f"({CHANCE:g}): it answers gibberish, as a model does whose format leaves out a "
            "transform or whose text is of another kind"
        )
    record_quality(record, losses, "as it came")


def _losses(model: PreTrainedModel, setup: TrainingSetup) -> pd.DataFrame:
    return document_losses(model, setup.tokenizer, setup.excerpts, setup.sequence_length)


def _require_same_tokens(
    path: Path, tokenizer: PreTrainedTokenizerBase, excerpts: pd.DataFrame
) -> None:
    """StageError where the ready model brings a tokenizer that reads other tokens: the arms are
    judged and served with one."""
    own = tokenizer_name(Data(), str(path))
    if own is None:  # it brings none
        return
    texts = list(excerpts["text"])
    for text, ours, theirs in zip(
        texts, encode(tokenizer, texts), encode(load_tokenizer(own), texts), strict=True
    ):
        if ours != theirs:
            place = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            raise StageError(
                f"model.ternary {path} reads other tokens than the pilot's tokenizer, first at "
                f"token {place} of a held-out text that begins {text[:40]!r}",
                allowed="the tokens of the model it is compared with",
                next_step="name the full-precision model it was made from as model.checkpoint, or "
                "measure one of the two behind its own server (an address in measure_ab.arms)",
            )
