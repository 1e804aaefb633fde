"""What stage ``train_qat`` records of two finished arms: tables, notes and figures."""

from __future__ import annotations

import math

import pandas as pd

from workbench.errors import StageError
from workbench.measure.statistics import bits_per_byte
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.stages.train_qat_energy import training_energies
from workbench.ternary import ConversionReport
from workbench.train.evaluator import Evaluator
from workbench.train.guard import TABLE as GUARD
from workbench.train.int8_gradients import LARGEST_ERROR
from workbench.train.quality import by_corpus, what_is_judged
from workbench.wording.counts import number_of

ONE_TRAINING = (
    "no interval: one training; how long another would take, with the machine in another state, "
    "shows in none of its steps"
)
"""Why what a training took decides no gate by its value."""
Arms = dict[str, Evaluator]
"""By their names, full_precision and ternary; an evaluator's telemetry is what the arm left."""


def record_arms(
    context: StageContext, arms: Arms, losses: dict[str, pd.DataFrame], energies: pd.DataFrame
) -> None:
    """Check that the arms may be compared, and record them.

    losses: of each kind of weights, also those made without training, on every excerpt. energies:
    of the windows that are named as the arms.
    """
    record, ternary = context.record, arms["ternary"]
    _require_equal(context, arms["full_precision"], ternary)
    for table in ("loss", "evaluations"):
        frames = [each.telemetry.frame(table).assign(arm=arm) for arm, each in arms.items()]
        record.save_table(table, pd.concat(frames, ignore_index=True))
    _record_guard(record, arms)
    for table in ("layers", "histograms"):
        record.save_table(table, ternary.telemetry.frame(table))
    if len(regularised := ternary.telemetry.frame("regularisation")):
        record.save_table("regularisation", regularised)
    record_quality(record, losses, "after the last step")
    for arm, evaluator in arms.items():
        _record_training(context, arm, evaluator)
    _record_energy(record, energies)
    _record_totals(record, ternary)


def _require_equal(context: StageContext, baseline: Evaluator, ternary: Evaluator) -> None:
    """Equal tokens, batches and initial weights, or the comparison means nothing."""
    one, other = (each.telemetry.frame("loss") for each in (baseline, ternary))
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


def _record_guard(record: StageRecord, arms: Arms) -> None:
    """What the guard saw: a table, and a note for each line of it."""
    columns = ["arm", "step", "limit", "value", "factor", "text"]
    frames = [each.telemetry.frame(GUARD).assign(arm=arm) for arm, each in arms.items()]
    seen = [frame for frame in frames if len(frame)]
    table = pd.concat(seen, ignore_index=True) if seen else pd.DataFrame(columns=columns)
    record.save_table(GUARD, table[columns])
    record.notes += [f"the guard: {text}" for text in table["text"]]


def record_quality(record: StageRecord, losses: dict[str, pd.DataFrame], when: str) -> None:
    """The figure ``final_bits_per_byte`` of each arm; ``when`` it was judged, in words."""
    heldout = record.table("heldout")
    when += what_is_judged(heldout)

    def judged(name: str, rows: pd.DataFrame, of: str, **labels: str) -> None:
        documents = [excerpt.rpartition("@")[0] for excerpt in rows["id"]]
        estimate = bits_per_byte(rows["nats"], rows["bytes"], groups=documents)
        how = f"{number_of(len(rows), 'excerpt')} of held-out documents{of}, {when}"
        record.add(estimate.metric(name, "bits/byte", how, **labels))

    of_mix = " of all corpora, in the proportion of the mix" if "corpus" in heldout else ""
    for arm, frame in losses.items():
        judged("final_bits_per_byte", frame, of_mix, arm=arm)
        for corpus, rows in by_corpus(frame, heldout):
            labels = {"arm": arm, "corpus": corpus}
            judged("corpus_final_bits_per_byte", rows, f" of {corpus}", **labels)


