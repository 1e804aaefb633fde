"""Which meters this machine has, and why it lacks the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.csv_log import CsvMeter
from workbench.measure.meters.extra import library
from workbench.measure.meters.ipmi import IpmiDevice
from workbench.measure.meters.modbus import ModbusDevice
from workbench.measure.meters.nvml import find_nvml
from workbench.measure.meters.polled import AskedDevice, PolledMeter
from workbench.measure.meters.prometheus import PrometheusDevice
from workbench.measure.meters.rapl import find_rapl
from workbench.measure.meters.recorded import recorded_meters
from workbench.measure.meters.redfish import RedfishDevice
from workbench.measure.meters.sample import Meter, MeterError
from workbench.measure.meters.snmp import SnmpDevice
from workbench.pilot.sections.meters import NETWORK, Meters, NetworkMeter, Reader, Scope

DEVICES: dict[str, Callable[..., AskedDevice]] = {
    "snmp": SnmpDevice,
    "redfish": RedfishDevice,
    "ipmi": IpmiDevice,
    "modbus": ModbusDevice,
    "prometheus": PrometheusDevice,
}
"""Reader -> what asks one device of its sort: given its section of the pilot and a clock."""


@dataclass(frozen=True)
class MissingMeter:
    """``reason`` is the sentence that stands in the report instead of a number. scope: what it
    would have held, where the pilot says; a sum over that scope without it would be too small."""

    source: str
    reason: str
    scope: Scope | None = None


def reasons(missing: Sequence[MissingMeter]) -> dict[str, str]:
    """Source -> why, of all its meters that are missing."""
    sources = dict.fromkeys(meter.source for meter in missing)
    return {
        source: "; ".join(meter.reason for meter in missing if meter.source == source)
        for source in sources
    }


def require_libraries(section: Meters) -> None:
    """Raises ConfigError where a meter of the pilot needs a library that is not installed."""
    if section.wants("snmp") and any(one.user for one in section.snmp):
        library("pysnmp", "measure_ab.meters.snmp: user")
    if section.wants("modbus"):
        library("pymodbus", "measure_ab.meters.modbus")


def find_meters(
    section: Meters, gpus: Sequence[int] | None = (0,), clock: Clock = SYSTEM_CLOCK
) -> tuple[list[Meter], list[MissingMeter]]:
    """The meters that answer, and each wanted one that does not, with its reason.

    Those of a network are asked all at once, so that it takes as long as the slowest of them.
    gpus: torch's numbers of the GPUs that will compute; None: all that the driver shows.
    Raises ConfigError when the power log of the pilot is not one, and where a library is missing.
    """
    of_this_machine: dict[Reader, Callable[[], Meter]] = {
        "nvml": lambda: find_nvml(gpus),
        "rapl": find_rapl,
        "csv": lambda: csv_meter(section),
    }
    found: list[Meter] = []
    missing: list[MissingMeter] = []
    for source, find in of_this_machine.items():
        if not section.wants(source):
            continue
        try:
            found.append(find())
        except OSError as error:
            missing.append(MissingMeter(source, str(error)))
    for one in _network(section, clock):
        (missing if isinstance(one, MissingMeter) else found).append(one)  # type: ignore[arg-type]
    if section.recording is not None and section.wants("recording"):
        live = {meter.reader for meter in found}
        try:
            recorded = recorded_meters(Path(section.recording), clock)
            found += [meter for meter in recorded if meter.reader not in live]
        except OSError as error:
            missing.append(MissingMeter("recording", str(error)))
    return found, missing


def _network(section: Meters, clock: Clock) -> Iterator[Meter | MissingMeter]:
    wanted = [
        (reader, of)
        for reader in NETWORK
        if section.wants(reader)
        for of in getattr(section, reader)
    ]
    if not wanted:
        return

    def find(reader: str, of: NetworkMeter) -> Meter | MissingMeter:
        try:
            device = DEVICES[reader](of, clock)
            return PolledMeter(device, of.period_s, of.timeout_s, clock)
        except MeterError as error:
            return MissingMeter(reader, f"{error.code}: {error}", of.covers)

    with ThreadPoolExecutor(len(wanted), thread_name_prefix="meter") as threads:
        yield from threads.map(lambda one: find(*one), wanted)


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
