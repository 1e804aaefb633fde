"""Stage 4: which layers stay precise, under a budget of quality and size.

Two bases are tried (:mod:`workbench.hybrid.base`): the precise arm with layers lowered, and the
ternary arm with layers raised. For each: the loss of every layer alone, then the smallest plan
within ``max_quality_loss``, of the front of an integer program, measured as a whole. The better
of the two is packed. Where there is a checkpoint the hybrid is trained with a plan instead
(:mod:`workbench.stages.hybrid_plan_trained`). Either is judged once more, as a file and with an
interval, on fresh text, which had no part in choosing it: the limit is held, broken or undecided.

All losses are against the full-precision arm. Sizes count the layers that the policy made
ternary; embedding and head are the same in every plan.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.data.document import documents_from
from workbench.data.tokenizer import load_tokenizer, sample_counts, window_characters
from workbench.errors import StageError
from workbench.hybrid.base import Base, units_of
from workbench.hybrid.evaluator import PlanEvaluator
from workbench.hybrid.plan import Found, Option, coarsest_within, descent
from workbench.hybrid.program import Budget, front
from workbench.hybrid.sensitivity import measure_options
from workbench.measure.statistics import FEWEST_DOCUMENTS, Estimate, bits_per_byte_difference
from workbench.model.checkpoint import load_checkpoint
from workbench.pilot.spec import Pilot
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.stages.context import StageContext
from workbench.stages.hybrid_plan_budgets import budget_problems
from workbench.stages.hybrid_plan_trained import compare_with_patched, plans_first, train_hybrid
from workbench.ternary.manifest import Manifest
from workbench.ternary.master import load_master
from workbench.ternary.packed import load_packed, save_packed
from workbench.ternary.packed_layers import pack_layer
from workbench.ternary.policy import PLANNED, Precision
from workbench.ternary.token_counts import copy_token_counts
from workbench.train.quality import bits_per_byte, document_losses, excerpts, what_is_judged
from workbench.train.quiet import quiet_transformers
from workbench.wording.counts import number_of

HYBRID = "hybrid"
RESULTS = "evaluations.jsonl"


@dataclass(frozen=True)
class Candidate:
    """The best plan of one base. budgets: of time and energy, where it was made under them."""

    base: str
    options: list[Option]
    plan: Found
    size_ratio: float
    budgets: Sequence[Budget] = ()


def check(pilot: Pilot) -> list[str]:
    """Budgets that cannot be kept on this machine."""
    return budget_problems(pilot)


def run(context: StageContext) -> None:
    """Fill the tables, artefact and figures of ``hybrid_plan`` (docs/design.md)."""
    trained = context.need("train_qat")
    tokenizer = load_tokenizer(str(trained.artefact("tokenizer")))
    choosing, judging = _texts(context, trained, tokenizer)
    evaluator = PlanEvaluator(
        tokenizer, choosing, context.pilot.data.sequence_length, context.folder / RESULTS
    )
    chosen = None
    if plans_first(context, trained):
        chosen = _trained(context, trained, tokenizer, choosing, evaluator)
    if chosen is not None:
        candidates = [chosen]
    else:
        candidates = _exchanged(context, trained, evaluator)
        chosen = min(candidates, key=_preference)
        _pack(context, trained, chosen, tokenizer)
    copy_token_counts(trained.artefact("post_training"), context.record.artefact(HYBRID))
    documents = choosing["id"].str.rpartition("@")[0].nunique()
    _record_tables(context, candidates, chosen, documents)
    _record_figures(context, trained, chosen, tokenizer, judging)


def _exchanged(
    context: StageContext, trained: StageRecord, evaluator: PlanEvaluator
) -> list[Candidate]:
    """The best plan of each base, its layers exchanged after the training."""
    candidates: list[Candidate] = []
    reference = 0.0
    for name in _bases(context, trained):
        base = _open_base(context, trained, name)
        if name == "full_precision":
            reference = evaluator(base, {})
            if not base.units:  # a ready model of another architecture
                continue
        if _is_ready(trained) and name == "ternary":
            candidates.append(_as_it_is(context, base, evaluator, reference))
        else:
            candidates.append(_best_plan(context, base, evaluator, reference))
        del base
        gc.collect()  # one of the models at a time
    return candidates


def _trained(
    context: StageContext, trained: StageRecord, tokenizer: PreTrainedTokenizerBase,
    choosing: pd.DataFrame, evaluator: PlanEvaluator,
) -> Candidate | None:  # fmt: skip
    """The hybrid trained with its plan, measured as packed on the text that chose the plan; None
    where the plan leaves nothing to train."""
    reference = evaluator(_open_base(context, trained, "full_precision"), {})
    hybrid = train_hybrid(context, trained, tokenizer, choosing, evaluator)
    gc.collect()
    if hybrid is None:
        return None
    with quiet_transformers():
        model = load_packed(context.folder / HYBRID).to(context.device.name)
    length = context.pilot.data.sequence_length
    loss = bits_per_byte(document_losses(model, tokenizer, choosing, length)) - reference
    within = loss <= context.pilot.hybrid_plan.max_quality_loss
    found = Found(hybrid.plan.assignment, 0, loss, within)
    return Candidate("trained", hybrid.options, found, hybrid.size_ratio, hybrid.budgets)


def _texts(
    context: StageContext, trained: StageRecord, tokenizer: PreTrainedTokenizerBase
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pieces of held-out text to choose by and, apart from them, to judge the choice by."""
    heldout = trained.table("heldout")
    documents = [document for document in documents_from(heldout) if document.text.strip()]
    if not documents:
        raise StageError(
            "train_qat held out no text to judge layers by",
            next_step="raise data.holdout_share or give more text",
        )
    counts = sample_counts(tokenizer, [document.text for document in documents])
    piece = window_characters(context.pilot.data.sequence_length, *counts)
    count = context.pilot.hybrid_plan.sequences
    choosing = excerpts(documents[::2], piece, count)
    if len(documents) == 1:
        context.note("one held-out document: the plan is judged on the text it was chosen by")
        return choosing, choosing
    # From the last document on: the evaluations of training and measuring take the first ones.
    return choosing, excerpts(documents[1::2][::-1], piece, max(count, FEWEST_DOCUMENTS))


