"""SNMP: PDUs and UPSs, over v2c or v3; one request a device, with all its OIDs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import reason_of
from workbench.measure.meters.clock import SYSTEM_CLOCK, Clock
from workbench.measure.meters.extra import library
from workbench.measure.meters.sample import Channel, FaultCode, MeterError, MeterFault, Sample
from workbench.measure.meters.secret import from_environment, hidden
from workbench.measure.meters.snmp_profiles import PROFILES
from workbench.measure.meters.units import TO_SI, declared_channel
from workbench.pilot.sections.meters import SnmpMeter

PUBLIC = "public"
"""The community that agents have until somebody changes it."""
AUTHENTICATION = {
    "md5": "USM_AUTH_HMAC96_MD5",
    "sha": "USM_AUTH_HMAC96_SHA",
    "sha224": "USM_AUTH_HMAC128_SHA224",
    "sha256": "USM_AUTH_HMAC192_SHA256",
    "sha384": "USM_AUTH_HMAC256_SHA384",
    "sha512": "USM_AUTH_HMAC384_SHA512",
}
PRIVACY = {
    "des": "USM_PRIV_CBC56_DES",
    "aes128": "USM_PRIV_CFB128_AES",
    "aes192": "USM_PRIV_CFB192_AES",
    "aes256": "USM_PRIV_CFB256_AES",
}
DENIED = (
    "WrongDigest",
    "DecryptionError",
    "UnknownUserName",
    "UnknownSecurityName",
    "UnsupportedSecurityLevel",
    "AuthenticationFailure",
    "AuthenticationError",
    "NotInTimeWindow",
)
"""What pysnmp calls the refusals of v3."""


@dataclass(frozen=True)
class _Asked:
    """One OID and where its value goes. factor: to W or J. digits: OID of its decimal digits."""

    channel: Channel
    oid: str
    factor: float
    digits: str | None = None


class SnmpDevice:
    """Asks an agent; a value that is none is a fault of its own and costs the others nothing.

    Raises ConfigError without pysnmp, MeterError where a password is not in the environment.
    """

    reader = "snmp"

    def __init__(self, section: SnmpMeter, clock: Clock = SYSTEM_CLOCK) -> None:
        self._snmp = library("pysnmp.hlapi.v3arch.asyncio", "measure_ab.meters.snmp")
        self.name = section.name or section.host
        self.notes: list[str] = []
        self._section, self._clock = section, clock
        self._asked = _asked(section, self.name)
        self._secrets: list[str | None] = []
        self._user = self._credentials()
        self._loop = asyncio.new_event_loop()
        self._engine: Any = None
        self._target: Any = None

    def ask(self) -> list[Sample | MeterFault]:
        oids = [one.oid for one in self._asked]
        oids += [one.digits for one in self._asked if one.digits]
        before_s = self._clock.monotonic_s()
        try:
            values = self._loop.run_until_complete(self._get(oids))
        except MeterError:
            raise
        except Exception as error:
            # pysnmp raises errors of its own and those of sockets and of ASN.1.
            raise MeterError(hidden(reason_of(error), *self._secrets)) from None
        # A value is of some moment between the question and the answer.
        now_s = (before_s + self._clock.monotonic_s()) / 2
        wall_s = self._clock.wall_s()
        found: list[Sample | MeterFault] = []
        for one in self._asked:
            try:
                number = _number(values[one.oid])
                if one.digits:
                    number /= 10 ** _number(values[one.digits])
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
        if self._loop.is_closed():
            return
        if self._engine is not None:
            self._engine.close_dispatcher()
        # What pysnmp has cancelled must also end, or the loop complains of it later.
        rest = asyncio.all_tasks(self._loop)
        for task in rest:
            task.cancel()
        if rest:
            self._loop.run_until_complete(asyncio.wait(rest))
        self._loop.close()

    async def _get(self, oids: Sequence[str]) -> dict[str, Any]:
        """OID -> what the agent answers for it."""
        snmp, section = self._snmp, self._section
        if self._target is None:
            self._engine = snmp.SnmpEngine()
            self._target = await snmp.UdpTransportTarget.create(
                (section.host, section.port), timeout=section.timeout_s, retries=0
            )
        wanted = [snmp.ObjectType(snmp.ObjectIdentity(oid)) for oid in oids]
        error, status, at, pairs = await snmp.get_cmd(
            self._engine, self._user, self._target, snmp.ContextData(), *wanted, lookupMib=False
        )
        if error:
            raise MeterError(self._said(error), _code(error))
        if status:
            # noAccess and authorizationError of RFC 3416 are 6 and 16.
            code: FaultCode = "denied" if int(status) in (6, 16) else "no_answer"
            named = oids[int(at) - 1] if 0 < int(at) <= len(oids) else "the request"
            raise MeterError(f"{named}: {status.prettyPrint()}", code)
        return {str(oid): value for oid, value in pairs}

    def _said(self, error: Any) -> str:
        if type(error).__name__ == "RequestTimedOut":
            wrong = "the host" if self._section.user else "the host or the community"
            return (
                f"no answer within {self._section.timeout_s:g} s: {wrong} may be wrong, or the "
                "agent may not let this machine ask"
            )
        return hidden(str(error), *self._secrets)

    def _credentials(self) -> Any:
        snmp, section = self._snmp, self._section
        if section.user is None:
            community = PUBLIC
            if section.community_env:
                community = from_environment(section.community_env)
                self._secrets.append(community)
            return snmp.CommunityData(community, mpModel=1)
        auth = from_environment(section.auth_env) if section.auth_env else None
        privacy = from_environment(section.privacy_env) if section.privacy_env else None
        self._secrets += [auth, privacy]
        if privacy:
            library("cryptography", "measure_ab.meters.snmp: privacy_env")
        protocols = {}
        if auth:
            protocols["authProtocol"] = getattr(snmp, AUTHENTICATION[section.auth])
        if privacy:
            protocols["privProtocol"] = getattr(snmp, PRIVACY[section.privacy])
        return snmp.UsmUserData(section.user, auth, privacy, **protocols)


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


def _number(value: Any) -> float:
    """Raises MeterError for an answer that is no number; some agents write theirs as text."""
    kind = type(value).__name__
    if kind in ("NoSuchInstance", "NoSuchObject", "EndOfMibView"):
        raise MeterError("the agent does not have it", "unknown_name")
    try:
        return float(int(value)) if kind != "OctetString" else float(str(value))
    except (TypeError, ValueError):
        raise MeterError(f"{str(value)[:40]!r} is no number", "wrong_type") from None


def _code(error: Any) -> FaultCode:
    name = type(error).__name__
    if name == "RequestTimedOut":
        return "timeout"
    return "denied" if name in DENIED else "no_answer"
