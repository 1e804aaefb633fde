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
import math
import zlib
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.data.corpus import Corpus, read_corpus, require_documents
from workbench.data.dataset import write_tokens
from workbench.data.document import documents_frame
from workbench.data.hub import PREFIX, require_datasets
from workbench.data.tokenizer import (
    changes_text,
    load_tokenizer,
    make_tokenizer,
    tokenizer_name,
    vocabulary_size,
)
from workbench.errors import ConfigError, StageError
from workbench.machine.gpu import free_gpu_memory, torch_gpu_memory
from workbench.measure.statistics import bits_per_byte
from workbench.model.build import (
    build_model,
    checkpoint_config,
    empty_model,
    load_checkpoint,
    preset_config,
    refuse_overrides,
    require_fit,
)
from workbench.pilot.sections.model import Model
from workbench.pilot.spec import Pilot
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.folder import replacing_folder
from workbench.ternary.fused import plain_reason, why_plain
from workbench.ternary.master import require_plain_master, save_master
from workbench.ternary.packed import save_packed
from workbench.ternary.policy import require_ternary, resolve
from workbench.ternary.post_training import ternarize_post_training
from workbench.train.arm import TrainingSetup, train_arm
from workbench.train.distill import attention_projections
from workbench.train.evaluator import Evaluator
from workbench.train.guard import TABLE as GUARD
from workbench.train.int8_gradients import LARGEST_ERROR, gradient_errors, set_int8_gradients
from workbench.train.memory_plan import require_memory
from workbench.train.processes import require_devices
from workbench.train.quality import document_losses, excerpts
from workbench.train.quiet import quiet_transformers
from workbench.train.trackers import require_trackers
from workbench.train.trainer import require_optimizer

TOKENIZER = "tokenizer"
CALIBRATION_SEQUENCES = 16
"""Training sequences that weigh the errors of post-training ternarisation."""
GRADIENT_SEQUENCES = 2
"""Training sequences whose gradients are compared for train.int8_gradients."""


def check(pilot: Pilot) -> list[str]:
    """Raises ConfigError for what cannot be trained, before any stage has started."""
    data, model = pilot.data, pilot.model
    require_optimizer(pilot.train.optimizer)
    require_trackers(pilot.train.trackers)
    require_devices(pilot.train)
    if pilot.train.distillation.teacher == "checkpoint" and model.checkpoint is None:
        raise ConfigError(
            "train.distillation.teacher: checkpoint, but model.checkpoint is null",
            allowed="none, full_precision, or a model.checkpoint",
            next_step="name the checkpoint, or take full_precision, the arm trained in this run",
        )
    if pilot.train.distillation.teacher == "none" and pilot.train.distillation.attention_weight > 0:
        raise ConfigError(
            "train.distillation.attention_weight: "
            f"{pilot.train.distillation.attention_weight:g}, but there is no teacher",
            allowed="0 without a teacher",
            next_step="set train.distillation.teacher to full_precision or checkpoint",
        )
    reason = plain_reason(model.threshold.rule, model.activations, _device())
    if pilot.train.int8_gradients and reason:
        raise ConfigError(
            f"train.int8_gradients: true, but {reason}",
            allowed="a CUDA device, model.threshold.rule absmean, model.activations int8",
            next_step="set train.int8_gradients to false, or train on a GPU machine",
        )
    _require_phases_fit(pilot)
    if data.corpus.startswith(PREFIX):
        require_datasets(data.corpus)
    require_documents(data)
    with quiet_transformers():
        _require_model(pilot)
    return []


