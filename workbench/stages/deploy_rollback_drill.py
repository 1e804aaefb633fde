"""The drill in stage ``deploy_rollback``, and of a finished run: ``workbench drill RUN``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd

from workbench.load.profile import LoadProfile
from workbench.measure.statistics import Estimate, count
from workbench.pilot.sections.deploy_rollback import DeployRollback
from workbench.pilot.spec import Pilot
from workbench.records.stage_record import StageRecord
from workbench.serve.carries import Capacity
from workbench.serve.client import LoadProcesses
from workbench.serve.drill import CUTTING, MB, Drill, Taken, Way, counted
from workbench.serve.load import Load, wanted_context
from workbench.serve.load_session import in_blocks
from workbench.serve.process import ServerProcess
from workbench.serve.rehearsal import CANDIDATE, FALLBACK
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.spec import ServeSpec
from workbench.stages.context import StageContext
from workbench.stages.deploy_rollback_record import Replayed
from workbench.wording.counts import number_of


def served_spec(
    pilot: Pilot, records: Mapping[str, StageRecord], device: str, faults: bool | None = None
) -> ServeSpec:
    """Full precision and the hybrid as the pilot serves them. records: of ``profile_load``,
    ``train_qat`` and ``hybrid_plan``. faults: for a drill; None: as the pilot says."""
    section, rule = pilot.deploy_rollback, pilot.deploy_rollback.rollback_rule
    profile = LoadProfile.from_record(records["profile_load"])
    return ServeSpec(
        arms={
            FALLBACK: records["train_qat"].artefact(FALLBACK),
            CANDIDATE: records["hybrid_plan"].artefact(CANDIDATE),
        },
        fallback=FALLBACK,
        route=CANDIDATE,
        host=section.host,
        port=section.port,
        slots=section.slots,
        queue=section.queue,
        context=wanted_context(profile, section.max_prompt_tokens, section.max_output_tokens),
        threads=pilot.readiness.threads,
        device=device,
        core=pilot.readiness.core,
        packing=pilot.readiness.packing,
        hold_s=section.hold_s,
        batch_wait_s=section.batch_wait_ms / 1e3,
        rule=RollbackRule(**rule.model_dump()) if rule else None,
        deadline_s=section.deadline_s,
        on_lost_stream=section.on_lost_stream,
        faults=bool(section.drill.budget_s) if faults is None else faults,
    )


def pace(section: DeployRollback, load: Load, capacity: Mapping[str, Capacity]) -> float:
    """Of a replay, 1 is the load's own: the pilot's, or what the slower arm carries well."""
    slowest = min(each.per_s for each in capacity.values())
    return section.speedup or section.target_utilisation * slowest / load.profile.rate_per_s


def drill_of(
    pilot: Pilot,
    server: ServerProcess,
    client: LoadProcesses,
    load: Load,
    speedup: float,
    ways: Sequence[Way],
    folder: Path,
) -> Drill:
    """A drill whose ways are each taken under a share of the load, at this pace."""
    section, wanted = pilot.deploy_rollback.drill, pilot.profile_load
    length_s = section.way_s * len(ways) * speedup
    piece = load.profile.piece(wanted.piece, length_s, wanted.piece_start_s, wanted.window_s)
    shares = in_blocks(piece.schedule(speedup, load.limits), section.way_s, len(ways))
    by_way = dict(zip(ways, shares, strict=True))
    return Drill(server, client, by_way, load.prompt, section.way_s, folder)


def record_drill(context: StageContext, replayed: Replayed, ways: Sequence[Taken]) -> None:
    """The table ``drill`` and its figures. The replay itself took the way by command."""
    taken = [_by_command(replayed), *ways]
    names = [each.name for each in fields(Taken)]
    rows = [{**each.to_json(), "holds": each.holds} for each in taken]
    frame = pd.DataFrame(rows, columns=[*names, "holds"])
    numbers = ["first_fallback_token_s", "p99_ms", "memory_mb", "memory_growth_mb", "back_s"]
    context.record.save_table("drill", frame.astype({**dict.fromkeys(numbers, float)}))
    if not ways:
        context.note("the drill was left out: deploy_rollback.drill.budget_s or ways is empty")
    for each in taken:
        _record_way(context, each)


def _by_command(replayed: Replayed) -> Taken:
    back = next(s for s in replayed.switches if s["to_arm"] == FALLBACK)
    return counted(
        "command",
        replayed.outcomes,
        back["time_s"],
        memory_mb=replayed.peak_bytes / MB,
        memory_growth_mb=replayed.grown_bytes / MB,
        reason=str(back["reason"]),
    )


def _record_way(context: StageContext, taken: Taken) -> None:
    record, of = context.record, {"way": taken.way}
    if taken.skipped:
        for name, unit in (
            ("drill_lost_requests", "requests"),
            ("drill_truncated_requests", "requests"),
            ("drill_first_token_s", "s"),
            ("drill_ttft_ms", "ms"),
        ):
            record.missing(name, unit, taken.skipped, **of)
        return
    if not taken.holds:
        context.note(
            f"the way back {taken.way} cost more than it may: "
            f"{number_of(taken.failed_without_token, 'request')} failed without a token, "
            f"{taken.truncated} were cut, {taken.undeclared} of them without saying so"
        )
    how = f"failed or turned away without any token; the server said: {taken.reason}"
    lost = count(taken.failed_without_token, taken.requests)
    record.add(lost.metric("drill_lost_requests", "requests", how, **of))
    may = (
        "what this way may cost: it ends what had begun" if taken.way in CUTTING else "none may be"
    )
    cut = count(taken.truncated, taken.requests)
    record.add(
        cut.metric("drill_truncated_requests", "requests", f"streams that were cut; {may}", **of)
    )
    for name, unit, value, text in (
        (
            "drill_first_token_s",
            "s",
            taken.first_fallback_token_s,
            "from the order or the fault to the fallback's first token, finding it out included",
        ),
        (
            "drill_ttft_ms",
            "ms",
            taken.p99_ms,
            "p99 of the requests that touch the switch, from the intended start; of fewer than 100 "
            "the slowest",
        ),
    ):
        if value is None:
            record.missing(name, unit, "no request was answered then; raise drill.way_s", **of)
        else:
            estimate = Estimate(value, None, None, taken.requests, "", reason="one switch")
            record.add(estimate.metric(name, unit, text, **of))
