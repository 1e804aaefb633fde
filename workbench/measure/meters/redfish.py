"""Redfish: what a BMC, or a rack's PDU, says of power and energy.

Asked of a chassis: ``EnvironmentMetrics`` (``PowerWatts``, ``EnergykWh``), or ``Power`` where there
is none (``PowerConsumedWatts`` of the first of ``PowerControl``, which is the chassis's). Of a rack
PDU: ``Metrics``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.http_json import JsonAddress
from workbench.measure.meters.sample import Channel, MeterError, MeterFault, Sample
from workbench.measure.meters.secret import from_environment
from workbench.measure.meters.units import TO_SI, declared_channel
from workbench.pilot.sections.meters import RedfishMeter

ROOT = "/redfish/v1"


class RedfishDevice:
    """The first question finds which resource there is; the others ask that one.

    Raises MeterError where a password is not in the environment.
    """

    reader = "redfish"

    def __init__(self, section: RedfishMeter, clock: Clock = SYSTEM_CLOCK) -> None:
        password = from_environment(section.password_env) if section.password_env else None
        self._address = JsonAddress(
            section.url, section.timeout_s, section.user, password, verify_tls=section.verify_tls
        )
        self.name = section.name or section.url.partition("://")[2]
        self.notes: list[str] = []
        self._section, self._clock = section, clock
        self._power = declared_channel("redfish", section, self.name, "W", 1.0, section.covers)
        # A whole watt-hour: what is written with fewer digits is coarser, never finer.
        self._energy = declared_channel("redfish", section, self.name, "Wh", 1.0, section.covers)
        self._path: str | None = None
        self._left_out: set[Channel] = set()

    def ask(self) -> list[Sample | MeterFault]:
        if self._path is None:
            self._path = self._found_path()
        before_s = self._clock.monotonic_s()
        answer = self._address.get(self._path)
        now_s = (before_s + self._clock.monotonic_s()) / 2
        wall_s = self._clock.wall_s()
        found: list[Sample | MeterFault] = []
        for channel, value, factor in self._values(answer):
            if channel in self._left_out:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                said = self._address.hidden(repr(value)[:40])
                text = f"{self.name} {channel.quantity}: {said} is no number"
                code: Any = "unsupported" if value is None else "wrong_type"
                found.append(MeterFault(text, code, channel))
                continue
            found.append(Sample(channel, now_s, wall_s, value * factor))
        return found

    def leave_out(self, channel: Channel) -> None:
        self._left_out.add(channel)

    def close(self) -> None:
        self._address.close()

    def _values(self, answer: Any) -> Iterator[tuple[Channel, Any, float]]:
        """Each with the factor to W or J; None where it is there and empty."""
        if not isinstance(answer, dict):
            raise MeterError(f"{self._path}: no object", "wrong_type")
        if "PowerControl" in answer:
            controls = answer["PowerControl"]
            first = controls[0] if isinstance(controls, list) and controls else {}
            watts = first.get("PowerConsumedWatts") if isinstance(first, dict) else None
            yield self._power, watts, 1.0
            return
        yield self._power, _reading(answer.get("PowerWatts")), 1.0
        if "EnergykWh" in answer:
            yield self._energy, _reading(answer["EnergykWh"]), TO_SI["kWh"]

    def _found_path(self) -> str:
        """Raises MeterError where neither resource is there."""
        if self._section.rack_pdu:
            return f"{ROOT}/PowerEquipment/RackPDUs/{self._section.rack_pdu}/Metrics"
        chassis = f"{ROOT}/Chassis/{self._section.chassis}"
        if self._section.chassis is None:
            chassis = self._only_chassis()
        for resource in ("EnvironmentMetrics", "Power"):
            path = f"{chassis}/{resource}"
            try:
                answer = self._address.get(path)
                values = [value for _, value, _ in self._values(answer)]
            except MeterError as error:
                if error.code != "unknown_name":
                    raise
                continue
            if any(value is not None for value in values):
                return path
        raise MeterError(
            f"{chassis} has neither EnvironmentMetrics nor Power with a reading", "unknown_name"
        )

    def _only_chassis(self) -> str:
        answer = self._address.get(f"{ROOT}/Chassis")
        members = answer.get("Members", []) if isinstance(answer, dict) else []
        paths = [m["@odata.id"] for m in members if isinstance(m, dict) and "@odata.id" in m]
        if len(paths) != 1:
            names = ", ".join(str(path).rpartition("/")[2] for path in paths[:8]) or "none"
            raise MeterError(f"chassis: one of {names} must be named in chassis", "unknown_name")
        return str(paths[0]).rstrip("/")


def _reading(value: Any) -> Any:
    """Of a sensor's excerpt; some services give the number itself."""
    return value.get("Reading") if isinstance(value, dict) else value