def run(context: StageContext) -> None:
    """Fill the tables, artefacts and figures of ``train_qat`` (docs/design.md)."""
    pilot, record = context.pilot, context.record
    _plan_memory(context)
    _note_idle_gpus(context)
    corpus = read_corpus(pilot.data, pilot.seed)
    tokenizer = _tokenizer(context, corpus)
    setup = _setup(context, corpus, tokenizer)
    record.save_table("heldout", documents_frame(corpus.heldout))

    losses: dict[str, pd.DataFrame] = {}
    baseline = _train_baseline(context, setup, losses)
    ternary = _train_ternary(context, setup, losses)
    _require_equal(context, baseline, ternary)

    arms = {"full_precision": baseline, "ternary": ternary}
    for table in ("loss", "evaluations"):
        frames = [
            evaluator.telemetry.frame(table).assign(arm=arm) for arm, evaluator in arms.items()
        ]
        record.save_table(table, pd.concat(frames, ignore_index=True))
    _record_guard(record, arms)
    for table in ("layers", "histograms"):
        record.save_table(table, ternary.telemetry.frame(table))
    _record_figures(context, arms, losses)


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
        require_fit(config, _vocabulary(pilot), data.sequence_length, model.checkpoint)
    require_ternary(model.policy, empty_model(model, config))


def _vocabulary(pilot: Pilot) -> int:
    """Rows that an embedding needs; of a tokenizer that is yet to be trained, at most."""
    name = tokenizer_name(pilot.data, pilot.model.checkpoint)
    return vocabulary_size(load_tokenizer(name)) if name else pilot.data.vocab_size


def _has_new_norms(pilot: Pilot) -> bool:
    return pilot.model.sub_norm and pilot.model.checkpoint is not None


def _require_phases_fit(pilot: Pilot) -> None:
    train = pilot.train
    shares = [train.sub_norm_warmup.share, train.warmup.share, train.threshold.share]
    if _has_new_norms(pilot) and sum(shares) > 1:
        raise ConfigError(
            f"model.sub_norm in a checkpoint: train.sub_norm_warmup.share {shares[0]:g}, "
            f"warmup.share {shares[1]:g} and threshold.share {shares[2]:g} exceed 1 together",
            next_step="lower one of them",
        )


def _plan_memory(context: StageContext) -> None:
    """Before anything is read: whether both arms fit the GPU that will train them."""
    pilot = context.pilot
    if _device() == "cpu":
        return
    if pilot.model.checkpoint is None:
        config = preset_config(pilot.model, _vocabulary(pilot), pilot.data.sequence_length)
    else:
        config = checkpoint_config(pilot.model.checkpoint, ask_hub=True)
    require_memory(
        config, pilot.model, pilot.train, pilot.data.sequence_length, _free_on_each(pilot),
        context.progress.note,
    )  # fmt: skip


def _free_on_each(pilot: Pilot) -> int:
    """Free bytes of the fullest GPU that will train."""
    free = torch_gpu_memory()[0]
    if pilot.train.processes == 1:
        return free
    return min(free, *free_gpu_memory()[: pilot.train.processes])


def _note_idle_gpus(context: StageContext) -> None:
    """Once, where there are more GPUs than the training uses."""
    visible, used = torch.cuda.device_count(), context.pilot.train.processes
    if _device() == "cpu" or visible <= used:
        return
    text = (
        f"{visible} GPUs are visible and the training uses {used}: train.processes says how many, "
        "each with an equal part of every step; the step itself stays as it is"
    )
    context.progress.note(text)
    context.record.notes.append(text)


