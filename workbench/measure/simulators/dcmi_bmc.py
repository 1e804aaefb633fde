"""A server's BMC that knows its power, over IPMI 2.0 (pyghmi's BMC), as ``ipmitool`` asks it."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Any

from pyghmi.ipmi.bmc import Bmc
from pyghmi.ipmi.private.session import Session

DCMI_NETFN, POWER_READING, GROUP = 0x2C, 0x02, 0xDC
ACTIVE = 0x40


class DcmiBmc(Bmc):
    """Answers ``dcmi power reading`` with the whole watts that ``watts`` gives; None: it measures
    none. deaf: nothing is answered any more."""

    def __init__(self, watts: Callable[[], float | None], login: dict[str, str]) -> None:
        super().__init__(login, port=0, address="127.0.0.1")
        self._watts = watts
        self.deaf = False
        self.port = int(self.serversocket.getsockname()[1])
        threading.Thread(target=self._serve, name="bmc", daemon=True).start()

    def handle_raw_request(self, request: dict[str, Any], session: Any) -> None:
        if (request["netfn"], request["command"]) != (DCMI_NETFN, POWER_READING):
            return super().handle_raw_request(request, session)
        watts = self._watts()
        now = round(watts or 0)
        data = struct.pack(
            "<BHHHHIIB", GROUP, now, now, now, now, 0, 1000, 0 if watts is None else ACTIVE
        )
        return session.send_ipmi_response(data=list(data))

    def sessionless_data(self, data: Any, sockaddr: Any) -> None:
        if not self.deaf:
            super().sessionless_data(data, sockaddr)

    @staticmethod
    def _serve() -> None:
        while True:
            Session.wait_for_rsp(0.5)
