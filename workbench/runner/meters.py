"""``workbench meter record`` and ``import``: a recording that ends well, however it is ended, and a
log that is attached to a finished run."""

from __future__ import annotations

import re
import sys
import zoneinfo
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from workbench.errors import ConfigError
from workbench.files import digest_path
from workbench.measure.exports.against_turns import summary
from workbench.measure.exports.forms import Options, read_export
from workbench.measure.exports.log import with_response
from workbench.measure.meters.recorder import Recorder
from workbench.paths import shown
from workbench.pilot.problems import did_you_mean
from workbench.pilot.sections.meters import Meters
from workbench.records.metric import Metric
from workbench.records.run import find_run
from workbench.runner.pilot_run import terminable, write_report
from workbench.stages.attach_log import attach_log, judge_with_attached

ROLES = ("timestamp", "source", "power", "energy")


def record_meters(section: Meters, out: Path, every_s: float, for_s: float | None) -> None:
    """Record until ``for_s`` are over, Ctrl-C or SIGTERM; what is said goes to standard error, the
    last line printed is the file. Raises ConfigError and StageError as :class:`Recorder`."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with terminable():
        recorder = Recorder(section, out, every_s, say=say)
        if recorder.kept:
            say(f"goes on with what is in {shown(out)}")
        say(f"recording every {every_s:g} s into {shown(out)}; Ctrl-C ends it")
        try:
            recorder.run(for_s)
        except KeyboardInterrupt:
            say("ended")
    for channel, samples in recorder.channels.items():
        say(f"{channel.name} {channel.quantity}: {samples} samples")
    for faults in recorder.faults.values():
        say(faults.text())
    print(shown(out))


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
    declared = {name: value for name, value in asdict(options).items() if value}
    declared |= {"format": log.form}
    declared |= {
        name: value
        for name, value in (("lag_s", lag_s), ("averaging_s", averaging_s),
                            ("max_gap_s", max_gap_s))
        if value is not None
    }  # fmt: skip
    attachment = attach_log(run, log, digest_path(path), declared, max_gap_s)
    for line in attachment.found["learned"]:
        print(line)
    for line in _energies(attachment.metrics):
        print(line)
    for one in attachment.replaced[:1]:
        print(f"replaces {one['file']} of {one['attached']}, kept in {one['kept_in']}")
    if judge_with_attached(run):
        write_report(run, run.resolved())
    print(run.report if run.report.exists() else run.folder)


def _energies(metrics: Sequence[Metric]) -> list[str]:
    """What came out, a line a figure; each reason for none once."""
    lines: list[str] = []
    reasons: dict[str, list[str]] = {}
    for metric in metrics:
        if metric.name not in ("energy_j_per_request", "energy_ratio"):
            continue
        of = ", ".join(f"{k} {v}" for k, v in metric.labels.items() if k != "source")
        if metric.value is None:
            reasons.setdefault(metric.reason or "", []).append(of)
            continue
        value = f"{metric.value:.4g} {metric.unit}"
        if metric.lo is not None and metric.hi is not None:
            value += f" [{metric.lo:.4g}, {metric.hi:.4g}]"
        lines.append(f"{metric.name} ({of}): {value}")
    return [
        *lines,
        *(f"no energy of {len(of)} arms and classes: {why}" for why, of in reasons.items()),
    ]


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