def _is_ready(trained: StageRecord) -> bool:
    """Whether the ternary arm is a ready model of others, without master weights."""
    return "ternary_master" not in trained.artefacts


def _bases(context: StageContext, trained: StageRecord) -> list[str]:
    names = ["full_precision"]
    if "ternary" in context.pilot.hybrid_plan.precisions or _is_ready(trained):
        names.append("ternary")
    return names


def _units(context: StageContext, trained: StageRecord, name: str) -> dict[str, list[str]]:
    """Of the layers that are ternary; lowered can only be those that both models have."""
    layers = Manifest.read(trained.artefact("ternary")).named("ternary")
    if name == "full_precision":
        lowered = set(Manifest.read(trained.artefact("post_training")).named("ternary"))
        layers = [layer for layer in layers if layer in lowered]
    return units_of(layers, context.pilot.hybrid_plan.granularity)


def _as_it_is(
    context: StageContext, base: Base, evaluator: PlanEvaluator, reference: float
) -> Candidate:
    """A ready model: there are no master weights that a layer could be raised to."""
    options = [
        Option(unit, "ternary", 0.0, base.size_bytes(unit, "ternary"), False) for unit in base.units
    ]
    loss = evaluator(base, {}) - reference
    within = loss <= context.pilot.hybrid_plan.max_quality_loss
    found = Found(dict.fromkeys(base.units, "ternary"), 0, loss, within)
    return Candidate(base.name, options, found, base.size_ratio(found.assignment))


def _open_base(context: StageContext, trained: StageRecord, name: str) -> Base:
    manifest = Manifest.read(trained.artefact("ternary"))
    units = _units(context, trained, name)
    device = context.device.name
    with quiet_transformers():
        if name == "ternary" and _is_ready(trained):
            packed = load_packed(trained.artefact("ternary")).to(device)
            return Base(
                "ternary", packed, "ternary", units,
                lambda layer, precision: packed.get_submodule(layer), manifest.threshold,
            )  # fmt: skip
        if name == "ternary":
            model = load_master(trained.artefact("ternary_master"), expect=manifest.threshold)
            model = model.to(device)

            def raised(layer: str, precision: Precision) -> torch.nn.Module:
                return pack_layer(
                    model.get_submodule(layer), precision, manifest.threshold, manifest.activations
                )

            return Base("ternary", model, "ternary", units, raised, manifest.threshold)
        model = load_checkpoint(str(trained.artefact("full_precision"))).to(device)
        lowered_folder = trained.artefact("post_training")
        threshold = Manifest.read(lowered_folder).threshold
        post_training = load_packed(lowered_folder).to(device)

    def lowered(layer: str, precision: Precision) -> torch.nn.Module:
        if precision == "ternary":
            return post_training.get_submodule(layer)
        return pack_layer(model.get_submodule(layer), precision, threshold, manifest.activations)

    return Base("full_precision", model, "high_precision", units, lowered, threshold)


def _best_plan(
    context: StageContext, base: Base, evaluator: PlanEvaluator, reference: float
) -> Candidate:
    section, progress = context.pilot.hybrid_plan, context.progress
    options = measure_options(base, evaluator, section.precisions, progress)
    precise = base.own != "ternary"
    best = [plan.assignment for plan in front(options, precise)]
    found = coarsest_within(
        [descent(options, precise)[0], *best],
        lambda assignment: evaluator(base, assignment) - reference,
        section.max_quality_loss,
    )
    ratio = base.size_ratio(found.assignment)
    progress.note(
        f"from {base.name}: {found.quality_loss:+.4f} bits/byte against full precision at "
        f"{ratio:.2f} of the size"
    )
    return Candidate(base.name, options, found, ratio)


