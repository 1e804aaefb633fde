"""``workbench tune``: the queue of a finished run's models tuned on this machine.

What stage ``deploy_rollback`` does with ``deploy_rollback.tuning``, of a run whose models are there
already, and without touching its records. The points lie in the run's folder, ``tuning/<key>/``,
where the key digests all that decides them: the same command, started again, goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pandas as pd
from pydantic import ValidationError

from workbench.errors import ConfigError, StageError
from workbench.files import digest_json, replacing, write_text
from workbench.load.profile import LoadProfile
from workbench.machine.device import choose_device
from workbench.machine.identity import machine_digest
from workbench.pilot.problems import sentence
from workbench.pilot.sections.deploy_rollback import Tuning
from workbench.pilot.spec import Pilot
from workbench.records.run import Run, find_run
from workbench.records.stage_record import StageRecord
from workbench.serve.tuned import points_table, searches_table, settings_text
from workbench.serve.tuning import Searched
from workbench.stages.deploy_rollback_tuning import SETTINGS, tune
from workbench.wording.counts import number_of

STAGES = ("profile_load", "train_qat", "hybrid_plan")


def tune_run(
    name: str,
    budget_s: float,
    slots: Sequence[int],
    batch_wait_ms: Sequence[float],
    output_tokens: Sequence[int],
) -> None:
    """Tune, print a line a search and the chosen settings, and say where they lie.

    Raises ConfigError for a wrong value, StageError for a run without its models.
    """
    asked = {
        "budget_s": budget_s,
        "slots": list(slots),
        "batch_wait_ms": list(batch_wait_ms),
        "output_tokens": list(output_tokens),
    }
    try:
        tuning = Tuning.model_validate(asked)
    except ValidationError as error:
        wrong = "; ".join(sentence(detail, Tuning)[1] for detail in error.errors())
        raise ConfigError(
            f"tune: {wrong}", next_step="workbench tune --help shows what is allowed"
        ) from None
    run = find_run(name)
    records = _records(run)
    pilot = run.resolved().pilot
    section = pilot.deploy_rollback.model_copy(update={"tuning": tuning})
    pilot = pilot.model_copy(update={"deploy_rollback": section})
    folder = run.folder / "tuning" / _key(pilot, records)
    device = choose_device(pilot.readiness.device).name

    def step(done: int, total: int, text: str) -> None:
        print(f"tune: {done}/{number_of(total, 'search')}, {text}", file=sys.stderr)

    with run.lock("tuning"):
        found = tune(pilot, records, device, folder, step)
    rate_per_s = LoadProfile.from_record(records["profile_load"]).rate_per_s
    text = settings_text(found, rate_per_s, run.name)
    write_text(folder / SETTINGS, text)
    tables = {"searches": searches_table(found, rate_per_s), "points": points_table(found)}
    for table, frame in tables.items():
        with replacing(folder / f"{table}.parquet") as partial:
            frame.to_parquet(partial, index=False)
    print(_lines(found))
    print(text, end="")
    print(folder)


def _records(run: Run) -> dict[str, StageRecord]:
    found = {stage: run.record(stage) for stage in STAGES}
    if absent := [stage for stage, record in found.items() if record is None]:
        raise StageError(
            f"{run.name} has no finished {', '.join(absent)}",
            allowed="a run whose load is profiled and whose models are trained and planned",
            next_step="finish that run with workbench run; workbench runs lists the runs",
        )
    return {stage: record for stage, record in found.items() if record}


def _key(pilot: Pilot, records: dict[str, StageRecord]) -> str:
    """Of what decides the points."""
    return digest_json(
        {
            "deploy_rollback": pilot.deploy_rollback.model_dump(mode="json"),
            "profile_load": pilot.profile_load.model_dump(mode="json"),
            "threads": pilot.readiness.threads,
            "device": pilot.readiness.device,
            "meters": pilot.measure_ab.meters.model_dump(mode="json"),
            "seed": pilot.seed,
            "machine": machine_digest(),
            "after": {stage: record.key for stage, record in records.items()},
        },
        8,
    )


def _lines(found: Sequence[Searched]) -> str:
    """A table for a terminal."""
    rows = [
        {
            "requests": each.requests,
            "arm": each.arm,
            "slots": each.setting.slots,
            "wait, ms": f"{each.setting.batch_wait_ms:g}",
            "requests/s": _rate(each),
            "failed at": f"{each.found.failed_per_s:.4g}" if each.found.failed_per_s else "",
            "twice": "yes" if each.found.confirmed else "no",
            "points": len(each.found.points),
        }
        for each in found
    ]
    table = pd.DataFrame(rows).sort_values(["requests", "arm", "slots"], kind="stable")
    why = [
        f"{each.requests}, {each.arm}, {each.setting.flags}: {each.found.why}"
        for each in found
        if each.found.rate_per_s is None
    ]
    return "\n".join([table.to_string(index=False), *why])


def _rate(each: Searched) -> str:
    if each.found.rate_per_s is None:
        return each.found.kind.replace("_", " ")
    return f"{'>= ' if each.found.kind == 'at_least' else ''}{each.found.rate_per_s:.4g}"
