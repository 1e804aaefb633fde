"""A power log that came after a run: its energy computed then, beside the records of before.

The figures that are made of energy are computed again from the windows that the run's records hold
and the log, by the functions that compute them in a run: of the turns and the load, of the training
and of the replay with the rollback. Nothing else of the records changes. A run that has been judged
is judged again by its own gates, and the judgement of before is moved aside.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pandas as pd

from workbench.errors import StageError
from workbench.files import replacing
from workbench.measure.ab_figures import energy_bases, energy_figures
from workbench.measure.accepted_energy import accepted_shares, counting_checks
from workbench.measure.exports.against_turns import HeldAgainst, hold_against
from workbench.measure.exports.log import PowerLog, summary
from workbench.measure.load_energy import load_energy_basis, load_energy_figures
from workbench.measure.session import TURN_COLUMNS
from workbench.records.attachment import FOLDER, Attachment, attachment_of, keep
from workbench.records.events import Progress
from workbench.records.metric import Metric
from workbench.records.run import Run
from workbench.records.stage_record import StageRecord
from workbench.roadmap import STAGES
from workbench.serve.load_session import ENERGY_COLUMNS
from workbench.stages.context import StageContext
from workbench.stages.deploy_rollback_energy import ABOUT as REPLAY_COLUMNS
from workbench.stages.deploy_rollback_energy import WHOLE, deployment_figures
from workbench.stages.find import stage_run
from workbench.stages.measure_ab_load import BASELINE
from workbench.stages.train_qat_energy import training_energies

TURNS, TRAINING, REPLAY, REPORT = "measure_ab", "train_qat", "deploy_rollback", "report"
LOAD_COLUMNS = ["block", "order", "arm"]
TRAINING_COLUMNS = ["attempt", "whole", "window"]
ABOUT = ("reader", "place", "scope", "quantity", "resolution", "kind")


@dataclass
class _Computed:
    """What the log makes of one stage. figures: as a run makes them. tables: in the place of the
    record's. facts: of the attachment."""

    figures: list[Metric]
    tables: dict[str, pd.DataFrame]
    facts: dict[str, Any] = field(default_factory=dict)


def attach_log(
    run: Run, log: PowerLog, digest: str, declared: dict[str, Any], max_gap_s: float | None = None
) -> dict[str, Attachment]:
    """Compute the energy of ``run`` from ``log`` and keep it beside the records; stage -> what is
    now attached to it.

    digest: of the log's file. declared: what a person said of it. max_gap_s: the pilot's where
    None. Raises StageError for a run without a finished ``measure_ab``, ConfigError where the log
    is not of that time.
    """
    found = {name: StageRecord.load(run.stage_folder(name)) for name in (TURNS, TRAINING, REPLAY)}
    records = {name: one for name, one in found.items() if one and "energies" in one.tables}
    if TURNS not in records:
        raise StageError(
            f"{run.name} has no finished {TURNS} with turns",
            allowed="a run that measured its arms",
            next_step="workbench runs lists the runs; finish it: workbench run PILOT.yaml",
        )
    gap_s = max_gap_s or run.resolved().pilot.measure_ab.meters.max_gap_s
    attached = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    loads = _own_load(run, records[TURNS])
    windows = {name: _windows(record) for name, record in records.items()}
    further = [loads, *(windows[name] for name in (TRAINING, REPLAY) if name in windows)]
    rests = [rest for record in records.values() for rest in _rests(record)]
    held = hold_against(log, windows[TURNS], further, rests, gap_s)
    attachments = {}
    for name, record in records.items():
        with run.lock(name):
            computed = (
                _turns(run, record, held, loads, log)
                if name == TURNS
                else _training(record, held, windows[name])
                if name == TRAINING
                else _replay(held, windows[name])
            )
            attachment = Attachment(
                file=log.path.name,
                digest=digest,
                attached=attached,
                declared=declared,
                found={"form": log.form, "sources": summary(log), "learned": held.said,
                       "no_idle": held.no_idle, "failures": log.faults.counts(),
                       "max_gap_s": gap_s},
                metrics=[],
                tables={},
                facts=computed.facts,
            )  # fmt: skip
            _keep(record, computed, attachment, log)
        attachments[name] = attachment
    return attachments