def _device() -> str:
    """Where the Trainer trains (see training_arguments)."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _free_memory() -> None:
    """Give back what only cycles hold: a trainer, its optimizer, its model."""
    gc.collect()
    if _device() == "cuda":
        torch.cuda.empty_cache()


def _tokenizer(context: StageContext, corpus: Corpus) -> PreTrainedTokenizerBase:
    """The pilot's tokenizer, kept in the stage's folder from the first attempt on."""
    folder, record = context.folder / TOKENIZER, context.record
    data, checkpoint = context.pilot.data, context.pilot.model.checkpoint
    if data.tokenizer is None and tokenizer_name(data, checkpoint):
        record.notes.append(f"the tokenizer is that of model.checkpoint {checkpoint}")
    if not folder.exists():
        made = make_tokenizer(data, corpus.training, checkpoint)
        with replacing_folder(folder) as partial:
            made.save_pretrained(partial)
    record.artefacts[TOKENIZER] = TOKENIZER
    tokenizer = load_tokenizer(str(folder))
    if changes_text(tokenizer, [document.text for document in corpus.heldout[:8]]):
        record.notes.append(
            "the tokenizer does not give every text back unchanged: bits per byte compare arms "
            "of this run, not models with other tokenizers"
        )
    return tokenizer


def _setup(
    context: StageContext, corpus: Corpus, tokenizer: PreTrainedTokenizerBase
) -> TrainingSetup:
    pilot = context.pilot
    tokens = write_tokens(
        context.folder / "tokens.npy", tokenizer, corpus.training, context.progress
    )
    length = pilot.data.sequence_length
    characters = sum(len(document.text) for document in corpus.training)
    piece = max(1, length * characters // len(tokens))
    context.progress.note(
        f"{len(corpus.training)} documents to learn from ({corpus.training_bytes / 1e6:.1f} MB, "
        f"{len(tokens):,} tokens), {len(corpus.heldout)} held out"
    )
    context.record.facts["corpus"] = {
        "name": pilot.data.corpus,
        "digest": corpus.digest,
        "training_documents": len(corpus.training),
        "training_bytes": corpus.training_bytes,
        "training_tokens": len(tokens),
        "heldout_documents": len(corpus.heldout),
        "heldout_bytes": corpus.heldout_bytes,
        "copies_left_out": corpus.copies,
        "vocabulary": vocabulary_size(tokenizer),
    }
    return TrainingSetup(
        train=pilot.train,
        seed=pilot.seed,
        tokens=tokens,
        sequence_length=length,
        tokenizer=tokenizer,
        excerpts=excerpts(corpus.heldout, piece, pilot.train.eval_sequences),
        new_norms=_has_new_norms(pilot),
    )


def _train_baseline(
    context: StageContext, setup: TrainingSetup, losses: dict[str, pd.DataFrame]
) -> Evaluator:
    """The full-precision arm, and the same weights made ternary without training."""
    section, record = context.pilot.model, context.record
    model = _fresh_model(context, section, setup, "full_precision")
    if (distillation := setup.train.distillation).attention_weight > 0:
        attention_projections(model, distillation.attention_layer)  # refused before it is paid for
    evaluator = train_arm(
        "full_precision", model, setup, context.folder / "full_precision_arm", context.progress
    )
    _free_memory()
    losses["full_precision"] = evaluator.losses(model, "master")
    _save_model(model, context.folder / "full_precision", setup.tokenizer)
    _save_int8(model, context.folder / "int8", section, setup.tokenizer)

    ids_BT = _first_sequences(setup, CALIBRATION_SEQUENCES)
    report = ternarize_post_training(
        model,
        section.policy,
        activations=section.activations,
        calibration=ids_BT.to(model.device).split(4),
    )
    losses["post_training"] = document_losses(
        model, setup.tokenizer, setup.excerpts, setup.sequence_length
    )
    save_packed(
        model,
        context.folder / "post_training",
        report.precisions,
        report.threshold,
        setup.tokenizer,
    )
    record.artefacts |= {name: name for name in ("full_precision", "int8", "post_training")}
    return evaluator


def _first_sequences(setup: TrainingSetup, most: int) -> torch.Tensor:
    """Token ids [up to ``most``, sequence_length] of the training text."""
    length = setup.sequence_length
    whole = min(most, len(setup.tokens) // length) * length
    return torch.from_numpy(setup.tokens[:whole].astype("int64")).view(-1, length)


def _train_ternary(
    context: StageContext, setup: TrainingSetup, losses: dict[str, pd.DataFrame]
) -> Evaluator:
    section, record = context.pilot.model, context.record
    _free_memory()  # the baseline's weights may take a large part of it
    model = _fresh_model(context, section, setup, "ternary")
    threshold = ThresholdVersion.from_section(section.threshold)
    report = to_ternary(model, section.policy, threshold, section.activations, section.sub_norm)
    context.progress.note(str(report))
    record.facts["conversion"] = {
        "threshold": threshold.id,
        "ternary_layers": len(report.named("ternary")),
        "ternary_parameters": report.ternary_parameters,
        "parameters": report.parameters,
        "not_converted": report.reasons,
        "unmatched_patterns": report.unmatched,
    }
    if _device() == "cuda":
        reason = why_plain(model)
        path = f"plain path, slower: {reason}" if reason else "fused INT8 kernels at strength 1"
        context.progress.note(f"ternary layers train on the GPU's {path}")
        record.notes += [f"ternary layers trained on the plain path: {reason}"] if reason else []
    checked = [_gradient_check(context, setup, model, "before")]
    set_int8_gradients(model, setup.train.int8_gradients)
    teacher = _teacher(context)
    evaluator = train_arm(
        "ternary", model, setup, context.folder / "ternary_arm", context.progress, teacher
    )
    _free_memory()
    checked.append(_gradient_check(context, setup, model, "after"))
    if setup.train.int8_gradients:
        record.save_table("int8_gradients", pd.concat(checked, ignore_index=True))
    losses["ternary"] = evaluator.losses(model, "ternary")
    save_master(model, context.folder / "ternary_master", setup.tokenizer)
    save_packed(model, context.folder / "ternary", report.precisions, threshold, setup.tokenizer)
    record.artefacts |= {name: name for name in ("ternary_master", "ternary")}
    return evaluator


def _gradient_check(
    context: StageContext, setup: TrainingSetup, model: PreTrainedModel, moment: str
) -> pd.DataFrame | None:
    """Errors of INT8 gradients (table ``int8_gradients``); None where they are not asked for."""
    if not setup.train.int8_gradients:
        return None
    ids_BT = _first_sequences(setup, GRADIENT_SEQUENCES).to(model.device)
    autocast = torch.bfloat16 if setup.train.precision == "bfloat16" else None
    errors = gradient_errors(model, ids_BT, autocast)
    whole = float(errors["error"].iloc[-1])
    worst = errors.loc[errors["error"].iloc[:-1].fillna(math.inf).idxmax()]
    text = (
        f"gradient products in INT8, {moment} the training: the ternary layers' gradient errs by "
        f"{whole:.1%}, that of {worst['layer']}, the worst, by {worst['error']:.1%}"
    )
    if not whole <= LARGEST_ERROR:
        text += f"; above {LARGEST_ERROR:.0%}: set train.int8_gradients to false"
    context.progress.note(text)
    context.record.notes.append(text)
    how = f"gradients of {len(ids_BT)} training sequences with products in INT8 and without"
    name, unit = "int8_gradient_error", "share"
    if math.isfinite(whole):
        context.record.measured(name, whole, unit, how, n=len(errors) - 1, moment=moment)
    else:
        context.record.missing(name, unit, "the gradients are not finite", moment=moment)
    return errors.assign(moment=moment)


def _teacher(context: StageContext) -> PreTrainedModel | None:
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
        teacher = load_checkpoint(str(where))
    if _device() == "cuda" and context.pilot.train.precision == "bfloat16":
        teacher = teacher.bfloat16()  # what the computation rounds it to anyway
    return teacher.to(_device())


def _fresh_model(
    context: StageContext, section: Model, setup: TrainingSetup, arm: str
) -> PreTrainedModel:
    """The model both arms start from; the digest of its weights goes into the facts."""
    rows, length = vocabulary_size(setup.tokenizer), setup.sequence_length
    with quiet_transformers():
        model = build_model(section, rows, length, context.pilot.seed, _device())
    require_ternary(section.policy, model)  # a model of the Hub is seen here first
    total = 0
    for parameter in model.parameters():
        total = zlib.crc32(parameter.detach().cpu().contiguous().numpy(), total)
    context.record.facts.setdefault("initial_weights_crc32", {})[arm] = total
    return model


def _save_model(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with quiet_transformers(), replacing_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _save_int8(
    model: PreTrainedModel, folder: Path, section: Model, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The baseline with INT8 in the place of all that the policy would make ternary or INT8: what
    can be had without training."""
    precisions = {
        name: precision if precision == "high_precision" else "int8"
        for name, precision in resolve(section.policy, model).precisions.items()
    }
    save_packed(
        model, folder, precisions, ThresholdVersion.from_section(section.threshold), tokenizer
    )


