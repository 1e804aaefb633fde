"""The forms in which power comes: one function each, from a file's text to its readings.

A form knows what its program writes and nothing else: which columns, which unit, what the value
covers, and whether it is measured at all. nvidia-smi and zeus see GPU boards, DCMI the node through
its board controller; codecarbon adds what it models for processors without RAPL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from workbench.errors import ConfigError
from workbench.measure.exports.cells import known_unit
from workbench.measure.exports.dcmi_loop import read_dcmi
from workbench.measure.exports.intervals_of_energy import read_codecarbon, read_zeus
from workbench.measure.exports.log import ExportedSample, PowerLog, power_log
from workbench.measure.exports.prometheus_json import read_prometheus
from workbench.measure.exports.reading import FormReading, Options
from workbench.measure.exports.rows_of_power import (
    read_apc,
    read_csv,
    read_grafana,
    read_nvidia_smi,
)
from workbench.measure.meters.recording import is_recording, read_recording, row_channel
from workbench.measure.meters.sample import Scope

__all__ = ["FORMS", "Options", "read_export"]


def read_export(path: Path, form: str, options: Options) -> PowerLog:
    """Raises ConfigError for a file that is not of the form, or would give a wrong number."""
    if is_recording(path):
        form = "recording"
    if form not in FORMS:
        raise ConfigError(
            f"--format {form}: no such form", allowed=", ".join(FORMS), next_step="name one of them"
        )
    if options.unit is not None and known_unit(options.unit) is None:
        raise ConfigError(
            f"--unit {options.unit}: no unit of power or energy", allowed="W, kW, mW, J, Wh, kWh"
        )
    if options.scope is not None and options.scope not in get_args(Scope):
        raise ConfigError(f"--scope {options.scope}", allowed=", ".join(get_args(Scope)))
    reading = FormReading(path, form, options)
    readings = list(FORMS[form](reading))
    return power_log(path, form, readings, reading.faults, reading.notes, options.sources)


def _recording(reading: FormReading) -> Iterator[ExportedSample]:
    """Of ``workbench meter record``: every channel with what it declares."""
    for batch in read_recording(reading.path):
        for row in batch.to_pylist():
            if row["value"] is None:
                reading.faults.add(0.0, f"{row['reader']}: {row['fault']}")
                continue
            channel = row_channel(row)
            yield ExportedSample(channel.place, row["wall_s"], row["value"], channel)


FORMS: dict[str, Callable[[FormReading], Iterator[ExportedSample]]] = {
    "csv": read_csv,
    "nvidia-smi": read_nvidia_smi,
    "grafana": read_grafana,
    "prometheus": read_prometheus,
    "codecarbon": read_codecarbon,
    "zeus": read_zeus,
    "dcmi": read_dcmi,
    "apc": read_apc,
    "recording": _recording,
}
