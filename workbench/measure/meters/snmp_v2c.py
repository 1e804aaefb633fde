"""An SNMP agent over v2c: one datagram to it, one back."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from secrets import randbelow

from workbench.measure.meters.sample import FaultCode, MeterError
from workbench.measure.meters.snmp_message import GetRequest, SnmpAnswer, SnmpValue, answer_of

LARGEST_BYTES = 65_535
DENIED = ("noAccess", "authorizationError")


class SnmpV2c:
    """Asks ``host``. A wrong community is not answered at all."""

    def __init__(self, host: str, port: int, community: str, timeout_s: float) -> None:
        self._host, self._port, self._community = host, port, community
        self._timeout_s = timeout_s
        self._oids: tuple[str, ...] = ()
        self._request: GetRequest | None = None
        self._socket: socket.socket | None = None

    def get(self, oids: Sequence[str]) -> dict[str, SnmpValue]:
        """OID -> what the agent has for it. Raises MeterError."""
        if self._request is None or tuple(oids) != self._oids:
            self._oids, self._request = tuple(oids), GetRequest(self._community, oids)
        try:
            answer = self._exchange(self._request)
        except TimeoutError:
            raise MeterError(
                f"no answer within {self._timeout_s:g} s: the host or the community may be wrong, "
                "or the agent may not let this machine ask",
                "timeout",
            ) from None
        except ConnectionRefusedError:
            raise MeterError(f"no agent answers at {self._host}:{self._port}") from None
        if answer.status != "noError":
            code: FaultCode = "denied" if answer.status in DENIED else "no_answer"
            named = oids[answer.at - 1] if 0 < answer.at <= len(oids) else "the request"
            raise MeterError(f"{named}: {answer.status}", code)
        return answer.values

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, request: GetRequest) -> SnmpAnswer:
        """Raises TimeoutError, or another OSError."""
        asked = self._socket or self._opened()
        number = randbelow(2**31)
        until_s = time.monotonic() + self._timeout_s
        asked.settimeout(self._timeout_s)
        asked.send(request.numbered(number))
        while True:
            try:
                answer = answer_of(asked.recv(LARGEST_BYTES))
            except ValueError:
                raise MeterError("the answer is none of SNMP v2c", "wrong_type") from None
            # One that came too late for the question before is of that one.
            if answer.number == number:
                return answer
            asked.settimeout(max(1e-3, until_s - time.monotonic()))

    def _opened(self) -> socket.socket:
        """Of this agent alone: what others send to it is not read."""
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        self._socket = socket.socket(family, kind, protocol)
        self._socket.connect(address)
        return self._socket
