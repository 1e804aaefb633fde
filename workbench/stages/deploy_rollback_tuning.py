"""Queue tuning in stage ``deploy_rollback``, and of a finished run: ``workbench tune RUN``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from workbench.files import write_text
from workbench.load.piece import LengthLimits
from workbench.load.profile import LoadProfile
from workbench.measure.meters import EnergySession, find_meters
from workbench.pilot.sections.deploy_rollback import Tuning
from workbench.pilot.spec import Pilot
from workbench.records.stage_record import StageRecord
from workbench.serve.carries import Carries
from workbench.serve.load import Load, wanted_context
from workbench.serve.offer import Terms
from workbench.serve.rehearsal import CANDIDATE, FALLBACK
from workbench.serve.spec import ServeSpec
from workbench.serve.tuned import (
    points_table,
    searches_table,
    settings_text,
    tuned_answer,
    tuned_figures,
)
from workbench.serve.tuning import Searched, TuningPlan, settings, sweep
from workbench.stages.context import StageContext
from workbench.stages.metered import step_load

SETTINGS = "settings.txt"


def tune(
    pilot: Pilot,
    records: Mapping[str, StageRecord],
    device: str,
    folder: Path,
    step: Callable[[int, int, str], None],
) -> list[Searched]:
    """The sweep that ``deploy_rollback.tuning`` asks for. records: ``profile_load``,
    ``train_qat`` and ``hybrid_plan``. folder: takes the finished points, and has those of an
    earlier attempt."""
    section, tuning = pilot.deploy_rollback, pilot.deploy_rollback.tuning
    trained, planned = records["train_qat"], records["hybrid_plan"]
    profile = LoadProfile.from_record(records["profile_load"])
    context = wanted_context(profile, section.max_prompt_tokens, section.max_output_tokens)
    spec = ServeSpec(
        arms={FALLBACK: trained.artefact(FALLBACK), CANDIDATE: planned.artefact(CANDIDATE)},
        fallback=FALLBACK,
        route=CANDIDATE,
        host=section.host,
        queue=section.queue,
        context=context + max(tuning.output_tokens, default=0),
        threads=pilot.readiness.threads,
        device=device,
        core=pilot.readiness.core,
        packing=pilot.readiness.packing,
    )
    load = pilot.profile_load
    plan = TuningPlan(
        spec,
        settings(tuning.slots, tuning.batch_wait_ms),
        tuning.output_tokens,
        load.interactive_max_output_tokens,
        Terms(
            records["profile_load"].facts["slo"], section.slo_share, section.max_dispatch_delay_ms
        ),
        tuning.budget_s,
        load.piece,
        load.piece_start_s,
        load.window_s,
    )

    def load_of(limits: LengthLimits) -> Load:
        return Load.of(profile, limits, trained, pilot.seed)

    limits = LengthLimits(section.max_prompt_tokens, section.max_output_tokens)
    meters = pilot.measure_ab.meters
    found, missing = find_meters(meters)
    folder.mkdir(parents=True, exist_ok=True)
    with EnergySession(found, missing, meters.max_gap_s, meters.idle_s) as session:
        session.learn(step_load(device))
        return sweep(plan, load_of, limits, session, folder, step)


def tuned_in_stage(context: StageContext) -> list[Searched]:
    """The sweep, recorded: tables ``tuning`` and ``tuning_points``, figures, and the settings as
    text in ``facts["tuning"]``. Empty, and said why, where the pilot leaves it out."""
    tuning, record = context.pilot.deploy_rollback.tuning, context.record
    if not tuning.budget_s:
        for arm in (FALLBACK, CANDIDATE):
            why = "the queue was not tuned: deploy_rollback.tuning.budget_s is 0"
            record.missing("largest_rate_over_load", "", why, arm=arm)
        return []
    found = tune(
        context.pilot,
        context.upstream,
        context.device.name,
        context.folder / "tuning",
        lambda done, total, text: context.progress.step("tuning", done, total, "searches", text),
    )
    _record(context, found, tuning)
    return found


def _record(context: StageContext, found: list[Searched], tuning: Tuning) -> None:
    record = context.record
    rate_per_s = LoadProfile.from_record(context.need("profile_load")).rate_per_s
    record.save_table("tuning", searches_table(found, rate_per_s))
    record.save_table("tuning_points", points_table(found))
    currency = context.pilot.report.cost.currency
    for figure in tuned_figures(found, rate_per_s, tuning.price_per_hour, currency):
        record.add(figure)
    text = settings_text(found, rate_per_s)
    record.facts["tuning"] = {"settings": text}
    write_text(context.folder / SETTINGS, text)
    record.artefacts["settings"] = SETTINGS


def with_tuning(
    answers: Mapping[str, Carries],
    found: Sequence[Searched],
    rate_per_s: float,
    *,
    cut_share: float,
    wanted_share: float,
) -> dict[str, Carries]:
    """What the replay says of each arm, and where it could not tell, what the tuning says; a
    setting that carries the load outweighs a replay in another one that did not."""
    together = {}
    for arm, answer in answers.items():
        tuned = tuned_answer(arm, found, rate_per_s, cut_share=cut_share, wanted_share=wanted_share)
        told = answer.answer == "yes" or (answer.answer == "no" and tuned and tuned.answer != "yes")
        together[arm] = answer if told or tuned is None else tuned
    return together
