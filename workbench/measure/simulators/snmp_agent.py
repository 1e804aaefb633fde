"""An SNMP agent, v2c and v3 (pysnmp's own responder)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pysnmp.carrier.asyncio.dgram import udp
from pysnmp.entity import config, engine
from pysnmp.entity.rfc3413 import cmdrsp, context
from pysnmp.proto.api import v2c
from pysnmp.smi import instrum

STARTS_WITHIN_S = 10.0


class SnmpAgent:
    """Answers for the OIDs of ``values``; what it holds for one may change at any time.

    values: OID -> what it shows now: a whole number, a text, or None for an OID that it does not
    have. v3: user, password of authentication (SHA-256), password of encryption (AES-128).
    """

    def __init__(
        self,
        values: Mapping[str, Callable[[], int | str | None]],
        community: str = "public",
        v3: tuple[str, str, str] | None = None,
    ) -> None:
        self._values, self._community, self._v3 = values, community, v3
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="snmp agent", daemon=True)
        self._thread.start()
        if not self._ready.wait(STARTS_WITHIN_S):
            raise TimeoutError("the SNMP agent did not start")

    def __enter__(self) -> SnmpAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Also in the middle of anything: questions are then not answered."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._engine.close_dispatcher()
        rest = asyncio.all_tasks(self._loop)
        for task in rest:
            task.cancel()
        if rest:
            self._loop.run_until_complete(asyncio.wait(rest))
        self._loop.close()

    async def _start(self) -> None:
        self._engine = engine.SnmpEngine()
        transport = udp.UdpTransport().open_server_mode(("127.0.0.1", 0))
        config.add_transport(self._engine, udp.DOMAIN_NAME, transport)
        config.add_v1_system(self._engine, "reader", self._community)
        config.add_vacm_user(self._engine, 2, "reader", "noAuthNoPriv", (1, 3, 6))
        if self._v3:
            user, auth, privacy = self._v3
            config.add_v3_user(
                self._engine,
                user,
                config.USM_AUTH_HMAC192_SHA256,
                auth,
                config.USM_PRIV_CFB128_AES,
                privacy,
            )
            config.add_vacm_user(self._engine, 3, user, "authPriv", (1, 3, 6))
        served = context.SnmpContext(self._engine)
        served.unregister_context_name(v2c.OctetString(""))
        served.register_context_name(v2c.OctetString(""), _Shown(self._values))
        cmdrsp.GetCommandResponder(self._engine, served)
        while transport.transport is None:
            await asyncio.sleep(0.001)
        self.port = transport.transport.get_extra_info("sockname")[1]


class _Shown(instrum.AbstractMibInstrumController):
    def __init__(self, values: Mapping[str, Callable[[], int | str | None]]) -> None:
        self._values = values

    def read_variables(self, *asked: Any, **_: Any) -> list[tuple[Any, Any]]:
        return [(oid, self._value(str(oid))) for oid, _ in asked]

    def _value(self, oid: str) -> Any:
        show = self._values.get(oid)
        value = show() if show else None
        if value is None:
            return v2c.NoSuchInstance()
        if isinstance(value, str):
            return v2c.OctetString(value)
        return v2c.Integer32(value) if value < 0 else v2c.Gauge32(value)