def _preference(candidate: Candidate) -> tuple[bool, float, float]:
    """Within the quality limit first; then the smaller one, or else the better one."""
    plan = candidate.plan
    if plan.within:
        return False, candidate.size_ratio, plan.quality_loss
    return True, plan.quality_loss, candidate.size_ratio


def _record_tables(
    context: StageContext, candidates: list[Candidate], chosen: Candidate, documents: int
) -> None:
    """documents: how many the layers were judged on."""
    record, section = context.record, context.pilot.hybrid_plan
    rows = pd.DataFrame(
        [
            {
                "base": candidate.base,
                "layer": option.unit,
                "precision": option.precision,
                "quality_loss": option.quality_loss,
                "lo": option.lo,
                "hi": option.hi,
                "size_bytes": option.size_bytes,
            }
            for candidate in candidates
            for option in candidate.options
            if option.measured
        ],
        columns=["base", "layer", "precision", "quality_loss", "lo", "hi", "size_bytes"],
    ).astype({"lo": float, "hi": float})
    of_chosen = rows["base"] == chosen.base
    _say_intervals(context, rows[of_chosen], documents)
    record.save_table("sensitivity", rows[of_chosen])
    record.save_table("sensitivity_other_base", rows[~of_chosen])
    planned = [o for o in chosen.options if chosen.plan.assignment[o.unit] == o.precision]
    record.save_table(
        "plan",
        pd.DataFrame(
            [
                {
                    "layer": option.unit,
                    "precision": option.precision,
                    "size_bytes": option.size_bytes,
                    "quality_loss": option.quality_loss,
                }
                for option in planned
            ]
        ),
    )
    record.save_table("front", _front(chosen))
    record.save_table(
        "candidates",
        pd.DataFrame(
            [
                {
                    "base": c.base,
                    "quality_loss": c.plan.quality_loss,
                    "size_ratio": c.size_ratio,
                    "within_quality": c.plan.within,
                    "within_size": c.size_ratio <= section.max_size_ratio,
                    "chosen": c is chosen,
                }
                for c in candidates
            ]
        ),
    )


def _say_intervals(context: StageContext, rows: pd.DataFrame, documents: int) -> None:
    """What the intervals of the single losses say, or why there are none and how to have them."""
    apart = int(((rows["lo"] > 0) | (rows["hi"] < 0)).sum())
    facts = {"documents": documents, "options": len(rows), "apart_from_zero": apart}
    context.record.facts["sensitivity"] = facts
    if not len(rows):
        return
    if documents >= FEWEST_DOCUMENTS:
        context.progress.note(
            f"{apart} of {number_of(len(rows), 'single loss', 'single losses')} are told from "
            f"nothing lost by {number_of(documents, 'document')} (95 % intervals)"
        )
        return
    asked = context.pilot.hybrid_plan.sequences
    cure = f"raise hybrid_plan.sequences, {asked} now, to {FEWEST_DOCUMENTS} or more"
    if asked >= FEWEST_DOCUMENTS:
        cure = "raise data.holdout_share or give more text: half of what is held out judges layers"
    facts["no_interval"] = (
        f"no interval: {number_of(documents, 'group')}, a bootstrap needs {FEWEST_DOCUMENTS}"
    )
    context.note(
        "the losses of single layers have no interval: "
        f"{number_of(documents, 'document judges', 'documents judge')} them, a bootstrap needs "
        f"{FEWEST_DOCUMENTS}; {cure}"
    )


def _front(chosen: Candidate) -> pd.DataFrame:
    """The integer program's plans of every budget, from the single losses; ``chosen``: the one
    that was taken."""
    own = sum(o.size_bytes for o in chosen.options if chosen.plan.assignment[o.unit] == o.precision)
    whole = own / chosen.size_ratio
    return pd.DataFrame(
        [
            {
                "size_bytes": plan.size_bytes,
                "size_ratio": plan.size_bytes / whole,
                "quality_loss": plan.loss,
                "bound": plan.bound,
                "chosen": plan.assignment == chosen.plan.assignment,
                **{p: list(plan.assignment.values()).count(p) for p in PLANNED},
                **{b.name: b.taken(plan.assignment) for b in chosen.budgets},
            }
            for plan in front(chosen.options, chosen.base != "ternary")
        ],
        columns=[
            "size_bytes",
            "size_ratio",
            "quality_loss",
            "bound",
            "chosen",
            *PLANNED,
            *(budget.name for budget in chosen.budgets),
        ],
    )