def _require_equal(context: StageContext, baseline: Evaluator, ternary: Evaluator) -> None:
    """Equal tokens, batches and initial weights, or the comparison means nothing."""
    one, other = (evaluator.telemetry.frame("loss") for evaluator in (baseline, ternary))
    weights = context.record.facts["initial_weights_crc32"]
    equal = {
        "tokens": one["tokens"].equals(other["tokens"]),
        "batches": one["batch"].equals(other["batch"]),
        "initial_weights": len(set(weights.values())) == 1,
    }
    context.record.facts["arms_equal"] = equal
    if not all(equal.values()):
        raise StageError(
            f"the arms were not trained alike: {equal}",
            allowed="the same tokens, batches and initial weights in both arms",
            next_step="run the stage again with --force",
        )


def _record_guard(record: StageRecord, arms: dict[str, Evaluator]) -> None:
    """What the guard saw: a table, and a note for each line of it."""
    columns = ["arm", "step", "limit", "value", "factor", "text"]
    frames = [evaluator.telemetry.frame(GUARD).assign(arm=arm) for arm, evaluator in arms.items()]
    seen = [frame for frame in frames if len(frame)]
    table = pd.concat(seen, ignore_index=True) if seen else pd.DataFrame(columns=columns)
    record.save_table(GUARD, table[columns])
    record.notes += [f"the guard: {text}" for text in table["text"]]


