"""A power log that came after a run: its energy computed then, beside the record of before.

The figures of ``measure_ab`` that are made of energy are computed again from the run's turns and
the log, by the function that computes them in a run; nothing else of the record changes. A run that
has been judged is judged again by its own gates, and the judgement of before is moved aside.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
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
from workbench.measure.load_energy import load_energy_basis, load_energy_figures
from workbench.records.attachment import FOLDER, Attachment, attachment_of, keep
from workbench.records.events import Progress
from workbench.records.metric import Metric
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.roadmap import STAGES
from workbench.serve.load_session import ENERGY_COLUMNS
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
        of_run, of_load = record.table("energies"), _own_load(run, record)
        held = hold_against(log, of_run, of_load, gap_s)
        tables = {"energies": _with_metered(held.energies, of_run)}
        if len(of_load):
            tables["load_energies"] = _with_metered(
                held.load_energies, record.table("load_energies")
            )
        attached = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        attachment = Attachment(
            file=log.path.name,
            digest=digest,
            attached=attached,
            declared=declared,
            found={"form": log.form, "sources": summary(log), "learned": held.said,
                   "failures": log.faults.counts(), "max_gap_s": gap_s},
            metrics=[],
            tables={},
        )  # fmt: skip
        figures = list(_figures(run, record, tables, attachment.facts))
        attachment.metrics = [
            _with_source(figure, attachment.text)
            for figure in figures
            if figure != record.metric(figure.name, **figure.labels)
        ]
        if "power" in record.tables:
            tables["power"] = _power(record, log)
        attachment.tables = {name: f"{FOLDER}/{name}.parquet" for name in tables}
        attachment.notes += [f"energy is from {attachment.text}", *held.said, *log.notes]
        if len(log.faults):
            attachment.notes.append(f"rows of {log.path.name} that are no samples: "
                                    f"{log.faults.text()}")  # fmt: skip
        partial = folder / f".{FOLDER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, table in tables.items():
            _save(table, partial / f"{name}.parquet")
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


def _own_load(run: Run, record: StageRecord) -> pd.DataFrame:
    """Windows of the pilot's own arms under the load; an address is served by another node."""
    if not {"load_energies", "load_requests", "blocks"} <= set(record.tables):
        return pd.DataFrame(columns=ENERGY_COLUMNS)
    windows = record.table("load_energies").dropna(subset=["start_s"])
    return windows[windows["arm"].isin(run.resolved().pilot.measure_ab.own_arms)]


def _with_metered(held: pd.DataFrame, of_run: pd.DataFrame) -> pd.DataFrame:
    """The log's rows, then those that were metered in the run: of one window the widest basis
    comes first, whoever metered it."""
    metered = of_run[(of_run["basis"] != "") | ~of_run["arm"].isin(held["arm"])]
    return pd.concat([held, metered], ignore_index=True) if len(metered) else held


def _figures(
    run: Run, record: StageRecord, tables: dict[str, pd.DataFrame], facts: dict[str, Any]
) -> Iterator[Metric]:
    """The figures of energy as a run makes them; facts: takes the bases they stand on."""
    energies = tables["energies"]
    facts["energy_basis"] = energy_bases(energies)
    classes = [SimpleNamespace(name=name) for name in energies["class"].unique()]
    yield from energy_figures(energies, BASELINE, classes)
    if "load_energies" not in tables:
        return
    section, load = run.resolved().pilot.measure_ab, tables["load_energies"]
    own, arms = section.own_arms, [*section.own_arms, *section.addresses]
    facts["load_energy_basis"] = load_energy_basis(load, arms, own)
    requests, shapes = record.table("load_requests"), record.table("blocks")
    yield from load_energy_figures(requests, load, shapes, arms, own)


def _with_source(figure: Metric, source: str) -> Metric:
    if figure.value is None:
        return replace(figure, reason=f"{figure.reason}; {source}")
    return replace(figure, how=f"{figure.how}; {source}")


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