def _keep(
    record: StageRecord,
    computed: _Computed,
    attachment: Attachment,
    log: PowerLog,
) -> None:
    attachment.metrics = [
        _with_source(figure, attachment.text)
        for figure in computed.figures
        if figure != record.metric(figure.name, **figure.labels)
    ]
    attachment.tables = {name: f"{FOLDER}/{name}.parquet" for name in computed.tables}
    attachment.notes.append(f"energy is from {attachment.text}")
    if record.stage == TURNS:
        said = [*attachment.found["learned"], attachment.found["no_idle"]]
        attachment.notes += [text for text in said if text] + log.notes
        if len(log.faults):
            attachment.notes.append(f"rows of {log.path.name} that are no samples: "
                                    f"{log.faults.text()}")  # fmt: skip
    partial = record.folder / f".{FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, table in computed.tables.items():
        with replacing(partial / f"{name}.parquet") as path:
            table.to_parquet(path, index=False)
    keep(record.folder, partial, attachment)


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
        attachment = attachment_of(run.stage_folder(TURNS))
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


def _windows(record: StageRecord) -> pd.DataFrame:
    """Table ``energies`` of a stage, whose rows of a version before this one have no times."""
    table = record.table("energies")
    if not {"start_s", "end_s"} <= set(table.columns):
        return table if record.stage == TURNS else table.assign(start_s=None, end_s=None).iloc[:0]
    return table.dropna(subset=["start_s"])


def _rests(record: StageRecord) -> list[tuple[float, float]]:
    """Unix times in which the machine was idle; none in a record of before they were kept."""
    meters = record.facts.get("meters", {})
    rests = meters.get("rests", []) if isinstance(meters, dict) else []
    return [(start_s, end_s) for start_s, end_s in rests]


def _turns(
    run: Run, record: StageRecord, held: HeldAgainst, loads: pd.DataFrame, log: PowerLog
) -> _Computed:
    of_run = record.table("energies")
    tables = {"energies": _with_metered(held.rows(of_run, TURN_COLUMNS), of_run)}
    if len(loads):
        tables["load_energies"] = _with_metered(
            held.rows(loads, LOAD_COLUMNS), record.table("load_energies")
        )
    facts: dict[str, Any] = {}
    figures = list(_turn_figures(run, record, tables, facts))
    if "power" in record.tables:
        tables["power"] = _power(record, log)
    return _Computed(figures, tables, facts)


def _training(record: StageRecord, held: HeldAgainst, windows: pd.DataFrame) -> _Computed:
    times = [m for m in record.metrics if m.name == "training_time_s" and m.value is not None]
    training_s = {m.labels["arm"]: m.value for m in times if m.value is not None}
    rows = held.rows(windows, TRAINING_COLUMNS)
    table = pd.concat([rows, windows[windows["basis"] != ""]], ignore_index=True)
    figures = list(training_energies(table, training_s).values())
    return _Computed(figures, {"energies": table})


def _replay(held: HeldAgainst, windows: pd.DataFrame) -> _Computed:
    whole = windows["window"] == WHOLE
    rows = pd.concat(
        [
            held.rows(windows[whole], REPLAY_COLUMNS, apart=True),
            held.rows(windows[~whole], REPLAY_COLUMNS),
            windows[windows["basis"] != ""],
        ],
        ignore_index=True,
    )
    return _Computed(list(deployment_figures(rows)), {"energies": rows})


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


def _turn_figures(
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
    figures = load_energy_figures(requests, load, shapes, arms, own)
    yield from counting_checks(figures, accepted_shares(record.metrics), BASELINE)


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
