"""Which meters this machine has, and why it lacks the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.measure.meters.csv_log import CsvMeter
from workbench.measure.meters.nvml import find_nvml
from workbench.measure.meters.rapl import find_rapl
from workbench.measure.meters.sample import Meter
from workbench.pilot.sections.measure_ab import Meters


@dataclass(frozen=True)
class MissingMeter:
    """``reason`` is the sentence that stands in the report instead of a number."""

    source: str
    reason: str


def find_meters(
    section: Meters, gpus: Sequence[int] = (0,)
) -> tuple[list[Meter], list[MissingMeter]]:
    """The meters that answer, and each wanted one that does not, with its reason.

    gpus: torch's numbers of the GPUs that will compute.
    Raises ConfigError when the power log of the pilot is not one.
    """
    finders: dict[str, Callable[[], Meter]] = {
        "nvml": lambda: find_nvml(gpus),
        "rapl": find_rapl,
        "csv": lambda: csv_meter(section),
    }
    found: list[Meter] = []
    missing: list[MissingMeter] = []
    for source, find in finders.items():
        if "auto" not in section.sources and source not in section.sources:
            continue
        try:
            found.append(find())
        except OSError as error:
            missing.append(MissingMeter(source, str(error)))
    return found, missing


def csv_meter(section: Meters) -> CsvMeter:
    """Raises OSError where no log is given or it cannot be read, ConfigError where it is none."""
    if section.csv is None:
        raise OSError("no power log is given (measure_ab.meters.csv)")
    return CsvMeter(
        Path(section.csv),
        unit=section.csv_unit,
        time_zone=section.csv_time_zone,
        scope=section.csv_scope,
    )
