"""Stage 2: a full-precision baseline and a ternary model at equal tokens.

Corpus -> tokenizer -> tokens -> the two arms -> what later stages need of them: the trained
models, the same baseline made ternary and INT8 without training, and the held-out text.
Everything made on the way stays in the stage's folder, so a killed stage goes on where it
stopped.

Both arms start from the same weights, see the same batches and are judged on the same text.
That is checked on what happened (digests of the weights and of every batch), not assumed.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.data.corpus import Corpus, CorpusPart, read_corpus
from workbench.data.dataset import judged_of, parts_of, write_tokens
from workbench.data.document import documents_frame
from workbench.data.tokenizer import (
    changes_text,
    load_tokenizer,
    make_tokenizer,
    tokenizer_name,
    vocabulary_size,
)
from workbench.measure.meters.metering import Metering, metering_of
from workbench.model.checkpoint import load_checkpoint
from workbench.pilot.spec import Pilot
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.stages.metered import stage_meters, step_load, trusted
from workbench.stages.train_qat_leaks import record_leaks
from workbench.stages.train_qat_ready import require_ready, take_in_ready
from workbench.stages.train_qat_record import (
    record_arms,
    record_conversion,
    record_gradient_errors,
)
from workbench.stages.train_qat_seeds import train_other_seeds
from workbench.stages.train_qat_sweep import at_best_rate
from workbench.stages.train_qat_untrained import (
    fresh_model,
    save_as_it_came,
    save_model,
    save_post_training,
    save_rounded,
)
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.folder import replacing_folder
from workbench.ternary.fused import why_plain
from workbench.ternary.manifest import NAME as MANIFEST
from workbench.ternary.master import save_master
from workbench.ternary.packed import save_packed
from workbench.ternary.token_counts import count_tokens, save_token_counts
from workbench.train.arm import train_arm
from workbench.train.distill import as_teacher, attention_projections
from workbench.train.evaluator import Evaluator
from workbench.train.int8_gradients import gradient_errors, set_int8_gradients
from workbench.train.preflight import has_new_norms, idle_gpus, plan_memory, require_trainable
from workbench.train.quiet import quiet_transformers
from workbench.train.rate_sweep import why_no_sweep
from workbench.train.setup import TrainingSetup, corpus_summary, heldout_excerpts

TOKENIZER = "tokenizer"
GRADIENT_SEQUENCES = 2
"""Training sequences whose gradients are compared for train.int8_gradients."""


def check(pilot: Pilot) -> list[str]:
    """Raises ConfigError for what cannot be trained or taken in, before any stage has started."""
    require_ready(pilot)
    require_trainable(pilot)
    return []


def run(context: StageContext) -> None:
    """Fill the tables, artefacts and figures of ``train_qat`` (docs/design.md)."""
    pilot, record, progress = context.pilot, context.record, context.progress
    device = context.device.name
    if pilot.model.ternary is None:
        plan_memory(pilot, device, progress.note)
        if note := idle_gpus(pilot, device):
            context.note(note)
    corpus = read_corpus(pilot.data, pilot.seed)
    tokenizer = _tokenizer(context, corpus)
    tokens = write_tokens(context.folder / "tokens.npy", tokenizer, corpus.training, progress)
    judged = judged_of(context.folder / "tokens.npy")
    progress.note(corpus_summary(corpus, tokens, judged))
    for part in corpus.parts:
        if part.name or (part.files and part.files.left_out):
            record.notes.append(str(part))  # said in the summary already
    record.facts["corpus"] = _corpus_facts(pilot, corpus, tokens, tokenizer)
    if judged is not None:
        record.facts["corpus"]["answer_tokens"] = int(judged.sum())
    record.save_table("heldout", documents_frame(corpus.heldout))
    record_leaks(context, corpus.leaks)
    length = pilot.data.sequence_length
    setup = TrainingSetup(
        train=pilot.train,
        seed=pilot.seed,
        tokens=tokens,
        judged=judged,
        parts=parts_of(context.folder / "tokens.npy", pilot.data),
        sequence_length=length,
        tokenizer=tokenizer,
        excerpts=heldout_excerpts(corpus, tokens, length, pilot.train.eval_sequences),
        new_norms=has_new_norms(pilot),
        device=device,
    )
    if pilot.model.ternary is not None:
        take_in_ready(context, setup)
    else:
        _train(context, setup)
    _keep_token_counts(record, tokens, vocabulary_size(tokenizer))


def _keep_token_counts(record: StageRecord, tokens: np.ndarray, vocabulary: int) -> None:
    """In each packed model of the record: what it may keep more precisely in memory."""
    counts = count_tokens(tokens, vocabulary)
    for name in record.artefacts:
        if (folder := record.artefact(name)).joinpath(MANIFEST).exists():
            save_token_counts(folder, counts)


def _train(context: StageContext, setup: TrainingSetup) -> None:
    losses: dict[str, pd.DataFrame] = {}
    with _metered(context) as metering:
        baseline = _train_baseline(context, setup, losses, metering)
        _free_memory()  # the baseline's weights may take a large part of it
        teacher = _teacher(context, setup)
        if why := why_no_sweep(setup.train):
            context.note(why)
        elif setup.train.rate_sweep.rates:
            with metering.window("rate_sweep"):
                setup = at_best_rate(context, setup, teacher)
        ternary = _train_ternary(context, setup, losses, metering, teacher)
    arms = {"full_precision": baseline, "ternary": ternary}
    record_arms(context, arms, losses, trusted(metering.rows(), metering.balances))
    train_other_seeds(context, setup, losses)


@contextmanager
def _metered(context: StageContext) -> Iterator[Metering]:
    """Meters beside both arms' training, idle before and after it."""
    gpus = range(context.pilot.train.launch.processes)
    with stage_meters(context, gpus) as meters:
        for text in meters.session.learn(step_load(context.device.name)):
            context.note(text)
        with metering_of(meters.session, context.folder / "metering") as metering:
            meters.balances = metering.balances
            metering.rest()
            yield metering
            metering.rest()