def _pack(
    context: StageContext,
    trained: StageRecord,
    chosen: Candidate,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    base = _open_base(context, trained, chosen.base)
    whose = trained.artefact("ternary" if chosen.base == "ternary" else "post_training")
    entries = Manifest.read(whose).layers
    precisions = {name: entry.precision for name, entry in entries.items()}
    for unit, precision in chosen.plan.assignment.items():
        precisions |= dict.fromkeys(base.units[unit], precision)
    with base.exchanged(chosen.plan.assignment) as model, quiet_transformers():
        save_packed(model, context.folder / HYBRID, precisions, base.threshold, tokenizer)
    context.record.artefacts[HYBRID] = HYBRID


def _record_figures(
    context: StageContext,
    trained: StageRecord,
    chosen: Candidate,
    tokenizer: PreTrainedTokenizerBase,
    judging: pd.DataFrame,
) -> None:
    record, section = context.record, context.pilot.hybrid_plan

    def judged(model: PreTrainedModel) -> pd.DataFrame:
        length = context.pilot.data.sequence_length
        return document_losses(model.to(context.device.name), tokenizer, judging, length)

    with quiet_transformers():
        precise = judged(load_checkpoint(str(trained.artefact("full_precision"))))
        hybrid = judged(load_packed(record.artefact(HYBRID)))
    if chosen.base == "trained":
        base = _open_base(context, trained, "ternary")
        with base.exchanged(chosen.plan.assignment) as model:
            patched = judged(model)
        losses = {"full_precision": precise, "patched": patched, "trained": hybrid}
        compare_with_patched(record, losses)
    documents = [name.rpartition("@")[0] for name in judging["id"]]
    loss = bits_per_byte_difference(
        precise["nats"], hybrid["nats"], precise["bytes"], groups=documents
    )
    how = (
        f"packed plan against full precision, {number_of(len(judging), 'held-out piece')} not used "
        "to choose"
    )
    how += what_is_judged(judging)
    record.add(loss.metric("hybrid_quality_loss_bits_per_byte", "bits/byte", how))
    size_how = "bytes of the planned linear layers, scales included, over their bytes in bf16"
    record.add(
        Metric("hybrid_size_ratio", chosen.size_ratio, "ratio", size_how, "derived", basis="exact")
    )
    manifest = Manifest.read(record.artefact(HYBRID))
    planned = set(Manifest.read(trained.artefact("ternary")).named("ternary"))
    for precision in PLANNED:
        if precision == "int4" and precision not in section.precisions:
            continue
        count = len(planned & set(manifest.named(precision)))
        how = "planned linear layers of that precision"
        labels = {"precision": precision}
        record.add(Metric("layers", count, "layers", how, "derived", labels=labels, basis="exact"))
    missed = _judge_limit(context, loss)
    if not missed and not chosen.plan.within:
        missed.append(
            f"quality: no measured plan keeps max_quality_loss {section.max_quality_loss:g} "
            f"bits/byte; the best loses {chosen.plan.quality_loss:.4f}"
        )
    if chosen.size_ratio > section.max_size_ratio:
        missed.append(
            f"size: the plan, chosen for quality first, has {chosen.size_ratio:.3f} of the size, "
            f"max_size_ratio is {section.max_size_ratio:g}"
        )
    record.facts |= {"base": chosen.base, "missed": missed, "threshold": manifest.threshold.id}
    for text in dict.fromkeys(missed):
        context.note(f"the budget is missed in {text}")
    if chosen.base == "ternary" and set(chosen.plan.assignment.values()) == {"ternary"}:
        whose = "ready" if _is_ready(trained) else "trained"
        context.note(f"the plan is the {whose} ternary model itself: no layer is raised")


def _judge_limit(context: StageContext, loss: Estimate) -> list[str]:
    """Whether ``max_quality_loss`` is held, broken or undecided on fresh text; what is missed.

    A plan is chosen for losing little on the text that chose it, so it loses more on other text:
    only the interval there decides.
    """
    limit = context.pilot.hybrid_plan.max_quality_loss
    outcome = "undecided"
    if loss.hi is not None and loss.hi <= limit:
        outcome = "held"
    elif loss.lo is not None and loss.lo > limit:
        outcome = "broken"
    context.record.facts["limit"] = {"max_quality_loss": limit, "outcome": outcome}
    assert loss.value is not None
    ends = f"95 %: {loss.lo:.4f} to {loss.hi:.4f}" if loss.lo is not None else loss.reason
    context.note(
        f"max_quality_loss {limit:g} is {outcome} on fresh text: {loss.value:+.4f} bits/byte "
        f"({ends})"
    )
    if outcome != "broken":
        return []
    return [
        f"quality: on fresh text the plan loses {loss.value:.4f} bits/byte ({ends}), more than "
        f"max_quality_loss {limit:g}"
    ]
