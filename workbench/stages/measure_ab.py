"""Stage 3: quality, latency, throughput, memory and energy of the arms, in one session.

First fixed shapes: all arms are in memory at once and do the same work in turn. Then the profile's
own load, served (:mod:`.measure_ab_load`), and between its blocks the quality, a slice of the
held-out excerpts each time, through the engines of the fixed shapes; then the pilot's own prompts
and tasks (:mod:`.measure_ab_own`). Finished blocks, judged slices and answered prompts are kept in
the stage's folder, so a killed stage goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from workbench.data.tokenizer import encode, load_tokenizer
from workbench.engine.build import read_config
from workbench.engine.cores import require_core
from workbench.engine.draft import PromptLookup
from workbench.engine.engine import Engine
from workbench.engine.request import GenerationRequest
from workbench.engine.speculative import SpeculativeEngine
from workbench.engine.units import backends, uneven_units
from workbench.errors import ConfigError, StageError
from workbench.machine.gpu import torch_gpu_memory
from workbench.machine.memory import memory
from workbench.measure.ab_figures import (
    energy_bases,
    energy_figures,
    latency_figures,
    memory_figures,
    quality_figures,
    speculation_figures,
    throughput_figures,
    visible_effects,
)
from workbench.measure.latency import LoadClass, Prompt
from workbench.measure.memory_use import memory_growth
from workbench.measure.meters import EnergySession
from workbench.measure.noise import require_quiet
from workbench.measure.quality import QualityProbes, judged_excerpts
from workbench.measure.session import Ending, Session, noise_facts
from workbench.model.build import preset_config
from workbench.model.checkpoint import checkpoint_config
from workbench.pilot.sections.measure_ab import MeasureAb
from workbench.pilot.spec import Pilot
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.serve.address import address_problem
from workbench.stages.context import StageContext
from workbench.stages.measure_ab_leaks import record_asked_leaks
from workbench.stages.measure_ab_load import (
    BASELINE,
    WAKE_TOKENS,
    Judged,
    measure_under_load,
)
from workbench.stages.measure_ab_own import (
    OwnQuestions,
    count_accepted_energy,
    judge_in_own_terms,
    own_questions,
)
from workbench.stages.measure_ab_own import check as own_problems
from workbench.stages.metered import StageMeters, stage_meters, trusted
from workbench.train.quality import by_corpus, what_is_judged
from workbench.wording.counts import number_of

SPECULATIVE = "speculative"
"""Full precision, drafted by ternary or by the text itself: of the two engines that are loaded
anyway."""
PROMPTS = 16
"""Different prompts of the timed requests, or as many as the largest batch."""


@dataclass(frozen=True)
class MeasuredArm:
    """resident_bytes: growth of the memory when the arm was loaded, its cache included."""

    engine: Engine
    resident_bytes: int


def check(pilot: Pilot) -> list[str]:
    """Requests that the model could not hold, before it is trained, and addresses without a key."""
    addresses = pilot.measure_ab.addresses.items()
    problems = [text for name, of in addresses if (text := address_problem(name, of))]
    for name, of in pilot.measure_ab.in_cores.items():
        try:
            require_core(of.core, pilot.readiness.device)
        except ConfigError as error:
            problems.append(f"measure_ab.in_cores.{name}: {error}")
    model = pilot.model
    if "checkpoint" in pilot.measure_ab.own_arms and (model.ternary or not model.checkpoint):
        why = "full_precision is that already" if model.ternary else "model.checkpoint is null"
        problems.append(
            f"measure_ab.arms: checkpoint is model.checkpoint as it came, and {why}; leave it out"
        )
    return [*problems, *_too_long(pilot), *own_problems(pilot)]


def _too_long(pilot: Pilot) -> list[str]:
    checkpoint = pilot.model.checkpoint
    if checkpoint is None:
        config = preset_config(pilot.model, pilot.data.vocab_size, pilot.data.sequence_length)
        whose, cure = pilot.model.preset, "raise model.overrides.max_position_embeddings"
    else:
        try:
            config = checkpoint_config(checkpoint)
        except ConfigError:
            return []  # train_qat says what is wrong with it
        whose, cure = checkpoint, "give a checkpoint with more positions"
    section = pilot.measure_ab
    prompt_tokens = section.prompt_tokens or 1
    needed = prompt_tokens + _most_output(section)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None or needed <= longest:
        return []
    return [
        f"measure_ab: {prompt_tokens} prompt and "
        f"{number_of(needed - prompt_tokens, 'output token')}; allowed: {longest} together, the "
        f"positions of {whose}; lower measure_ab.prompt_tokens or the outputs, or {cure}"
    ]


def run(context: StageContext) -> None:
    """Fill the tables ``blocks``, ``quality`` and ``power`` and the figures of the arms."""
    with stage_meters(context) as meters:
        _measure(context, meters)


def _measure(context: StageContext, meters: StageMeters) -> None:
    section, record = context.pilot.measure_ab, context.record
    trained = context.need("train_qat")
    tokenizer = load_tokenizer(str(trained.artefact("tokenizer")))
    heldout = trained.table("heldout")
    prompt_tokens = _prompt_tokens(context, trained)
    classes = _classes(section, prompt_tokens)
    prompts = _prompts(heldout, tokenizer, prompt_tokens, max(section.batch_sizes))
    asked = own_questions(context.pilot, tokenizer, _positions(trained))
    record_asked_leaks(context, asked)
    with _loaded_arms(context, trained, classes, asked) as arms:
        engines = {name: arm.engine for name, arm in arms.items()}
        sizes = {a: (arm.engine.weight_bytes, arm.resident_bytes) for a, arm in arms.items()}
        blocks, session = _timed(context, meters.session, engines, classes, prompts)
        record.save_table("blocks", blocks)
        probes = _probes(context, engines, heldout, tokenizer)
        answers = _answers(engines, heldout, tokenizer)
        between = section.load.blocks > 0 and _hold_twice(context, arms)
        if between:
            measure_under_load(context, trained, answers, probes, blocks, meters)
        quality = probes.finish(partial(_judging, context))
        judge_in_own_terms(context, asked, engines, tokenizer)
        computes = _about_kernels(context, engines)  # a closed core may not say it any more
        for name, engine in engines.items():
            for note in engine.notes:  # what could not be captured shows only when it runs
                context.note(f"{name}: {note}")
    record.save_table("quality", quality)
    if not between:
        measure_under_load(context, trained, answers, None, blocks, meters)
    count_accepted_energy(record)
    judged = f"{'between the blocks of' if between else 'before'} the load"
    judged += what_is_judged(heldout)
    record.save_table("power", session.samples())
    energies = trusted(session.energies(), meters.balances)
    record.save_table("energies", energies)
    record.facts["energy_basis"] = energy_bases(energies)

    if isinstance(pair := engines.get(SPECULATIVE), SpeculativeEngine):
        record.facts["drafted_to_the_bit"] = pair.core.rows_apart
        for metric in speculation_figures(SPECULATIVE, pair.counts):
            record.add(metric)
    for metric in (
        *quality_figures(quality, BASELINE, section.bootstrap, context.pilot.seed, judged),
        *_corpus_figures(context, quality, heldout, judged),
        *latency_figures(blocks, BASELINE, classes, computes),
        *throughput_figures(blocks, BASELINE, classes, computes),
        *visible_effects(blocks, BASELINE, classes),
        *memory_figures(sizes, BASELINE),
        *energy_figures(energies, BASELINE, classes),
    ):
        record.add(metric)


def _about_kernels(context: StageContext, engines: dict[str, Engine]) -> str:
    """What computes, each arm by its name where they differ; a comparison of unlike units is
    recorded as such."""
    units = {arm: list(engine.units) for arm, engine in engines.items()}
    context.record.facts["units"] = units
    for arm, of in context.pilot.measure_ab.in_cores.items():
        context.note(
            f"{arm} is the model of {of.arm} in {engines[arm].backend}, {BASELINE} in "
            f"{engines[BASELINE].backend}: its ratios are those of both, the weights and the core"
        )
    if uneven := uneven_units(units):
        context.record.facts["uneven_units"] = uneven
        context.note(uneven)
    return backends(engines)


@contextmanager
def _loaded_arms(
    context: StageContext,
    trained: StageRecord,
    classes: Sequence[LoadClass],
    asked: OwnQuestions,
) -> Iterator[dict[str, MeasuredArm]]:
    """The arms in memory side by side, the baseline first; closed afterwards."""
    section, readiness = context.pilot.measure_ab, context.pilot.readiness
    device = context.device.name
    folders = {
        n: trained.artefact(section.model_of(n)) for n in section.own_arms if n != SPECULATIVE
    }
    if device == "cpu":
        _require_memory(folders)
    arms: dict[str, MeasuredArm] = {}
    try:
        for name, folder in folders.items():
            context.progress.note(f"loading {name}")
            # The arms take turns and leave nothing in their slots, so on a GPU, where the cache
            # of a large batch is bigger than the weights, one cache serves them all.
            # A draft holds its conversations while full precision holds them too.
            drafts = name == "ternary" and SPECULATIVE in section.own_arms
            elsewhere = section.in_cores.get(name)
            shares = device == "cuda" and arms and not drafts and not elsewhere
            first = arms[BASELINE].engine if shares else None
            with memory_growth(device) as growth:
                engine = Engine.load(
                    folder,
                    slots=max(section.batch_sizes),
                    context=max(
                        _context(classes), context.pilot.data.sequence_length, asked.context
                    ),
                    threads=readiness.threads,
                    device=device,
                    cache_of=first,
                    core=elsewhere.core if elsewhere else readiness.core,
                    packing=readiness.packing,
                )
            shared = first.kv_bytes if first and not engine.kv_bytes else 0
            arms[name] = MeasuredArm(engine, growth.size_bytes + shared)
            for note in engine.notes:
                context.note(f"{name}: {note}")
        if SPECULATIVE in section.own_arms:
            full, draft = arms[BASELINE], arms["ternary"]
            pair = SpeculativeEngine(full.engine, draft.engine, PromptLookup())
            arms[SPECULATIVE] = MeasuredArm(pair, full.resident_bytes + draft.resident_bytes)
        yield arms
    finally:
        for arm in arms.values():
            arm.engine.close()


def _require_memory(folders: dict[str, Path]) -> None:
    """float32 weights on disk become bf16 in memory, so the files are a cautious estimate."""
    sizes = {
        name: sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for name, folder in folders.items()
    }
    free = memory().available_bytes
    if sum(sizes.values()) > free:
        each = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in sizes.items())
        raise StageError(
            f"the arms do not fit into memory side by side: {each}",
            allowed=f"{free / 1e9:.1f} GB, which is free now",
            next_step="close other programs, or leave an arm out of measure_ab.arms",
        )


def _timed(
    context: StageContext,
    meters: EnergySession,
    engines: dict[str, Engine],
    classes: list[LoadClass],
    prompts: list[Prompt],
) -> tuple[pd.DataFrame, Session]:
    """Table ``blocks``, and the session, which knows its energies."""
    section, record = context.pilot.measure_ab, context.record
    quiet = context.pilot.readiness.quiet
    session = Session(
        context.folder / "session",
        engines,
        classes,
        prompts,
        meters,
        quiet,
        context.pilot.seed,
        section.meters.turn_s or 0.0,
    )
    if done := session.finished():
        context.note(
            f"the session was interrupted after {number_of(done, 'block')} and went on later"
        )
    context.progress.note("looking whether the machine is quiet")
    before = require_quiet(quiet, context.note)
    blocks = session.run(
        Ending(section.blocks, section.precision, section.budget_s),
        lambda done, most: context.progress.step("arms in turn", done, most, "turns"),
    )
    record.save_table("noise", session.noise())
    record.facts["noise"] = noise_facts(before, session.noise())
    _say_how_it_ended(context, session, blocks)
    for note in session.notes:
        context.note(note)
    return blocks, session


def _say_how_it_ended(context: StageContext, session: Session, blocks: pd.DataFrame) -> None:
    section, done = context.pilot.measure_ab, blocks["block"].nunique()
    if session.precise(blocks, section.precision):
        return
    ended = (
        f"{number_of(done, 'block')}"
        if done == section.blocks
        else f"its time of {section.budget_s:g} s"
    )
    context.note(
        f"the session ended after {ended}, before every speed ratio was known to "
        f"{section.precision:.1%}: raise measure_ab.budget_s or blocks, or quiet the machine",
    )


def _probes(
    context: StageContext,
    engines: dict[str, Engine],
    heldout: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
) -> QualityProbes:
    """The judged excerpts, a slice for each block of the load."""
    section, length = context.pilot.measure_ab, context.pilot.data.sequence_length
    excerpts = judged_excerpts(heldout, tokenizer, length, section.quality_documents)
    folder, slices = context.folder / "session", max(1, section.load.blocks)
    return QualityProbes(folder, engines, tokenizer, excerpts, length, slices)


def _corpus_figures(
    context: StageContext, quality: pd.DataFrame, heldout: pd.DataFrame, judged: str
) -> Iterator[Metric]:
    """Of several corpora the quality on each, from the same excerpts."""
    resamples, seed = context.pilot.measure_ab.bootstrap, context.pilot.seed
    for corpus, rows in by_corpus(quality, heldout):
        for metric in quality_figures(rows, BASELINE, resamples, seed, f"of {corpus}, {judged}"):
            labels = metric.labels | {"corpus": corpus}
            yield replace(metric, name=f"corpus_{metric.name}", labels=labels)


def _judging(context: StageContext, arm: str, done: int, of: int) -> None:
    context.progress.step(f"judging {arm}", done, of, "excerpts")


def _hold_twice(context: StageContext, arms: dict[str, MeasuredArm]) -> bool:
    """Whether the server can load the arms beside those of this process, which judge between its
    blocks; where it cannot, they are judged before it starts. Its caches may be larger than
    those here, so twice their memory is asked for."""
    needed = 2 * sum(arm.resident_bytes for arm in arms.values())
    on_gpu = context.device.name == "cuda"
    free = torch_gpu_memory()[0] if on_gpu else memory().available_bytes
    if needed < free:
        return True
    context.note(
        "quality is judged before the load, not between its blocks: to load the arms a second "
        f"time {needed / 1e9:.1f} GB are asked for, {free / 1e9:.1f} GB are free"
    )
    return False


def _answers(
    engines: dict[str, Engine], heldout: pd.DataFrame, tokenizer: PreTrainedTokenizerBase
) -> Judged:
    """What each arm says after the first held-out text, to be compared with what it says served."""
    prompt = next(ids for text in heldout["text"] if (ids := encode(tokenizer, [text])[0]))
    request = GenerationRequest(tuple(prompt[:WAKE_TOKENS]), WAKE_TOKENS, ignore_eos=True)
    said = {
        arm: tokenizer.decode(engine.generate(request).tokens) for arm, engine in engines.items()
    }
    return Judged(list(request.prompt_tokens), said)


def _classes(section: MeasureAb, prompt_tokens: int) -> list[LoadClass]:
    return [
        *(LoadClass.interactive(prompt_tokens, out) for out in section.interactive_output_tokens),
        *(
            LoadClass.batched(prompt_tokens, section.batch_output_tokens, batch)
            for batch in section.batch_sizes
        ),
    ]


def _context(classes: Sequence[LoadClass]) -> int:
    """Tokens that the longest timed sequence takes."""
    return max(each.prompt_tokens + each.output_tokens for each in classes)


def _most_output(section: MeasureAb) -> int:
    return max(*section.interactive_output_tokens, section.batch_output_tokens)


def _prompt_tokens(context: StageContext, trained: StageRecord) -> int:
    """Prompt of the fixed shapes: the pilot's, or the median of the load's, as far as the models
    hold it beside the longest output."""
    section = context.pilot.measure_ab
    if section.prompt_tokens is not None:
        return section.prompt_tokens
    median = context.need("profile_load").metric("prompt_tokens", quantile="p50")
    wanted = round(median.value) if median and median.value else 1
    longest = _positions(trained)
    room = wanted if longest is None else longest - _most_output(section)
    taken = max(1, min(wanted, room))
    context.record.facts["prompt_tokens"] = {"median_of_the_load": wanted, "taken": taken}
    said = f"prompts of the fixed shapes have {number_of(taken, 'token')}"
    if taken < wanted:
        context.note(f"{said}: the load's median is {wanted}, which the models do not hold")
    else:
        context.progress.note(f"{said}, the median of the load")
    return taken


def _positions(trained: StageRecord) -> int | None:
    """Tokens that the models hold; None: no limit."""
    config = read_config(trained.artefact(BASELINE))
    return getattr(config, "max_position_embeddings", None)


def _prompts(
    heldout: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, length: int, batch: int
) -> list[Prompt]:
    """Consecutive pieces of the held-out text, all of the same length."""
    count = max(PROMPTS, batch)
    stream: list[int] = []
    for text in heldout["text"]:
        stream += encode(tokenizer, [text])[0]
        if len(stream) >= count * length:
            break
    found = len(stream) // length
    if found < 1:
        raise StageError(
            f"the held-out text has {number_of(len(stream), 'token')}",
            allowed=f"at least {length}, the length of a timed prompt",
            next_step="lower measure_ab.prompt_tokens, or give a larger corpus",
        )
    return [tuple(stream[i * length : (i + 1) * length]) for i in range(min(found, count))]