def _tokenizer(context: StageContext, corpus: Corpus) -> PreTrainedTokenizerBase:
    """The pilot's tokenizer, kept in the stage's folder from the first attempt on."""
    folder, record = context.folder / TOKENIZER, context.record
    data, checkpoint = context.pilot.data, context.pilot.model.checkpoint
    if data.tokenizer is None and tokenizer_name(data, checkpoint):
        context.note(f"the tokenizer is that of model.checkpoint {checkpoint}")
    if not folder.exists():
        made = make_tokenizer(data, corpus.training, checkpoint)
        with replacing_folder(folder) as partial:
            made.save_pretrained(partial)
    record.artefacts[TOKENIZER] = TOKENIZER
    tokenizer = load_tokenizer(str(folder))
    if changes_text(tokenizer, [document.text for document in corpus.heldout[:8]]):
        context.note(
            "the tokenizer does not give every text back unchanged: bits per byte compare arms "
            "of this run, not models with other tokenizers"
        )
    return tokenizer


def _corpus_facts(
    pilot: Pilot, corpus: Corpus, tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    return {
        "name": pilot.data.described,
        "digest": corpus.digest,
        "training_documents": len(corpus.training),
        "training_bytes": corpus.training_bytes,
        "training_tokens": len(tokens),
        "heldout_documents": len(corpus.heldout),
        "heldout_bytes": corpus.heldout_bytes,
        "copies_left_out": corpus.copies,
        "vocabulary": vocabulary_size(tokenizer),
        "parts": [_part_facts(part) for part in corpus.parts],
    }


def _part_facts(part: CorpusPart) -> dict[str, Any]:
    """Of one of the corpora that were read; files: taken and, by pattern, left out."""
    facts = {name: value for name, value in vars(part).items() if name != "files"}
    files = part.files
    return facts | ({"files": len(files.taken), "left_out": files.left_out} if files else {})


def _train_baseline(
    context: StageContext,
    setup: TrainingSetup,
    losses: dict[str, pd.DataFrame],
    metering: Metering,
) -> Evaluator:
    """The full-precision arm, and the same weights made ternary without training; of a checkpoint
    also what it is before any."""
    section = context.pilot.model
    model = fresh_model(context, section, setup, "full_precision")
    if section.checkpoint is not None:  # before its training: what can be had without any
        losses["checkpoint"] = save_as_it_came(context, model, setup)
    if (distillation := setup.train.distillation).attention_weight > 0:
        attention_projections(model, distillation.attention_layer)  # refused before it is paid for
    with metering.window("full_precision"):
        evaluator = train_arm(
            "full_precision", model, setup, context.folder / "full_precision_arm", context.progress
        )
    _free_memory()
    losses["full_precision"] = evaluator.losses(model, "master")
    save_model(context, model, "full_precision", setup)
    if section.checkpoint is None:
        save_rounded(context, model, setup)
    losses["post_training"] = save_post_training(context, model, setup)
    return evaluator


def _train_ternary(
    context: StageContext,
    setup: TrainingSetup,
    losses: dict[str, pd.DataFrame],
    metering: Metering,
    teacher: PreTrainedModel | None,
) -> Evaluator:
    section, record = context.pilot.model, context.record
    model = fresh_model(context, section, setup, "ternary")
    threshold = ThresholdVersion.from_section(section.threshold)
    report = to_ternary(model, section.policy, threshold, section.activations, section.sub_norm)
    context.progress.note(str(report))
    record_conversion(context, report)
    if setup.device == "cuda":
        if reason := why_plain(model):
            context.note(f"ternary layers train on the plain path, slower: {reason}")
        else:
            context.progress.note("ternary layers train with fused INT8 kernels at strength 1")
    int8 = setup.train.int8_gradients
    checked = [_gradient_check(context, setup, model, "before")] if int8 else []
    set_int8_gradients(model, int8)
    with metering.window("ternary"):
        evaluator = train_arm(
            "ternary", model, setup, context.folder / "ternary_arm", context.progress, teacher
        )
    _free_memory()
    if int8:
        checked.append(_gradient_check(context, setup, model, "after"))
        record.save_table("int8_gradients", pd.concat(checked, ignore_index=True))
    losses["ternary"] = evaluator.losses(model, "ternary")
    save_master(model, context.folder / "ternary_master", setup.tokenizer)
    save_packed(model, context.folder / "ternary", report.precisions, threshold, setup.tokenizer)
    record.artefacts |= {name: name for name in ("ternary_master", "ternary")}
    return evaluator


def _gradient_check(
    context: StageContext, setup: TrainingSetup, model: PreTrainedModel, moment: str
) -> pd.DataFrame:
    """Errors of INT8 gradients, rows of the table ``int8_gradients``."""
    ids_BT = setup.first_sequences(GRADIENT_SEQUENCES).to(model.device)
    autocast = torch.bfloat16 if setup.train.precision == "bfloat16" else None
    errors = gradient_errors(model, ids_BT, autocast)
    record_gradient_errors(context, errors, len(ids_BT), moment)
    return errors.assign(moment=moment)


def _teacher(context: StageContext, setup: TrainingSetup) -> PreTrainedModel | None:
    """The model that ``train.distillation`` names; what it is and costs goes into the facts."""
    kind = context.pilot.train.distillation.teacher
    if kind == "none":
        return None
    where = context.folder / kind if kind == "full_precision" else context.pilot.model.checkpoint
    context.record.facts["distillation"] = {
        "teacher": "the trained full-precision arm of this run"
        if kind == "full_precision"
        else f"model.checkpoint {where}",
        "cost": "the teacher's forward passes are inside the ternary arm's training_time_s "
        "(teacher_time_s, teacher_tokens); what the teacher's own training took is not",
    }
    with quiet_transformers():
        return as_teacher(load_checkpoint(str(where)), setup)


def _free_memory() -> None:
    """Give back what only cycles hold: a trainer, its optimizer, its model."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where no GPU computes