def _record_figures(
    context: StageContext, arms: dict[str, Evaluator], losses: dict[str, pd.DataFrame]
) -> None:
    record = context.record
    for arm, frame in losses.items():
        documents = [name.rpartition("@")[0] for name in frame["id"]]
        estimate = bits_per_byte(frame["nats"], frame["bytes"], groups=documents)
        how = f"{len(frame)} excerpts of held-out documents, after the last step"
        record.add(estimate.metric("final_bits_per_byte", "bits/byte", how, arm=arm))
    for arm, evaluator in arms.items():
        rows = evaluator.telemetry.frame("loss")
        seconds, tokens = float(rows["seconds"].sum()), int(rows["tokens"].iloc[-1])
        how = "sum over the steps, forward to update; evaluations and checkpoints not counted"
        if (processes := context.pilot.train.processes) > 1:
            how += f"; {processes} processes together"
        record.measured("training_time_s", seconds, "s", how, n=len(rows), arm=arm)
        record.measured(
            "training_tokens_per_s", tokens / seconds, "tokens/s", how, n=len(rows), arm=arm
        )
        record.missing(
            "training_energy_j",
            "J",
            "no meter runs beside the training; measure_ab meters the trained arms",
            arm=arm,
        )
        if "teacher_tokens" in rows:
            _record_teacher(record, rows, arm)
    how = "counted in the batches, the same for both arms"
    record.measured("training_tokens", tokens, "tokens", how, n=len(rows), basis="exact")
    bars = arms["ternary"].telemetry.frame("histograms")
    last = bars[(bars["step"] == bars["step"].max()) & (bars["kind"] == "ternary")]
    zeros = last.loc[last["left"] == -0.5, "count"].sum()
    total = int(last["count"].sum())
    how = "weights with code 0 in all ternary layers, all counted"
    record.measured("share_zero", zeros / total, "share", how, n=total, basis="exact")


def _record_teacher(record: StageRecord, rows: pd.DataFrame, arm: str) -> None:
    how = "of the teacher's forward passes, one over every training batch"
    tokens = int(rows["teacher_tokens"].sum())
    record.measured("teacher_tokens", tokens, "tokens", how, n=len(rows), basis="exact", arm=arm)
    seconds = rows["teacher_seconds"]
    if seconds.isna().any():
        why = "on a GPU the passes of teacher and student overlap; training_time_s has them both"
        record.missing("teacher_time_s", "s", why, arm=arm)
    else:
        how += "; a part of training_time_s"
        record.measured("teacher_time_s", float(seconds.sum()), "s", how, n=len(rows), arm=arm)
