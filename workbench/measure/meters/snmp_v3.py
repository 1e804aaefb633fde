"""An SNMP agent over v3, by pysnmp: with a user, and passwords of authentication and encryption."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.measure.meters.extra import library
from workbench.measure.meters.sample import FaultCode, MeterError
from workbench.measure.meters.secret import hidden
from workbench.measure.meters.snmp_message import SnmpValue

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
class V3User:
    """auth, privacy: keys of ``AUTHENTICATION`` and ``PRIVACY``, used where there is a password."""

    name: str
    auth: str
    auth_password: str | None
    privacy: str
    privacy_password: str | None


class SnmpV3:
    """Asks ``host``. Raises ConfigError without pysnmp."""

    def __init__(self, host: str, port: int, user: V3User, timeout_s: float) -> None:
        self._snmp = library("pysnmp.hlapi.v3arch.asyncio", "measure_ab.meters.snmp: user")
        if user.privacy_password:
            library("cryptography", "measure_ab.meters.snmp: privacy_env")
        self._host, self._port, self._timeout_s = host, port, timeout_s
        self._user = self._credentials(user)
        self._secrets = (user.auth_password, user.privacy_password)
        self._loop = asyncio.new_event_loop()
        self._engine: Any = None
        self._target: Any = None

    def get(self, oids: Sequence[str]) -> dict[str, SnmpValue]:
        """OID -> what the agent has for it. Raises MeterError, and what pysnmp raises."""
        return self._loop.run_until_complete(self._get(oids))

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

    async def _get(self, oids: Sequence[str]) -> dict[str, SnmpValue]:
        snmp = self._snmp
        if self._target is None:
            self._engine = snmp.SnmpEngine()
            self._target = await snmp.UdpTransportTarget.create(
                (self._host, self._port), timeout=self._timeout_s, retries=0
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
        return {str(oid): _plain(value) for oid, value in pairs}

    def _said(self, error: Any) -> str:
        if type(error).__name__ == "RequestTimedOut":
            return (
                f"no answer within {self._timeout_s:g} s: the host may be wrong, or the agent may "
                "not let this machine ask"
            )
        return hidden(str(error), *self._secrets)

    def _credentials(self, user: V3User) -> Any:
        protocols = {}
        if user.auth_password:
            protocols["authProtocol"] = getattr(self._snmp, AUTHENTICATION[user.auth])
        if user.privacy_password:
            protocols["privProtocol"] = getattr(self._snmp, PRIVACY[user.privacy])
        return self._snmp.UsmUserData(
            user.name, user.auth_password, user.privacy_password, **protocols
        )


def _plain(value: Any) -> SnmpValue:
    if type(value).__name__ in ("NoSuchInstance", "NoSuchObject", "EndOfMibView"):
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        return str(value)


def _code(error: Any) -> FaultCode:
    name = type(error).__name__
    if name == "RequestTimedOut":
        return "timeout"
    return "denied" if name in DENIED else "no_answer"