def _record_training(context: StageContext, arm: str, evaluator: Evaluator) -> None:
    """What the training of one arm took."""
    record, rows = context.record, evaluator.telemetry.frame("loss")
    seconds, tokens = float(rows["seconds"].sum()), int(rows["tokens"].iloc[-1])
    how = "sum over the steps, forward to update; evaluations and checkpoints not counted"
    if not (launch := context.pilot.train.launch).is_single:
        how += f"; {launch} together"
    n = len(rows)
    once = {"n": n, "reason": ONE_TRAINING, "arm": arm}
    record.measured("training_time_s", seconds, "s", how, **once)
    record.measured("training_tokens_per_s", tokens / seconds, "tokens/s", how, **once)
    if "teacher_tokens" in rows:
        _record_teacher(record, rows, arm)


def _record_energy(record: StageRecord, energies: pd.DataFrame) -> None:
    record.save_table("energies", energies)
    times = [m for m in record.metrics if m.name == "training_time_s"]
    training_s = {m.labels["arm"]: m.value for m in times if m.value is not None}
    for metric in training_energies(energies, training_s).values():
        record.add(metric)


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
        once = {"n": len(rows), "reason": ONE_TRAINING, "arm": arm}
        record.measured("teacher_time_s", float(seconds.sum()), "s", how, **once)


def _record_totals(record: StageRecord, ternary: Evaluator) -> None:
    """Of both arms, and of the ternary weights at the end."""
    steps = ternary.telemetry.frame("loss")
    how = "counted in the batches, the same for both arms"
    tokens = int(steps["tokens"].iloc[-1])
    record.measured("training_tokens", tokens, "tokens", how, n=len(steps), basis="exact")
    bars = ternary.telemetry.frame("histograms")
    last = bars[(bars["step"] == bars["step"].max()) & (bars["kind"] == "ternary")]
    zeros = last.loc[last["left"] == -0.5, "count"].sum()
    total = int(last["count"].sum())
    how = "weights with code 0 in all ternary layers, all counted"
    record.measured("share_zero", zeros / total, "share", how, n=total, basis="exact")


def record_conversion(context: StageContext, report: ConversionReport) -> None:
    """What became of the layers; the figure is the share of the body that is ternary."""
    context.record.facts["conversion"] = {
        "threshold": report.threshold.id,
        "ternary_layers": len(report.named("ternary")),
        "ternary_parameters": report.ternary_parameters,
        "parameters": report.parameters,
        "body_parameters": report.body_parameters,
        "not_ternary": report.not_ternary,
        "not_converted": report.reasons,
        "unmatched_patterns": report.unmatched,
    }
    record_ternary_share(context, report.ternary_parameters, report.body_parameters)


def record_ternary_share(context: StageContext, ternary: int, body: int) -> None:
    """ternary, body: parameters."""
    share = ternary / max(1, body)
    how = (
        f"{ternary:,} ternary of {number_of(body, 'parameter', form=',')} outside embedding and "
        "head, all counted"
    )
    context.record.add(
        Metric(
            "ternary_share", share, "share", how, "derived",
            n=body, labels={"arm": "ternary"}, basis="exact",
        )
    )  # fmt: skip


def record_gradient_errors(
    context: StageContext, errors: pd.DataFrame, sequences: int, moment: str
) -> None:
    """A note and the figure of what INT8 costs the gradients; see ``train.int8_gradients``.

    errors: columns layer, error; the last row is all layers. moment: before or after the training.
    """
    whole = float(errors["error"].iloc[-1])
    worst = errors.loc[errors["error"].iloc[:-1].fillna(math.inf).idxmax()]
    text = (
        f"gradient products in INT8, {moment} the training: the ternary layers' gradient errs by "
        f"{whole:.1%}, that of {worst['layer']}, the worst, by {worst['error']:.1%}"
    )
    if not whole <= LARGEST_ERROR:
        text += f"; above {LARGEST_ERROR:.0%}: set train.int8_gradients to false"
    context.note(text)
    how = (
        f"gradients of {number_of(sequences, 'training sequence')} with products in INT8 and "
        "without"
    )
    name, unit = "int8_gradient_error", "share"
    if math.isfinite(whole):
        why = "no interval: one draw of sequences"
        of = {"n": len(errors) - 1, "reason": why, "moment": moment}
        context.record.measured(name, whole, unit, how, **of)
    else:
        context.record.missing(name, unit, "the gradients are not finite", moment=moment)
