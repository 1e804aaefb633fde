"""A Modbus TCP device (pymodbus's own server) whose registers follow functions."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Callable

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

STARTS_WITHIN_S = 10.0
REGISTERS = 4000


class ModbusPlayer:
    """values: address of the first register -> (format of :mod:`struct` such as ``f``, what it
    shows now). Input and holding registers are the same ones."""

    def __init__(self, values: dict[int, tuple[str, Callable[[], float]]]) -> None:
        self._values = values
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="modbus", daemon=True)
        self._thread.start()
        if not self._ready.wait(STARTS_WITHIN_S):
            raise TimeoutError("the Modbus device did not start")

    def __enter__(self) -> ModbusPlayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(server.shutdown())
        self._loop.close()

    async def _start(self) -> ModbusTcpServer:
        async def shown(
            _function: int,
            start: int,
            _address: int,
            _count: int,
            registers: list[int],
            _set: list[int] | list[bool] | None,
        ) -> None:
            for address, (code, value) in self._values.items():
                words = struct.unpack(
                    f">{struct.calcsize(code) // 2}H", struct.pack(f">{code}", value())
                )
                registers[address - start : address - start + len(words)] = words

        data = [SimData(0, count=REGISTERS, values=0, datatype=DataType.REGISTERS)]
        device = SimDevice(1, simdata=data, action=shown)
        server = ModbusTcpServer(device, address=("127.0.0.1", 0))
        await server.listen()
        self.port = server.transport.sockets[0].getsockname()[1]
        return server
