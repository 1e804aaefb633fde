"""SNMP: PDUs and UPSs, over v2c or v3; one request a device, with all its OIDs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workbench.errors import reason_of
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.sample import Channel, MeterError, MeterFault, Sample
from workbench.measure.meters.secret import from_environment, hidden
from workbench.measure.meters.snmp_message import SnmpValue
from workbench.measure.meters.snmp_profiles import PROFILES
from workbench.measure.meters.snmp_v2c import SnmpV2c
from workbench.measure.meters.snmp_v3 import SnmpV3, V3User
from workbench.measure.meters.units import TO_SI, declared_channel
from workbench.pilot.sections.meters import SnmpMeter

PUBLIC = "public"
"""The community that agents have until somebody changes it."""


class _Agent(Protocol):
    def get(self, oids: Sequence[str]) -> dict[str, SnmpValue]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class _Asked:
    """One OID and where its value goes. factor: to W or J. digits: OID of its decimal digits."""

    channel: Channel
    oid: str
    factor: float
    digits: str | None = None


class SnmpDevice:
    """Asks an agent; a value that is none is a fault of its own and costs the others nothing.

    Raises ConfigError where v3 lacks its library, MeterError where a password is not in the
    environment.
    """

    reader = "snmp"

    def __init__(self, section: SnmpMeter, clock: Clock = SYSTEM_CLOCK) -> None:
        self.name = section.name or section.host
        self.notes: list[str] = []
        self._clock = clock
        self._asked = _asked(section, self.name)
        self._secrets: list[str | None] = []
        self._agent = self._agent_of(section)

    def ask(self) -> list[Sample | MeterFault]:
        oids = [one.oid for one in self._asked]
        oids += [one.digits for one in self._asked if one.digits]
        before_s = self._clock.monotonic_s()
        try:
            values = self._agent.get(oids)
        except MeterError:
            raise
        except Exception as error:
            # Sockets have errors of theirs, and pysnmp and ASN.1 too.
            raise MeterError(hidden(reason_of(error), *self._secrets)) from None
        # A value is of some moment between the question and the answer.
        now_s = (before_s + self._clock.monotonic_s()) / 2
        wall_s = self._clock.wall_s()
        found: list[Sample | MeterFault] = []
        for one in self._asked:
            try:
                number = _number(values.get(one.oid))
                if one.digits:
                    number /= 10 ** _number(values.get(one.digits))
            except MeterError as error:
                text = f"{one.channel.place} {one.channel.quantity}: {one.oid}: {error}"
                found.append(MeterFault(hidden(text, *self._secrets), error.code, one.channel))
                continue
            # -1 is "not supported", whatever it is of.
            value = number * one.factor if number >= 0 else -1.0
            found.append(Sample(one.channel, now_s, wall_s, value))
        return found

    def leave_out(self, channel: Channel) -> None:
        self._asked = [one for one in self._asked if one.channel != channel]

    def close(self) -> None:
        self._agent.close()

    def _agent_of(self, section: SnmpMeter) -> _Agent:
        where = section.host, section.port
        if section.user is None:
            community = PUBLIC
            if section.community_env:
                community = from_environment(section.community_env)
                self._secrets.append(community)
            return SnmpV2c(*where, community, section.timeout_s)
        auth = from_environment(section.auth_env) if section.auth_env else None
        privacy = from_environment(section.privacy_env) if section.privacy_env else None
        self._secrets += [auth, privacy]
        user = V3User(section.user, section.auth, auth, section.privacy, privacy)
        return SnmpV3(*where, user, section.timeout_s)


def _asked(section: SnmpMeter, name: str) -> list[_Asked]:
    asked = []
    if section.profile:
        profile = PROFILES[section.profile]
        index = section.index or profile.index or ""
        place = name if section.name else f"{name} {section.profile} {index}"
        for column in profile.columns:
            channel = declared_channel(
                "snmp", section, place, column.unit, column.scale, section.covers
            )
            factor = column.scale * TO_SI[column.unit]
            digits = column.digits.format(index) if column.digits else None
            asked.append(_Asked(channel, column.oid.format(index), factor, digits))
    for own in section.oids:
        place = f"{name} {own.name or own.oid.lstrip('.')}"
        scope = own.scope or section.covers
        channel = declared_channel("snmp", section, place, own.unit, own.scale, scope, own.bits)
        asked.append(_Asked(channel, own.oid.lstrip("."), own.scale * TO_SI[own.unit]))
    return asked


def _number(value: SnmpValue) -> float:
    """Raises MeterError for an answer that is no number; some agents write theirs as text."""
    if value is None:
        raise MeterError("the agent does not have it", "unknown_name")
    try:
        return float(value)
    except ValueError:
        raise MeterError(f"{str(value)[:40]!r} is no number", "wrong_type") from None
