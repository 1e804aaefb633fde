"""A power log that came after a run: its energy computed then, beside the record of before.

The figures of ``measure_ab`` that are made of energy are computed again from the run's turns and
the log, by the function that computes them in a run; nothing else of the record changes. A run that
has been judged is judged again by its own gates, and the judgement of before is moved aside.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from workbench.errors import StageError
from workbench.files import replacing
from workbench.measure.ab_figures import energy_bases, energy_figures
from workbench.measure.exports.against_turns import hold_against
from workbench.measure.exports.log import PowerLog, summary
from workbench.records.attachment import FOLDER, Attachment, attachment_of, keep
from workbench.records.events import Progress
from workbench.records.metric import Metric
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.roadmap import STAGES
from workbench.stages.context import StageContext
from workbench.stages.find import stage_run
from workbench.stages.measure_ab_load import BASELINE

STAGE, REPORT = "measure_ab", "report"
ABOUT = ("reader", "place", "scope", "quantity", "resolution", "kind")


def attach_log(
    run: Run, log: PowerLog, digest: str, declared: dict[str, Any], max_gap_s: float | None = None
) -> Attachment:
    """Compute the energy of ``run`` from ``log`` and keep it beside the record.

    digest: of the log's file. declared: what a person said of it. max_gap_s: the pilot's where
    None. Raises StageError for a run without a finished ``measure_ab``, ConfigError where the log
    is not of that time.
    """
    folder = run.stage_folder(STAGE)
    record = StageRecord.load(folder)
    if record is None or "energies" not in record.tables:
        raise StageError(
            f"{run.name} has no finished {STAGE} with turns",
            allowed="a run that measured its arms",
            next_step="workbench runs lists the runs; finish it: workbench run PILOT.yaml",
        )
    gap_s = max_gap_s or run.resolved().pilot.measure_ab.meters.max_gap_s
    with run.lock(STAGE):
        of_run = record.table("energies")
        held = hold_against(log, of_run, gap_s)
        metered = of_run[of_run["basis"] != ""]
        # Of one turn the widest basis comes first, whoever metered it.
        table = pd.concat([held.energies, metered], ignore_index=True)
        attached = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        attachment = Attachment(
            file=log.path.name,
            digest=digest,
            attached=attached,
            declared=declared,
            found={"form": log.form, "sources": summary(log), "learned": held.said,
                   "failures": log.faults.counts(), "max_gap_s": gap_s},
            metrics=[],
            tables={"energies": f"{FOLDER}/energies.parquet"},
            facts={"energy_basis": energy_bases(table)},
        )  # fmt: skip
        attachment.metrics = _figures(table, attachment.text)
        if "power" in record.tables:
            attachment.tables["power"] = f"{FOLDER}/power.parquet"
        attachment.notes += [f"energy is from {attachment.text}", *held.said, *log.notes]
        if len(log.faults):
            attachment.notes.append(f"rows of {log.path.name} that are no samples: "
                                    f"{log.faults.text()}")  # fmt: skip
        partial = folder / f".{FOLDER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _save(table, partial / "energies.parquet")
        if "power" in record.tables:
            _save(_power(record, log), partial / "power.parquet")
        keep(folder, partial, attachment)
    return attachment


def judge_with_attached(run: Run) -> StageRecord | None:
    """The run's judgement with what is attached, by the gates fixed before it; that of before is
    moved aside. None where the run has not been judged yet: it will be with what is attached."""
    first = run.record(REPORT)
    upstream = {name: record for name in STAGES[REPORT].after if (record := run.record(name))}
    if first is None or len(upstream) < len(STAGES[REPORT].after):
        return None
    folder = run.stage_folder(REPORT)
    partial = folder.with_name(f".{REPORT}.attaching")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with run.lock(REPORT):
        record = replace(
            first, folder=partial, metrics=[], tables={}, artefacts={}, facts={}, notes=[],
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )  # fmt: skip
        began = time.monotonic()
        stage_run(REPORT)(StageContext(run.resolved().pilot, record, Progress(run.events, REPORT),
                                       upstream))  # fmt: skip
        attachment = attachment_of(run.stage_folder(STAGE))
        before = first.facts.get("verdict", {}).get("decision", "unknown")
        if attachment:
            record.notes.append(
                f"judged again after {attachment.text}; the verdict before it: {before}"
            )
        record.duration_s = round(time.monotonic() - began, 2)
        record.save()
        aside = folder.with_name(f"{folder.name}.until-{time.strftime('%Y%m%d-%H%M%S')}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}~")
        folder.rename(aside)
        partial.rename(folder)
        record.folder = folder
    return record


def _figures(table: pd.DataFrame, source: str) -> list[Metric]:
    """The figures of energy, each with where it is from."""
    classes = [SimpleNamespace(name=name) for name in table["class"].unique()]
    found = []
    for metric in energy_figures(table, BASELINE, classes):
        if metric.value is None:
            found.append(replace(metric, reason=f"{metric.reason}; {source}"))
        else:
            found.append(replace(metric, how=f"{metric.how}; {source}"))
    return found


def _power(record: StageRecord, log: PowerLog) -> pd.DataFrame:
    """Table ``power`` with the samples of the log."""
    frames = [record.table("power")]
    for one in log.series:
        about = {name: getattr(one.channel, name) for name in ABOUT}
        frames.append(pd.DataFrame({"wall_s": one.times_s, "value": one.values}).assign(**about))
    whole = [frame for frame in frames if len(frame)]
    return pd.concat(whole, ignore_index=True).reindex(columns=frames[0].columns)


def _save(frame: pd.DataFrame, path: Path) -> None:
    with replacing(path) as partial:
        frame.to_parquet(partial, index=False)
