"""``workbench meter import``: a log that is attached to a finished run."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from workbench.errors import ConfigError
from workbench.files import digest_path
from workbench.measure.exports.forms import Options, read_export
from workbench.measure.exports.log import summary, with_response
from workbench.pilot.problems import did_you_mean
from workbench.records.metric import Metric
from workbench.records.run import find_run
from workbench.runner.pilot_run import write_report

SHOWN = (
    "energy_j_per_request",
    "energy_net_j_per_request",
    "energy_ratio",
    "training_energy_j",
    "deployment_energy_j",
)
"""Figures that are printed."""
ROLES = ("timestamp", "source", "power", "energy")


def import_log(
    path: Path,
    form: str,
    run_name: str | None,
    options: Options,
    *,
    lag_s: float | None = None,
    averaging_s: float | None = None,
    max_gap_s: float | None = None,
) -> None:
    """Read an export, say what is in it, and attach it to a run where one is named; the last line
    printed is then the report's path, or the run's folder before there is a report.

    Raises ConfigError for a file or an option that is wrong, StageError for a run without turns.
    """
    if options.zone is not None and options.zone not in zoneinfo.available_timezones():
        known = did_you_mean(options.zone, zoneinfo.available_timezones())
        raise ConfigError(f"--zone {options.zone}: no such time zone{known}",
                          allowed="a name such as Europe/Berlin or UTC")  # fmt: skip
    run = find_run(run_name) if run_name else None
    log = with_response(read_export(path, form, options), lag_s, averaging_s)
    for line in summary(log):
        print(line)
    if run is None:
        return
    from workbench.stages.attach_log import (  # torch, for a run alone
        attach_log,
        judge_with_attached,
    )

    declared = {name: value for name, value in asdict(options).items() if value}
    declared |= {"format": log.form}
    declared |= {
        name: value
        for name, value in (("lag_s", lag_s), ("averaging_s", averaging_s),
                            ("max_gap_s", max_gap_s))
        if value is not None
    }  # fmt: skip
    attached = attach_log(run, log, digest_path(path), declared, max_gap_s)
    of_turns = attached["measure_ab"]
    for line in [*of_turns.found["learned"], of_turns.found["no_idle"]]:
        if line:
            print(line)
    for line in _energies([metric for one in attached.values() for metric in one.metrics]):
        print(line)
    for one in of_turns.replaced[:1]:
        print(f"replaces {one['file']} of {one['attached']}, kept in {one['kept_in']}")
    if judge_with_attached(run):
        write_report(run, run.resolved())
    print(run.report if run.report.exists() else run.folder)


def _energies(metrics: Sequence[Metric]) -> list[str]:
    """What came out, a line a figure; each reason for none once."""
    lines: list[str] = []
    reasons: dict[str, list[str]] = {}
    for metric in metrics:
        if metric.name not in SHOWN:
            continue
        of = ", ".join(f"{k} {v}" for k, v in metric.labels.items() if k != "source")
        of = of or "all of it"
        if metric.value is None:
            reasons.setdefault(metric.reason or "", []).append(f"{metric.name} ({of})")
            continue
        value = f"{metric.value:.4g} {metric.unit}"
        if metric.lo is not None and metric.hi is not None:
            value += f" [{metric.lo:.4g}, {metric.hi:.4g}]"
        lines.append(f"{metric.name} ({of}): {value}")
    return [
        *lines,
        *(f"no {_listed(of)}: {why}" for why, of in reasons.items()),
    ]


def _listed(figures: Sequence[str]) -> str:
    more = f" and {len(figures) - 2} more" if len(figures) > 2 else ""
    return ", ".join(figures[:2]) + more


def columns_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """``timestamp=Zeit,power=Leistung (kW)`` as role -> names; a role may come several times.

    Raises ConfigError for what names no role.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        for part in re.split(rf",(?=(?:{'|'.join(ROLES)})=)", text):
            role, given, name = part.partition("=")
            if role.strip() not in ROLES or not given or not name.strip():
                raise ConfigError(
                    f"--columns {part}: names no column",
                    allowed=f"{', '.join(ROLES)}, each with = and the file's own name",
                    next_step="such as --columns timestamp=Zeit,source=Name,power=Leistung",
                )
            found.setdefault(role.strip(), []).append(name.strip())
    return found
